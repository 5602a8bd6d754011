"""Checkpoints: one file from which a killed fit goes on, bit for bit, as if it had not been killed.

Chunks of images are independent, so the file may hold each of them at another iteration: the worker that fits a chunk
copies its state between two iterations. Results of images that have left, and what a callback keeps, are saved as they
stand when the file is written. They may be ahead of the copies; the chunks then come to the same values again.
"""

import dataclasses
import hashlib
import io
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dipdefense.digest import describe, source_hash
from dipdefense.fitting.batch import Batch
from dipdefense.fitting.config import FitConfig
from dipdefense.fitting.problem import Problem
from dipdefense.stopping import StoppingRule
from dipdefense.whole_file import check_writable, replacing

__all__ = ["Checkpoint", "CheckpointFile", "CheckpointLike", "code_and_device", "read_state", "write_state"]

MAGIC = b"dipdefense checkpoint 1\n"  # a file: this, the SHA-256 of what follows, what `torch.save` writes
SECONDS = 60.0  # between two copies of a fit
REMEDY = "name another path, or delete the file to begin anew"


@dataclass(frozen=True)
class Checkpoint:
    """Where and how often a fit is saved.

    Raises:
        ValueError: seconds below 0.
    """

    path: str | os.PathLike[str]
    seconds: float = SECONDS  # 0: after every iteration
    kept: Mapping[str, Tensor] = field(default_factory=dict)  # what a callback fills in: saved, and put back

    def __post_init__(self) -> None:
        if not self.seconds >= 0:
            raise ValueError(f"seconds must not be negative, got {self.seconds!r}")

    @classmethod
    def at(cls, given: "CheckpointLike", kept: Mapping[str, Tensor] | None = None) -> "Checkpoint":
        """A checkpoint, or one at a path with the usual seconds; `kept` is added to what it keeps."""
        checkpoint = given if isinstance(given, Checkpoint) else cls(given, SECONDS)
        return dataclasses.replace(checkpoint, kept={**checkpoint.kept, **(kept or {})})

    def numbered(self, number: int) -> "Checkpoint":
        """The same at the path with `.1`, `.2`, ... behind it, for one of several fits."""
        return dataclasses.replace(self, path=f"{os.fspath(self.path)}.{number}")


CheckpointLike = str | os.PathLike[str] | Checkpoint


