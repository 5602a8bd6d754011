"""The fitting loop of the deep image prior, for many images at once.

Each image i has its own network theta_i, and all of them advance together:

    theta_i <- Adam( d/dtheta_i  loss(A(f_theta_i(z + jitter)), observed_i) )

The parameters of B networks are the rows of one (B, P) tensor. The losses are summed, never averaged, and
nothing is clipped globally, so B images advance exactly as each would alone. Weights, z and jitter are functions
of the seed and the iteration, never of the batch.

Source: Ulyanov, Vedaldi, Lempitsky (2018), "Deep image prior", eq. (2) and section 3.
"""

import math
import secrets
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import EllipsisType

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.adam import adam

from dipdefense.config import FitConfig, build_network, build_rule
from dipdefense.inputs import INPUTS
from dipdefense.losses import LOSSES, SCALE_BLIND, Loss, least_squares_gain

__all__ = ["FitResult", "Progress", "fit"]

CHECK_EVERY = 10  # iterations between two looks at who leaves and who rolls back
MAX_ROLLBACKS = 10  # an image that rolls back more often in a row has diverged
FITTED = 1e-4  # a loss below it (40 dB) counts as fitted: its ups and downs roll nothing back

Degrade = Callable[[Tensor, Tensor], Tensor]  # (images (B, C, H, W), index (B,)) -> observed-like (B, ...)


@dataclass(frozen=True)
class FitResult:
    """What a fit returns, one row for each observed image."""

    reconstruction: Tensor  # (B, C, H, W) the chosen iterate
    chosen: Tensor  # (B,) its number, from 1
    iterations: Tensor  # (B,) iterations run
    stopped: Tensor  # (B,) bool: the stopping rule ended the fit before its upper bound
    seconds: float
    seed: int


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each iteration. The tensors are the engine's own: read, do not write."""

    iteration: int
    index: Tensor  # (B,) positions of the images that advance
    output: Tensor  # (B, C, H, W) the iterate
    average: Tensor  # (B, C, H, W) its moving average; the iterate itself if `ema` is 0
    loss: Tensor  # (B,)
    finished: int  # images done before


