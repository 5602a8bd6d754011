"""The settings of one fit."""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dipdefense.arguments import check_integer
from dipdefense.fitting.inputs import INPUTS
from dipdefense.fitting.losses import LOSSES
from dipdefense.fitting.networks import ARCHITECTURES
from dipdefense.fitting.pixel_generator import Pixels
from dipdefense.fitting.starts import RANDOM, check_start
from dipdefense.stopping import STOPPING_RULES, StoppingRule

__all__ = ["GENERATORS", "PRECISIONS", "FitConfig", "build_network", "build_rule"]

GENERATORS: dict[str, type[nn.Module]] = {**ARCHITECTURES, "pixels": Pixels}
PRECISIONS = ("full", "tf32", "bfloat16")  # full: that of the images, without TF32 on CUDA


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings of one fit; defaults follow the denoising example of Ulyanov et al. (2018).

    Plain values only: `FitConfig(**json.loads(json.dumps(dataclasses.asdict(config)))) == config`.

    Raises:
        ValueError: a number out of its range, an unknown name (the message lists the known ones), an option
            that the architecture or the stopping rule does not have, a start for another network.
        FileNotFoundError: there is no file of that start.
    """

    architecture: str = "skip"  # a key of GENERATORS: one of ARCHITECTURES, or `pixels`, which is no network
    architecture_options: Mapping[str, Any] = field(default_factory=dict)  # keywords of its class
    input: str = "noise"  # a key of INPUTS
    input_channels: int = 32  # channels of z; 2 for the meshgrid
    # Parameters and z at the beginning: "random", drawn from the seed; "learned", the start that comes with the package
    # for this network; or a file of `dipdefense learn-start`, whose path gets its SHA-256 appended.
    start: str = RANDOM
    iterations: int = 3000  # upper bound; a stopping rule may end sooner
    lr: float = 1e-2  # Adam step size
    jitter: float = 1 / 30  # std of the Gaussian noise added to z at each iteration
    loss: str = "mse"  # a key of LOSSES
    ema: float = 0.0  # weight of the past in the average of iterates that is returned; 0: the iterate itself
    stopping: str = "fixed"  # a key of STOPPING_RULES
    stopping_options: Mapping[str, Any] = field(default_factory=dict)  # keywords of its class
    rollback_db: float = 5.0  # an image whose loss rises by more, in 10 log10, returns to its last good state
    # GiB; the fit works in chunks of images that stay within it. None: 60 % of what is free on a CUDA device, else 1.
    memory_gb: float | None = None
    precision: str = "full"  # of the network, one of PRECISIONS; weights, loss and Adam keep that of the images
    compile: bool = False  # run the network through torch.compile; on CUDA as captured graphs

    def __post_init__(self) -> None:
        for name, known in (
            ("architecture", GENERATORS),
            ("input", INPUTS),
            ("loss", LOSSES),
            ("stopping", STOPPING_RULES),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if not isinstance(self.start, str) or not self.start:
            raise ValueError(f"start must be random, learned or the path of a file, got {self.start!r}")
        numbers = ("lr", "rollback_db", *(("memory_gb",) if self.memory_gb is not None else ()))
        for name in ("jitter", "ema", *numbers):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} must be a number, got {value!r}")
        for name, least in (("iterations", 1), ("input_channels", 1)):
            check_integer(name, getattr(self, name), least)
        for name in numbers:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        if not (math.isfinite(self.jitter) and self.jitter >= 0):
            raise ValueError(f"jitter must be finite and not negative, got {self.jitter!r}")
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile must be True or False, got {self.compile!r}")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must lie in [0, 1), got {self.ema!r}")
        for name in ("architecture_options", "stopping_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"{name} must map names to values, got {getattr(self, name)!r}")
            plain = {k: list(v) if isinstance(v, tuple) else v for k, v in getattr(self, name).items()}
            object.__setattr__(self, name, plain)  # JSON has lists only
        with torch.device("meta"):  # on the meta device this checks the options and costs nothing
            net = build_network(self, out_channels=3)
        object.__setattr__(self, "start", check_start(vars(self), net))
        warm_up = build_rule(self).warm_up
        if warm_up > self.iterations:
            raise ValueError(
                f"iterations must be at least the {warm_up} iterates that {self.stopping} sees before it judges, "
                f"got {self.iterations}: raise it, or change stopping_options"
            )


def build_network(config: FitConfig, out_channels: int) -> nn.Module:
    """The network of a config, initialised from torch's global random generator like any module."""
    make = GENERATORS[config.architecture]
    _check_options(config.architecture, make, config.architecture_options)
    return make(config.input_channels, out_channels, **config.architecture_options)


def build_rule(config: FitConfig) -> StoppingRule:
    """A new stopping rule, as the config describes it."""
    make = STOPPING_RULES[config.stopping]
    _check_options(config.stopping, make, config.stopping_options)
    return make(**config.stopping_options)


def _check_options(name: str, make: type, options: Mapping[str, Any]) -> None:
    known = [p for p in inspect.signature(make).parameters if p not in ("in_channels", "out_channels")]
    for option in options:
        if option not in known:
            raise ValueError(f"{name} must be given options among {', '.join(known) or '(none)'}, got {option!r}")
