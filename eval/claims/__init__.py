"""What the documents behind the project claim, measured one by one: `dipdefense benchmark claims`."""

__all__: list[str] = []
