"""The source of images: image files, or rows of Parquet files. A run is planned without reading an image."""

import hashlib
import io
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, chain, repeat
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from dipdefense.distributed.storage import Storage, read_many
from dipdefense.distributed.storage_retries import open_table, persist
from dipdefense.files.reading import READABLE, decode_image, pixel_limit

__all__ = ["Files", "Rows", "Source", "find_images"]


class Source(Protocol):
    """Images in a fixed order, each with a key that no other has."""

    def __len__(self) -> int: ...

    def keys(self) -> Iterator[str]:
        """The key of each image."""

    def part(self, start: int, stop: int) -> "Source":
        """The images at start:stop, as a small object that can be sent to a worker."""

    def images(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """The key of each image, and a function that returns it, (C, H, W) in [0, 1], or raises ValueError, OSError."""

    def digest(self) -> str:
        """A hash that identifies the images and their order, as far as possible without reading them."""


@dataclass(frozen=True)
class Files:
    """Image files; the key is the path from the folder."""

    folder: Storage
    sizes: tuple[tuple[str, int], ...]  # name and bytes
    max_pixels: int  # of an image

    def __len__(self) -> int:
        return len(self.sizes)

    def keys(self) -> Iterator[str]:
        """See `Source`."""
        return (name for name, _ in self.sizes)

    def part(self, start: int, stop: int) -> "Files":
        """See `Source`."""
        return replace(self, sizes=self.sizes[start:stop])

    def images(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """See `Source`."""
        return ((name, partial(self._image, name)) for name in self.keys())

    def digest(self) -> str:
        """See `Source`; names and sizes."""
        return _digest(self.sizes)

    def _image(self, name: str) -> Tensor:
        try:
            content = persist(name, partial(self.folder.read, name))
        except OSError as error:
            raise OSError(f"{name}: {error}") from error
        return decode_image(io.BytesIO(content), name, max_pixels=self.max_pixels)


class Piece(NamedTuple):
    """Consecutive rows of one row group."""

    file: str
    group: int
    first: int  # row of the file at which the group begins
    start: int  # rows of the group
    stop: int


@dataclass(frozen=True)
class Rows:
    """The image column of Parquet files; the key is FILE:ROW, rows counted from 0."""

    folder: Storage
    column: str
    pieces: tuple[Piece, ...]
    max_pixels: int  # of an image

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(piece.stop - piece.start for piece in self.pieces))

    def __len__(self) -> int:
        return self._ends[-1] if self.pieces else 0

    def keys(self) -> Iterator[str]:
        """See `Source`."""
        return (f"{p.file}:{p.first + row}" for p in self.pieces for row in range(p.start, p.stop))

    def part(self, start: int, stop: int) -> "Rows":
        """See `Source`."""
        pieces = []
        for number in range(bisect_right(self._ends, start), len(self.pieces)):
            piece = self.pieces[number]
            before = self._ends[number] - (piece.stop - piece.start)  # images that come before this piece
            if before >= stop:
                break
            first, last = max(start - before, 0), min(stop - before, piece.stop - piece.start)
            pieces.append(piece._replace(start=piece.start + first, stop=piece.start + last))
        return replace(self, pieces=tuple(pieces))

    def images(self) -> Iterator[tuple[str, Callable[[], Tensor]]]:
        """See `Source`; row groups are read in small batches of rows."""
        rows = zip(self.keys(), self._contents(), strict=True)
        return ((key, partial(_decode, content, key, self.max_pixels)) for key, content in rows)

    def digest(self) -> str:
        """See `Source`; file names, column, and where rows lie in row groups."""
        return _digest((self.column, *self.pieces))

    def _contents(self) -> Iterator[bytes | Exception | None]:
        """The content of each row, or its error; an error of a file is that of all its rows that are not read yet."""
        import pyarrow as pa

        for piece in self.pieces:
            left, fault = piece.stop - piece.start, ValueError("the file has fewer rows than when it was listed")
            try:
                for content in self._piece(piece):
                    yield content
                    left -= 1
            except (OSError, ValueError, pa.ArrowException) as error:
                fault = ValueError(str(error))
            yield from repeat(fault, left)

    def _piece(self, piece: Piece) -> Iterator[bytes | None]:
        from pyarrow.parquet import ParquetFile

        with open_table(self.folder, piece.file) as file:
            table = ParquetFile(file, buffer_size=2**20)  # else a whole column chunk is read at once
            row = 0
            for batch in table.iter_batches(64, row_groups=[piece.group], columns=[self.column]):
                if row + len(batch) > piece.start:
                    wanted = batch.slice(max(piece.start - row, 0), piece.stop - max(piece.start, row))
                    yield from map(_bytes, wanted.column(0).to_pylist())
                row += len(batch)
                if row >= piece.stop:
                    break


def find_images(where: str, column: str = "image") -> Source:
    """The images of a folder and its subfolders, of a Parquet file, a folder of those, or one image file.

    Of Parquet files only the footers are read. The pixel limit of this process, `pixel_limit()`, holds wherever
    the images are read.

    Args:
        where: a path, or a URI such as `s3://bucket/folder`.
        column: of a Parquet file; it holds the bytes of image files, or structs with such a field `bytes`.

    Raises:
        FileNotFoundError: nothing exists there.
        ValueError: no image; both kinds of files; a Parquet file without such a column.
        OutageError: storage does not answer.
    """
    folder = Storage.at(where)
    if folder.is_folder():
        sizes = folder.sizes()
    else:
        folder, sizes = folder.parent(), {folder.name: 0}
    tables = [name for name in sizes if name.lower().endswith(".parquet")]
    pictures = [name for name in sizes if name.lower().endswith(READABLE)]
    if tables and pictures:
        raise ValueError(f"{where}: must hold images or Parquet files, got both: {pictures[0]}, {tables[0]}")
    if tables:
        pieces = chain.from_iterable(read_many(partial(_pieces, folder, column), tables))
        source: Source = Rows(folder, column, tuple(piece for piece in pieces if piece.stop), pixel_limit())
    else:
        source = Files(folder, tuple((name, sizes[name]) for name in pictures), pixel_limit())
    if not len(source):
        raise ValueError(f"{where}: must hold at least one image ({', '.join(READABLE)}, or .parquet), got none")
    return source


def _pieces(folder: Storage, column: str, name: str) -> list[Piece]:
    """The row groups of a file, from its footer."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    with open_table(folder, name) as opened:
        try:
            file = ParquetFile(opened)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{name}: must be a Parquet file, {error}") from error
        columns = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
        if column not in columns:
            raise ValueError(
                f"{name}: column must be one of {', '.join(columns)}, got {column!r}; name it with --column"
            )
        kind = columns[column]
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            kind = kind.field("bytes").type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
            raise ValueError(f"{name}: column {column} must hold bytes, or a struct with a field bytes, got {kind}")
        rows = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
        starts = accumulate(rows, initial=0)
        return [
            Piece(name, group, first, 0, count) for group, (first, count) in enumerate(zip(starts, rows, strict=False))
        ]


def _bytes(value: Any) -> bytes | None:
    return value.get("bytes") if isinstance(value, dict) else value


def _decode(content: bytes | Exception | None, key: str, max_pixels: int) -> Tensor:
    if isinstance(content, Exception):
        raise ValueError(f"{key}: must be a row that can be read, {content}") from content
    if content is None:
        raise ValueError(f"{key}: must be the bytes of an image, got null")
    return decode_image(io.BytesIO(content), key, max_pixels=max_pixels)


def _digest(values: tuple[Any, ...]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(repr(value).encode())
    return digest.hexdigest()[:16]
