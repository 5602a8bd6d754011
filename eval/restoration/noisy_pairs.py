"""Real photographs with a reference: the noisy shots of one folder paired with the clean ones of another."""

from pathlib import Path

from torch import Tensor

from dipdefense.files.reading import READABLE, read_image
from eval.photographs import cut_centre

__all__ = ["MARKS", "read_pairs"]

# Name parts of noisy files and references in PolyU and SIDD, which may be in one folder. Else the names are equal.
MARKS = (("_real", "_mean"), ("NOISY_SRGB", "GT_SRGB"))


def read_pairs(
    noisy: str | Path, reference: str | Path, *, crop: int | None = None
) -> list[tuple[str, Tensor, Tensor]]:
    """Read all pairs, in the order of their names; subfolders are searched, too.

    Args:
        noisy: folder of noisy images: `X_real.JPG`, `X_NOISY_SRGB_010.PNG`, or any name.
        reference: folder of references, perhaps the same: `X_mean.JPG`, `X_GT_SRGB_010.PNG`, or the same names.
        crop: side of the central square that is used, in pixels; whole images if None.

    Returns:
        (path of the noisy file in its folder, noisy, reference), both (C, H, W) in [0, 1].

    Raises:
        OSError: a folder or a file cannot be read.
        ValueError: no image, an image without its pair, a pair of two sizes or of one file, a crop above their size.
    """
    shots, references = _named(Path(noisy), 0), _named(Path(reference), 1)
    for there, here, kind in ((shots, references, "reference"), (references, shots, "noisy image")):
        alone = sorted(there.keys() - here.keys())
        if alone:
            raise ValueError(
                f"{there[alone[0]]}: every image must have its pair, {len(alone)} of {len(there)} have no {kind}: "
                "name them X_real and X_mean, X_NOISY_SRGB_N and X_GT_SRGB_N, or alike in two folders"
            )
    return [
        (shots[key].relative_to(noisy).as_posix(), *_read(shots[key], references[key], crop)) for key in sorted(shots)
    ]


def _named(folder: Path, role: int) -> dict[str, Path]:
    """Image files of a folder by the name that they share with their pair; `role` 0 for noisy, 1 for reference."""
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder}: must be a folder of images")
    files = {}
    for path in sorted(folder.rglob("*")):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        other = any(marks[1 - role] in path.stem for marks in MARKS)
        if path.suffix.lower() in READABLE and not path.name.startswith(".") and not other:
            for marks in MARKS:
                stem = stem.replace(marks[role], "*")
            files[stem] = path
    if not files:
        raise ValueError(f"{folder}: the folder must hold at least one {('noisy image', 'reference')[role]}, got none")
    return files


def _read(noisy: Path, reference: Path, crop: int | None) -> tuple[Tensor, Tensor]:
    if noisy.samefile(reference):
        raise ValueError(f"{noisy}: a noisy image must not be its own reference: name two folders")
    shot, clean = read_image(noisy), read_image(reference)
    if shot.shape != clean.shape:
        raise ValueError(
            f"{noisy}: must have the shape of {reference}, {tuple(clean.shape)}, got {tuple(shot.shape)}: crop one"
        )
    if crop is None:
        return shot, clean
    return cut_centre(shot, crop, noisy), cut_centre(clean, crop, reference)
