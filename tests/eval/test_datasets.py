"""Data sets: written by hand and read back, every torn file named."""

import csv
import gzip
import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

import eval.datasets
from eval.datasets import DATASETS, ImageDataset, cache_folder, digits_split, load_dataset
from eval.robustness.config import check_run

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def write_mnist(folder: Path, zipped: bool = True) -> Path:
    files = {
        "t10k-images-idx3-ubyte": pixels(6, 28, 28),
        "t10k-labels-idx1-ubyte": np.arange(6, dtype=np.uint8),
    }
    for name, array in files.items():
        content = idx(array)
        (folder / f"{name}{'.gz' * zipped}").write_bytes(gzip.compress(content) if zipped else content)
    return folder


def write_cifar10(folder: Path, **changed: object) -> Path:
    arrays = {
        "images": pixels(6, 32, 32, 3),
        "labels": np.arange(6),
        "index": np.arange(6) + 10,
        "class_names": np.array(CIFAR_NAMES),
    }
    np.savez(folder / "test.npz", **(arrays | changed))
    return folder / "test.npz"


def write_folder(folder: Path) -> Path:
    """Two photographs, listed in reverse of their names' order."""
    Image.fromarray(pixels(300, 400, 3)).save(folder / "a.png")
    Image.fromarray(pixels(40, 30)).save(folder / "b.png")
    (folder / "labels.csv").write_text("file,class_index,name\nb.png,2,two\na.png,0,zero\n")
    return folder


WRITERS: dict[str, Callable[[Path], Path | None]] = {
    "digits": lambda folder: None,
    "digits_train": lambda folder: None,
    "mnist": write_mnist,
    "cifar10": write_cifar10,
    "folder": write_folder,
}
every_dataset = pytest.mark.parametrize("name", DATASETS)


@every_dataset
def test_contract(name: str, tmp_path: Path) -> None:
    dataset = load_dataset(name, WRITERS[name](tmp_path))
    assert isinstance(dataset, ImageDataset)
    assert dataset.name == name
    assert len(dataset) == len(dataset.labels) == len(dataset.index) > 1
    assert dataset.labels.dtype == dataset.index.dtype == torch.int64
    assert 0 <= dataset.labels.min() <= dataset.labels.max() < len(dataset.class_names)
    image, label = dataset[1]
    assert image.dtype == torch.float32
    assert image.shape[0] in (1, 3)
    assert 0 <= image.min() < image.max() <= 1
    assert label == dataset.labels[1]
    assert isinstance(label, int)
    batch = dataset.batch([1, 0, 1])
    assert torch.equal(batch, torch.stack([image, dataset[0][0], image]))
    with pytest.raises(IndexError):
        dataset[len(dataset)]


@every_dataset
def test_a_data_set_travels_to_another_process(name: str, tmp_path: Path) -> None:
    dataset = load_dataset(name, WRITERS[name](tmp_path))
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.batch([0, 1]), dataset.batch([0, 1]))


def test_digits_are_split_once_and_resized() -> None:
    train, held_out = digits_split(train=True), load_dataset("digits")
    assert (len(train), len(held_out)) == (1348, 449)
    assert torch.equal(torch.cat([train.index, held_out.index]).sort().values, torch.arange(1797))
    source = load_digits()
    assert held_out.labels.tolist() == source.target[held_out.index].tolist()
    image, original = held_out[7][0], torch.tensor(source.images[held_out.index[7]] / 16).float()
    assert image.shape == (1, 32, 32)
    # Fourfold bilinear: rows 4 i + 1.5 lie on original row i, between pixels 4 i + 1 and 4 i + 2.
    centres = image[0].unfold(0, 4, 4).unfold(1, 4, 4)[:, :, 1:3, 1:3].mean(dim=(2, 3))
    smooth = torch.nn.functional.conv2d(
        torch.nn.functional.pad(original[None, None], (1, 1, 1, 1), mode="replicate"),
        torch.outer(*[torch.tensor([1, 14, 1]) / 16] * 2)[None, None],
    )[0, 0]
    assert torch.allclose(centres, smooth, atol=1e-6)


