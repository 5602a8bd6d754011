"""Attack libraries of the extra `eval`, imported where an attack needs them."""

from importlib import import_module
from typing import Any

__all__ = ["library"]


def library(module: str) -> Any:
    """A module of an attack library.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f'this attack needs {package}: python -m pip install "dipdefense[eval]"') from error
