"""The fitting loop of the deep image prior, for many images at once.

Each image i has its own network theta_i, and all of them advance together:

    theta_i <- Adam( d/dtheta_i  loss(A(f_theta_i(z + jitter)), observed_i) )

Each parameter of B networks is one tensor with a leading dimension B. The losses are summed, never averaged, and
nothing is clipped globally, so B images advance exactly as each would alone. Weights, z and jitter are functions
of the seed and the iteration, never of the batch. On the CPU chunks of images are fitted side by side, which divide
torch's threads among them: its kernels are too short for several.

Source: Ulyanov, Vedaldi, Lempitsky (2018), "Deep image prior", eq. (2) and section 3.
"""

import contextlib
import math
import secrets
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dipdefense.fitting.config import FitConfig, build_rule
from dipdefense.fitting.losses import Loss
from dipdefense.fitting.problem import Degrade, Prior, Problem, build_problem, per_row
from dipdefense.fitting.state import Batch
from dipdefense.stopping import Iterate

__all__ = ["FitResult", "Progress", "fit", "is_out_of_memory", "fit_context"]

CHECK_EVERY = 10  # iterations between two looks at who leaves and who rolls back
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
    sane: Tensor  # (B,) bool: the loss did not jump
    share: float  # of the work that is done, in [0, 1]; an image that stopped early counts in full


def fit(
    observed: Tensor,
    config: FitConfig | None = None,
    *,
    seed: int | None = 0,
    degrade: Degrade | None = None,
    z: Tensor | None = None,
    loss: Loss | None = None,
    prior: Prior | None = None,
    shape: tuple[int, int, int] | None = None,
    callback: Callable[[Progress], None] | None = None,
) -> FitResult:
    """Fit one network to each observed image and return the iterate that the stopping rule chooses.

    Args:
        observed: what is fitted, (N, C, H, W); floating, finite; its device and dtype are those of the fit.
        config: numbers of the fit; `FitConfig()` if None.
        seed: gives weights, z and jitter; None for fresh entropy (`FitResult.seed` tells which).
        degrade: A, `degrade(images, index)`; `index` holds the positions in `observed`. Identity if None. Several
            threads may call it at once, and `loss` too, unless `torch.set_num_threads(1)`.
        z: network input, (1 or N, input_channels, H', W'), H' and W' multiples of the network's stride; the
            reconstruction has its size. If None it is drawn, larger than the image where the stride asks for
            it: the loss then sees the central crop alone.
        loss: `loss(A(output), observed, index) -> (B,)`, in place of `config.loss`.
        prior: `prior(output, index) -> (B,)`, added to the loss; R in eq. (1) of the paper. None for none.
        shape: (C, H, W) of the reconstruction, where it is not that of `observed` (or, given z, of z): the centre of
            the network's output.
        callback: called with a `Progress` after every iteration of every chunk, never twice at once, though perhaps
            from another thread; an exception that it raises ends the fit.

    Returns:
        A `FitResult`; its reconstruction has no gradient.

    Raises:
        TypeError: `observed` is no floating tensor.
        ValueError: a shape that does not fit, values that are not finite, a memory budget below one image, a
            precision that the device or the dtype does not have.
        RuntimeError: the fit is not finite from its first iteration on.
    """
    start = time.perf_counter()
    config = config or FitConfig()
    seed = secrets.randbits(32) if seed is None else seed
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be None or an integer of at least 0, got {seed!r}")
    device = observed.device if isinstance(observed, Tensor) else torch.device("cpu")
    with fit_context(device, config.precision):
        problem = build_problem(observed, config, seed, degrade, z, loss, prior, shape)
        run = _Run(problem, config, callback, _Outcome.empty(problem), largest=len(problem.observed))
        _fit_chunks(run)
    if run.largest < len(problem.observed):
        text = f"out of memory: going on with chunks of {run.largest} images; lower memory_gb"
        warnings.warn(text, stacklevel=2)
    if run.diverged:
        text = f"the fit of images {sorted(run.diverged)} keeps diverging and was ended early: lower lr"
        warnings.warn(text, stacklevel=2)
    return FitResult(
        reconstruction=run.outcome.reconstruction,
        chosen=run.outcome.chosen,
        iterations=run.outcome.iterations,
        stopped=run.outcome.stopped,
        seconds=time.perf_counter() - start,
        seed=seed,
    )


@contextlib.contextmanager
def fit_context(device: torch.device, precision: str) -> Iterator[None]:
    """What a fit needs around it in its thread, whatever the caller's modes are."""
    settings: list[Any] = []
    if device.type == "cuda":  # cuDNN wants its two kinds to agree
        cudnn: Any = torch.backends.cudnn
        settings = [cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul]
    before = [setting.fp32_precision for setting in settings]
    for setting in settings:
        setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.fp32_precision = value


@dataclass
class _Run:
    """What the workers of a fit share."""

    problem: Problem
    config: FitConfig
    callback: Callable[[Progress], None] | None
    outcome: "_Outcome"
    largest: int  # images of a chunk, at most
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: bool = False  # nothing is to be fitted any more: workers under way stop
    steps: int = 0  # image-steps done or no longer needed
    diverged: list[int] = field(default_factory=list)  # positions of images that were given up

    def count(self, steps: int) -> None:
        with self.lock:
            self.steps += steps

    def report(self, iteration: int, batch: Batch, losses: Tensor, sane: Tensor) -> None:
        with self.lock:
            self.steps += len(batch.index)
            if self.callback is None or self.ended:
                return
            share = min(1.0, self.steps / (len(self.problem.observed) * self.config.iterations))
            raised = True
            try:
                self.callback(Progress(iteration, batch.index, batch.output, batch.average, losses, sane, share))
                raised = False
            finally:
                self.ended |= raised