@pytest.mark.parametrize("zipped", [True, False])
def test_mnist_is_what_the_idx_files_hold(zipped: bool, tmp_path: Path) -> None:
    dataset = load_dataset("mnist", write_mnist(tmp_path, zipped))
    assert torch.equal((dataset.batch(range(6)) * 255).round().byte()[:, 0], torch.tensor(pixels(6, 28, 28)))
    assert dataset.labels.tolist() == dataset.index.tolist() == list(range(6))


@pytest.mark.parametrize("of_folder", [True, False])
def test_cifar10_is_what_the_npz_holds(of_folder: bool, tmp_path: Path) -> None:
    file = write_cifar10(tmp_path)
    dataset = load_dataset("cifar10", tmp_path if of_folder else file)
    assert torch.equal(
        (dataset.batch(range(6)) * 255).round().byte(), torch.tensor(pixels(6, 32, 32, 3)).permute(0, 3, 1, 2)
    )
    assert dataset.index.tolist() == [10, 11, 12, 13, 14, 15]
    assert dataset.class_names == tuple(CIFAR_NAMES)


def damage_gzip(folder: Path) -> None:
    file = folder / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-100])


def no_gzip(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(b"<html>")


def cut_idx(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(6, dtype=np.uint8))[:-1]))


def swap_idx(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(6, dtype=np.uint8))))


