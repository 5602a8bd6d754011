"""One set of calls for local folders and for object storage."""

import os
import secrets
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, TypeVar

__all__ = ["Storage", "needs_ray", "read_many"]

T = TypeVar("T")
R = TypeVar("R")

READERS = 16  # files that are read at once
OBJECT_STORES = ("s3", "gcs", "abfs")  # pyarrow's names


def needs_ray() -> None:
    """Raise unless Ray and pyarrow are installed.

    Raises:
        ImportError: ray or pyarrow is not installed.
    """
    for name in ("ray", "pyarrow"):
        if find_spec(name) is None:
            raise ImportError(f"the engine ray needs {name}: python -m pip install 'dipdefense[ray]'")


def read_many(read: Callable[[T], R], names: Iterable[T]) -> list[R]:
    """What a function reads of each file, in their order; `READERS` threads read ahead."""
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, names))


@dataclass(frozen=True)
class Storage:
    """A folder or a file: a local path, or a URI such as `s3://bucket/folder` that pyarrow reads."""

    files: Any  # pyarrow.fs.FileSystem
    path: str

    @classmethod
    def at(cls, where: str) -> "Storage":
        """The place that a path or a URI names; nothing is read yet.

        Raises:
            ImportError: pyarrow is not installed.
            ValueError: a URI that pyarrow does not know.
        """
        needs_ray()
        from pyarrow.fs import FileSystem, LocalFileSystem

        if "://" not in where:
            return cls(LocalFileSystem(), Path(where).absolute().as_posix())
        try:
            files, path = FileSystem.from_uri(where)
        except ValueError as error:
            raise ValueError(f"{where}: must be a path, or a URI such as s3://bucket/folder: {error}") from error
        return cls(files, path)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    def parent(self) -> "Storage":
        """The folder that holds this."""
        return Storage(self.files, self.path.rstrip("/").rpartition("/")[0] or "/")

    def inside(self, other: "Storage") -> bool:
        """Is this the other place, or below it? Symbolic links in local paths are followed."""
        from pyarrow.fs import LocalFileSystem

        resolve = os.path.realpath if isinstance(self.files, LocalFileSystem) else str
        return self.files == other.files and f"{resolve(self.path)}/".startswith(f"{resolve(other.path).rstrip('/')}/")

    def is_folder(self) -> bool:
        """Is this a folder?

        Raises:
            FileNotFoundError: nothing exists there.
        """
        from pyarrow.fs import FileType

        info = self.files.get_file_info(self.path)
        if info.type == FileType.NotFound:
            raise FileNotFoundError(f"{self.path}: must be a file or a folder, does not exist")
        return bool(info.type == FileType.Directory)

    def holds(self, name: str) -> bool:
        """Is there such a file in this folder?"""
        return bool(self.files.get_file_info(f"{self.path}/{name}").is_file)

    def sizes(self) -> dict[str, int]:
        """Bytes of every file below this folder, by its path from here, sorted; hidden ones are left out."""
        from pyarrow.fs import FileSelector

        found = self.files.get_file_info(FileSelector(self.path, recursive=True, allow_not_found=True))
        start = len(self.path.rstrip("/")) + 1
        sizes = {info.path[start:]: info.size for info in found if info.is_file}
        return {
            name: sizes[name] for name in sorted(sizes) if not any(part.startswith(".") for part in name.split("/"))
        }

    def open(self, name: str) -> IO[bytes]:
        """A file of this folder, to be read at any place."""
        return self.files.open_input_file(f"{self.path}/{name}")  # type: ignore[no-any-return]

    def read(self, name: str) -> bytes:
        """The content of a file of this folder."""
        with self.open(name) as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file of this folder, which is made if missing. Nobody sees the file half-written.

        It is written under another name and then moved, a local file only when the disk has it. Object storage has no
        move, but an object appears only when it is complete.
        """
        moved = self.files.type_name not in OBJECT_STORES
        path = f"{self.path}/{name}"
        written = f"{self.path}/.{name}.{secrets.token_hex(8)}.part" if moved else path
        self.files.create_dir(self.path, recursive=True)
        with self.files.open_output_stream(written) as file:
            file.write(content)
        if self.files.type_name == "local":
            with Path(written).open("rb") as on_disk:
                os.fsync(on_disk.fileno())
        if moved:
            self.files.move(written, path)

    def sweep(self) -> None:
        """Delete what interrupted writes left in this folder."""
        from pyarrow.fs import FileSelector

        for info in self.files.get_file_info(FileSelector(self.path, allow_not_found=True)):
            if info.base_name.startswith(".") and info.base_name.endswith(".part"):
                self.files.delete_file(info.path)
