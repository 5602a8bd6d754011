"""`python -m dipdefense`, where the command `dipdefense` is not on the path."""

from dipdefense.cli import main

main()