def _fit_chunks(run: _Run) -> None:
    """Fit all images, chunk by chunk, as many workers at once as there are threads and memory for them."""
    N, device = len(run.problem.observed), run.problem.observed.device
    one, budget = run.problem.bytes_per_image(), run.config.memory_gb * 2**30
    if one > budget:
        least = math.ceil(one / 2**30 * 1000) / 1000
        raise ValueError(
            f"memory_gb must be at least {least} for one image of this size, got {run.config.memory_gb}: "
            "raise it, or cut it into tiles (Purifier(tile=...), purify --tile)"
        )
    threads = torch.get_num_threads()
    alone = device.type != "cpu" or run.config.compile  # a device is one worker; compiling, torch is not thread-safe
    workers = 1 if alone else min(threads, N, int(budget // one))
    rounds = math.ceil(N / (workers * (budget // one // workers)))
    chunks = deque(torch.arange(N, device=device).tensor_split(min(N, workers * rounds)))

    def work() -> None:
        problem = run.problem.thread_copy(run.config.compile)
        with fit_context(device, run.config.precision):
            while not run.ended:
                with run.lock:
                    if not chunks:
                        return
                    index, *rest = torch.split(chunks.popleft(), run.largest)
                    chunks.extendleft(reversed(rest))
                try:
                    _fit_chunk(run, problem, index)
                except RuntimeError as error:
                    if not is_out_of_memory(error) or len(index) == 1:
                        raise
                    with run.lock:
                        run.largest = min(run.largest, math.ceil(len(index) / 2))
                        chunks.appendleft(index)

    if workers == 1:
        work()
        return
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
            try:
                for future in as_completed([pool.submit(work) for _ in range(workers)]):
                    future.result()
            finally:
                run.ended = True
    finally:
        torch.set_num_threads(threads)  # a worker's number is also that of all threads to come


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
            image = problem.generate({name: p[None] for name, p in problem.theta.items()}, problem.z[:1])
        count = image.new_zeros(N, dtype=torch.long)
        return cls(image.new_zeros(N, *image.shape[1:]), count, count.clone(), count.bool())

    def take(self, batch: Batch) -> None:
        self.reconstruction[batch.index] = batch.best
        self.chosen[batch.index] = batch.chosen
        self.iterations[batch.index] = batch.iterations
        self.stopped[batch.index] = batch.stopped


def _fit_chunk(run: _Run, problem: Problem, index: Tensor) -> None:
    """Fit the images at `index` together: the one fitting loop."""
    config = run.config
    z, observed = problem.z, problem.observed[index]
    generator = torch.Generator(z.device).manual_seed(problem.jitter_seed)
    rule, batch = build_rule(config), Batch.begin(problem.theta, index, run.outcome.reconstruction[index])
    target, hidden = rule.prepare(observed, torch.Generator("cpu").manual_seed(problem.rule_seed))
    hidden = None if hidden is None else hidden.expand_as(target)
    rise = 10 ** (config.rollback_db / 10)
    for iteration in range(1, config.iterations + 1):
        if run.ended:
            return
        look = iteration == 1 or iteration % CHECK_EVERY == 0 or iteration == config.iterations
        noise = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=generator)
        here = (z if len(z) == 1 else z[batch.index]) + config.jitter * noise
        theta = {name: state[0].detach().requires_grad_() for name, state in batch.adam.items()}
        losses, output = problem.losses(theta, here, batch.index, target, hidden)
        gradient = torch.autograd.grad(losses.sum(), tuple(theta.values()))
        with torch.no_grad():
            losses, output = losses.detach(), output.detach()
            sane = losses.isfinite() & (losses <= rise * batch.saved_loss.abs().clamp_min(FITTED))
            if look:
                batch.save(sane, losses)
            batch.adam_step(gradient, config.lr)
            if look:
                run.diverged += batch.roll_back(sane)
            batch.output = torch.where(per_row(sane), output, batch.output)
            average = output.lerp(batch.average, config.ema if iteration > 1 else 0.0)
            batch.average = torch.where(per_row(sane), average, batch.average)
            iterate = Iterate(batch.output, batch.average, observed, sane, problem.operator(batch.index))
            better, stopped = rule.observe(iterate)
            better &= ~batch.stopped
            batch.best = torch.where(per_row(better), batch.average, batch.best)
            batch.chosen = batch.chosen.masked_fill(better, iteration)
            batch.stopped |= stopped
            batch.done |= stopped
            batch.iterations += 1
        run.report(iteration, batch, losses, sane)
        if look and _may_leave(batch.done, config):
            run.outcome.take(batch.rows(batch.done))
            run.count(int(batch.done.sum()) * (config.iterations - iteration))
            stay = ~batch.done
            rule.keep(stay)
            observed, target = observed[stay], target[stay]
            hidden = None if hidden is None else hidden[stay]
            batch = batch.rows(stay)
            if len(batch.index) == 0:
                return
    run.outcome.take(batch)


def _may_leave(done: Tensor, config: FitConfig) -> bool:
    """Compiled networks keep their shape: there all images leave together."""
    return bool(done.all() if config.compile else done.any())


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has a class for it; MPS and the CPU's allocator say it."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in text or "can't allocate memory" in text
