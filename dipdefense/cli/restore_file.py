"""One image file made from others by a fit: checks, progress, and a line on what was done."""

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from torch import Tensor

from dipdefense.cli import options
from dipdefense.cli.output import note, progress_bar
from dipdefense.files.reading import read_image
from dipdefense.files.writing import check_target, write_image
from dipdefense.fitting.fit import Progress

__all__ = ["EndsOfFits", "check_source", "restore_file"]


class EndsOfFits:
    """The last iteration of each fit of a call, from its callback: every image, tile and run has a fit of its own."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}  # position in the fit under way -> its last iteration
        self._before: list[int] = []  # of fits before it

    def see(self, state: Progress) -> None:
        """Take note of an iteration; one that does not follow the last belongs to the next fit."""
        for position in state.index.tolist():
            if state.iteration <= self._last.get(position, 0):
                self._before.append(self._last[position])
            self._last[position] = state.iteration

    def __str__(self) -> str:
        """Such as `120 iterations`, or `9 fits of 90 to 300 iterations`; nothing without a fit."""
        ends = [*self._before, *self._last.values()]
        if not ends:
            return ""
        least, most = min(ends), max(ends)
        iterations = f"{most} iterations" if least == most else f"{least} to {most} iterations"
        return iterations if len(ends) == 1 else f"{len(ends)} fits of {iterations}"


def check_source(source: Path) -> None:
    """Raise unless there is a file of this name.

    Raises:
        FileNotFoundError: there is nothing.
        IsADirectoryError: there is a folder.
    """
    if source.is_dir():
        raise IsADirectoryError(
            f"INPUT must be an image file, {source} is a folder: name a file in it (dipdefense purify takes folders)"
        )
    if not source.exists():
        raise FileNotFoundError(f"INPUT must be an image file, {source} does not exist: check the name and the folder")


def restore_file(
    sources: list[Path],
    target: Path,
    device: str,
    function: Callable[..., Tensor | tuple[Tensor, str]],
    *,
    refined: bool = False,
    **keywords: Any,
) -> None:
    """Read, restore with a progress bar, write, and say in one line what was done.

    Args:
        sources: image files; `function` gets their images, (1, C, H, W), and `keywords`.
        target: image file to make; if it cannot be written, that is reported before the work.
        device: where to compute.
        function: the result (1, C, H, W), or that and words on what was found.
        refined: whether filters follow the fit; then `function` gets a `filter_callback`, too.
        keywords: further arguments of the function.
    """
    where = options.device_named(device)
    for source in sources:
        check_source(source)
    if target.exists() and any(target.samefile(source) for source in sources):
        raise ValueError(f"OUTPUT must not replace an image that it comes from, {target} would be: name another file")
    images = [read_image(source)[None].to(where) for source in sources]
    check_target(target)
    ends, start = EndsOfFits(), perf_counter()
    with progress_bar("fit") as progress:

        def report(state: Progress) -> None:
            ends.see(state)
            progress(round(100 * state.share), 100)

        if refined:
            keywords["filter_callback"] = lambda share: progress.then("filters")(round(100 * share), 100)
        made = function(*images, callback=report, **keywords)
        result, found = made if isinstance(made, tuple) else (made, "")
        image = result[0].cpu()
    write_image(image, target)
    parts = (found, str(ends), f"{perf_counter() - start:.1f} s")
    note(f"{sources[0] if sources else target}: {', '.join(filter(None, parts))}")
