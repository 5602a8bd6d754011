"""The fitting loop of the deep image prior, for many images at once.

Each image i has its own network theta_i, and all of them advance together:

    theta_i <- Adam( d/dtheta_i  loss(A(f_theta_i(z + jitter)), observed_i) )

Each parameter of B networks is one tensor with a leading dimension B. The losses are summed, never averaged, and
nothing is clipped globally, so B images advance exactly as each would alone. Weights, z and jitter are functions
of the seed and the iteration, never of the batch. On the CPU several chunks of images are fitted at the same time, and
torch's threads are divided among them (`workers.py`).

Source: Ulyanov, Vedaldi, Lempitsky (2018), "Deep image prior", eq. (2) and section 3.
"""

import contextlib
import secrets
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.fitting.batch import Batch
from dipdefense.fitting.checkpoint import Checkpoint, CheckpointFile, CheckpointLike
from dipdefense.fitting.config import FitConfig, build_rule
from dipdefense.fitting.losses import Loss
from dipdefense.fitting.problem import Degrade, Prior, Problem, build_problem
from dipdefense.fitting.step import choose, draw_input, is_check, step
from dipdefense.fitting.workers import Chunks, map_in_threads, memory_budget, most_images, plan_chunks
from dipdefense.stopping import Iterate

__all__ = ["FitResult", "Progress", "fit", "fit_context"]


@dataclass(frozen=True)
class FitResult:
    """What a fit returns, one row for each observed image."""

    reconstruction: Tensor  # (B, C, H, W) the chosen iterate
    chosen: Tensor  # (B,) the iteration that it comes from, counted from 1
    iterations: Tensor  # (B,) iterations run
    stopped: Tensor  # (B,) bool: the stopping rule ended the fit
    seconds: float
    seed: int


@dataclass(frozen=True)
class Progress:
    """What a callback sees after each iteration. Do not write to the tensors."""

    iteration: int
    index: Tensor  # (B,) positions of the images that advance
    output: Tensor  # (B, C, H, W) the iterate; where the loss jumped, the last sane one
    average: Tensor  # (B, C, H, W) its moving average; the iterate itself if `ema` is 0
    loss: Tensor  # (B,)
    sane: Tensor  # (B,) bool: the loss did not jump
    share: float  # the part of the work that is done, in [0, 1]; an image that stopped early counts in full


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
    checkpoint: CheckpointLike | None = None,
) -> FitResult:
    """Fit one network to each observed image and return the iterate that the stopping rule chooses.

    Args:
        observed: what is fitted, (N, C, H, W); floating, finite; its device and dtype are those of the fit.
        config: settings of the fit; `FitConfig()` if None.
        seed: determines weights, z and jitter; None draws a seed, which `FitResult.seed` then holds.
        degrade: A, `degrade(images, index)`; `index` holds the positions in `observed`. Identity if None. Several
            threads may call it, and `loss`, at the same time, unless torch has one thread.
        z: network input, (1 or N, input_channels, H', W'), H' and W' multiples of the network's stride; the
            reconstruction has its size. If None it is drawn; where the sides of the image are no such
            multiples, it is larger, and the loss sees the central crop.
        loss: `loss(A(output), observed, index) -> (B,)`, in place of `config.loss`.
        prior: `prior(output, index) -> (B,)`, added to the loss; R in eq. (1) of the paper. None adds nothing.
        shape: (C, H, W) of the reconstruction, which is the centre of the network's output; needed where it differs
            from the shape of `observed` (or, if z is given, from the size of z).
        callback: called with a `Progress` after every iteration of every chunk, by one thread at a time, which need
            not be the caller's; an exception that it raises ends the fit.
        checkpoint: file, or a `Checkpoint`, that saves the fit every minute and whenever a chunk ends. The same call
            goes on from there after an interruption: to the same bits on the same machine with the same number of
            threads, elsewhere up to rounding. Where the chunks may be others, which is with `compile`, and on CUDA
            without a `memory_gb`, it is up to rounding, too. The callback does not see the iterations before. The file
            stays; of a fit that has ended it returns the result at once. One fit at a time may use it.

    Returns:
        A `FitResult`; its reconstruction has no gradient.

    Raises:
        TypeError: `observed` is not a floating tensor.
        ValueError: a shape that does not fit, values that are not finite, a memory budget below one image, a
            precision that the device or the dtype does not have; a checkpoint without a seed, of another fit, or torn.
        OSError: the checkpoint cannot be read or written.
        RuntimeError: the loss is not finite at the first iteration.
    """
    start = time.perf_counter()
    config = config or FitConfig()
    check_integer("seed", seed, 0, none=True)
    if seed is None and checkpoint is not None:
        raise ValueError("seed must be given with a checkpoint, which belongs to one seed, got None")
    seed = secrets.randbits(32) if seed is None else seed
    device = observed.device if isinstance(observed, Tensor) else torch.device("cpu")
    with fit_context(device, config.precision):
        problem = build_problem(observed, config, seed, degrade, z, loss, prior, shape)
        run = _fit_chunks(problem, config, callback, None if checkpoint is None else Checkpoint.at(checkpoint))
    if run.chunks.halved:
        text = f"out of memory: going on with chunks of {run.chunks.largest} images; lower memory_gb"
        warnings.warn(text, stacklevel=2)
    if run.diverged:
        text = f"the fit of images {sorted(set(run.diverged))} keeps diverging and was ended early: lower lr"
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
    """Within: gradients on, autocast off, the float32 precision as asked. After: everything as before."""
    settings: list[Any] = []
    if device.type == "cuda":  # cuDNN requires that its two settings agree
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
    chunks: Chunks
    file: CheckpointFile | None
    steps: int = 0  # iterations done or no longer needed, summed over the images
    diverged: list[int] = field(default_factory=list)  # positions of images that were given up
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, steps: int) -> None:
        with self.lock:
            self.steps += steps

    def report(self, iteration: int, batch: Batch, losses: Tensor, sane: Tensor) -> None:
        with self.lock:
            self.steps += len(batch.index)
            if self.callback is None or self.chunks.ended:
                return
            share = min(1.0, self.steps / (len(self.problem.observed) * self.config.iterations))
            progress = Progress(iteration, batch.index, batch.output, batch.state.average, losses, sane, share)
            raised = True
            try:
                self.callback(progress)
                raised = False
            finally:
                if raised:
                    self.chunks.end()  # while the lock is held, so that the callback is not called again