def short_idx(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0"))


def fewer_labels(folder: Path) -> None:
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(5, dtype=np.uint8))))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_gzip, "images-idx3-ubyte.gz is not a readable gzip"),
        (no_gzip, "images-idx3-ubyte.gz is not a readable gzip"),
        (cut_idx, "labels-idx1-ubyte.gz must hold 6 bytes of data, got 5"),
        (swap_idx, "images-idx3-ubyte.gz must start as an idx file of 3-dimensional"),
        (short_idx, "labels-idx1-ubyte.gz must start as an idx file"),
        (fewer_labels, "labels in .* must be 6 integers, got"),
    ],
)
def test_torn_mnist_is_named(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(write_mnist(tmp_path))
    with pytest.raises(ValueError, match=message):
        load_dataset("mnist", tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": pixels(6, 32, 32)}, r"images in .*test.npz must be uint8 \(N, H, W, C\)"),
        ({"images": np.zeros((6, 32, 32, 3))}, "must be uint8 .* got float64"),
        ({"labels": np.arange(5)}, "labels in .*test.npz must be 6 integers"),
        ({"labels": np.arange(6.0)}, "labels in .* must be 6 integers, got float64"),
        ({"labels": np.arange(6) + 5}, r"labels in .*test.npz must lie in \[0, 10\), got 5 to 10"),
        ({"index": np.arange(7)}, "index in .* must be 6 integers"),
        ({"images": pixels(6, 3, 32, 32)}, r"must be uint8 \(N, H, W, C\), C = 1 or 3, got uint8 \(6, 3, 32, 32\)"),
        ({"images": pixels(6, 32, 0, 3)}, r"must be uint8 .* got uint8 \(6, 32, 0, 3\)"),
        ({"labels": np.eye(6, 10, dtype=int)}, r"labels in .* must be 6 integers, got int64 \(6, 10\)"),
        ({"labels": np.int64(3)}, r"labels in .* must be 6 integers, got int64 \(\)"),
        ({"labels": np.array([object()] * 6)}, "must be an npz of images and labels"),
        ({"class_names": np.array("cat")}, r"class_names in .* must be a row of names, got shape \(\)"),
        ({"class_names": np.array(["cat"])}, r"labels in .* must lie in \[0, 1\), got 0 to 5"),
        (
            {"images": pixels(0, 32, 32, 3), "labels": np.arange(0), "index": np.arange(0)},
            "at least one image",
        ),
    ],
)
def test_odd_npz_is_named(changed: dict[str, np.ndarray], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", write_cifar10(tmp_path, **changed))


@pytest.mark.parametrize("keep", [0, 10, 1000, -30])
def test_torn_npz_is_named(keep: int, tmp_path: Path) -> None:
    file = write_cifar10(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"test\.npz must be an npz of images"):
        load_dataset("cifar10", file)


def test_an_array_in_place_of_an_npz_is_named(tmp_path: Path) -> None:
    with (tmp_path / "test.npz").open("wb") as file:
        np.save(file, pixels(2, 32, 32, 3))
    with pytest.raises(ValueError, match=r"test\.npz must be an npz of"):
        load_dataset("cifar10", tmp_path)


def test_an_npz_of_images_and_labels_is_cifar10(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", images=pixels(3, 32, 32, 3), labels=np.array([9, 0, 3], np.uint8))
    dataset = load_dataset("cifar10", tmp_path / "mine.npz")
    assert dataset.index.tolist() == [0, 1, 2]
    assert dataset.class_names == tuple(CIFAR_NAMES)
    assert [dataset.class_names[label] for label in dataset.labels] == ["truck", "airplane", "cat"]
    assert torch.equal(dataset[1][0], torch.from_numpy(pixels(3, 32, 32, 3)[1]).permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("arrays", "found"),
    [
        ({"x": pixels(2, 32, 32, 3), "y": np.arange(2)}, "x, y"),
        ({"images": pixels(2, 32, 32, 3)}, "images"),
        ({"labels": np.arange(2), "index": np.arange(2)}, "labels, index"),
        ({}, "none"),
    ],
)
def test_an_npz_of_other_arrays_names_those_expected_and_found(
    arrays: dict[str, np.ndarray], found: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "mine.npz", **arrays)
    expected = r"mine\.npz must be an npz of images and labels \(index and class_names are optional\)"
    with pytest.raises(ValueError, match=rf"{expected}, got {found}$"):
        load_dataset("cifar10", tmp_path / "mine.npz")


def test_cifar10_batches_with_a_wrong_checksum_are_refused(tmp_path: Path) -> None:
    batches = tmp_path / "cifar-10-batches-py"
    batches.mkdir()
    (batches / "test_batch").write_bytes(b"not these")
    for path in (tmp_path, batches):
        with pytest.raises(ValueError, match="cifar-10-batches-py must hold the original batches"):
            load_dataset("cifar10", path)


def test_cifar10_batches_and_downloads_go_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Fake:
        base_folder = "cifar-10-batches-py"
        data, targets, classes = pixels(3, 32, 32, 3), [3, 8, 8], CIFAR_NAMES

        def __init__(self, root: Path, train: bool, download: bool) -> None:
            asked.append((root, train, download))

    monkeypatch.setattr(eval.datasets, "CIFAR10", Fake)
    monkeypatch.setenv("DIPDEFENSE_CACHE", str(tmp_path / "cache"))
    (tmp_path / Fake.base_folder).mkdir()
    dataset = load_dataset("cifar10", tmp_path / Fake.base_folder)
    assert dataset.labels.tolist() == [3, 8, 8]
    load_dataset("cifar10")
    assert asked == [(tmp_path, False, False), (cache_folder(), False, True)]


def test_mnist_is_downloaded_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: Path, train: bool, download: bool) -> None:
            assert (root, train, download) == (tmp_path, False, True)
            self.raw_folder = str(write_mnist(root))

    monkeypatch.setattr(eval.datasets, "MNIST", Fake)
    monkeypatch.setenv("DIPDEFENSE_CACHE", str(tmp_path))
    assert len(load_dataset("mnist")) == 6


def test_cache_folder_is_in_the_home_unless_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIPDEFENSE_CACHE", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "dipdefense"


def test_labels_csv_keeps_its_order_and_names_classes(tmp_path: Path) -> None:
    dataset = load_dataset("folder", write_folder(tmp_path))
    assert dataset.labels.tolist() == [2, 0]
    assert dataset.class_names == ("0", "1", "2")
    (tmp_path / "class_names.txt").write_text(json.dumps({"1": "hen", "0": "tench", "2": "cock"}))
    assert load_dataset("folder", tmp_path).class_names == ("tench", "hen", "cock")


def test_class_folders_are_sorted(tmp_path: Path) -> None:
    for name in ("zebra/2.PNG", "zebra/1.jpg", "ape/1.webp", ".hidden/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "ape" / "notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    dataset = load_dataset("folder", tmp_path, size=8)
    assert dataset.class_names == ("ape", "empty", "zebra")
    assert dataset.labels.tolist() == [0, 2, 2]


@pytest.mark.parametrize(("width", "height"), [(400, 300), (300, 400), (30, 40), (256, 256)])
def test_photographs_are_resized_and_cut_in_the_middle(width: int, height: int, tmp_path: Path) -> None:
    """Ramps survive a resize: the crop's pixel has the value of its place in the photograph."""
    x = np.linspace(0, 255, width)[None].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    (tmp_path / "ramp").mkdir()
    Image.fromarray(np.stack([x, y, x], 2).round().astype(np.uint8)).save(tmp_path / "ramp" / "a.png")
    image = load_dataset("folder", tmp_path, size=112)[0][0]
    assert image.shape == (3, 112, 112)
    scale = 128 / min(width, height)
    for channel, side in ((image[0].mean(dim=0), width), (image[1].mean(dim=1), height)):
        start = round((int(side * scale) - 112) / 2)
        place = (torch.arange(112) + start + 0.5) / scale - 0.5
        assert torch.allclose(channel, place / (side - 1), atol=0.02)


def test_exif_rotation_is_honoured(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("red", (0, 0, 64, 32))  # upper half
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / "turned.jpg", exif=exif, quality=95)
    upright = load_dataset("folder", tmp_path, size=32)[0][0]
    assert upright[0, :, 20:].min() > 0.8  # red is on the right
    assert upright[0, :, :12].max() < 0.2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("RGB", (16, 16), "white").convert(mode).save(tmp_path / "a" / "a.tif")
    assert torch.equal(load_dataset("folder", tmp_path, size=14)[0][0], torch.ones(3, 14, 14))


def test_transparency_is_refused_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.new("P", (16, 16)).save(tmp_path / "a" / "a.png", transparency=b"\0\xff")
    with pytest.raises(ValueError, match=r"a\.png"):
        load_dataset("folder", tmp_path, size=14)[0]


def torn(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:500])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def text(file: Path) -> None:
    file.write_text("<html>not found</html>")


@pytest.mark.parametrize("damage", [torn, emptied, text, Path.unlink])
def test_an_unreadable_photograph_is_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    dataset = load_dataset("folder", write_folder(tmp_path))
    damage(tmp_path / "a.png")
    with pytest.raises((ValueError, OSError), match=r"a\.png") as caught:
        dataset[1]
    assert "\n" not in str(caught.value)


def test_a_photograph_above_the_pixel_limit_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("folder", write_folder(tmp_path))
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "119999")
    with pytest.raises(ValueError, match=r"a\.png: an image must have at most 119999 pixels, got 400 x 300 = 120000"):
        dataset[1]
    monkeypatch.setenv("DIPDEFENSE_MAX_PIXELS", "120000")
    assert dataset[1][0].shape == (3, 224, 224)


