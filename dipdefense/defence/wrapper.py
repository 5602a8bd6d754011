"""A module around a classifier that keeps the classifier's state dict, and shallow copies of modules."""

from collections.abc import Mapping
from copy import copy
from typing import Any, TypeVar

from torch import Tensor, nn

__all__ = ["Wrapper", "shallow_copy"]

Module = TypeVar("Module", bound=nn.Module)

INSIDE = (
    "what the classifier holds is under .classifier, and functional_call takes the names of named_parameters() and "
    "named_buffers()"
)


def shallow_copy(module: Module) -> Module:
    """A copy whose attributes can be set without changing the original's; it shares parameters and children."""
    twin = copy(module)
    # parameters, buffers, children and hooks are in dicts that the copy would share
    vars(twin).update({name: value.copy() for name, value in vars(module).items() if isinstance(value, dict)})
    return twin


class Wrapper(nn.Module):
    """A module around a classifier whose `state_dict` has the classifier's own keys, alone or inside another model.

    `named_parameters` and `named_buffers` give paths from the wrapper, such as `classifier.fc.weight`: as everywhere in
    torch, `torch.func.functional_call` takes these names, and not the keys of `state_dict`.

    The mode is that of the classifier. Libraries that put a model in eval mode and back read the mode of the outermost
    module alone, so a wrapper starts in training mode only if every module of the classifier is in that mode.

    Raises:
        TypeError: the classifier is not a module.
    """

    def __init__(self, classifier: nn.Module):
        super().__init__()
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"classifier must be a torch.nn.Module, got {type(classifier).__name__}")
        self.classifier = classifier
        self.training = all(module.training for module in classifier.modules())

    def __getattr__(self, name: str) -> Any:
        """Name the place to look at if an attribute is not found."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            raise AttributeError(f"{error}: {INSIDE}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a tensor that would hide one of the classifier's, as `functional_call` with its keys would set it."""
        if isinstance(value, Tensor) and name in {**self.classifier._parameters, **self.classifier._buffers}:
            raise AttributeError(f"{name} must not be set on {type(self).__name__}: {INSIDE}")
        super().__setattr__(name, value)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The state dict of the classifier."""
        return self.classifier.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load into the classifier; its errors are raised."""
        return self.classifier.load_state_dict(state_dict, strict=strict, assign=assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Pass the keys on to the classifier, when a model around this one loads."""
        own = {key: state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)}
        state_dict.update({f"{prefix}classifier.{key.removeprefix(prefix)}": value for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *rest)
