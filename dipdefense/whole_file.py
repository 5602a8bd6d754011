"""Files that appear under their name only when they are complete."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["beside"]


@contextmanager
def beside(path: Path, name: str) -> Iterator[IO[bytes]]:
    """A new file of this name in the folder of `path`, deleted at the end unless it was moved; errors name `path`.

    Whoever has written it closes it and moves it to `path`, which replaces an older file in one step.
    """
    temporary = path.with_name(name)
    try:
        with temporary.open("wb") as file:
            yield file
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), os.fspath(path)) from error
    finally:
        with suppress(OSError):  # there is none if it was moved, or if its folder is missing
            temporary.unlink()
