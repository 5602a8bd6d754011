"""The checkpoint of an adaptation: the reconstructions that are made, and then the state of training."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dipdefense.fitting.checkpoint import Checkpoint, read_state, write_state
from dipdefense.whole_file import check_writable

__all__ = ["ProgressFile"]


class ProgressFile:
    """What is done so far. It is written as a whole, in the dtype of the images, so that no bit is lost.

    Args:
        checkpoint: where and how often; its file need not exist. None: it is kept in memory only.
        identity: what the result depends on, by name.

    Raises:
        ValueError: the file is of another identity, is torn, or is no checkpoint.
        OSError: it cannot be read or made.
    """

    def __init__(self, checkpoint: Checkpoint | None, identity: Mapping[str, str]):
        self.blocks: list[Tensor] = []  # reconstructions, each (S, B, C, H, W), on the CPU
        self.training: dict[str, Any] | None = None  # after an epoch; None before the first
        self.checkpoint, self.identity = checkpoint, identity
        if checkpoint is None:
            return
        self.due = time.monotonic() + checkpoint.seconds
        if Path(checkpoint.path).exists():
            state = read_state(Path(checkpoint.path), identity, "this adaptation")
            self.blocks, self.training = state["blocks"], state["training"]
        else:
            check_writable(Path(checkpoint.path))  # before the work

    def keep(self, *, last: bool) -> None:
        """Write the file if it is due, or if this is the last state of its kind."""
        if self.checkpoint is not None and (last or time.monotonic() >= self.due):
            state = {"blocks": self.blocks, "training": self.training}
            write_state(Path(self.checkpoint.path), self.identity, state)
            self.due = time.monotonic() + self.checkpoint.seconds
