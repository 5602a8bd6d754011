"""What a classifier is adapted on: the reconstructions of noisy copies that a decision would classify."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dipdefense.defence.adaptation.progress_file import ProgressFile
from dipdefense.defence.pipeline import reconstruct
from dipdefense.defence.presets import NOISY_ITERATIONS, smoothing_defence_for
from dipdefense.defence.purifier import Purifier
from dipdefense.defence.smoothing import Purify, gaussian_draws
from dipdefense.image_tensors import check_images

__all__ = ["NoisyCopies", "reconstruct_copies"]

BLOCK = 64  # noisy copies that are purified together, and saved when they are done


@dataclass(frozen=True)
class NoisyCopies:
    """Which copies of the images are made, and how they are purified."""

    sigmas: Sequence[float]  # noise levels, images in [0, 1]; the copies of all images take them in turn
    copies: int  # of each image
    seed: int  # of the noise
    purify: str | Purify | None  # as in `SmoothedClassifier`

    def blocks(self, n: int) -> list[tuple[float, list[tuple[int, int]]]]:
        """For n images: a noise level, and copies with that level as (image, number of the copy), block by block."""
        pairs = [(image, copy) for image in range(n) for copy in range(self.copies)]
        of_level = [(sigma, pairs[turn :: len(self.sigmas)]) for turn, sigma in enumerate(self.sigmas)]
        return [(sigma, some[at : at + BLOCK]) for sigma, some in of_level for at in range(0, len(some), BLOCK)]

    def made(self, images: Tensor, sigma: float, pairs: Sequence[tuple[int, int]]) -> Tensor:
        """The reconstructions of noisy copies of images (N, C, H, W), (S, B, C, H, W): S of each copy.

        Raises:
            ValueError: a purifier that changes the shape or leaves [0, 1].
        """
        noise = [gaussian_draws(images[image], self.seed, range(copy, copy + 1))[0] for image, copy in pairs]
        chosen = images[[image for image, _ in pairs]]
        noisy = (chosen + sigma * torch.stack(noise)).clamp(0, 1)
        if self.purify is None:
            return noisy[None]
        if callable(self.purify):
            with torch.no_grad():
                purified = self.purify(noisy)
            check_images(purified, "purified images")
            if purified.shape != noisy.shape:
                shapes = f"{tuple(noisy.shape)}, got {tuple(purified.shape)}"
                raise ValueError(f"purify must return images of the shape that it is given, {shapes}")
            return purified.detach()[None]
        told = sigma or min(NOISY_ITERATIONS)  # an image without noise is purified as under the least
        defence = smoothing_defence_for(tuple(images.shape[1:]), told)
        purifier = Purifier(defence.fit, seed=0, tile=defence.tile, sigma=told)  # as in `SmoothedClassifier`
        fitted = reconstruct(purifier, noisy, [defence.decision], gradient="none", scored=False)
        return fitted.classified(defence.decision)


def reconstruct_copies(
    images: Tensor, noisy: NoisyCopies, file: ProgressFile, callback: Callable[[int, int], None] | None = None
) -> tuple[Tensor, Tensor]:
    """The reconstructions of noisy copies of images (N, C, H, W), without gradient.

    Args:
        images: in [0, 1].
        noisy: the copies.
        file: keeps the blocks; those that it holds are not made again.
        callback: called after each block with the number of copies that are done, and of all.

    Returns:
        Reconstructions (M, C, H, W), and the position of the image that each belongs to, (M,).
    """
    blocks, owners, done = noisy.blocks(len(images)), [], 0
    for number, (sigma, pairs) in enumerate(blocks):
        if number == len(file.blocks):
            file.blocks.append(noisy.made(images, sigma, pairs).cpu())
            file.keep(last=number == len(blocks) - 1)
        owners.append(torch.tensor([image for image, _ in pairs]).repeat(len(file.blocks[number])))
        done += len(pairs)
        if callback is not None:
            callback(done, len(images) * noisy.copies)
    made = torch.cat([block.flatten(0, 1) for block in file.blocks])
    return made.to(images.device), torch.cat(owners).to(images.device)
