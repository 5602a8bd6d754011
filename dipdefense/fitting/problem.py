"""What a fit solves: min_theta loss(A(f_theta(z)), observed) + prior(f_theta(z)), one network for each image."""

import copy
import dataclasses
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from dipdefense.fitting.config import FitConfig, build_network
from dipdefense.fitting.inputs import INPUTS
from dipdefense.fitting.layers import Conv, is_small
from dipdefense.fitting.losses import COUNTING, LOSSES, SCALE_BLIND, Loss, least_squares_gain
from dipdefense.fitting.starts import RANDOM, find_start

__all__ = ["Degrade", "Prior", "Problem", "canvas", "check_shape", "build_problem", "per_row"]

DRAWING = threading.Lock()  # held while a module draws from the global generator, which all threads share
Degrade = Callable[[Tensor, Tensor], Tensor]  # (images (B, C, H, W), index (B,)) -> observed-like (B, ...)
Prior = Callable[[Tensor, Tensor], Tensor]  # (images (B, C, H, W), index (B,)) -> (B,), added to the loss


@dataclass(frozen=True)
class Problem:
    """Everything that stays the same during a fit."""

    net: nn.Module
    compiled: bool
    precision: torch.dtype  # of the network; theta, loss and Adam have the dtype of `observed`
    theta: dict[str, Tensor]  # initial parameters of the network, shared by all images
    observed: Tensor  # (N, C, H, W)
    z: Tensor  # (1 or N, C_in, H', W')
    jitter_seed: int
    rule_seed: int  # of what the stopping rule draws
    crop: tuple[slice | EllipsisType, ...]  # of the network's output
    degrade: Degrade
    loss: Loss
    prior: Prior | None
    blind: bool  # the loss does not depend on the scale of the output

    @cached_property
    def network(self) -> Callable[[Mapping[str, Tensor], Tensor], Tensor]:
        """(theta, z) -> images; if it is compiled, CUDA runs it as captured graphs."""

        def call(theta: Mapping[str, Tensor], z: Tensor) -> Tensor:
            image: Tensor = functional_call(self.net, dict(theta), (z,))
            return image

        mode = "reduce-overhead" if self.z.is_cuda else "default"
        return torch.compile(call, dynamic=False, mode=mode) if self.compiled else self._swapped

    def _swapped(self, theta: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """The same as `functional_call`, which looks for the place of every parameter at every call."""
        own = [(held, name, held[name]) for held, name in self._places.values()]
        for path, tensor in theta.items():
            held, name = self._places[path]
            held[name] = tensor
        try:
            image: Tensor = self.net(z)
            return image
        finally:
            for held, name, parameter in own:
                held[name] = parameter

    @cached_property
    def _places(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Of each parameter the dictionary of a module that holds it, and the name there."""
        paths = {path: path.rpartition(".") for path in self.theta}
        return {path: (self.net.get_submodule(module)._parameters, name) for path, (module, _, name) in paths.items()}

    def thread_copy(self, compiled: bool, *, alone: bool = False) -> "Problem":
        """A copy for another thread. Threads cannot share a module, which holds its parameters during a call.

        A thread that is `alone` needs no module of its own.
        """
        return dataclasses.replace(self, net=self.net if alone else copy.deepcopy(self.net), compiled=compiled)

    def generate(self, theta: Mapping[str, Tensor], z: Tensor) -> Tensor:
        """f_theta(z): parameters (B, ...), z (1 or B, C_in, H', W') -> (B, C, H, W); B = 1 may be left out."""
        name, first = next(iter(theta.items()))
        if first.dim() == self.theta[name].dim() and not is_small(z):
            theta = {name: parameter[None] for name, parameter in theta.items()}
        if self.precision == z.dtype:
            return self.network(theta, z)[self.crop]
        low = {name: parameter.to(self.precision) for name, parameter in theta.items()}
        return self.network(low, z.to(self.precision))[self.crop].to(z.dtype)

    def operator(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        """A for the images at `index` (B,): (B, C, H, W) -> observed-like (B, ...)."""
        return lambda images: self.degrade(images, index)

    def losses(
        self, theta: Mapping[str, Tensor], z: Tensor, index: Tensor, target: Tensor, hidden: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Loss of each image, (B,), and its iterate, (B, C, H, W).

        Where `hidden`, a bool mask like `target` (B, ...), is True, the values of `target` replace those of the
        network, so that these have neither error nor gradient.
        """
        output = self.generate(theta, z)
        degraded = self.degrade(output, index)
        if hidden is not None:
            degraded = torch.where(hidden, target, degraded)
        losses = self.loss(degraded, target, index)
        if self.prior is not None:
            losses = losses + self.prior(output, index)
        if losses.shape != index.shape:
            raise ValueError(f"loss must give one number an image, {tuple(index.shape)}, got {tuple(losses.shape)}")
        return losses, output * per_row(least_squares_gain(degraded, target)) if self.blind else output

    def bytes_per_image(self) -> float:
        """Estimate of the memory of one image in a fit, from what a step keeps for its backward pass."""
        storages: dict[int, int] = {}

        def weigh(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor.detach()  # the tensor itself would keep its graph alive

        first = torch.zeros(1, dtype=torch.long, device=self.observed.device)
        theta = {name: parameter[None].clone().requires_grad_() for name, parameter in self.theta.items()}
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
            output = self.losses(theta, self.z[:1], first, self.observed[:1])[1]
        # theta and its moments twice, the gradient, a copy of the weights in another layout; images
        state = 9 * sum(parameter.numel() for parameter in theta.values()) + 6 * output.numel()
        return 1.5 * sum(storages.values()) + state * output.element_size()  # and half as much for temporary tensors


def build_problem(
    observed: Tensor,
    config: FitConfig,
    seed: int,
    degrade: Degrade | None,
    z: Tensor | None,
    loss: Loss | None,
    prior: Prior | None = None,
    shape: tuple[int, int, int] | None = None,
) -> Problem:
    """The problem that the arguments of `fit` describe. Raises what `fit` raises for bad arguments."""
    observed = _checked(observed, "observed")
    if config.precision == "tf32" and observed.device.type != "cuda":
        raise ValueError(f"precision tf32 must run on a CUDA device, observed is on {observed.device}: use full")
    if config.precision != "full" and observed.dtype != torch.float32:
        raise ValueError(f"observed must be float32 for the precision {config.precision}, got {observed.dtype}")
    if loss is None and config.loss in COUNTING and (observed < 0).any():
        raise ValueError(f"observed must be at least 0 for the loss {config.loss}, which counts photons")
    C, H, W = _checked_shape(shape, observed)
    for_weights, for_z, for_jitter, for_rule = (int(s) for s in np.random.SeedSequence(seed).generate_state(4))
    with DRAWING, torch.random.fork_rng(devices=[]), torch.device("cpu"):  # modules draw from the global generator
        torch.default_generator.manual_seed(for_weights)
        net = build_network(config, C)
    stride = int(net.stride)  # type: ignore[arg-type]
    height, width = canvas(net, H, W)
    start = None if config.start == RANDOM else find_start(vars(config), C)
    if start is not None and z is not None:
        raise ValueError(
            f"z must be None where start is {config.start}, which has its own, got one: set start to random"
        )
    if start is not None:
        z = start.input(height, width).to(observed)
    elif z is None:
        with torch.device("cpu"):
            generator = torch.Generator().manual_seed(for_z)
            z = INPUTS[config.input](config.input_channels, height, width, generator=generator).to(observed)
    else:
        z = _checked(z, "z")
        _check_z(z, observed, config.input_channels, stride, canvas(net, 1, 1)[0], degrade, shape)
        if shape is None:
            H, W = z.shape[2:]
    top, left = ((side - inner) // 2 for side, inner in zip(z.shape[2:], (H, W), strict=True))
    crop = (..., slice(top, top + H), slice(left, left + W))
    if any(is_lazy(parameter) for parameter in net.parameters()):
        net(z[:1])  # a network may take its size from z
    initial = net.named_parameters() if start is None else start.theta.items()
    theta = {name: parameter.detach().to(observed) for name, parameter in initial}
    return Problem(
        net=net,
        compiled=False,
        precision=torch.bfloat16 if config.precision == "bfloat16" else observed.dtype,
        theta=theta,
        observed=observed,
        z=z,
        jitter_seed=for_jitter,
        rule_seed=for_rule,
        crop=crop,
        degrade=degrade or (lambda images, index: images),
        loss=loss or _without_index(LOSSES[config.loss]),
        prior=prior,
        blind=loss is None and config.loss in SCALE_BLIND,
    )


def _without_index(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda output, target, index: loss(output, target)


def canvas(net: nn.Module, height: int, width: int) -> tuple[int, int]:
    """The smallest sides, multiples of the network's stride, that hold an image and that the network accepts."""
    stride = int(net.stride)  # type: ignore[arg-type]
    widest = max((module.kernel_size[0] for module in net.modules() if isinstance(module, Conv)), default=1)
    least = max(2, widest // 2 + 1) * stride  # large enough to reflect the coarsest map at its border
    return max(least, math.ceil(height / stride) * stride), max(least, math.ceil(width / stride) * stride)


def per_row(rows: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1), one value for each image."""
    return rows.view(-1, 1, 1, 1)


def _checked(tensor: Tensor, name: str) -> Tensor:
    """A copy that autograd may use, even of an inference tensor."""
    if not isinstance(tensor, Tensor) or tensor.dtype not in (torch.float32, torch.float64):
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a float32 or float64 tensor, got {kind}: convert it")
    if tensor.dim() != 4 or tensor.numel() == 0:
        raise ValueError(f"{name} must be a non-empty (B, C, H, W), got shape {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return tensor.detach().clone()


def _checked_shape(shape: tuple[int, int, int] | None, observed: Tensor) -> tuple[int, int, int]:
    if shape is None:
        C, H, W = observed.shape[1:]
        return C, H, W
    check_shape(shape)
    return shape


def check_shape(shape: tuple[int, int, int]) -> None:
    """Raise unless a shape is three positive integers."""
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f"shape must be three positive integers (C, H, W), got {shape}")


def _check_z(
    z: Tensor,
    observed: Tensor,
    channels: int,
    stride: int,
    least: int,
    degrade: Degrade | None,
    shape: tuple[int, int, int] | None,
) -> None:
    if len(z) not in (1, len(observed)) or z.shape[1] != channels:
        wanted = f"(1 or {len(observed)}, {channels}, H, W)"
        raise ValueError(f"z must be {wanted}, got shape {tuple(z.shape)}: set input_channels to its channels")
    if z.dtype != observed.dtype or z.device != observed.device:
        raise ValueError(
            f"z must have the dtype and device of observed, {observed.dtype} on {observed.device}, "
            f"got {z.dtype} on {z.device}: convert one of them"
        )
    if any(side % stride or side < least for side in z.shape[2:]):
        raise ValueError(
            f"z must have sides that are multiples of the network's stride {stride}, at least {least}, "
            f"got {tuple(z.shape[2:])}: pad it, and crop in degrade"
        )
    if shape is not None:
        if any(side < inner for side, inner in zip(z.shape[2:], shape[1:], strict=True)):
            raise ValueError(f"z must be at least as large as shape, {tuple(shape[1:])}, got {tuple(z.shape[2:])}")
    elif degrade is None and z.shape[2:] != observed.shape[2:]:
        raise ValueError(
            f"z must have the size of observed, {tuple(observed.shape[2:])}, unless degrade maps one to the other, "
            f"got {tuple(z.shape[2:])}"
        )
