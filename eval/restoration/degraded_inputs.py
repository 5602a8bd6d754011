"""Degraded real images: the inputs of the restoration benchmark."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from dipdefense.files.reading import list_images, read_image
from eval.classifiers import load_classifier
from eval.records import digest

__all__ = ["SCENES", "Scene", "by_pillow"]

FACTOR = 4  # of the super-resolution, unless the task has another
QUALITY = 10  # of the JPEG compression
QUALITIES = (10, 20, 40, 60, 75, 90)  # the same of set9
LAYER, CLASSES = "1.features.7", "1.classifier.1"  # of SqueezeNet: the fourth of its eight fire modules; the logits
SEEN = (112, 227)  # pixels; largest side of SqueezeNet's input, with `size` given and without
EVEN = 32  # pixels; the authors of the deep image prior cut zebra to multiples of it


@dataclass(frozen=True)
class Scene:
    """One image that is to be restored."""

    task: str  # a key of SCENES
    image: str  # name of the file
    function: str  # of dipdefense that restores it
    inputs: tuple[Tensor, ...]  # its arguments, (C, H, W) each
    reference: Tensor | None = None  # (C, H, W); None if it is not known
    options: Mapping[str, Any] = field(default_factory=dict)  # its keywords
    published: str = "text"  # for inpainting: a key of PUBLISHED_INPAINTING
    classifier: nn.Module | None = None  # for the functions that use one; their first argument
    layer: str = ""  # of the classifier; their second argument

    def contents(self) -> dict[str, Any]:
        """Everything that a restoration and its score depend on, in plain values; digests for pixels and weights."""
        weights = {} if self.classifier is None else self.classifier.state_dict()
        return {
            "inputs": [digest(image) for image in self.inputs],
            "reference": None if self.reference is None else digest(self.reference),
            "options": dict(self.options),
            "layer": self.layer,
            "weights": {name: digest(value.cpu()) for name, value in weights.items()},
        }


def _text(data: Path, size: int | None, seed: int) -> list[Scene]:
    image, mask = _masked(data / "dip" / "inpainting", "kate", size)
    return [Scene("text", "kate", "inpaint", (image, mask), image)]


def _holes(data: Path, size: int | None, seed: int) -> list[Scene]:
    """Without reference, since the pixels under the masks of these files are not the original ones."""
    scenes = []
    for name, published in (("vase", "holes"), ("library", "region")):
        inputs = _masked(data / "dip" / "inpainting", name, size)
        scenes.append(Scene("holes", name, "inpaint", inputs, published=published))
    return scenes


def _half(data: Path, size: int | None, seed: int) -> list[Scene]:
    files = [data / "dip" / "restoration" / name for name in ("barbara.png", "kate.png")]
    return [_missing("half", file, size, 0.5, seed) for file in files]


def _sparse(data: Path, size: int | None, seed: int) -> list[Scene]:
    return [_missing("sparse", data / "dip" / "restoration" / "kate.png", size, 0.98, seed)]


def _inpaint11(data: Path, size: int | None, seed: int) -> list[Scene]:
    return [_missing("inpaint11", file, size, 0.5, seed) for file in list_images(data / "sets" / "inpaint11")]


def _zebra(data: Path, size: int | None, seed: int, factor: int = FACTOR) -> list[Scene]:
    task = "zebra" if factor == FACTOR else f"zebra{factor}"
    return [_reduced(task, data / "dip" / "sr" / "zebra_GT.png", size, EVEN, factor)]


def _set5(data: Path, size: int | None, seed: int) -> list[Scene]:
    return [_reduced("set5", file, size, FACTOR) for file in list_images(data / "sets" / "set5")]


def _set14(data: Path, size: int | None, seed: int) -> list[Scene]:
    return [_reduced("set14", file, size, FACTOR) for file in list_images(data / "sets" / "set14")]


def _jpeg(data: Path, size: int | None, seed: int) -> list[Scene]:
    """A crop at its original size, since a reduction would remove the blocks."""
    image = read_image(data / "dip" / "denoising" / "snail.jpg")
    crop = image if size is None else TF.center_crop(image, [size, size])
    return [Scene("jpeg", "snail", "remove_jpeg_artifacts", (crop,))]


def _jpeg10(data: Path, size: int | None, seed: int) -> list[Scene]:
    """Compressed here, so that there is a reference."""
    return [_compressed("jpeg10", data / "sets" / "set14" / "lenna.png", size, QUALITY)]


def _set9_jpeg(data: Path, size: int | None, seed: int, quality: int) -> list[Scene]:
    return [_compressed(f"set9_jpeg{quality}", file, size, quality) for file in list_images(data / "sets" / "set9")]


def _flash(data: Path, size: int | None, seed: int) -> list[Scene]:
    folder = data / "dip" / "flash_no_flash"
    flash, dark = (_sized(read_image(folder / f"cave01_{name}.jpg"), size) for name in ("00_flash", "01_noflash"))
    return [Scene("flash", "cave", "flash_no_flash", (flash, dark))]


def _inversion(data: Path, size: int | None, seed: int) -> list[Scene]:
    side, net = _seen(size), _squeezenet(data)
    scenes = []
    for file in list_images(data / "dip" / "feature_inversion"):
        image = _sized(read_image(file), side)
        scenes.append(Scene("inversion", file.stem, "invert_features", (image,), image, classifier=net, layer=LAYER))
    return scenes


def _activation(data: Path, size: int | None, seed: int) -> list[Scene]:
    """For two classes that Ulyanov et al. show."""
    side, net = _seen(size), _squeezenet(data)
    return [
        Scene(
            "activation",
            name,
            "maximise_activation",
            (),
            options={"channel": channel, "shape": (3, side, side)},
            classifier=net,
            layer=CLASSES,
        )
        for name, channel in (("black swan", 100), ("cheeseburger", 933))
    ]


# name -> (data folder, side of the images in pixels or None for their own, seed of the masks) -> scenes
SCENES: dict[str, Callable[[Path, int | None, int], list[Scene]]] = {
    "text": _text,
    "holes": _holes,
    "half": _half,
    "sparse": _sparse,
    "inpaint11": _inpaint11,
    "zebra": _zebra,
    "zebra2": partial(_zebra, factor=2),
    "zebra8": partial(_zebra, factor=8),
    "set5": _set5,
    "set14": _set14,
    "jpeg": _jpeg,
    "jpeg10": _jpeg10,
    **{f"set9_jpeg{quality}": partial(_set9_jpeg, quality=quality) for quality in QUALITIES},
    "flash": _flash,
    "inversion": _inversion,
    "activation": _activation,
}


def by_pillow(image: Tensor, sides: Sequence[int], how: Image.Resampling) -> Tensor:
    """An image at another size, rounded to 8 bits before, between the two directions, and after.

    Args:
        image: (C, H, W) in [0, 1], C = 1 or 3.
        sides: H', W'.
        how: Pillow's filter.

    Returns:
        (C, H', W') in [0, 1].
    """
    resized = np.asarray(Image.fromarray(_levels(image)).resize((sides[1], sides[0]), how), dtype=np.float32) / 255
    return torch.from_numpy(resized.reshape(*sides, -1)).permute(2, 0, 1).contiguous()


def _levels(image: Tensor) -> Any:
    """(C, H, W) in [0, 1] -> (H, W, C), or (H, W) where it is grey, in 8 bits."""
    return (image * 255).round().to(torch.uint8).permute(1, 2, 0).squeeze(2).numpy()


def _seen(size: int | None) -> int:
    return SEEN[1] if size is None else min(size, SEEN[0])


def _squeezenet(data: Path) -> nn.Module:
    return load_classifier("torchvision:squeezenet1_0", data / "weights" / "imagenet_squeezenet1_0.pt")


def _masked(folder: Path, name: str, size: int | None) -> tuple[Tensor, Tensor]:
    """An image and its mask; a pixel is known if all pixels that were averaged to it are."""
    image, mask = (read_image(folder / f"{name}{suffix}.png") for suffix in ("", "_mask"))
    known = _sized(mask[:1], size) > 1 - 1e-6
    if known.all() or not known.any():
        raise ValueError(f"size must be one at which the mask of {name} hides and shows pixels, got {size}")
    return _sized(image, size), known.float()


def _missing(task: str, file: Path, size: int | None, share: float, seed: int) -> Scene:
    """Each pixel is missing with probability `share`, in all channels at once."""
    image = _sized(read_image(file), size)
    drawn = torch.rand(1, *image.shape[1:], generator=torch.Generator().manual_seed(seed))
    published = "half" if share == 0.5 else "sparse"
    return Scene(task, file.stem, "inpaint", (image, (drawn >= share).float()), image, published=published)


def _compressed(task: str, file: Path, size: int | None, quality: int) -> Scene:
    """An image that Pillow compresses as JPEG."""
    image, jpeg = _sized(read_image(file), size), io.BytesIO()
    Image.fromarray(_levels(image)).save(jpeg, "JPEG", quality=quality)
    decoded = torch.from_numpy(np.array(Image.open(jpeg), dtype=np.float32) / 255).permute(2, 0, 1).contiguous()
    return Scene(task, file.stem, "remove_jpeg_artifacts", (decoded,), image)


def _reduced(task: str, file: Path, size: int | None, multiple: int, factor: int = FACTOR) -> Scene:
    """The Lanczos reduction of a reference that is cut to multiples, by Pillow as for the published figures."""
    image = read_image(file)
    sides = [side // multiple * multiple for side in image.shape[1:]]
    reference = TF.center_crop(image, sides) if size is None else _sized(image, size // factor * factor)
    small = by_pillow(reference, [side // factor for side in reference.shape[1:]], Image.Resampling.LANCZOS)
    return Scene(task, file.stem, "super_resolve", (small,), reference, {"factor": factor})


def _sized(image: Tensor, size: int | None) -> Tensor:
    """The centre at twice the size if the image is large enough, by area averages: (C, H, W) -> (C, size, size)."""
    if size is None:
        return image
    side = min(2 * size, *image.shape[1:])
    if side < size:
        raise ValueError(f"size must be at most {side}, the short side of the smallest image, got {size}")
    centre = TF.center_crop(image, [side, side])
    return F.interpolate(centre[None], (size, size), mode="area")[0].clamp(0, 1)  # rounding can leave [0, 1] by 1e-7