def test_sixteen_bits_keep_their_value(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((16, 16), 30000, np.uint16)).save(tmp_path / "a" / "a.png")
    image = load_dataset("folder", tmp_path, size=14)[0][0]
    assert torch.allclose(image, torch.full((3, 14, 14), 30000 / 65535))


def test_labels_csv_must_name_files_that_exist(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png does not exist, but .*labels\.csv lists it"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "name,class_index\na.png,1\n",
        "file,class_index\na.png,one\n",
        "file,class_index\na.png\n",
        "file\na.png\n",
    ],
)
def test_odd_labels_csv_is_named(content: str, tmp_path: Path) -> None:
    (write_folder(tmp_path) / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match=r"labels\.csv must have a file and an integer class_index"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize("content", ["{", '{"1": "hen"}', "3", '["hen"]'])
def test_odd_class_names_are_named(content: str, tmp_path: Path) -> None:
    (write_folder(tmp_path) / "class_names.txt").write_text(content)
    with pytest.raises(ValueError, match=r"class_names\.txt must be JSON"):
        load_dataset("folder", tmp_path)


def test_labels_beyond_the_class_names_are_refused(tmp_path: Path) -> None:
    (write_folder(tmp_path) / "class_names.txt").write_text('{"0": "tench"}')
    with pytest.raises(ValueError, match=r"labels in .* must lie in \[0, 1\), got 0 to 2"):
        load_dataset("folder", tmp_path)


@pytest.mark.parametrize("content", [None, "file,class_index\n", ""])
def test_an_empty_folder_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    with pytest.raises(ValueError, match="must hold at least one image"):
        load_dataset("folder", tmp_path)


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of digits, digits_train, mnist, cifar10, folder, got 'imagenet'"):
        load_dataset("imagenet")
    with pytest.raises(ValueError, match="size must be left out with digits"):
        load_dataset("digits", size=28)
    with pytest.raises(ValueError, match="path must be None for digits"):
        load_dataset("digits", tmp_path)
    with pytest.raises(ValueError, match="size must be at least 1 pixel, got 0"):
        load_dataset("folder", write_folder(tmp_path), size=0)
    with pytest.raises(FileNotFoundError, match="folder needs a path"):
        load_dataset("folder")
    for name in ("mnist", "cifar10"):
        (tmp_path / name).mkdir()
        with pytest.raises(FileNotFoundError, match=f"{name} must .*hold"):
            load_dataset(name, tmp_path / name)


@pytest.mark.parametrize(("name", "error"), [("MNIST", RuntimeError), ("CIFAR10", OSError)])
def test_a_download_that_fails_names_the_remedy(name: str, error: type[Exception], monkeypatch, tmp_path) -> None:
    def fail(*arguments: object, **keywords: object) -> None:
        raise error("no network")

    monkeypatch.setattr(eval.datasets, name, fail)
    monkeypatch.setenv("DIPDEFENSE_CACHE", str(tmp_path))
    message = f"{name.lower()} could not be downloaded into {tmp_path}, no network: name its files with --data"
    with pytest.raises(OSError, match=message):
        load_dataset(name.lower())


def test_errors_name_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"got 'cifar'; did you mean cifar10\?"):
        load_dataset("cifar")
    with pytest.raises(FileNotFoundError, match="expected the data of mnist there; without --data it is downloaded"):
        load_dataset("mnist", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="without --data they are downloaded"):
        load_dataset("mnist", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"the python version of www\.cs\.toronto\.edu"):
        load_dataset("cifar10", tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"name with --data one that has labels\.csv or a folder for each class"
    ):
        load_dataset("folder")


