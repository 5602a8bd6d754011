"""`python -m dipdefense`, where the command `dipdefense` is not on the path."""

from dipdefense.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
