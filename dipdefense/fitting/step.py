"""One iteration of the fit: noise on z, loss and gradient, Adam, roll-back, moving average.

The loop in `fit.py` and the unrolled gradient in `unroll.py` both take this step. They differ in the Adam update alone:
the loop writes in place with torch's fused kernel, the unrolled gradient needs a result with a graph. The two updates
stand side by side in this module.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.problem import Problem, per_row

__all__ = ["Evaluation", "State", "adam_in_place", "adam_with_graph", "begin", "draw_input", "is_check", "step"]

CHECK_EVERY = 10  # iterations between two checks, at which states are saved and images roll back or leave
FITTED = 1e-4  # a loss below it (40 dB) counts as fitted: its ups and downs roll nothing back
BETA_1, BETA_2 = 0.9, 0.999  # decay of Adam's moments
ADAM_EPS = 1e-8  # added to the root of Adam's second moment
TINY = 1e-30  # added to the second moment where it is differentiated: the root of 0 has no derivative


@dataclass(frozen=True)
class State:
    """What one iteration hands to the next; one row an image."""

    adam: dict[str, Tensor]  # theta and Adam's two moments, (3, B, ...) for every parameter
    count: Tensor  # (B,) Adam's step count, on the CPU
    average: Tensor  # (B, C, H, W) moving average of the iterates
    saved_adam: dict[str, Tensor]  # `adam` as it was at the last check with a sane loss
    saved_count: Tensor  # (B,) `count` then
    saved_loss: Tensor  # (B,) the loss then; infinite before the first


class Evaluation(NamedTuple):
    """The losses of B images at their parameters."""

    losses: Tensor  # (B,) without a graph
    output: Tensor  # (B, C, H, W) the iterate
    gradient: tuple[Tensor, ...]  # of the sum of the losses, (B, ...) for every parameter
    sane: Tensor  # (B,) bool: the loss is finite and did not jump


AdamUpdate = Callable[[dict[str, Tensor], Tensor, tuple[Tensor, ...], float], dict[str, Tensor]]


def begin(theta: dict[str, Tensor], average: Tensor) -> State:
    """The state before the first iteration: one set of parameters for all images of `average`, (B, C, H, W)."""
    B = len(average)
    adam = {name: p.new_zeros(3, B, *p.shape) for name, p in theta.items()}
    for name, parameter in theta.items():
        adam[name][0] = parameter
    count = torch.zeros(B, dtype=torch.float32, device="cpu")
    saved = {name: state.clone() for name, state in adam.items()}
    return State(adam, count, average, saved, count.clone(), average.new_full((B,), torch.inf))


def draw_input(problem: Problem, index: Tensor, jitter: float, generator: torch.Generator) -> Tensor:
    """z of the images at `index` (B,) with Gaussian noise of std `jitter`, the same noise for every image."""
    z = problem.z
    noise = torch.randn(z.shape[1:], dtype=z.dtype, device=z.device, generator=generator)
    return (z if len(z) == 1 else z[index]) + jitter * noise


def is_check(iteration: int, config: FitConfig) -> bool:
    """Does this iteration, counted from 1, save states, roll images back and let images leave?"""
    return iteration == 1 or iteration % CHECK_EVERY == 0 or iteration == config.iterations


def adam_in_place(
    states: dict[str, Tensor], count: Tensor, gradient: tuple[Tensor, ...], lr: float
) -> dict[str, Tensor]:
    """One step of Adam (Kingma and Ba, 2015), in place, by torch's fused kernel.

    Neighbouring images of the same step count advance as one tensor.

    Args:
        states: theta and the two moments, (3, B, ...) for every parameter; overwritten.
        count: (B,) float32 on the CPU, steps that each image has taken before.
        gradient: (B, ...) for every parameter.
        lr: step size.

    Returns:
        `states`.
    """
    counts, lengths = torch.unique_consecutive(count, return_counts=True)
    runs = lengths.tolist()

    def split(tensors: Iterable[Tensor]) -> list[Tensor]:
        if len(runs) == 1:
            return list(tensors)
        return [part for tensor in tensors for part in torch.split_with_sizes(tensor, runs)]

    theta, first, second = zip(*(state.unbind() for state in states.values()), strict=True)
    adam(
        split(theta),
        split(g.contiguous() for g in gradient),  # the fused kernel reads memory, not strides
        split(first),
        split(second),
        [],
        list(counts.repeat(len(theta)).to(theta[0].device).unbind()),
        fused=True,
        amsgrad=False,
        beta1=BETA_1,
        beta2=BETA_2,
        lr=lr,
        weight_decay=0.0,
        eps=ADAM_EPS,
        maximize=False,
    )
    return states


def adam_with_graph(
    states: dict[str, Tensor], count: Tensor, gradient: tuple[Tensor, ...], lr: float, *, eps: float = ADAM_EPS
) -> dict[str, Tensor]:
    """The same step of Adam, algorithm 1, out of place, so that it can be differentiated.

    All parameters advance as one row, (B, P): the graph then holds few operations, whatever the network.

    Differs: `TINY` is added to the second moment. Its root is 1e-15, which is nothing beside `eps`.
    """
    theta, first, second = torch.cat([state.flatten(2) for state in states.values()], 2)
    slope = torch.cat([g.flatten(1) for g in gradient], 1)
    t = count.to(theta)[:, None] + 1
    first = torch.lerp(slope, first, BETA_1)
    second = torch.lerp(slope.square(), second, BETA_2)
    root = (second + TINY).sqrt() / (1 - BETA_2**t).sqrt()
    theta = theta - lr / (1 - BETA_1**t) * first / (root + eps)
    sizes = [state[0, 0].numel() for state in states.values()]
    parts = torch.split(torch.stack([theta, first, second]), sizes, 2)
    return {name: part.view_as(state) for (name, state), part in zip(states.items(), parts, strict=True)}


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
    evaluation = _evaluate(problem, state, z, target, index, hidden, config.rollback_db, graph)
    losses, output, gradient, sane = evaluation
    check, select = is_check(iteration, config), _overwrite if update is None else _select
    with torch.set_grad_enabled(graph):
        if check:
            state = replace(
                state,
                saved_adam=select(sane, state.adam, state.saved_adam),
                saved_count=torch.where(sane.cpu(), state.count, state.saved_count),
                saved_loss=torch.where(sane, losses, state.saved_loss),
            )
        moved, count = (update or adam_in_place)(state.adam, state.count, gradient, config.lr), state.count + 1
        if check and not sane.all():
            moved = select(~sane, state.saved_adam, moved)
            count = torch.where(sane.cpu(), count, state.saved_count)
        average = output.lerp(state.average, config.ema if iteration > 1 else 0.0)
        average = torch.where(per_row(sane), average, state.average)
        return replace(state, adam=moved, count=count, average=average), evaluation


def _evaluate(
    problem: Problem,
    state: State,
    z: Tensor,
    target: Tensor,
    index: Tensor,
    hidden: Tensor | None,
    rollback_db: float,
    graph: bool,
) -> Evaluation:
    """Losses and gradients at the parameters of a state. A loss is sane unless it rose by more than `rollback_db`."""
    theta = {name: adam[0] if graph else adam[0].detach().requires_grad_() for name, adam in state.adam.items()}
    with torch.enable_grad():
        losses, output = problem.losses(theta, z, index, target, hidden)
        gradient = torch.autograd.grad(losses.sum(), tuple(theta.values()), create_graph=graph)
    losses = losses.detach()
    highest = 10 ** (rollback_db / 10) * state.saved_loss.abs().clamp_min(FITTED)
    return Evaluation(losses, output if graph else output.detach(), gradient, losses.isfinite() & (losses <= highest))


def _overwrite(mask: Tensor, new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """`old`, with the images under a mask (B,) copied from `new`; states of Adam, (3, B, ...) for every parameter."""
    rows = slice(None) if mask.all() else mask
    for name, state in new.items():
        old[name][:, rows] = state[:, rows]
    return old


def _select(mask: Tensor, new: dict[str, Tensor], old: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same, out of place."""
    return {
        name: torch.where(mask.view(1, -1, *[1] * (state.dim() - 2)), state, old[name]) for name, state in new.items()
    }
