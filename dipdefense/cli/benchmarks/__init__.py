"""The commands `dipdefense benchmark ...`, by what they measure."""

__all__: list[str] = []
