"""Purify image files, those of one size together."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dipdefense.fit import Progress
from dipdefense.images import check_target, read_image, write_image
from dipdefense.purify import Purifier

__all__ = ["purify_files"]

HELD = 2**27  # pixel values (half a GiB) that wait at most, but for the last image


def purify_files(
    sources: Sequence[Path],
    targets: Sequence[Path],
    purifier: Purifier,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> list[ValueError | OSError]:
    """Purify each source into its target; files of one shape are fitted together and written when they are done.

    At most `batch_size` images wait, fewer if they are large: the shape with the most of them goes first.

    Args:
        sources: image files.
        targets: where each goes; the suffix gives the format.
        purifier: what is applied.
        batch_size: images that are held until they are fitted.
        device: where to fit.
        progress: called with (images done, images in all); a batch under way counts in part.

    Returns:
        One error for each image that could not be read, purified or written; it is left out.

    Raises:
        ValueError: a batch size below 1, two sources share a target, a target has an unknown suffix.
        OSError: a target cannot be written. Both before anything is computed.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(set(targets)) < len(targets):
        twice = next(path for path in targets if targets.count(path) > 1)
        raise ValueError(f"{twice}: must be the target of one image, is that of several")
    for target in targets:
        check_target(target)
    failures: list[ValueError | OSError] = []
    waiting: dict[tuple[int, ...], list[tuple[Tensor, Path, Path]]] = defaultdict(list)
    done = 0

    def finish() -> None:
        nonlocal done
        batch = waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
        images = torch.stack([image for image, _, _ in batch]).to(device)

        def report(state: Progress) -> None:
            if progress is not None:
                progress(done + state.share * len(images), len(sources))

        try:
            purified = purifier.reconstruct(images, report).cpu()
        except (ValueError, RuntimeError) as error:
            failures.extend(ValueError(f"{source}: {error}") for _, source, _ in batch)
        else:
            for image, (_, _, target) in zip(purified, batch, strict=True):
                try:
                    write_image(image, target)
                except OSError as error:
                    failures.append(error)
        done += len(batch)
        if progress is not None:
            progress(done, len(sources))

    for source, target in zip(sources, targets, strict=True):
        try:
            image = read_image(source)
        except (ValueError, OSError) as error:
            failures.append(error)
            done += 1
            continue
        waiting[tuple(image.shape)].append((image, source, target))
        held = [entry[0].numel() for batch in waiting.values() for entry in batch]
        if len(held) >= batch_size or sum(held) >= HELD:
            finish()
    while waiting:
        finish()
    return failures
