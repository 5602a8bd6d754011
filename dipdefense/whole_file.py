"""Files that appear under their name only when they are complete."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["check_writable", "replacing"]


@contextmanager
def replacing(path: Path, temporary: str | None = None) -> Iterator[IO[bytes]]:
    """A new file that takes the place of `path`, in one step, when the block ends without an error.

    Args:
        path: errors name it; an older file there stays if anything fails.
        temporary: name of the new file until then, in the same folder; a random one if None.
    """
    with _beside(path, temporary) as file:
        yield file
        file.close()
        Path(file.name).replace(path)


def check_writable(path: Path, temporary: str | None = None) -> None:
    """Raise what `replacing` would raise for this path, before the work for it is done."""
    with _beside(path, temporary):
        pass


@contextmanager
def _beside(path: Path, temporary: str | None) -> Iterator[IO[bytes]]:
    """A new file in the folder of `path`, deleted at the end unless it was moved; errors name `path`."""
    new = path.with_name(temporary or f".{secrets.token_hex(8)}.tmp")
    try:
        with new.open("wb") as file:
            yield file
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), os.fspath(path)) from error
    finally:
        with suppress(OSError):  # there is none if it was moved, or if its folder is missing
            new.unlink()
