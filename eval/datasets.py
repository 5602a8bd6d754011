"""Image data sets as one type: digits (no download), MNIST, CIFAR-10 and folders of photographs."""

import csv
import gzip
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, MNIST
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from dipdefense.arguments import check_known
from dipdefense.files.reading import read_image

__all__ = ["DATASETS", "ImageDataset", "cache_folder", "digits_split", "load_dataset"]

DIGITS = tuple("0123456789")
DOWNLOADED = ("mnist", "cifar10")  # without a path
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Labelled images, each float32 (C, H, W) in [0, 1], decoded on access."""

    name: str
    class_names: tuple[str, ...]
    labels: Tensor  # (N,) int64
    index: Tensor  # (N,) int64: position of each image in the original data set
    read: Callable[[int], Tensor]  # position in this data set -> image
    numbered_by_folder: bool = False  # the labels are the places of the classes' folders in alphabetical order

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.read(position), int(self.labels[position])

    def batch(self, positions: Sequence[int]) -> Tensor:
        """Images at these positions, (B, C, H, W)."""
        return torch.stack([self.read(position) for position in positions])

    def first(self, n: int, seed: int) -> Tensor:
        """Positions of the first n images of a seeded permutation, (n,)."""
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:n]

    def between(self, start: int | None, stop: int | None) -> "ImageDataset":
        """The images whose `index` lies in start:stop, to choose settings and report figures on different images."""
        low, high = start or 0, int(self.index.max()) + 1 if stop is None else stop
        kept = torch.where((self.index >= low) & (self.index < high))[0]
        if len(kept) == 0:
            raise ValueError(f"index {low}:{high} must hold at least one image of {self.name}, holds none")
        read = partial(_read_at, self.read, kept)
        return replace(self, labels=self.labels[kept], index=self.index[kept], read=read)


def load_dataset(name: str, path: str | Path | None = None, *, size: int | None = None) -> ImageDataset:
    """Load a data set's test images.

    Args:
        name: one of `DATASETS`.
            `digits`: the held-out part of scikit-learn's digits, 1x32x32; `digits_train`: the part that trained
                `digits_cnn`.
            `mnist`: 1x28x28, from a folder of idx files (`t10k-*`, plain or gzip).
            `cifar10`: 3x32x32, from the python batches, or from an npz of images, uint8 (N, H, W, C), and labels, N
                integers; optional are index, N integers (0 to N - 1), and class_names (those of CIFAR-10).
            `folder`: RGB photographs listed in labels.csv (file, class_index), or one folder per class.
        path: file or folder of the data; None downloads `mnist` and `cifar10` into `cache_folder()`.
        size: side in pixels of the square cut from a photograph of `folder` (224 by default), after its short
            side was resized to size * 256 / 224.

    Raises:
        FileNotFoundError: the path, or a file expected there, does not exist.
        ValueError: the name is unknown, an argument does not fit it, or a file is damaged.
    """
    check_known("name", name, DATASETS)
    if size is not None and name != "folder":
        raise ValueError(f"size must be left out with {name}, whose images have a size of their own, got {size}")
    if path is None:
        return DATASETS[name](None, size)
    if not Path(path).exists():
        remedy = "; without --data it is downloaded" if name in DOWNLOADED else ""
        raise FileNotFoundError(f"{path} does not exist: expected the data of {name} there{remedy}")
    return DATASETS[name](Path(path), size)


def _read_at(read: Callable[[int], Tensor], kept: Tensor, position: int) -> Tensor:
    return read(int(kept[position]))


def cache_folder() -> Path:
    """Where downloads and trained weights are kept: $DIPDEFENSE_CACHE, or ~/.cache/dipdefense."""
    return Path(os.environ.get("DIPDEFENSE_CACHE") or Path.home() / ".cache" / "dipdefense")


def digits_split(train: bool) -> ImageDataset:
    """scikit-learn's 1797 digits: every fourth image (449) is held out, the others (1348) are for training.

    The 8x8 images of 16 grey levels are resized bilinearly to 32x32. Both parts have the same 13 writers.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("digits needs scikit-learn: pip install 'dipdefense[eval]'") from error
    digits = load_digits()
    position = torch.arange(len(digits.target))
    index = position[(position % 4 != 3) if train else (position % 4 == 3)]
    images = torch.from_numpy(digits.images).to(torch.uint8)[index]
    labels = torch.from_numpy(digits.target).long()[index]
    read = partial(_read_digit, images)
    name = "digits_train" if train else "digits"
    return ImageDataset(name=name, class_names=DIGITS, labels=labels, index=index, read=read)


