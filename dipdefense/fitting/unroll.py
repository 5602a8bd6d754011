"""The gradient of a fit with respect to what it was fitted to, exactly, through all its steps.

A fit is the recursion s_t = step_t(s_{t-1}, y) of theta, Adam's moments and the moving average a_t, with the observed
image y in every step. Its pull-back of a cotangent a* of the averages is the adjoint recursion

    s*_{t-1} = (d step_t / d s)^T s*_t + a*_t,      y* = sum_t (d step_t / d y)^T s*_t,

where each step holds a gradient itself, so that its adjoint is a product with the Hessian. The states of T steps would
fill the memory; those at the beginning of sqrt(T) segments are kept, and each segment is walked through again.

Source: Griewank (1992), "Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
    differentiation" (here its two-level form); Maclaurin et al. (2015), "Gradient-based hyperparameter optimization
    through reversible learning", for the adjoint of an optimiser.
"""

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dipdefense.fitting.config import FitConfig, build_rule
from dipdefense.fitting.fit import CHECK_EVERY, FITTED, fit_context
from dipdefense.fitting.problem import Problem, build_problem, per_row

__all__ = ["pull_back", "unroll_bytes"]

BETA_1, BETA_2 = 0.9, 0.999
TINY = 1e-30  # added to the second moment: the root of 0 has no derivative; it is 1e-15 where Adam adds 1e-8
GRAPH = 2  # a step with the graph of its gradient keeps at most so many times what a plain step keeps


