"""Images divided into chunks, and chunks fitted side by side by worker threads.

On the CPU the kernels of a small fit are too short for several threads each, so torch's threads are divided among the
workers. Another device has one worker.
"""

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Chunks", "is_out_of_memory", "map_in_threads", "memory_budget", "most_images", "plan_chunks"]

Item = TypeVar("Item")
Result = TypeVar("Result")
USUAL_GB = 1.0  # budget without a number, unless the device is a CUDA one
OUT_OF_MEMORY = (
    "out of memory",  # CUDA, MPS
    "can't allocate memory",  # the CPU's allocator
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cudnn_status_internal_error_device_allocation_failed",  # these two since cuDNN 9
    "cudnn_status_internal_error_host_allocation_failed",
    "unable to find an engine to execute this computation",  # torch, where the workspace of no cuDNN algorithm fits
)
SHARE = 0.6  # of the free memory of a CUDA device: the estimate of a fit can be too low by a third


def memory_budget(memory_gb: float | None, device: torch.device) -> float:
    """The GiB that a fit may take on a device; None chooses by the device, and by what is free there now.

    Free is also what torch keeps there from earlier fits without using it.
    """
    if memory_gb is not None:
        return memory_gb
    if device.type != "cuda":
        return USUAL_GB
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return SHARE * (free + kept) / 2**30


def most_images(bytes_each: float, memory_gb: float, task: str, remedy: str) -> int:
    """How many images a memory budget holds at once.

    Raises:
        ValueError: not even one; the message names the task that needs the memory, and a remedy.
    """
    most = int(memory_gb * 2**30 // bytes_each)
    if most < 1:
        least = math.ceil(bytes_each / 2**30 * 1000) / 1000
        raise ValueError(f"memory_gb must be at least {least} {task}, got {memory_gb:.4g}: {remedy}")
    return most


def plan_chunks(images: int, most: int, device: torch.device, *, compiled: bool = False) -> tuple[int, list[Tensor]]:
    """Divide images among workers, as equally as possible.

    Args:
        images: how many there are.
        most: how many all workers together may hold at the same time.
        device: where they are fitted; only the CPU has several workers.
        compiled: the network is compiled, which torch cannot do in several threads, so there is one worker. It is
            compiled for one number of images, so all chunks have the same: the last begins within the one before, and
            the few images that are in both are fitted twice. A second compilation takes longer.

    Returns:
        The number of workers, and the positions of the images of each chunk.
    """
    workers = 1 if compiled or device.type != "cpu" else min(torch.get_num_threads(), images, most)
    rounds = math.ceil(images / (workers * (most // workers)))
    positions = torch.arange(images, device=device)
    if compiled:
        size = math.ceil(images / rounds)
        return workers, [positions[min(first, images - size) :][:size] for first in range(0, images, size)]
    return workers, list(positions.tensor_split(min(images, workers * rounds)))


def map_in_threads(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, *, on_end: Callable[[], None] = lambda: None
) -> list[Result]:
    """The results of `work` for all items, in their order.

    One worker is the caller's own thread. Several divide torch's threads, whose number is put back at the end. The
    first error is raised once all items that have begun are done; the others never begin. `on_end` is called before
    that wait, so that it can tell those that have begun to stop, and when all are done.
    """
    if workers == 1:
        return [work(item) for item in items]
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,)) as pool:
            futures = [pool.submit(work, item) for item in items]
            try:
                for future in as_completed(futures):
                    future.result()
            finally:  # also when the user interrupts
                on_end()
                pool.shutdown(wait=False, cancel_futures=True)
            return [future.result() for future in futures]
    finally:
        torch.set_num_threads(threads)  # a number set in one thread is also that of all threads to come


class Chunks:
    """Chunks of images that workers take in turn. A chunk that runs out of memory is halved, and so are the rest."""

    def __init__(self, chunks: Sequence[Tensor]):
        self.waiting = deque(chunks)
        self.largest = max((len(chunk) for chunk in chunks), default=0)  # images of a chunk, at most
        self.halved = False
        self.ended = False  # nothing more is to be fitted: workers that have begun stop
        self.lock = threading.Lock()

    def fit_all(self, fit_chunk: Callable[[Tensor], None]) -> None:
        """Fit chunks, in the thread of one worker, until none is left; raises what `fit_chunk` raises."""
        while (index := self._take()) is not None:
            try:
                fit_chunk(index)
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(index) == 1:
                    raise
                self._halve(index)

    def end(self) -> None:
        """Let no worker take another chunk."""
        self.ended = True

    def _take(self) -> Tensor | None:
        """The positions (B,) of the images of the next chunk; None at the end."""
        with self.lock:
            if self.ended or not self.waiting:
                return None
            index, *rest = torch.split(self.waiting.popleft(), self.largest)
            self.waiting.extendleft(reversed(rest))
            return index

    def _halve(self, index: Tensor) -> None:
        with self.lock:
            self.halved, self.largest = True, min(self.largest, math.ceil(len(index) / 2))
            self.waiting.appendleft(index)


def is_out_of_memory(error: BaseException) -> bool:
    """Did the device run out of memory? CUDA has a class for it; libraries and other allocators say so in words."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in OUT_OF_MEMORY)
