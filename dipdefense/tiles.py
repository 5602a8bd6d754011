"""Large images as overlapping tiles. Each tile is fitted as a separate image, so memory does not grow with the size."""

import math

import torch
from torch import Tensor

from dipdefense.arguments import check_integer

__all__ = ["cut", "join"]


def cut(images: Tensor, side: int, overlap: int) -> Tensor:
    """Cut images into tiles that cover them evenly and overlap by at least `overlap` pixels.

    Args:
        images: (B, C, H, W).
        side: of a tile, in pixels; an image that is smaller along an axis is not cut along it.
        overlap: of neighbours, in pixels, below `side`.

    Returns:
        (T * B, C, h, w), the first tile of all images, then the second of all images; rows from the top, each from the
        left.

    Raises:
        ValueError: a side below 1, an overlap outside [0, side).
    """
    _check(side, overlap)
    boxes = _boxes(images.shape[2:], side, overlap)
    return torch.cat([images[..., rows, columns] for rows, columns in boxes])


def join(tiles: Tensor, size: tuple[int, int], side: int, overlap: int, factor: int = 1) -> Tensor:
    """Put tiles together, weighted by a ramp over the overlap: `join(cut(x, ...), x.shape[2:], ...) == x`.

    Args:
        tiles: (T * B, C, factor h, factor w) as `cut` orders them.
        size: (H, W) of the images that were cut.
        side: as given to `cut`.
        overlap: as given to `cut`.
        factor: how much larger the tiles are than those that were cut.

    Returns:
        (B, C, factor H, factor W).

    Raises:
        ValueError: not the number or size of tiles that such a cut gives.
    """
    _check(side, overlap)
    boxes = _boxes(size, side, overlap)
    h, w = (factor * min(side, length) for length in size)
    whole = [factor * length for length in size]
    if not len(tiles) or len(tiles) % len(boxes) or tiles.shape[2:] != (h, w):
        raise ValueError(
            f"tiles must be a multiple of {len(boxes)}, each {h}x{w}, for images of {whole[0]}x{whole[1]}, "
            f"got shape {tuple(tiles.shape)}"
        )
    weight = _ramp(h, factor * overlap, tiles)[:, None] * _ramp(w, factor * overlap, tiles)
    images = tiles.new_zeros(len(tiles) // len(boxes), tiles.shape[1], *whole)
    total = tiles.new_zeros(whole)
    for box, tile in zip(boxes, tiles.split(len(images)), strict=True):  # type: ignore[no-untyped-call]
        rows, columns = (slice(factor * part.start, factor * part.stop) for part in box)
        images[..., rows, columns] += weight * tile
        total[rows, columns] += weight
    return images / total


def _boxes(size: tuple[int, ...], side: int, overlap: int) -> list[tuple[slice, slice]]:
    rows, columns = (_spans(length, side, overlap) for length in size)
    return [(row, column) for row in rows for column in columns]


def _spans(length: int, side: int, overlap: int) -> list[slice]:
    if length <= side:
        return [slice(0, length)]
    count = math.ceil((length - overlap) / (side - overlap))
    return [slice(start, start + side) for start in (round(i * (length - side) / (count - 1)) for i in range(count))]


def _ramp(length: int, overlap: int, like: Tensor) -> Tensor:
    """1 inside, falling towards both ends over the overlap, never 0."""
    distance = torch.arange(1, length + 1, dtype=like.dtype, device=like.device)
    return torch.minimum(distance, distance.flip(0)).clamp(max=overlap + 1) / (overlap + 1)


def _check(side: int, overlap: int) -> None:
    check_integer("side", side, 1)
    if not isinstance(overlap, int) or not 0 <= overlap < side:
        raise ValueError(f"overlap must be an integer in [0, {side}), got {overlap!r}")
