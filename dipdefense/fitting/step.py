"""One iteration of the fit: noise on z, loss and gradient, Adam, roll-back, moving average.

The loop in `fit.py` and the unrolled gradient in `unroll.py` both take this step. They differ in the Adam update alone:
the loop writes in place with torch's fused kernel, the unrolled gradient needs a result with a graph. The two updates
stand side by side in this module.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.problem import Problem

__all__ = [
    "AdamState",
    "Evaluation",
    "State",
    "adam_in_place",
    "adam_with_graph",
    "begin",
    "choose",
    "draw_input",
    "is_check",
    "step",
]

CHECK_EVERY = 10  # iterations between two checks, at which states are saved and images roll back or leave
FITTED = 1e-4  # a loss below it (40 dB) counts as fitted: its ups and downs roll nothing back
BETA_1, BETA_2 = 0.9, 0.999  # decay of Adam's moments
ADAM_EPS = 1e-8  # added to the root of Adam's second moment
TINY = 1e-30  # added to the second moment where it is differentiated: the root of 0 has no derivative


class Views(NamedTuple):
    """Tensors in the memory of an `AdamState`, in the form that Adam's fused kernel needs."""

    theta: list[Tensor]  # of each parameter, the images of one step count together; so are all lists
    first: list[Tensor]
    second: list[Tensor]
    counts: list[Tensor]
    runs: list[int]  # how many neighbouring images have one step count


@dataclass(frozen=True)
class AdamState:
    """Parameters and what Adam knows of them; one row an image."""

    tensors: dict[str, Tensor]  # theta and Adam's two moments, (3, B, ...) for every parameter
    count: Tensor  # (B,) float32, the steps taken

    @cached_property
    def leaves(self) -> dict[str, Tensor]:
        """Theta in the same memory, to differentiate by: (B, ...) for every parameter, or (...) for one image."""
        return {name: tensor[0].requires_grad_() for name, tensor in self._unstacked.items()}

    def stacked(self, graph: bool) -> dict[str, Tensor]:
        """Theta, (B, ...) for every parameter, to differentiate by; with its own graph if asked."""
        theta = {name: tensor[0] for name, tensor in self.tensors.items()}
        return theta if graph else {name: parameter.detach().requires_grad_() for name, parameter in theta.items()}

    @cached_property
    def views(self) -> Views:
        """Made once: an update in place keeps them, and whatever divides the images anew makes a new `AdamState`."""
        runs: list[int] = torch.unique_consecutive(self.count, return_counts=True)[1].tolist()
        theta, first, second = zip(*(tensor.unbind() for tensor in self._unstacked.values()), strict=True)
        counts = [part[0] for part in torch.split_with_sizes(self.count, runs)] * len(theta)
        return Views(split(theta, runs), split(first, runs), split(second, runs), counts, runs)

    @property
    def _unstacked(self) -> dict[str, Tensor]:
        """`tensors`, without the dimension of the images where there is only one."""
        alone = len(self.count) == 1
        return {name: tensor.detach()[:, 0] if alone else tensor.detach() for name, tensor in self.tensors.items()}


@dataclass(frozen=True)
class State:
    """What one iteration hands to the next; one row an image."""

    adam: AdamState
    average: Tensor  # (B, C, H, W) moving average of the iterates
    saved: AdamState  # `adam` as it was at the last check with a sane loss
    saved_loss: Tensor  # (B,) the loss then; infinite before the first


class Evaluation(NamedTuple):
    """The losses of B images at their parameters."""

    losses: Tensor  # (B,) without a graph
    output: Tensor  # (B, C, H, W) the iterate
    gradient: tuple[Tensor, ...]  # of the sum of the losses, for every parameter (B, ...)
    sane: Tensor  # (B,) bool: the loss is finite and did not jump


AdamUpdate = Callable[[AdamState, tuple[Tensor, ...], float], AdamState]


def begin(theta: dict[str, Tensor], average: Tensor) -> State:
    """The state before the first iteration: one set of parameters for all images of `average`, (B, C, H, W)."""
    B = len(average)
    tensors = {name: p.new_zeros(3, B, *p.shape) for name, p in theta.items()}
    for name, parameter in theta.items():
        tensors[name][0] = parameter
    count = torch.zeros(B, dtype=torch.float32, device=average.device)
    saved = AdamState({name: tensor.clone() for name, tensor in tensors.items()}, count.clone())
    return State(AdamState(tensors, count), average, saved, average.new_full((B,), torch.inf))


def draw_input(problem: Problem, index: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """z of the images at `index` (B,) with Gaussian noise of std `jitter`, the same noise for every image."""
    z = problem.z
    noise = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=generator)
    return (z if len(z) == 1 else z[index]) + jitter * noise


def is_check(iteration: int, config: FitConfig) -> bool:
    """Does this iteration, counted from 1, save states, roll images back and let images leave?"""
    return iteration == 1 or iteration % CHECK_EVERY == 0 or iteration == config.iterations


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """The images under a mask (B,) from `new`, the others from `old`, both (B, ...).

    On the CPU, where a test of the mask takes less time than the copy, `new` itself if the mask holds everywhere.
    """
    if mask.is_cpu and mask.all():
        return new
    return torch.where(mask.view(-1, *[1] * (new.dim() - 1)), new, old)


def split(tensors: Iterable[Tensor], runs: list[int]) -> list[Tensor]:
    """Tensors (B, ...) divided into images that are neighbours; `runs` holds the lengths."""
    if len(runs) == 1:
        return list(tensors)
    return [part for tensor in tensors for part in torch.split_with_sizes(tensor, runs)]