def fit(
    observed: Tensor,
    config: FitConfig | None = None,
    *,
    seed: int | None = 0,
    degrade: Degrade | None = None,
    z: Tensor | None = None,
    loss: Loss | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Fit one network to each observed image and return the iterate that the stopping rule chooses.

    Args:
        observed: what is fitted, (N, C, H, W); floating, finite; its device and dtype are those of the fit.
        config: numbers of the fit; `FitConfig()` if None.
        seed: gives weights, z and jitter; None for fresh entropy (`FitResult.seed` tells which).
        degrade: A, `degrade(images, index)`; `index` holds the positions in `observed`. Identity if None.
        z: network input, (1 or N, input_channels, H', W'), H' and W' multiples of the network's stride; the
            reconstruction has its size. If None it is drawn, larger than the image where the stride asks for
            it: the loss then sees the central crop alone.
        loss: `loss(A(output), observed, index) -> (B,)`, in place of `config.loss`.
        callback: called with a `Progress` after every iteration; an exception that it raises ends the fit.

    Returns:
        A `FitResult`; its reconstruction has no gradient.

    Raises:
        TypeError: `observed` is no floating tensor.
        ValueError: a shape that does not fit, values that are not finite, a memory budget below one image.
        RuntimeError: the fit is not finite from its first iteration on.
    """
    start = time.perf_counter()
    config = config or FitConfig()
    seed = secrets.randbits(32) if seed is None else seed
    with torch.inference_mode(False), torch.enable_grad():
        observed = _checked(observed, "observed")
        problem, theta, jitter_seed = _pose(observed, config, seed, degrade, z, loss)
        everyone = torch.arange(len(observed), device=observed.device)
        size = _chunk_size(problem, theta, config)
        parts: list[_Batch] = []
        while (finished := sum(len(part.index) for part in parts)) < len(observed):
            index = everyone[finished : finished + size]
            try:
                parts += _fit_chunk(problem, config, jitter_seed, theta, index, callback, finished)
            except RuntimeError as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                size = math.ceil(len(index) / 2)
                warnings.warn(f"out of memory: going on with chunks of {size} images; lower memory_gb", stacklevel=2)
    order = torch.cat([part.index for part in parts]).argsort()
    iterations = torch.cat([part.iterations for part in parts])[order]
    return FitResult(
        reconstruction=torch.cat([part.best for part in parts])[order],
        chosen=torch.cat([part.chosen for part in parts])[order],
        iterations=iterations,
        stopped=iterations < config.iterations,
        seconds=time.perf_counter() - start,
        seed=seed,
    )


@dataclass(frozen=True)
class _Problem:
    """All that does not change along a fit: min_theta loss(A(f_theta(z)), observed)."""

    net: nn.Module
    shapes: dict[str, torch.Size]  # of the network's parameters, in the order of theta's columns
    observed: Tensor  # (N, ...)
    z: Tensor  # (1 or N, C_in, H', W')
    crop: tuple[slice | EllipsisType, ...]  # of the network's output
    degrade: Degrade
    loss: Loss
    blind: bool  # the loss does not see the scale of the output

    def generate(self, theta: Tensor, z: Tensor) -> Tensor:
        """f_theta(z): (B, P), (1 or B, C_in, H', W') -> (B, C, H, W)."""
        columns = torch.split(theta, [shape.numel() for shape in self.shapes.values()], dim=1)
        stacked = {
            name: column.view(len(theta), *shape)
            for (name, shape), column in zip(self.shapes.items(), columns, strict=True)
        }
        image: Tensor = functional_call(self.net, stacked, (z,))
        return image[self.crop]

    def losses(self, theta: Tensor, z: Tensor, index: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of each image, (B,), and its iterate, (B, C, H, W), without gradient."""
        output = self.generate(theta, z)
        degraded = self.degrade(output, index)
        losses = self.loss(degraded, observed, index)
        if losses.shape != index.shape:
            raise ValueError(f"loss must give one number an image, {tuple(index.shape)}, got {tuple(losses.shape)}")
        output, degraded = output.detach(), degraded.detach()
        return losses, output * _per_row(least_squares_gain(degraded, observed)) if self.blind else output


@dataclass
class _Batch:
    """The state of the images that advance together; every tensor has one row an image."""

    index: Tensor  # (B,) positions in `observed`
    adam: Tensor  # (B, 3, P) theta and Adam's two moments
    step: Tensor  # (B,) Adam's step count
    saved_adam: Tensor  # both as they were at the last good look
    saved_step: Tensor
    saved_loss: Tensor  # (B,) the loss then
    rollbacks: Tensor  # (B,) times in a row that it returned there
    sane: Tensor  # (B,) bool: the last loss is finite, and not above the saved one by more than `rollback_db`
    output: Tensor  # (B, C, H, W) last sane iterate
    average: Tensor  # (B, C, H, W) its moving average
    best: Tensor  # (B, C, H, W) the iterate to return so far
    chosen: Tensor  # (B,) its number
    iterations: Tensor  # (B,) iterations run
    done: Tensor  # (B,) bool

    def rows(self, mask: Tensor) -> "_Batch":
        return _Batch(*(getattr(self, f.name)[mask] for f in fields(self)))


def _fit_chunk(
    problem: _Problem,
    config: FitConfig,
    seed: int,
    theta: Tensor,
    index: Tensor,
    callback: Callable[[Progress], None] | None,
    finished: int,
) -> list[_Batch]:
    """Fit the images at `index` together: the one fitting loop. Returns the batches in the order they left."""
    z, observed = problem.z, problem.observed[index]
    generator = torch.Generator(z.device).manual_seed(seed)
    rule, batch, left = build_rule(config), _begin(problem, theta, index), []
    rise = 10 ** (config.rollback_db / 10)
    for iteration in range(1, config.iterations + 1):
        noise = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=generator)
        here = (z if len(z) == 1 else z[batch.index]) + config.jitter * noise
        theta = batch.adam[:, 0].detach().requires_grad_()
        losses, output = problem.losses(theta, here, batch.index, observed)
        (gradient,) = torch.autograd.grad(losses.sum(), theta)
        with torch.no_grad():
            _adam_step(batch, gradient, config.lr)
            losses = losses.detach()
            worst = rise * batch.saved_loss.abs().clamp_min(FITTED)
            batch.sane = losses.isfinite() & (losses <= worst)
            batch.output = torch.where(_per_row(batch.sane), output, batch.output)
            past = config.ema if iteration > 1 else 0.0
            batch.average = batch.output.lerp(batch.average, past)
            better, done = rule.observe(iteration, batch.output)
            better &= ~batch.done
            batch.best = torch.where(_per_row(better), batch.average, batch.best)
            batch.chosen = batch.chosen.masked_fill(better, iteration)
            batch.done |= done
            batch.iterations += 1
        if callback is not None:
            callback(Progress(iteration, batch.index, batch.output, batch.average, losses, finished))
        if iteration % CHECK_EVERY == 0 or iteration == config.iterations:
            _save_or_roll_back(batch, losses)
            if batch.done.any():
                left.append(batch.rows(batch.done))
                finished += len(left[-1].index)
                rule.keep(~batch.done)
                batch = batch.rows(~batch.done)
                observed = problem.observed[batch.index]
                if len(batch.index) == 0:
                    return left
    return [*left, batch]


