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

import torch
from torch import Tensor
from torch.optim.adam import adam

from dipdefense.config import FitConfig, build_rule
from dipdefense.losses import Loss
from dipdefense.problem import Degrade, Problem, per_row, pose

__all__ = ["FitResult", "Progress", "fit"]

CHECK_EVERY = 10  # iterations between two looks at who leaves and who rolls back
MAX_ROLLBACKS = 10  # an image that rolls back so often in a row has diverged
FITTED = 1e-4  # a loss below it (40 dB) counts as fitted: its ups and downs roll nothing back


@dataclass(frozen=True)
class FitResult:
    """What a fit returns, one row for each observed image."""

    reconstruction: Tensor  # (B, C, H, W) the chosen iterate
    chosen: Tensor  # (B,) its number, from 1
    iterations: Tensor  # (B,) iterations run
    stopped: Tensor  # (B,) bool: the stopping rule ended the fit
    seconds: float
    seed: int


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each iteration. The tensors are the engine's own: read, do not write."""

    iteration: int
    index: Tensor  # (B,) positions of the images that advance
    output: Tensor  # (B, C, H, W) the iterate; the last one before, where the loss jumped
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
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be None or an integer of at least 0, got {seed!r}")
    kind = observed.device.type if isinstance(observed, Tensor) else "cpu"
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(kind, enabled=False):
        problem = pose(observed, config, seed, degrade, z, loss)
        observed = problem.observed
        size = problem.chunk_size(config.memory_gb)
        outcome = _Outcome.empty(problem)
        everyone, finished = torch.arange(len(observed), device=observed.device), 0
        while finished < len(observed):
            index = everyone[finished : finished + size]
            try:
                _fit_chunk(problem, config, index, outcome, callback)
                finished += len(index)
            except RuntimeError as error:
                if not _out_of_memory(error) or len(index) == 1:
                    raise
                size = math.ceil(len(index) / 2)
                warnings.warn(f"out of memory: going on with chunks of {size} images; lower memory_gb", stacklevel=2)
    return FitResult(
        reconstruction=outcome.reconstruction,
        chosen=outcome.chosen,
        iterations=outcome.iterations,
        stopped=outcome.stopped,
        seconds=time.perf_counter() - start,
        seed=seed,
    )


@dataclass(frozen=True)
class _Outcome:
    """What stays of the images that left: all that grows with their number."""

    reconstruction: Tensor  # (N, C, H, W)
    chosen: Tensor  # (N,)
    iterations: Tensor  # (N,)
    stopped: Tensor  # (N,) bool

    @classmethod
    def empty(cls, problem: Problem) -> "_Outcome":
        N = len(problem.observed)
        with torch.no_grad():
            image = problem.generate(problem.theta, problem.z[:1])
        count = image.new_zeros(N, dtype=torch.long)
        return cls(image.new_zeros(N, *image.shape[1:]), count, count.clone(), count.bool())

    def take(self, batch: "_Batch") -> None:
        self.reconstruction[batch.index] = batch.best
        self.chosen[batch.index] = batch.chosen
        self.iterations[batch.index] = batch.iterations
        self.stopped[batch.index] = batch.stopped


@dataclass
class _Batch:
    """The state of the images that advance together; every tensor has one row an image."""

    index: Tensor  # (B,) positions in `observed`
    adam: Tensor  # (B, 3, P) theta and Adam's two moments
    step: Tensor  # (B,) Adam's step count
    saved_adam: Tensor  # both as they were at the last look with a sane loss: finite, and not above
    saved_step: Tensor  # the saved one by more than `rollback_db`
    saved_loss: Tensor  # (B,) the loss then
    rollbacks: Tensor  # (B,) times in a row that it returned there
    output: Tensor  # (B, C, H, W) last sane iterate
    average: Tensor  # (B, C, H, W) its moving average
    best: Tensor  # (B, C, H, W) the iterate to return so far
    chosen: Tensor  # (B,) its number
    iterations: Tensor  # (B,) iterations run
    stopped: Tensor  # (B,) bool: the rule says that it is done
    done: Tensor  # (B,) bool: it leaves at the next look

    def rows(self, mask: Tensor) -> "_Batch":
        return _Batch(*(getattr(self, f.name)[mask] for f in fields(self)))


