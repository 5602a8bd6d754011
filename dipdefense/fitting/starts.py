"""Learned starts: parameters and an input of the network from which a fit needs a fraction of the iterations.

A start replaces what the seed would draw: the initial parameters theta and the input z. It belongs to one architecture
and, through z, to images up to one size. `dipdefense.fitting.learn_start` learns them. A start is a safetensors file;
those that come with the package are in `learned_starts/`.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from dipdefense.whole_file import replacing

__all__ = ["LEARNED", "RANDOM", "Start", "check_start", "find_start", "read_start"]

RANDOM, LEARNED = "random", "learned"  # values of `FitConfig.start`; every other is a file
SHIPPED = Path(__file__).with_name("learned_starts")
RECIPE = "recipe"  # key of the file's metadata
Z = "z"  # key of the network input; every other tensor is a parameter
DIGITS = 16  # hex digits of a file's SHA-256 that follow its path in `FitConfig.start`
NETWORK = ("architecture", "architecture_options", "input", "input_channels")  # the settings that a start is tied to


@dataclass(frozen=True)
class Start:
    """Where a fit begins."""

    theta: Mapping[str, Tensor]  # initial parameters by their names in the network
    z: Tensor  # (1, C_in, H, W), the input of the network
    recipe: Mapping[str, Any]  # plain values: `fit`, the settings that it is for, and how it was learnt

    def save(self, path: str | Path) -> None:
        """Write a safetensors file. What was at the path is replaced at once, or stays.

        Raises:
            OSError: the folder is missing or cannot be written to.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in {**self.theta, Z: self.z}.items()}
        content = save(tensors, {RECIPE: json.dumps(dict(self.recipe))})
        with replacing(Path(path)) as file:
            file.write(content)

    def input(self, height: int, width: int) -> Tensor:
        """The central part of z, (1, C_in, height, width).

        Raises:
            ValueError: z is smaller.
        """
        H, W = self.z.shape[2:]
        if height > H or width > W:
            raise ValueError(
                f"start must be one for images of at least {height}x{width}, this one is for up to {H}x{W}: cut the "
                f"images into tiles (Purifier(tile={min(H, W)})), or set start to {RANDOM!r}"
            )
        top, left = (H - height) // 2, (W - width) // 2
        return self.z[..., top : top + height, left : left + width]


def read_start(path: str | Path) -> Start:
    """Read the file of a start; nothing in it is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or none that `Start.save` wrote.
    """
    return _parsed(_content(path), path)


def _content(path: str | Path) -> bytes:
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"start must be {RANDOM}, {LEARNED} or a file that `dipdefense learn-start` wrote, {path} does not exist"
        )
    return Path(path).read_bytes()


def _parsed(content: bytes, path: str | Path) -> Start:
    try:
        tensors, length = load(content), int.from_bytes(content[:8], "little")  # of the header, which is JSON
        recipe = json.loads(json.loads(content[8 : 8 + length]).get("__metadata__", {}).get(RECIPE, "{}"))
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    z = tensors.pop(Z, None)
    fitted = recipe.get("fit") if isinstance(recipe, dict) else None
    if z is None or z.dim() != 4 or not isinstance(fitted, dict) or not all(name in fitted for name in NETWORK):
        raise ValueError(f"{path} must hold a start with its recipe: write it with `dipdefense learn-start`")
    return Start(tensors, z, recipe)


def _read_named(named: str) -> tuple[Start, str]:
    """The start of a file that a configuration names, and the name with the digits of its SHA-256."""
    path, digits = _split(named)
    content = _content(path)
    found = hashlib.sha256(content).hexdigest()[:DIGITS]
    if digits not in ("", found):
        raise ValueError(f"start must be the file that the settings name, {path} now has the SHA-256 {found}...")
    return _parsed(content, path), f"{path}@{found}"


def check_start(settings: Mapping[str, Any], net: nn.Module) -> str:
    """The `start` of a configuration, complete: the digits of its SHA-256 are appended to the path of a file.

    Args:
        settings: of a `FitConfig`; its network must be that of the start.
        net: this network, which may be on the meta device; its number of output channels does not matter.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no start comes with the package for this network; the file is no start, one for another network, or
            another one than when the digits were appended; a network whose parameters depend on the image.
    """
    named = settings["start"]
    if named == RANDOM:
        return RANDOM
    if any(is_lazy(parameter) for parameter in net.parameters()):
        raise ValueError(
            f"start must be {RANDOM!r} for {settings['architecture']}, which takes its size from the image"
        )
    if named == LEARNED:
        if not any(_is_for(settings, start) for start in _shipped()):
            raise ValueError(
                f"start must be {RANDOM!r} or a file for this network, for which no start comes with the package: "
                "learn one with `dipdefense learn-start`"
            )
        return LEARNED
    start, named = _read_named(named)
    if not _is_for(settings, start):
        path, wanted = _split(named)[0], {name: start.recipe["fit"][name] for name in NETWORK}
        raise ValueError(f"start must be one for the network of the fit, {path} is for {json.dumps(wanted)}")
    names = {name: parameter.shape[1:] for name, parameter in net.named_parameters()}
    if names != {name: parameter.shape[1:] for name, parameter in start.theta.items()}:
        raise ValueError(f"{named} must hold the parameters of its network, as another version did not: learn it again")
    return named


def find_start(settings: Mapping[str, Any], channels: int) -> Start:
    """The learned start of a configuration for images with so many channels.

    Raises:
        FileNotFoundError, ValueError: as `check_start`; or the start is for another number of channels.
    """
    if settings["start"] == LEARNED:
        known = [start for start in _shipped() if _is_for(settings, start)]
    else:
        known = [_read_named(settings["start"])[0]]
    for start in known:
        if start.recipe["channels"] == channels:
            return start
    have = " or ".join(str(start.recipe["channels"]) for start in known)
    raise ValueError(f"start must be one for {channels} channels, got one for {have}: set it to {RANDOM!r}")


@functools.cache
def _shipped() -> tuple[Start, ...]:
    return tuple(read_start(path) for path in sorted(SHIPPED.glob("*.safetensors")))


def _is_for(settings: Mapping[str, Any], start: Start) -> bool:
    return all(settings[name] == start.recipe["fit"][name] for name in NETWORK)


def _split(start: str) -> tuple[str, str]:
    """Path and digits; the digits are empty where none were appended."""
    path, at, digits = start.rpartition("@")
    appended = at and len(digits) == DIGITS and all(digit in "0123456789abcdef" for digit in digits)
    return (path, digits) if appended else (start, "")
