"""Requests to storage, repeated for half a minute if it does not answer, but not if one file is at fault."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from dipdefense.distributed.storage import Storage

__all__ = ["OutageError", "open_table", "persist"]

T = TypeVar("T")

ITS_OWN = (FileNotFoundError, IsADirectoryError, PermissionError)  # faults of one file; any other OSError is an outage
WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before storage is asked again


class OutageError(RuntimeError):
    """Storage does not answer; the file that was asked for is not at fault."""


def persist(name: str, request: Callable[[], T]) -> T:
    """The result of a request to storage, which is repeated after each of `WAITS` if it fails.

    Raises:
        OSError: the file is at fault; raised at once.
        OutageError: storage never answered.
    """
    waits = iter(WAITS)
    while True:
        try:
            return request()
        except ITS_OWN:
            raise
        except OSError as error:
            wait = next(waits, None)
            if wait is None:
                raise OutageError(f"{name}: cannot be read or written at present: {error}") from error
        time.sleep(wait)


@contextmanager
def open_table(folder: Storage, name: str) -> Iterator[Any]:
    """A Parquet file, opened for pyarrow's reader. If that raises anything but `OutageError`, the file is damaged."""
    import pyarrow as pa

    opened = persist(name, partial(folder.open, name))
    with opened, pa.PythonFile(_Persistent(opened, name), mode="r") as file:
        yield file


class _Persistent:
    """A file whose reads are repeated here, since pyarrow raises OSError for damaged content, too."""

    def __init__(self, file: Any, name: str):
        self.file, self.name = file, name

    def read(self, size: int = -1) -> bytes:
        start = self.file.tell()
        return persist(self.name, partial(self._read, start, size))

    def _read(self, start: int, size: int) -> bytes:
        self.file.seek(start)  # after a failed read the position is unknown
        return self.file.read(size)  # type: ignore[no-any-return]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)
