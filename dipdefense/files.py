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

    Args:
        sources: image files.
        targets: where each goes; the suffix gives the format.
        purifier: what is applied.
        batch_size: images of one shape that are held until they are fitted.
        device: where to fit.
        progress: called with (images done, images in all); a batch under way counts in part.

    Returns:
        The errors of the sources that could not be read, which are left out.

    Raises:
        ValueError: two sources share a target, or a target has an unknown suffix; before anything is computed.
        OSError: a target cannot be written; before anything is computed.
    """
    if len(set(targets)) < len(targets):
        twice = next(path for path in targets if targets.count(path) > 1)
        raise ValueError(f"{twice}: must be the target of one image, is that of several")
    for target in targets:
        check_target(target)
    failures: list[ValueError | OSError] = []
    waiting: dict[tuple[int, ...], list[tuple[Tensor, Path]]] = defaultdict(list)
    done = 0

    def finish(batch: list[tuple[Tensor, Path]]) -> None:
        images = torch.stack([image for image, _ in batch]).to(device)

        def report(state: Progress) -> None:
            if progress is not None:
                share = state.iteration / purifier.config_for(images).iterations
                progress(done + state.finished + share * len(state.index), len(sources))

        purified = purifier.fit(images, callback=report).reconstruction.cpu()
        for image, (_, target) in zip(purified, batch, strict=True):
            write_image(image, target)

    for source, target in zip(sources, targets, strict=True):
        try:
            image = read_image(source)
        except (ValueError, OSError) as error:
            failures.append(error)
            done += 1
            continue
        batch = waiting[tuple(image.shape)]
        batch.append((image, target))
        if len(batch) == batch_size:
            finish(waiting.pop(tuple(image.shape)))
            done += batch_size
    for batch in waiting.values():
        finish(batch)
        done += len(batch)
    return failures
