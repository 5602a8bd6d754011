"""Images that advance together: the state of each fit, and what it has produced so far."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from dipdefense.fitting.step import AdamState, State, begin

__all__ = ["Batch"]

MAX_ROLLBACKS = 10  # an image that rolls back so often in a row has diverged


@dataclass
class Batch:
    """The images that advance together; one row an image."""

    index: Tensor  # (B,) positions in `observed`
    state: State  # what an iteration hands to the next
    rollbacks: Tensor  # (B,) times in a row that it rolled back
    output: Tensor  # (B, C, H, W) last sane iterate
    best: Tensor  # (B, C, H, W) the iterate to return so far
    chosen: Tensor  # (B,) its number
    iterations: Tensor  # (B,) iterations run
    stopped: Tensor  # (B,) bool: the stopping rule ended the fit
    done: Tensor  # (B,) bool: it leaves at the next check

    @classmethod
    def begin(cls, theta: dict[str, Tensor], index: Tensor, canvas: Tensor) -> "Batch":
        """Images at `index` (B,) with one set of parameters for all, and (B, C, H, W) to hold their iterates."""
        count = torch.zeros_like(index)
        return cls(
            index=index,
            state=begin(theta, canvas),
            rollbacks=count.clone(),
            output=canvas,
            best=canvas,
            chosen=count.clone(),
            iterations=count.clone(),
            stopped=count.bool(),
            done=count.bool(),
        )

    def rows(self, mask: Tensor) -> "Batch":
        """The images under a mask (B,), as a batch of their own."""
        return Batch(*(_rows(getattr(self, f.name), mask) for f in fields(self)))

    def count_rollbacks(self, sane: Tensor) -> list[int]:
        """Count who rolled back at a check; end the images that keep rolling back, and return their positions.

        Raises:
            RuntimeError: an image has no sane state to return to.
        """
        hopeless = ~sane & self.state.saved_loss.isinf()
        if hopeless.any():
            images = self.index[hopeless].tolist()
            raise RuntimeError(f"the fit of images {images} must be finite from its start: lower lr, or check the loss")
        self.rollbacks = torch.where(sane, 0, self.rollbacks + 1)
        diverged = (self.rollbacks >= MAX_ROLLBACKS) & ~self.done
        self.done |= diverged
        return self.index[diverged].tolist()


def _rows(value: Any, mask: Tensor) -> Any:
    if isinstance(value, State | AdamState):
        return type(value)(*(_rows(getattr(value, f.name), mask) for f in fields(value)))
    if isinstance(value, dict):
        return {name: tensor[:, mask] for name, tensor in value.items()}
    return value[mask]
