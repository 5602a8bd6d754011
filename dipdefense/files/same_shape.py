"""Many images through one purifier: those of one shape are fitted together, and each gets its own result."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.defence.purifier import Purifier
from dipdefense.fitting.fit import Progress
from dipdefense.fitting.workers import is_out_of_memory

__all__ = ["Purified", "Result", "purify_each"]

HELD = 2**27  # pixel values (half a GiB) that wait at most, not counting the last image


K = TypeVar("K")


class Purified(NamedTuple):
    """An image after its fit."""

    image: Tensor  # (C, H, W) in [0, 1], on the CPU
    iterations: int  # of its fit; if it was cut into tiles, of the longest fit


# An image that cannot be read or fitted has an error instead; the cause of OutOfMemoryError may be the machine.
Result = Purified | ValueError | OSError | torch.OutOfMemoryError


def purify_each(
    sources: Iterable[tuple[K, Callable[[], Tensor]]],
    purifier: Purifier,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Iterator[tuple[K, Result]]:
    """Purify images as they are read; at most `batch_size` wait, fewer if they are large.

    The shape with the most images is fitted first.

    Args:
        sources: a key, and a function that reads the image, (C, H, W) in [0, 1]. Errors name `str(key)`.
        purifier: what is applied.
        batch_size: images that are held until they are fitted.
        device: where to fit.
        progress: called with the images done; a batch under way counts in part.

    Yields:
        Each key with the result of its image, in the order in which they are done. A batch that fails, or for which
        the memory does not suffice, is fitted again in halves: only an image that fails alone has an error.

    Raises:
        ValueError: a batch size below 1.
        torch.AcceleratorError: the device failed.
    """
    check_integer("batch_size", batch_size, 1)
    waiting: dict[tuple[int, ...], list[tuple[K, Tensor]]] = defaultdict(list)
    done, shown = 0, 0.0

    def finish() -> Iterator[tuple[K, Result]]:
        nonlocal done
        batch = waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
        yield from _together(batch, purifier, device, lambda share: report(done + share * len(batch)))
        done += len(batch)
        report(done)

    def report(images: float) -> None:
        nonlocal shown
        shown = max(shown, images)  # does not go back when a batch is fitted again in parts
        if progress is not None:
            progress(shown)

    for key, read in sources:
        try:
            image = read()
        except (ValueError, OSError) as error:
            yield key, error
            done += 1
            continue
        waiting[tuple(image.shape)].append((key, image))
        held = [image.numel() for batch in waiting.values() for _, image in batch]
        if len(held) >= batch_size or sum(held) >= HELD:
            yield from finish()
    while waiting:
        yield from finish()


def _together(
    batch: list[tuple[K, Tensor]], purifier: Purifier, device: str | torch.device, report: Callable[[float], None]
) -> Iterator[tuple[K, Result]]:
    """The results of images of one shape. If the fit fails, each half is fitted alone, down to the image at fault."""
    fault: Exception
    try:
        purified, iterations = _fit([image for _, image in batch], purifier, device, report)
    except torch.AcceleratorError:  # the device is at fault, and would be for every image to come
        raise
    except (ValueError, RuntimeError) as error:
        fault = error.with_traceback(None)  # its frames would hold the memory of the fit
    else:
        for (key, _), image, count in zip(batch, purified, iterations, strict=True):
            yield key, Purified(image, count)
        return
    if len(batch) == 1:
        kind = torch.OutOfMemoryError if is_out_of_memory(fault) else ValueError
        yield batch[0][0], kind(f"{batch[0][0]}: {fault}")
        return
    half = len(batch) // 2
    for part in (batch[:half], batch[half:]):
        yield from _together(part, purifier, device, report)


def _fit(
    batch: list[Tensor], purifier: Purifier, device: str | torch.device, report: Callable[[float], None]
) -> tuple[Tensor, list[int]]:
    """The purified images on the CPU, and how many iterations each took."""
    images = torch.stack(batch).to(device)
    iterations = torch.zeros(len(images), dtype=torch.long, device=images.device)

    def watch(state: Progress) -> None:
        image = state.index % len(
            images
        )  # tiles come in this order: the first of all images, the second of all images, ...
        iterations.scatter_reduce_(0, image, torch.full_like(image, state.iteration), "amax")
        report(state.share)

    return purifier.reconstruct(images, watch).cpu(), iterations.tolist()
