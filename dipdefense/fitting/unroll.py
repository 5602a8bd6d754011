"""The gradient of a fit with respect to what it was fitted to, exactly, through all its steps.

A fit is the recursion s_t = step_t(s_{t-1}, y) of theta, Adam's moments and the moving average a_t, with the observed
image y in every step. Its pull-back of a cotangent a* of the averages is the adjoint recursion

    s*_{t-1} = (d step_t / d s)^T s*_t + a*_t,      y* = sum_t (d step_t / d y)^T s*_t,

where each step contains a gradient, so that its adjoint contains a product with the Hessian. The states of all T steps
would fill the memory: those at the beginning of sqrt(T) segments are kept, and each segment is computed again.

Source: Griewank (1992), "Achieving logarithmic growth of temporal and spatial complexity in reverse automatic
    differentiation" (here its two-level form); Maclaurin et al. (2015), "Gradient-based hyperparameter optimization
    through reversible learning", for the adjoint of an optimiser.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.fitting.config import FitConfig, build_rule
from dipdefense.fitting.fit import fit_context
from dipdefense.fitting.problem import Problem, build_problem
from dipdefense.fitting.step import AdamState, State, adam_with_graph, begin, draw_input, step
from dipdefense.fitting.workers import map_in_threads, memory_budget, most_images, plan_chunks

__all__ = ["pull_back", "unroll_bytes"]

GRAPH = 2  # memory of a step with the graph of its gradient, at most, in that of a plain step


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

    The iteration that a stopping rule chose is a constant here, and so are the images and iterations at which the fit
    rolls back.

    Args:
        observed: (B, C, H, W) as it was given to `fit`.
        cotangents: iteration -> derivative of a scalar with respect to the average after it, (B, C, H, W).
        config: settings of the fit; chunks of images stay within its `memory_gb`.
        seed: of the fit.
        last: how many steps of Adam, before the largest of the iterations, the derivative passes through; None: all.
        adam_eps: added to the root of Adam's second moment; 1e-8 as in the fit. A larger value makes the
            fit smoother, but then it is not the fit of the defence.

    Returns:
        (B, C, H, W), the derivative of the scalar with respect to `observed`.

    Raises:
        ValueError: no cotangents, an iteration outside the fit, `last` below 1, the loss l1, whose gradient
            does not change with the image, a memory budget below one image.
    """
    if not cotangents or not all(1 <= iteration <= config.iterations for iteration in cotangents):
        raise ValueError(
            f"cotangents must be given for iterations from 1 to the {config.iterations} of the fit, "
            f"got {sorted(cotangents)}"
        )
    check_integer("last", last, 1, none=True)
    if config.loss == "l1":
        raise ValueError("loss must not be l1 where a fit is unrolled, its gradient is 0: use straight_through")
    end = max(cotangents)
    first = 0 if last is None else max(0, end - 1 - last)  # iterate t is computed after t - 1 steps
    with fit_context(observed.device, config.precision):
        problem = build_problem(observed, config, seed, None, None, None)
        most = most_images(
            unroll_bytes(problem, end - first),
            memory_budget(config.memory_gb, observed.device),
            f"to unroll {end - first} steps for one image",
            "raise it, cut it into tiles, or unroll the last steps alone",
        )
        workers, chunks = plan_chunks(len(observed), most, observed.device)

        def one(index: Tensor) -> Tensor:
            replay = _Replay(problem.thread_copy(False), config, index, adam_eps)
            with fit_context(observed.device, config.precision):
                return replay.pull_back({i: cotangent[index] for i, cotangent in cotangents.items()}, first, end)

        return torch.cat(map_in_threads(one, chunks, workers))


def unroll_bytes(problem: Problem, steps: int) -> float:
    """Estimate of the bytes that one image takes while `steps` steps are unrolled; it grows with their square root."""
    graph = GRAPH * problem.bytes_per_image()
    state = 6 * sum(p.numel() for p in problem.theta.values()) * problem.observed.element_size()
    return math.ceil(math.sqrt(steps)) * (graph + state)


class _Replay:
    """The fit of some images, computed again step by step, out of place."""

    def __init__(self, problem: Problem, config: FitConfig, index: Tensor, adam_eps: float):
        self.problem, self.config, self.index = problem, config, index
        self.update = partial(adam_with_graph, eps=adam_eps)
        self.observed = problem.observed[index].requires_grad_()
        draw = torch.Generator("cpu").manual_seed(problem.rule_seed)
        self.target, hidden = build_rule(config).prepare(self.observed, draw)
        self.hidden = None if hidden is None else hidden.expand_as(self.target)
        self.jitter = torch.Generator(problem.z.device).manual_seed(problem.jitter_seed)

    def pull_back(self, cotangents: Mapping[int, Tensor], first: int, end: int) -> Tensor:
        """Compute the fit to `first`, then to `end` segment by segment, then go back through the segments."""
        length = math.ceil(math.sqrt(end - first))
        state, target = begin(self.problem.theta, torch.zeros_like(self.observed)), self.target.detach()
        kept: list[tuple[int, State, Tensor]] = []
        for iteration in range(1, end + 1):
            if iteration > first and (iteration - first - 1) % length == 0:
                kept.append((iteration, state, self.jitter.get_state()))
            state = self._step(state, iteration, target, graph=False)
        adjoint = [torch.zeros_like(tensor) for tensor in _smooth(state)]
        to_target = torch.zeros_like(target)
        for start, begun, drawn in reversed(kept):
            self.jitter.set_state(drawn)
            state = begun = _leaves(begun)
            fitted = target.clone().requires_grad_()
            outputs, given = [], []
            for iteration in range(start, min(start + length, end + 1)):
                state = self._step(state, iteration, fitted, graph=True)
                if iteration in cotangents:
                    outputs.append(state.average.clamp(max=1))
                    given.append(cotangents[iteration])
            outputs, given = outputs + _smooth(state), given + adjoint
            inputs = [*_smooth(begun), fitted]
            *adjoint, more = torch.autograd.grad(outputs, inputs, given, allow_unused=True, materialize_grads=True)
            to_target += more
        (gradient,) = torch.autograd.grad(self.target, self.observed, to_target)
        return gradient

    def _step(self, state: State, iteration: int, target: Tensor, *, graph: bool) -> State:
        z = draw_input(self.problem, self.index, self.config.jitter, self.jitter)
        state, _ = step(
            self.problem,
            state,
            z,
            target,
            iteration,
            self.config,
            index=self.index,
            hidden=self.hidden,
            update=self.update,
            graph=graph,
        )
        return state


def _smooth(state: State) -> list[Tensor]:
    """What has a derivative."""
    return [*state.adam.tensors.values(), *state.saved.tensors.values(), state.average]


def _leaves(state: State) -> State:
    """The same, to differentiate by."""

    def leaves(state: AdamState) -> AdamState:
        tensors = {name: tensor.detach().requires_grad_() for name, tensor in state.tensors.items()}
        return AdamState(tensors, state.count)

    average = state.average.detach().requires_grad_()
    return replace(state, adam=leaves(state.adam), saved=leaves(state.saved), average=average)