def _read_digit(images: Tensor, position: int) -> Tensor:
    image = images[position].float()[None, None] / 16  # (1, 1, 8, 8)
    return F.interpolate(image, size=(32, 32), mode="bilinear")[0]


def _digits(path: Path | None, size: int | None, *, train: bool) -> ImageDataset:
    if path is not None:
        raise ValueError(f"path must be None for digits, which comes with scikit-learn, got {path}")
    return digits_split(train)


def _mnist(path: Path | None, size: int | None) -> ImageDataset:
    if path is None:
        try:
            path = Path(MNIST(cache_folder(), train=False, download=True).raw_folder)
        except (OSError, RuntimeError) as error:  # the first without a network
            raise _not_downloaded("mnist", error) from error
    images, labels = _read_idx(path, "t10k-images-idx3-ubyte"), _read_idx(path, "t10k-labels-idx1-ubyte")
    return _from_arrays("mnist", path, images[..., None], labels, DIGITS)


def _read_idx(folder: Path, name: str) -> np.ndarray[Any, Any]:
    """Read a file of bytes in LeCun's idx format: 0 0 8 ndim, big-endian int32 sides, then the bytes."""
    path = next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} must be a folder holding {name} or {name}.gz; without --data they are downloaded"
        )
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a readable gzip file: {error}") from error
    ndim = int(name[-7])  # idx3-ubyte, idx1-ubyte
    start = 4 + 4 * ndim
    if len(content) < start or content[:4] != bytes((0, 0, 8, ndim)):
        raise ValueError(f"{path} must start as an idx file of {ndim}-dimensional bytes, got {content[:4]!r}")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise ValueError(f"{path} must hold {math.prod(shape)} bytes of data, got {len(content) - start}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _not_downloaded(name: str, error: Exception) -> OSError:
    return OSError(f"{name} could not be downloaded into {cache_folder()}, {error}: name its files with --data")


def _cifar10(path: Path | None, size: int | None) -> ImageDataset:
    if path is not None and path.is_dir() and (path / "test.npz").is_file():
        path = path / "test.npz"
    if path is not None and path.suffix == ".npz":
        return _read_npz(path)
    if path is None:
        root = cache_folder()
    else:
        root = path.parent if path.name == CIFAR10.base_folder else path
        if not (root / CIFAR10.base_folder).is_dir():
            raise FileNotFoundError(
                f"{path} must be an npz file, or hold test.npz or {CIFAR10.base_folder}/, which is the python version "
                "of www.cs.toronto.edu/~kriz/cifar.html; without --data it is downloaded"
            )
    try:
        cifar = CIFAR10(root, train=False, download=path is None)
    except OSError as error:
        if path is not None:
            raise
        raise _not_downloaded("cifar10", error) from error
    except RuntimeError as error:  # torchvision's error for a wrong checksum
        raise ValueError(f"{root / CIFAR10.base_folder} must hold the original batches: {error}") from error
    return _from_arrays("cifar10", root, cifar.data, cifar.targets, cifar.classes)


def _read_npz(path: Path) -> ImageDataset:
    expected = f"{path} must be an npz of images and labels (index and class_names are optional)"
    try:
        with path.open("rb") as file, np.load(file) as archive:
            found = archive.files
            arrays = {name: archive[name] for name in ("images", "labels", "index", "class_names") if name in found}
    except (OSError, EOFError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{expected}: {error}") from error
    if not {"images", "labels"} <= arrays.keys():
        raise ValueError(f"{expected}, got {', '.join(found) or 'none'}")
    names = arrays.get("class_names", np.array(CIFAR10_CLASSES))
    if names.ndim != 1:
        raise ValueError(f"class_names in {path} must be a row of names, got shape {names.shape}")
    return _from_arrays("cifar10", path, arrays["images"], arrays["labels"], names.astype(str), arrays.get("index"))


def _from_arrays(
    name: str, source: Path, images: Any, labels: Any, class_names: Sequence[str], index: Any = None
) -> ImageDataset:
    """Check arrays read from `source` and wrap them; images are uint8 (N, H, W, C), `index` 0 to N - 1 if None."""
    if images.dtype != np.uint8 or images.ndim != 4 or 0 in images.shape[1:] or images.shape[3] not in (1, 3):
        raise ValueError(
            f"images in {source} must be uint8 (N, H, W, C), C = 1 or 3, got {images.dtype} {images.shape}"
        )
    labels, index = np.asarray(labels), np.arange(len(images)) if index is None else index
    for key, array in {"labels": labels, "index": index}.items():
        if array.shape != (len(images),) or not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{key} in {source} must be {len(images)} integers, got {array.dtype} {array.shape}")
    _check_labels(labels, len(class_names), source)
    return ImageDataset(
        name=name,
        class_names=tuple(map(str, class_names)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        index=torch.from_numpy(index.astype(np.int64)),
        read=partial(_read_array, images),
    )


def _check_labels(labels: Any, classes: int, source: Path) -> None:
    if len(labels) == 0:
        raise ValueError(f"{source} must hold at least one image, got none")
    if min(labels) < 0 or max(labels) >= classes:
        raise ValueError(f"labels in {source} must lie in [0, {classes}), got {min(labels)} to {max(labels)}")


def _read_array(images: np.ndarray[Any, Any], position: int) -> Tensor:
    return torch.from_numpy(images[position].transpose(2, 0, 1).astype(np.float32) / 255)


def _folder(path: Path | None, size: int | None) -> ImageDataset:
    size = 224 if size is None else size
    if path is None or not path.is_dir():
        raise FileNotFoundError(
            f"folder needs a path to a folder of images, got {path}: name with --data one that has labels.csv or a "
            "folder for each class"
        )
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    listing = _listed if (path / "labels.csv").is_file() else _class_folders
    files, labels, class_names = listing(path)
    _check_labels(labels, len(class_names), path)
    return ImageDataset(
        name="folder",
        class_names=class_names,
        labels=torch.tensor(labels),
        index=torch.arange(len(labels)),
        read=partial(_read_photo, files, size),
        numbered_by_folder=listing is _class_folders,
    )


def _listed(path: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Files and labels of labels.csv; class names of class_names.txt (JSON, index to name), else the indices."""
    table = path / "labels.csv"
    with table.open(newline="", encoding="utf-8-sig") as lines:
        rows = list(csv.DictReader(lines))
    try:
        files = [path / row["file"] for row in rows]
        labels = [int(row["class_index"]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{table} must have a file and an integer class_index in each row: {error}") from error
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise FileNotFoundError(f"{missing} does not exist, but {table} lists it")
    listing = path / "class_names.txt"
    if not listing.is_file():
        return files, labels, tuple(str(label) for label in range(max(labels, default=-1) + 1))
    try:
        names = json.loads(listing.read_text(encoding="utf-8"))
        return files, labels, tuple(str(names[str(label)]) for label in range(len(names)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{listing} must be JSON, each index from 0 on to a name: {error!r}") from error


def _class_folders(path: Path) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Images of one folder per class; the classes are the folders' names, sorted."""
    classes = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    found = [(file, label) for label, item in enumerate(classes) for file in sorted(item.iterdir())]
    found = [(file, label) for file, label in found if file.suffix.lower() in IMG_EXTENSIONS]
    return [file for file, _ in found], [label for _, label in found], tuple(item.name for item in classes)


def _read_photo(files: Sequence[Path], size: int, position: int) -> Tensor:
    """Read as RGB, resize the short side bilinearly, cut the centre."""
    image = read_image(files[position])
    short = round(size * 256 / 224)
    resized = TF.resize(image, [short], interpolation=InterpolationMode.BILINEAR, antialias=True)
    pixels: Tensor = TF.center_crop(resized, [size, size]).clamp(0, 1)  # rounding can leave [0, 1] by 1e-7
    return pixels.expand(3, -1, -1)


DATASETS: dict[str, Callable[[Path | None, int | None], ImageDataset]] = {
    "digits": partial(_digits, train=False),
    "digits_train": partial(_digits, train=True),
    "mnist": _mnist,
    "cifar10": _cifar10,
    "folder": _folder,
}