def pull_back(
    observed: Tensor,
    cotangents: Mapping[int, Tensor],
    config: FitConfig,
    *,
    seed: int,
    last: int | None = None,
    adam_eps: float = 1e-8,
) -> Tensor:
    """Pull cotangents of the averages of a fit back to what it was fitted to.

    The number of the iterate that a stopping rule chose is a constant here: the derivative is that of this iterate.
    So are the images and iterations at which the fit rolls back.

    Args:
        observed: (B, C, H, W) as it was given to `fit`.
        cotangents: iteration -> derivative of a scalar with respect to the average after it, (B, C, H, W).
        config: numbers of the fit; chunks of images stay within its `memory_gb`.
        seed: of the fit.
        last: only through the last so many steps of Adam before the largest of the iterations (truncated); None: all.
        adam_eps: added to the root of Adam's second moment; 1e-8 as in the fit. Larger ones are those of a smoother
            fit, which is then another one than the defence's.

    Returns:
        (B, C, H, W), the derivative of the scalar with respect to `observed`.

    Raises:
        ValueError: no cotangents, an iteration outside the fit, last below 1, the loss l1, whose fit has the
            derivative 0 wherever it has one, a memory budget below one image.
    """
    if not cotangents or not all(1 <= iteration <= config.iterations for iteration in cotangents):
        raise ValueError(
            f"cotangents must be given for iterations from 1 to the {config.iterations} of the fit, "
            f"got {sorted(cotangents)}"
        )
    if last is not None and last < 1:
        raise ValueError(f"last must be at least 1 step, got {last}")
    if config.loss == "l1":
        raise ValueError("loss must not be l1 where a fit is unrolled, its gradient is 0: use straight_through")
    end = max(cotangents)
    first = 0 if last is None else max(0, end - 1 - last)  # iterate t comes out of step t - 1
    with fit_context(observed.device, config.precision):
        problem = build_problem(observed, config, seed, None, None, None)
        threads, B = torch.get_num_threads(), len(observed)
        most = int(config.memory_gb * 2**30 // unroll_bytes(problem, end - first))  # images at once
        if most < 1:
            least = math.ceil(unroll_bytes(problem, end - first) / 2**30 * 1000) / 1000
            raise ValueError(
                f"memory_gb must be at least {least} to unroll {end - first} steps for one image, "
                f"got {config.memory_gb}: raise it, cut it into tiles, or unroll the last steps alone"
            )
        workers = min(threads, B, most) if observed.device.type == "cpu" else 1
        size = min(most // workers, math.ceil(B / workers))
        chunks = torch.split(torch.arange(B, device=observed.device), size)

        def one(index: Tensor) -> Tensor:
            replay = _Replay(problem.thread_copy(False), config, index, adam_eps)
            with fit_context(observed.device, config.precision):
                return replay.pull_back({i: cotangent[index] for i, cotangent in cotangents.items()}, first, end)

        if workers == 1:
            return torch.cat([one(index) for index in chunks])
        try:
            with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(threads // workers,)) as pool:
                return torch.cat(list(pool.map(one, chunks)))
        finally:
            torch.set_num_threads(threads)


def unroll_bytes(problem: Problem, steps: int) -> float:
    """Estimate of the memory that one image takes while so many steps are unrolled: it grows with their root."""
    graph = GRAPH * problem.bytes_per_image()
    state = 6 * sum(p.numel() for p in problem.theta.values()) * problem.observed.element_size()
    return math.ceil(math.sqrt(steps)) * (graph + state)


@dataclass(frozen=True)
class _State:
    """What a step hands to the next; one row an image."""

    adam: Tensor  # (3, B, P) theta and Adam's two moments, all parameters in a row
    saved: Tensor  # (3, B, P) the same at the last look, where a fit that jumps returns to
    average: Tensor  # (B, C, H, W)
    steps: Tensor  # (B,) Adam's count
    saved_steps: Tensor  # (B,)
    saved_loss: Tensor  # (B,)

    @property
    def smooth(self) -> list[Tensor]:
        """What has a derivative."""
        return [self.adam, self.saved, self.average]

    def leaves(self) -> "_State":
        """The same, to differentiate by."""
        adam, saved, average = (tensor.detach().requires_grad_() for tensor in self.smooth)
        return replace(self, adam=adam, saved=saved, average=average)


class _Replay:
    """The fit of some images once more, step by step, out of place."""

    def __init__(self, problem: Problem, config: FitConfig, index: Tensor, adam_eps: float):
        self.problem, self.config, self.index, self.adam_eps = problem, config, index, adam_eps
        self.names = list(problem.theta)
        self.shapes = [p.shape for p in problem.theta.values()]
        self.sizes = [p.numel() for p in problem.theta.values()]
        self.observed = problem.observed[index].requires_grad_()
        draw = torch.Generator("cpu").manual_seed(problem.rule_seed)
        self.target, hidden = build_rule(config).prepare(self.observed, draw)
        self.hidden = None if hidden is None else hidden.expand_as(self.target)
        self.jitter = torch.Generator(problem.z.device).manual_seed(problem.jitter_seed)
        self.rise = 10 ** (config.rollback_db / 10)

    def begin(self) -> _State:
        theta = torch.cat([p.flatten() for p in self.problem.theta.values()]).expand(len(self.index), -1)
        adam = torch.stack([theta, torch.zeros_like(theta), torch.zeros_like(theta)])
        none = adam.new_zeros(len(self.index))
        return _State(adam, adam, torch.zeros_like(self.observed), none, none, none + math.inf)

    def pull_back(self, cotangents: Mapping[int, Tensor], first: int, end: int) -> Tensor:
        """Walk to `first`, then to `end` segment by segment, then back through the segments."""
        length = math.ceil(math.sqrt(end - first))
        state, target = self.begin(), self.target.detach()
        kept: list[tuple[int, _State, Tensor]] = []
        for iteration in range(1, end + 1):
            if iteration > first and (iteration - first - 1) % length == 0:
                kept.append((iteration, state, self.jitter.get_state()))
            state = self._step(state, iteration, target, differentiable=False)
        adjoint = [torch.zeros_like(tensor) for tensor in state.smooth]
        to_target = torch.zeros_like(target)
        for start, begun, drawn in reversed(kept):
            self.jitter.set_state(drawn)
            state = begun = begun.leaves()
            fitted = target.clone().requires_grad_()
            outputs, given = [], []
            for iteration in range(start, min(start + length, end + 1)):
                state = self._step(state, iteration, fitted, differentiable=True)
                if iteration in cotangents:
                    outputs.append(state.average.clamp(max=1))
                    given.append(cotangents[iteration])
            outputs, given = outputs + state.smooth, given + adjoint
            inputs = [*begun.smooth, fitted]
            *adjoint, more = torch.autograd.grad(outputs, inputs, given, allow_unused=True, materialize_grads=True)
            to_target += more
        (gradient,) = torch.autograd.grad(self.target, self.observed, to_target)
        return gradient

    def _step(self, state: _State, iteration: int, target: Tensor, *, differentiable: bool) -> _State:
        """One iteration of `dipdefense.fit`, out of place."""
        problem, config = self.problem, self.config
        z = problem.z
        noise = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=self.jitter)
        here = (z if len(z) == 1 else z[self.index]) + config.jitter * noise
        theta = state.adam[0] if differentiable else state.adam[0].detach().requires_grad_()
        losses, output = problem.losses(self._named(theta), here, self.index, target, self.hidden)
        (gradient,) = torch.autograd.grad(losses.sum(), theta, create_graph=differentiable)
        with torch.set_grad_enabled(differentiable):
            losses = losses.detach()
            sane = losses.isfinite() & (losses <= self.rise * state.saved_loss.abs().clamp_min(FITTED))
            saved, saved_steps, saved_loss = state.saved, state.saved_steps, state.saved_loss
            look = iteration == 1 or iteration % CHECK_EVERY == 0 or iteration == config.iterations
            if look:
                saved = _where(sane, state.adam, saved)
                saved_steps = torch.where(sane, state.steps, saved_steps)
                saved_loss = torch.where(sane, losses, saved_loss)
            adam, steps = self._adam(state.adam, state.steps + 1, gradient), state.steps + 1
            if look:
                adam = _where(sane, adam, saved)
                steps = torch.where(sane, steps, saved_steps)
            average = output.lerp(state.average, config.ema if iteration > 1 else 0.0)
            average = average if sane.all() else torch.where(per_row(sane), average, state.average)
        return _State(adam, saved, average, steps, saved_steps, saved_loss)

    def _named(self, theta: Tensor) -> dict[str, Tensor]:
        """(B, P) -> the parameters by name, (B, ...) each."""
        parts = zip(self.names, torch.split(theta, self.sizes, 1), self.shapes, strict=True)
        return {name: part.view(-1, *shape) for name, part, shape in parts}

    def _adam(self, adam: Tensor, steps: Tensor, gradient: Tensor) -> Tensor:
        """One step of Adam (Kingma and Ba, 2015), algorithm 1."""
        theta, first, second = adam
        first = torch.lerp(gradient, first, BETA_1)
        second = torch.lerp(gradient.square(), second, BETA_2)
        count = steps[:, None]
        root = (second + TINY).sqrt() / (1 - BETA_2**count).sqrt()
        theta = theta - self.config.lr / (1 - BETA_1**count) * first / (root + self.adam_eps)
        return torch.stack([theta, first, second])


def _where(sane: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Rows (3, B, P) of the images under a mask (B,) from the one, else from the other."""
    return new if sane.all() else torch.where(sane[:, None], new, old)