def _begin(problem: _Problem, theta: Tensor, index: Tensor) -> _Batch:
    B = len(index)
    with torch.no_grad():
        canvas = torch.zeros_like(problem.generate(theta, problem.z[:1])).expand(B, -1, -1, -1)
    adam = torch.zeros(B, 3, theta.shape[1], dtype=theta.dtype, device=theta.device)
    adam[:, 0] = theta
    step = torch.zeros(B, dtype=torch.float32, device=theta.device)
    count = torch.zeros_like(index)
    no = torch.zeros_like(index, dtype=torch.bool)
    return _Batch(
        index=index,
        adam=adam,
        step=step,
        saved_adam=adam.clone(),
        saved_step=step.clone(),
        saved_loss=torch.full_like(step, math.inf, dtype=theta.dtype),
        rollbacks=count.clone(),
        sane=no.clone(),
        output=canvas,
        average=canvas,
        best=canvas,
        chosen=count.clone(),
        iterations=count.clone(),
        done=no.clone(),
    )


def _adam_step(batch: _Batch, gradient: Tensor, lr: float) -> None:
    """One step of Adam (Kingma and Ba, 2015), in place; every image is a tensor with a step count of its own."""
    adam(
        list(batch.adam[:, 0].unbind()),
        list(gradient.unbind()),
        list(batch.adam[:, 1].unbind()),
        list(batch.adam[:, 2].unbind()),
        max_exp_avg_sqs=[],
        state_steps=list(batch.step.unbind()),
        fused=True,
        amsgrad=False,
        beta1=0.9,
        beta2=0.999,
        lr=lr,
        weight_decay=0.0,
        eps=1e-8,
        maximize=False,
    )


def _save_or_roll_back(batch: _Batch, losses: Tensor) -> None:
    """Keep the state of images that fit as well as before; the others return to the state kept last."""
    sane = batch.sane
    if sane.all():
        batch.saved_adam.copy_(batch.adam)
        batch.saved_step.copy_(batch.step)
        batch.saved_loss = losses
        batch.rollbacks.zero_()
        return
    hopeless = ~sane & batch.saved_loss.isinf()
    if hopeless.any():
        images = batch.index[hopeless].tolist()
        raise RuntimeError(f"the fit of images {images} must be finite from its start: lower lr, or check the loss")
    rows = sane.view(-1, 1, 1)
    kept, step = (
        torch.where(rows, batch.adam, batch.saved_adam),
        torch.where(sane, batch.step, batch.saved_step),
    )
    batch.adam, batch.saved_adam = kept, kept.clone()
    batch.step, batch.saved_step = step, step.clone()
    batch.saved_loss = torch.where(sane, losses, batch.saved_loss)
    batch.rollbacks = torch.where(sane, 0, batch.rollbacks + 1)
    diverged = batch.rollbacks > MAX_ROLLBACKS
    if diverged.any():
        warnings.warn(
            f"the fit of images {batch.index[diverged].tolist()} keeps diverging and was ended early: lower lr",
            stacklevel=4,
        )
        batch.done |= diverged


