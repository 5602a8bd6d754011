"""A module around a classifier that keeps the classifier's state dict, and copies that share what they hold."""

from collections.abc import Mapping
from copy import copy
from typing import Any, TypeVar

from torch import nn

__all__ = ["Wrapper", "apart"]

Module = TypeVar("Module", bound=nn.Module)


def apart(module: Module) -> Module:
    """A copy whose attributes can be set without changing the original's; it shares parameters and children."""
    twin = copy(module)
    # parameters, buffers, children and hooks stand in dicts that the copy would share
    vars(twin).update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    return twin


class Wrapper(nn.Module):
    """Around a classifier: `state_dict` holds the classifier's own keys, and loads from them, alone or inside a model.

    Raises:
        TypeError: the classifier is no module.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
        self.classifier = classifier

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """That of the classifier."""
        return self.classifier.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Into the classifier, whose errors these are."""
        return self.classifier.load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Called where a model around this one loads: hands the keys on to the classifier."""
        own = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
        state_dict.update({f"{prefix}classifier.{key.removeprefix(prefix)}": value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)