class CheckpointFile:
    """The checkpoint of a fit under way, which its workers share.

    Args:
        checkpoint: its file need not exist.
        problem: what is fitted.
        config: settings of the fit.
        results: of all images, filled in as these leave the fit; those in the file are put back.

    Raises:
        ValueError: the file holds another fit, is torn, or is no checkpoint.
        OSError: it cannot be read or made.
    """

    def __init__(self, checkpoint: Checkpoint, problem: Problem, config: FitConfig, results: Mapping[str, Tensor]):
        self.path = Path(checkpoint.path)
        self.seconds = checkpoint.seconds
        self.identity = _identity(problem, config, checkpoint.kept)
        self.filled = {"results": dict(results), "kept": dict(checkpoint.kept)}
        self.device = problem.observed.device
        self.finished = torch.zeros(len(problem.observed), dtype=torch.bool, device="cpu")  # images of ended chunks
        self.diverged: list[int] = []  # positions of images that were given up
        self.chunks: dict[int, dict[str, Any]] = {}  # the last copy of each chunk under way, by its first position
        self.under_way: set[int] = set()  # first positions of the chunks that are being fitted
        self.copied: set[int] = set()  # those that were copied since the file was last due
        self.due = time.monotonic() + self.seconds
        self.lock = threading.Lock()
        if self.path.exists():
            self._read()
        else:
            check_writable(self.path, _temporary(self.path))  # before the work

    def steps(self, iterations: int) -> int:
        """Iterations done or no longer needed, summed over the images, in a fit of at most `iterations`."""
        left = int((~self.finished).sum()) * iterations
        for chunk in self.chunks.values():
            alive = len(chunk["batch"]["index"])
            left -= len(chunk["index"]) * iterations - alive * (iterations - chunk["iteration"])
        return len(self.finished) * iterations - left

    def plan(self, workers: int, chunks: list[Tensor], most: int) -> tuple[int, list[Tensor]]:
        """The chunks as they were saved, then what is left of those planned; and as many workers as fit into memory.

        With the number of threads that the fit began with these are the chunks and workers of its plan.

        Args:
            workers, chunks: of the plan for all images.
            most: images that all workers together may hold.
        """
        saved, left = [chunk["index"] for chunk in self.chunks.values()], ~self.finished
        for index in saved:
            left[index] = False
        planned = [index[left[index.cpu()].to(index.device)] for index in chunks]
        chunks = [index.to(self.device) for index in saved] + [index for index in planned if len(index)]
        largest = max((len(index) for index in chunks), default=1)
        return max(1, min(workers, most // largest)), chunks

    def resume(self, index: Tensor, batch: Batch, rule: StoppingRule, generator: torch.Generator) -> tuple[int, Batch]:
        """The iterations that the chunk at `index` has done, and its batch then; `rule` and `generator` are set.

        0 and the given batch if it was not saved, also where only a part is left of a chunk that was.
        """
        first = int(index[0])
        with self.lock:
            self.under_way.add(first)
            self.copied.discard(first)
            saved = self.chunks.get(first)
            if saved is None or not torch.equal(saved["index"], index.cpu()):
                self.chunks.pop(first, None)
                return 0, batch
        rule.state = {name: rows.to(self.device, copy=True) for name, rows in saved["rule"].items()}
        generator.set_state(saved["generator"])
        iteration: int = saved["iteration"]
        return iteration, _restored(saved["batch"], batch)

    def keep(self, index: Tensor, iteration: int, batch: Batch, rule: StoppingRule, generator: torch.Generator) -> None:
        """Copy a chunk after an iteration, if it is due. The file is written once all chunks under way are copied."""
        if time.monotonic() < self.due:
            return
        first = int(index[0])
        with self.lock:
            if first in self.copied:
                return
            state = {"index": index, "iteration": iteration, "batch": batch, "rule": rule.state}
            self.chunks[first] = _copied({**state, "generator": generator.get_state()})
            self.copied.add(first)
            if self.copied >= self.under_way:
                self._write()

    def finish(self, index: Tensor) -> None:
        """Write the file without the state of a chunk whose results are there."""
        first = int(index[0])
        with self.lock:
            self.finished[index.cpu()] = True
            self.chunks.pop(first, None)
            self.under_way.discard(first)
            self.copied.discard(first)
            self._write()

    def _write(self) -> None:
        state = {"finished": self.finished, "diverged": list(self.diverged), "chunks": self.chunks}
        write_state(self.path, self.identity, {**self.filled, **state})
        if self.copied >= self.under_way:
            self.copied.clear()
            self.due = time.monotonic() + self.seconds

    def _read(self) -> None:
        saved = read_state(self.path, self.identity, "this fit")
        for kind, tensors in self.filled.items():
            for name, tensor in tensors.items():
                tensor.copy_(saved[kind][name])
        self.finished, self.diverged, self.chunks = saved["finished"], saved["diverged"], saved["chunks"]


def write_state(path: Path, identity: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Replace a checkpoint at once: what the result depends on, and what it takes to go on."""
    torch.save({"identity": dict(identity), **state}, content := io.BytesIO())
    with replacing(path, _temporary(path)) as file:
        file.write(MAGIC + hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())
        file.flush()
        os.fsync(file.fileno())


def read_state(path: Path, identity: Mapping[str, str], whose: str) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU.

    Raises:
        ValueError: the file is of another identity, is torn, or is no checkpoint.
    """
    content = memoryview(path.read_bytes())
    start = len(MAGIC) + hashlib.sha256().digest_size
    if content[:start] != MAGIC + hashlib.sha256(content[start:]).digest():
        raise ValueError(f"{path} must be a whole checkpoint, it is torn or another file: {REMEDY}")
    saved: dict[str, Any] = torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    theirs = saved["identity"]
    differing = [name for name in {**theirs, **identity} if theirs.get(name) != identity.get(name)]
    if differing:
        raise ValueError(
            f"{path} must be the checkpoint of {whose}, it is of another ({', '.join(differing)}): {REMEDY}"
        )
    return saved


def _temporary(path: Path) -> str:
    """Name of the file until it is whole; what a kill leaves of it, the next write replaces."""
    return f".{path.name}.tmp"


def code_and_device(tensor: Tensor) -> dict[str, str]:
    """The part of an identity that every checkpoint has: dtype and device of what is fitted, and the code."""
    return {
        "dtype": str(tensor.dtype),
        "device": tensor.device.type,
        "code": source_hash("dipdefense"),
        "torch": str(torch.__version__),
    }


def _identity(problem: Problem, config: FitConfig, kept: Mapping[str, Tensor]) -> dict[str, str]:
    """Everything that the result of a fit depends on, by name."""
    return {
        **{f"config.{name}": repr(value) for name, value in dataclasses.asdict(config).items()},
        "seed": repr((problem.jitter_seed, problem.rule_seed)),
        "observed": describe("", problem.observed),
        "z": describe("", problem.z),
        "initial parameters": describe("", problem.theta),
        "shape": repr(problem.crop),
        "degrade": describe(problem.degrade),
        "loss": describe(problem.loss),
        "prior": describe(problem.prior),
        "kept": repr({name: tuple(tensor.shape) for name, tensor in kept.items()}),
        **code_and_device(problem.observed),
    }


def _copied(value: Any) -> Any:
    """A state with copies of its tensors on the CPU, and dicts in place of dataclasses."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if dataclasses.is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: _copied(part) for name, part in value.items()} if isinstance(value, dict) else value


def _restored(copy: Any, like: Any) -> Any:
    """What was copied, in the classes and on the devices of `like`."""
    if isinstance(copy, dict):
        inside = like if isinstance(like, dict) else vars(like)
        parts = {name: _restored(part, inside[name]) for name, part in copy.items()}
        return parts if isinstance(like, dict) else type(like)(**parts)
    return copy.to(like.device, copy=True) if isinstance(copy, Tensor) else copy