@pytest.mark.parametrize("name", [name for name in DATASETS if not name.startswith("digits")])
def test_a_missing_path_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"nowhere does not exist: expected the data of {name}"):
        load_dataset(name, tmp_path / "nowhere")


def test_digits_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"dipdefense\[eval\]"):
        load_dataset("digits")


@pytest.mark.data
def test_real_data_sets_have_the_sizes_of_their_readme(data: Path) -> None:
    mnist = load_dataset("mnist", data / "mnist")
    assert (len(mnist), mnist[0][0].shape, mnist[0][1]) == (10000, (1, 28, 28), 7)
    cifar = load_dataset("cifar10", data / "cifar10" / "test.npz")
    assert (len(cifar), cifar[0][0].shape, cifar.class_names[cifar[0][1]]) == (4990, (3, 32, 32), "cat")
    photographs = load_dataset("folder", data / "imagenet")
    assert (len(photographs), photographs[0][0].shape) == (100, (3, 224, 224))
    with (data / "imagenet" / "labels.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    names = [photographs.class_names[label] for label in photographs.labels]
    assert names == [row["name"] for row in rows]


def test_classes_counted_by_folder_are_refused_where_the_classifier_has_others(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / name / "0.png")
    photographs = load_dataset("folder", tmp_path, size=8)
    nets = {classes: nn.Sequential(nn.Flatten(), nn.Linear(192, classes)).eval() for classes in (2, 3)}
    check_run(nets[2], photographs, 2, "cpu")
    with pytest.raises(
        ValueError, match=r"of 3 classes, got 2 folders whose classes are counted from 0: list .* labels"
    ):
        check_run(nets[3], photographs, 2, "cpu")
    (tmp_path / "labels.csv").write_text("file,class_index\ncat/0.png,0\ndog/0.png,2\n")
    check_run(nets[3], load_dataset("folder", tmp_path, size=8), 2, "cpu")