def _pose(
    observed: Tensor,
    config: FitConfig,
    seed: int,
    degrade: Degrade | None,
    z: Tensor | None,
    loss: Loss | None,
) -> tuple[_Problem, Tensor, int]:
    """The problem, the initial parameters (1, P) that all images share, and the seed of the jitter."""
    C, H, W = observed.shape[1:]
    for_weights, for_z, for_jitter = (int(s) for s in np.random.SeedSequence(seed).generate_state(3))
    with torch.random.fork_rng(devices=[]):  # modules initialise themselves from the global generator
        torch.default_generator.manual_seed(for_weights)
        net = build_network(config, C)
    theta = nn.utils.parameters_to_vector(net.parameters()).detach()[None].to(observed)
    stride = int(net.stride)  # type: ignore[arg-type]
    crop: tuple[slice | EllipsisType, ...] = (...,)
    if z is None:
        height, width = (max(2 * stride, math.ceil(side / stride) * stride) for side in (H, W))
        generator = torch.Generator().manual_seed(for_z)
        z = INPUTS[config.input](config.input_channels, height, width, generator=generator).to(observed)
        top, left = (height - H) // 2, (width - W) // 2
        crop = (..., slice(top, top + H), slice(left, left + W))
    else:
        z = _checked(z, "z").to(observed)
        _check_z(z, observed, config.input_channels, stride, degrade)
    problem = _Problem(
        net=net,
        shapes={name: parameter.shape for name, parameter in net.named_parameters()},
        observed=observed,
        z=z,
        crop=crop,
        degrade=degrade or (lambda images, index: images),
        loss=loss or (lambda output, target, index: LOSSES[config.loss](output, target)),
        blind=loss is None and config.loss in SCALE_BLIND,
    )
    return problem, theta, for_jitter


def _checked(tensor: Tensor, name: str) -> Tensor:
    """A copy that autograd may use, even of an inference tensor."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating tensor, got {kind}")
    if tensor.dim() != 4 or tensor.numel() == 0:
        raise ValueError(f"{name} must be a non-empty (B, C, H, W), got shape {tuple(tensor.shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return tensor.detach().clone()


def _check_z(z: Tensor, observed: Tensor, channels: int, stride: int, degrade: Degrade | None) -> None:
    if len(z) not in (1, len(observed)) or z.shape[1] != channels:
        wanted = f"(1 or {len(observed)}, {channels}, H, W)"
        raise ValueError(f"z must be {wanted}, got shape {tuple(z.shape)}: set input_channels to its channels")
    if any(side % stride or side < 2 * stride for side in z.shape[2:]):
        raise ValueError(
            f"z must have sides that are multiples of the network's stride {stride}, at least {2 * stride}, "
            f"got {tuple(z.shape[2:])}: pad it, and crop in degrade"
        )
    if degrade is None and z.shape[2:] != observed.shape[2:]:
        raise ValueError(
            f"z must have the size of observed, {tuple(observed.shape[2:])}, unless degrade maps one to the other, "
            f"got {tuple(z.shape[2:])}"
        )


def _chunk_size(problem: _Problem, theta: Tensor, config: FitConfig) -> int:
    """How many images fit into the memory budget, by what one step of one image keeps for its backward pass."""
    storages: dict[int, int] = {}

    def weigh(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    first = torch.zeros(1, dtype=torch.long, device=theta.device)
    with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
        output = problem.losses(theta.clone().requires_grad_(), problem.z[:1], first, problem.observed[:1])[1]
    state = 9 * theta.numel() + 6 * output.numel()  # Adam twice, gradient, weights laid out anew; _Batch's images
    one = 1.5 * sum(storages.values()) + state * theta.element_size()  # half as much again in flight
    budget = config.memory_gb * 2**30
    if one > budget:
        raise ValueError(f"memory_gb must be at least {one / 2**30:.3f} for one image, got {config.memory_gb}")
    return int(budget // one)


def _per_row(rows: Tensor) -> Tensor:
    return rows.view(-1, 1, 1, 1)


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