def adam_in_place(state: AdamState, gradient: tuple[Tensor, ...], lr: float) -> AdamState:
    """One step of Adam (Kingma and Ba, 2015), in place, by torch's fused kernel.

    Neighbouring images of the same step count advance as one tensor.

    Args:
        state: before the step; overwritten.
        gradient: of its `leaves`.
        lr: step size.

    Returns:
        `state`.
    """
    views = state.views
    state.count.add_(1)
    torch._fused_adam_(
        views.theta,
        split((g.contiguous() for g in gradient), views.runs),  # the fused kernel reads memory, not strides
        views.first,
        views.second,
        [],
        views.counts,
        amsgrad=False,
        beta1=BETA_1,
        beta2=BETA_2,
        lr=lr,
        weight_decay=0.0,
        eps=ADAM_EPS,
        maximize=False,
    )
    return state


def adam_with_graph(state: AdamState, gradient: tuple[Tensor, ...], lr: float, *, eps: float = ADAM_EPS) -> AdamState:
    """The same step of Adam, algorithm 1, out of place, so that it can be differentiated.

    All parameters advance as one row, (B, P): the graph then holds few operations, whatever the network.

    Differs: `TINY` is added to the second moment. Its root is 1e-15, which is nothing beside `eps`.
    """
    theta, first, second = torch.cat([tensor.flatten(2) for tensor in state.tensors.values()], 2)
    slope = torch.cat([g.flatten(1) for g in gradient], 1)
    count = state.count + 1
    t = count.to(theta)[:, None]
    first = torch.lerp(slope, first, BETA_1)
    second = torch.lerp(slope.square(), second, BETA_2)
    root = (second + TINY).sqrt() / (1 - BETA_2**t).sqrt()
    theta = theta - lr / (1 - BETA_1**t) * first / (root + eps)
    sizes = [tensor[0, 0].numel() for tensor in state.tensors.values()]
    parts = torch.split(torch.stack([theta, first, second]), sizes, 2)
    named = zip(state.tensors.items(), parts, strict=True)
    return AdamState({name: part.view_as(tensor) for (name, tensor), part in named}, count)


def step(
    problem: Problem,
    state: State,
    z: Tensor,
    target: Tensor,
    iteration: int,
    config: FitConfig,
    *,
    index: Tensor,
    hidden: Tensor | None = None,
    update: AdamUpdate | None = None,
    graph: bool = False,
) -> tuple[State, Evaluation]:
    """Take one iteration of the fit of B images.

    The result is a function of the arguments, and nothing is drawn. Without `update` the parameters and moments of
    `state` are overwritten, which is fast: the caller goes on with the state that is returned.

    Args:
        problem: gives the network, the operator and the loss.
        state: of the images, before the iteration.
        z: network input, (1 or B, C_in, H', W'), noise included; see `draw_input`.
        target: what is fitted, (B, ...).
        iteration: counted from 1.
        config: settings of the fit: `lr`, `ema`, `rollback_db`, `iterations`.
        index: (B,) positions of the images in `problem.observed`, for its operator and its loss.
        hidden: bool, like `target`: values that are not fitted. None: all are.
        update: an Adam update that overwrites nothing, such as `adam_with_graph`; None for `adam_in_place`.
        graph: keep the graph of the result, back to the parameters, moments and averages of `state`, to `z` and to
            `target`; this needs an `update`.

    Returns:
        The state after the iteration, and the losses before it.
    """
    theta = state.adam.leaves if update is None else state.adam.stacked(graph)
    evaluation = _evaluate(problem, theta, z, target, index, hidden, config.rollback_db, state.saved_loss, graph)
    losses, output, gradient, sane = evaluation
    check, select = is_check(iteration, config), _overwrite if update is None else _select
    with torch.set_grad_enabled(graph):
        if check:
            saved, saved_loss = select(sane, state.adam, state.saved), choose(sane, losses, state.saved_loss)
            state = replace(state, saved=saved, saved_loss=saved_loss)
        moved = (update or adam_in_place)(state.adam, gradient, config.lr)
        if check and not sane.all():
            moved = select(~sane, state.saved, moved)
        average = output.lerp(state.average, config.ema) if config.ema and iteration > 1 else output
        return replace(state, adam=moved, average=choose(sane, average, state.average)), evaluation


def _evaluate(
    problem: Problem,
    theta: dict[str, Tensor],
    z: Tensor,
    target: Tensor,
    index: Tensor,
    hidden: Tensor | None,
    rollback_db: float,
    before: Tensor,
    graph: bool,
) -> Evaluation:
    """Losses and gradients at theta. A loss is sane unless it is above that `before` by more than `rollback_db`."""
    with torch.enable_grad():
        losses, output = problem.losses(theta, z, index, target, hidden)
        gradient = torch.autograd.grad(losses.sum(), tuple(theta.values()), create_graph=graph)
    losses = losses.detach()
    highest = 10 ** (rollback_db / 10) * before.abs().clamp_min(FITTED)
    return Evaluation(losses, output if graph else output.detach(), gradient, losses.isfinite() & (losses <= highest))


def _overwrite(mask: Tensor, new: AdamState, old: AdamState) -> AdamState:
    """`old`, with the images under a mask (B,) copied from `new`."""
    rows = slice(None) if mask.all() else mask
    for name, tensor in new.tensors.items():
        old.tensors[name][:, rows] = tensor[:, rows]
    old.count[rows] = new.count[rows]
    return replace(old)  # its images may have other step counts than those of its views


def _select(mask: Tensor, new: AdamState, old: AdamState) -> AdamState:
    """The same, out of place."""
    tensors = {
        name: torch.where(mask.view(1, -1, *[1] * (tensor.dim() - 2)), tensor, old.tensors[name])
        for name, tensor in new.tensors.items()
    }
    return AdamState(tensors, torch.where(mask, new.count, old.count))
