"""Attack libraries of the extra `eval`, imported where an attack needs them."""

import contextlib
import io
from importlib import import_module
from typing import Any

import torch
from torch import nn

__all__ = ["library", "torchattack"]


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


def torchattack(name: str, classifier: nn.Module, device: torch.device, **settings: Any) -> Any:
    """The attack of torchattacks with this name there, in silence: it prints if a classifier has no parameters.

    Raises:
        ImportError: as `library`.
    """
    with contextlib.redirect_stdout(io.StringIO()):
        attack = getattr(library("torchattacks"), name)(classifier, **settings)
    attack.set_device(device)
    return attack
