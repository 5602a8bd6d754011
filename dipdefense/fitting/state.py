"""The state of images that advance together: Adam of each, where each returns to, and what came out so far."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

__all__ = ["Batch"]

MAX_ROLLBACKS = 10  # an image that rolls back so often in a row has diverged


@dataclass
class Batch:
    """The state of the images that advance together; one row an image."""

    index: Tensor  # (B,) positions in `observed`
    adam: dict[str, Tensor]  # theta and Adam's two moments, (B, ...) each, for every parameter: (3, B, ...)
    step: Tensor  # (B,) Adam's step count, on the CPU
    saved_adam: dict[str, Tensor]  # both as they were at the last look with a sane loss: finite, and not above
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

    @classmethod
    def begin(cls, theta: dict[str, Tensor], index: Tensor, canvas: Tensor) -> "Batch":
        """Images at `index` (B,) with one set of parameters for all, and (B, C, H, W) to hold their iterates."""
        B = len(index)
        adam = {name: p.new_zeros(3, B, *p.shape) for name, p in theta.items()}
        for name, parameter in theta.items():
            adam[name][0] = parameter
        count, step = torch.zeros_like(index), torch.zeros(B, dtype=torch.float32, device="cpu")
        return cls(
            index=index,
            adam=adam,
            step=step,
            saved_adam={name: state.clone() for name, state in adam.items()},
            saved_step=step.clone(),
            saved_loss=canvas.new_full((B,), math.inf),
            rollbacks=count.clone(),
            output=canvas,
            average=canvas,
            best=canvas,
            chosen=count.clone(),
            iterations=count.clone(),
            stopped=count.bool(),
            done=count.bool(),
        )

    def rows(self, mask: Tensor) -> "Batch":
        """The images under a mask (B,), as a batch of their own."""
        return Batch(*(_rows(getattr(self, f.name), mask) for f in fields(self)))

    def adam_step(self, gradient: tuple[Tensor, ...], lr: float) -> None:
        """One step of Adam (Kingma and Ba, 2015), in place; neighbours of one step count advance as one tensor."""
        steps, lengths = torch.unique_consecutive(self.step, return_counts=True)
        runs = lengths.tolist()

        def split(tensors: Iterable[Tensor]) -> list[Tensor]:
            if len(runs) == 1:  # all stand at one step count
                return list(tensors)
            return [part for tensor in tensors for part in torch.split_with_sizes(tensor, runs)]

        theta, first, second = zip(*(state.unbind() for state in self.adam.values()), strict=True)
        adam(
            split(theta),
            split(g.contiguous() for g in gradient),  # the fused kernel reads memory, not strides
            split(first),
            split(second),
            [],
            list(steps.repeat(len(theta)).to(theta[0].device).unbind()),
            fused=True,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
        self.step += 1

    def save(self, sane: Tensor, losses: Tensor) -> None:
        """Keep the state whose loss is sane, before Adam moves it on."""
        hopeless = ~sane & self.saved_loss.isinf()
        if hopeless.any():
            images = self.index[hopeless].tolist()
            raise RuntimeError(f"the fit of images {images} must be finite from its start: lower lr, or check the loss")
        _copy(self.adam, self.saved_adam, sane)
        self.saved_step = torch.where(sane.cpu(), self.step, self.saved_step)
        self.saved_loss = torch.where(sane, losses, self.saved_loss)

    def roll_back(self, sane: Tensor) -> list[int]:
        """Return the images whose loss is not sane to the state kept last; end and name those that return for ever."""
        self.rollbacks = torch.where(sane, 0, self.rollbacks + 1)
        if sane.all():
            return []
        _copy(self.saved_adam, self.adam, ~sane)
        self.step = torch.where(sane.cpu(), self.step, self.saved_step)
        diverged = (self.rollbacks >= MAX_ROLLBACKS) & ~self.done
        self.done |= diverged
        return self.index[diverged].tolist()


def _rows(state: Any, mask: Tensor) -> Any:
    if isinstance(state, dict):
        return {name: value[:, mask] for name, value in state.items()}
    return state[mask.to(state.device)]


def _copy(source: dict[str, Tensor], target: dict[str, Tensor], mask: Tensor) -> None:
    """Copy the rows of images under a mask."""
    rows = slice(None) if mask.all() else mask
    for name, state in source.items():
        target[name][:, rows] = state[:, rows]