def _fit_chunk(
    problem: Problem,
    config: FitConfig,
    index: Tensor,
    outcome: _Outcome,
    callback: Callable[[Progress], None] | None,
) -> None:
    """Fit the images at `index` together: the one fitting loop."""
    z, observed = problem.z, problem.observed[index]
    generator = torch.Generator(z.device).manual_seed(problem.jitter_seed)
    rule, batch, finished = build_rule(config), _begin(problem.theta, index, outcome), int(index[0])
    rise = 10 ** (config.rollback_db / 10)
    for iteration in range(1, config.iterations + 1):
        look = iteration == 1 or iteration % CHECK_EVERY == 0 or iteration == config.iterations
        noise = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=generator)
        here = (z if len(z) == 1 else z[batch.index]) + config.jitter * noise
        theta = batch.adam[:, 0].detach().requires_grad_()
        losses, output = problem.losses(theta, here, batch.index, observed)
        (gradient,) = torch.autograd.grad(losses.sum(), theta)
        with torch.no_grad():
            losses = losses.detach()
            sane = losses.isfinite() & (losses <= rise * batch.saved_loss.abs().clamp_min(FITTED))
            if look:
                _save(batch, sane, losses)
            _adam_step(batch, gradient, config.lr)
            if look:
                _roll_back(batch, sane)
            batch.output = torch.where(per_row(sane), output, batch.output)
            average = output.lerp(batch.average, config.ema if iteration > 1 else 0.0)
            batch.average = torch.where(per_row(sane), average, batch.average)
            better, stopped = rule.observe(batch.output, sane)
            better &= ~batch.stopped
            batch.best = torch.where(per_row(better), batch.average, batch.best)
            batch.chosen = batch.chosen.masked_fill(better, iteration)
            batch.stopped |= stopped
            batch.done |= stopped
            batch.iterations += 1
        if callback is not None:
            callback(Progress(iteration, batch.index, batch.output, batch.average, losses, finished))
        if look and batch.done.any():
            outcome.take(batch.rows(batch.done))
            finished += int(batch.done.sum())
            rule.keep(~batch.done)
            batch = batch.rows(~batch.done)
            observed = problem.observed[batch.index]
            if len(batch.index) == 0:
                return
    outcome.take(batch)


def _begin(theta: Tensor, index: Tensor, outcome: _Outcome) -> _Batch:
    B, canvas = len(index), outcome.reconstruction[index]
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
        stopped=no.clone(),
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


def _save(batch: _Batch, sane: Tensor, losses: Tensor) -> None:
    """Keep the state whose loss is sane, before Adam moves it on."""
    hopeless = ~sane & batch.saved_loss.isinf()
    if hopeless.any():
        images = batch.index[hopeless].tolist()
        raise RuntimeError(f"the fit of images {images} must be finite from its start: lower lr, or check the loss")
    if sane.all():
        batch.saved_adam.copy_(batch.adam)
    else:
        batch.saved_adam = torch.where(per_row(sane)[..., 0], batch.adam, batch.saved_adam)
    batch.saved_step = torch.where(sane, batch.step, batch.saved_step)
    batch.saved_loss = torch.where(sane, losses, batch.saved_loss)


def _roll_back(batch: _Batch, sane: Tensor) -> None:
    """Return the images whose loss is not sane to the state kept last; end those that return for ever."""
    batch.rollbacks = torch.where(sane, 0, batch.rollbacks + 1)
    if sane.all():
        return
    batch.adam = torch.where(per_row(sane)[..., 0], batch.adam, batch.saved_adam)
    batch.step = torch.where(sane, batch.step, batch.saved_step)
    diverged = (batch.rollbacks >= MAX_ROLLBACKS) & ~batch.done
    if diverged.any():
        images = batch.index[diverged].tolist()
        warnings.warn(f"the fit of images {images} keeps diverging and was ended early: lower lr", stacklevel=4)
        batch.done |= diverged


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA has a class for it; MPS and the CPU's allocator say it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
