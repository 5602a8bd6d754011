"""Purify image files; those of one size are fitted together."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from dipdefense.defence.purifier import Purifier
from dipdefense.files.reading import read_image
from dipdefense.files.same_shape import Purified, purify_each
from dipdefense.files.writing import check_target, write_image

__all__ = ["purify_files"]


def purify_files(
    sources: Sequence[Path],
    targets: Sequence[Path],
    purifier: Purifier,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    progress: Callable[[float, float], None] | None = None,
) -> list[ValueError | OSError | torch.OutOfMemoryError]:
    """Purify each source into its target; files of one shape are fitted together and written when they are done.

    At most `batch_size` images wait, fewer if they are large. The shape with the most images is fitted first.

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
        ValueError: a batch size below 1, two sources share a target, a target has an unknown suffix, more or fewer
            targets than sources.
        OSError: a target cannot be written. Both are raised before anything is computed.
    """
    if len(sources) != len(targets):
        raise ValueError(f"targets must be as many as sources, got {len(targets)} for {len(sources)}")
    if len(set(targets)) < len(targets):
        twice = next(path for path in targets if targets.count(path) > 1)
        raise ValueError(f"{twice}: must be the target of one image, is that of several")
    for target in targets:
        check_target(target)
    jobs = map(_Job, sources, targets)
    report = None if progress is None else lambda done: progress(done, len(sources))
    readers = ((job, partial(read_image, job.source)) for job in jobs)
    failures: list[ValueError | OSError | torch.OutOfMemoryError] = []
    for job, result in purify_each(readers, purifier, batch_size=batch_size, device=device, progress=report):
        try:
            if not isinstance(result, Purified):
                raise result
            write_image(result.image, job.target)
        except (ValueError, OSError, torch.OutOfMemoryError) as error:
            failures.append(error)
    return failures


class _Job(NamedTuple):
    source: Path
    target: Path

    def __str__(self) -> str:
        return str(self.source)
