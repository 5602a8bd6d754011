"""The command `dipdefense`; this package alone imports attacks and eval, inside its functions."""

from dipdefense.cli.main import app, main

__all__ = ["app", "main"]
