"""How soon a fit from the learned start arrives, beside one from a random start. Offline; about a minute on a CPU.

Prints the mean PSNR in dB of the reconstruction to the image that is fitted. A prior must fit images sooner than noise.
Folders of images on the command line add a row each.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from skimage import data
from torch import Tensor

import dipdefense
from dipdefense.files.reading import list_images, read_image
from eval.datasets import load_dataset
from eval.metrics import psnr

N = 8  # images of each kind
ITERATIONS = {"random": (50, 100, 150), "learned": (20, 50, 100)}

generator = torch.Generator().manual_seed(0)


def tiles(pictures: list[Tensor]) -> Tensor:
    """N squares of 32 pixels from pictures (C, H, W), drawn at random: (N, 3, 32, 32)."""
    drawn = []
    for i in range(N):
        picture = pictures[i % len(pictures)]
        top, left = (int(torch.randint(side - 31, (1,), generator=generator)) for side in picture.shape[1:])
        drawn.append(picture[:, top : top + 32, left : left + 32].expand(3, 32, 32))
    return torch.stack(drawn)


def scikit_image(*names: str) -> list[Tensor]:
    """Pictures (C, H, W) in [0, 1] that come with scikit-image."""
    arrays = (torch.from_numpy(getattr(data, name)()).float() / 255 for name in names)
    return [array.permute(2, 0, 1) if array.dim() == 3 else array[None] for array in arrays]


kinds = {
    "photographs": tiles(scikit_image("astronaut", "coffee")),
    "text": tiles(scikit_image("page", "text")),
    "digits": load_dataset("digits").batch(range(N)).expand(-1, 3, -1, -1),
    "uniform noise": torch.rand(N, 3, 32, 32, generator=generator),
}
for folder in map(Path, sys.argv[1:]):
    kinds[folder.name] = tiles([read_image(file) for file in list_images(folder)])

learned = dipdefense.defence_for((3, 32, 32)).fit  # the default's
starts = {"random": replace(learned, start="random", lr=0.01), "learned": learned}  # the former default's step size
print(f"{'':14}  " + "  ".join(f"{start} {k}" for start, along in ITERATIONS.items() for k in along))
for kind, images in kinds.items():
    levels = []
    for start, along in ITERATIONS.items():
        fitted = dipdefense.Purifier(replace(starts[start], iterations=along[-1])).trajectory(images, along)
        levels += [
            f"{psnr(x, images).mean():.1f}".rjust(len(f"{start} {k}")) for x, k in zip(fitted, along, strict=True)
        ]
    print(f"{kind:14}  " + "  ".join(levels))