def _fit_chunks(
    problem: Problem,
    config: FitConfig,
    callback: Callable[[Progress], None] | None,
    checkpoint: Checkpoint | None,
) -> _Run:
    """Fit all images, chunk by chunk, with as many workers as there are threads and memory for."""
    device = problem.observed.device
    most = most_images(
        problem.bytes_per_image(),
        memory_budget(config.memory_gb, device),
        "for one image of this size",
        "raise it, or cut it into tiles (Purifier(tile=...), purify --tile)",
    )
    workers, chunks = plan_chunks(len(problem.observed), most, device, compiled=config.compile)
    outcome, file = _Outcome.empty(problem), None
    if checkpoint is not None:
        file = CheckpointFile(checkpoint, problem, config, vars(outcome))
        workers, chunks = file.plan(workers, chunks, most)
    run = _Run(problem, config, callback, outcome, Chunks(chunks), file)
    if file is not None:
        run.steps, run.diverged = file.steps(config.iterations), file.diverged

    def work(worker: int) -> None:
        copy = problem.thread_copy(config.compile, alone=workers == 1)
        with fit_context(device, config.precision):
            run.chunks.fit_all(lambda index: _fit_chunk(run, copy, index))

    map_in_threads(work, range(workers), workers, on_end=run.chunks.end)
    return run


@dataclass(frozen=True)
class _Outcome:
    """The results of all images, filled in as the images leave the fit."""

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
    config, file, done = run.config, run.file, 0
    generator = torch.Generator(problem.z.device).manual_seed(problem.jitter_seed)
    rule, batch = build_rule(config), Batch.begin(problem.theta, index, run.outcome.reconstruction[index])
    if file is not None:
        done, batch = file.resume(index, batch, rule, generator)
    observed = problem.observed[batch.index]
    target, hidden = rule.prepare(observed, torch.Generator("cpu").manual_seed(problem.rule_seed))
    hidden = None if hidden is None else hidden.expand_as(target)
    for iteration in range(done + 1, config.iterations + 1):
        z = draw_input(problem, batch.index, config.jitter, generator)
        batch.state, (losses, output, _, sane) = step(
            problem, batch.state, z, target, iteration, config, index=batch.index, hidden=hidden
        )
        check = is_check(iteration, config)
        if check:
            run.diverged += batch.count_rollbacks(sane)
        with torch.no_grad():
            average, batch.output = batch.state.average, choose(sane, output, batch.output)
            better, stopped = rule.observe(
                Iterate(batch.output, average, observed, sane, problem.operator(batch.index))
            )
            better &= ~batch.stopped
            batch.best = choose(better, average, batch.best)
            batch.chosen = batch.chosen.masked_fill(better, iteration)
            batch.stopped |= stopped
            batch.done |= stopped
            batch.iterations += 1
        run.report(iteration, batch, losses, sane)
        if run.chunks.ended:
            return
        if check and _may_leave(batch.done, config):
            run.outcome.take(batch.rows(batch.done))
            run.count(int(batch.done.sum()) * (config.iterations - iteration))
            stay = ~batch.done
            rule.keep(stay)
            observed, target = observed[stay], target[stay]
            hidden = None if hidden is None else hidden[stay]
            batch = batch.rows(stay)
            if len(batch.index) == 0:
                break
        if file is not None:
            file.keep(index, iteration, batch, rule, generator)
    run.outcome.take(batch)
    if file is not None:
        file.finish(index)


def _may_leave(done: Tensor, config: FitConfig) -> bool:
    """May images leave? A compiled network keeps its batch size, so there all images leave together."""
    return bool(done.all() if config.compile else done.any())
