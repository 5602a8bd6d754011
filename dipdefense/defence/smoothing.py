"""Randomised smoothing: the classes that a classifier gives to noisy, purified copies of an image.

The base classifier h takes any array z of an image's shape: it clips z to [0, 1], purifies it and classifies it. The
smoothed classifier adds Gaussian noise, which is not clipped before h gets it, and asks for the likeliest class:

    g(x) = argmax_k P( h(x + sigma e) = k ),    e ~ N(0, I)

Source: Cohen, Rosenfeld and Kolter (2019), "Certified adversarial robustness via randomized smoothing", eq. (1); Salman
et al. (2020), "Denoised smoothing", who put a trained denoiser into h.
Differs: the denoiser is the deep image prior with filters that are told sigma, which nobody trained, or any other
function.
"""

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dipdefense.arguments import check_integer, check_positive
from dipdefense.defence.check_logits import check_logits
from dipdefense.defence.classifier import DefendedClassifier, check_mode
from dipdefense.defence.evidence import log_mean_softmax
from dipdefense.defence.presets import smoothing_defence_for
from dipdefense.defence.purifier import Purifier
from dipdefense.defence.wrapper import Wrapper
from dipdefense.fitting.config import FitConfig
from dipdefense.image_tensors import check_images

__all__ = ["DIP", "NoisyPurifier", "Purify", "SmoothedClassifier", "gaussian_draws", "smooth"]

Purify = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> same
DIP = "dip"  # the fit of `smoothing_defence_for`, refined by filters
VALUES = 2**24  # of the noisy copies that are purified together: 64 MiB of float32


class SmoothedClassifier(Wrapper):
    """The logarithm of the mean softmax over noisy, purified copies of an image. Its state dict is the classifier's.

    Args:
        classifier: images (B, C, H, W) in [0, 1] -> logits (B, K); normalisation is its own first layer.
        sigma: standard deviation of the noise, images in [0, 1].
        votes: noisy copies of each image.
        seed: of the noise, which depends on the seed, the image's pixels and the number of the copy, never on the other
            images; None for fresh noise at every call. The fits have the seed 0, so that h is one function.
        purify: `DIP` for the fit that is tuned for the noise (`smoothing_defence_for`), refined by filters that are
            told sigma; None for the bare classifier; or a function of images in [0, 1], such as a `Purifier` with your
            own settings or a filter.
        mirror: whether an image keeps its class when mirrored. If False, `DIP` classifies no mirrored view.

    Raises:
        TypeError: the classifier is not a module, purify is none of the above.
        ValueError: a sigma that is not positive, votes below 1, a seed that is not a non-negative integer.
    """

    def __init__(
        self,
        classifier: nn.Module,
        *,
        sigma: float = 0.12,
        votes: int = 16,
        seed: int | None = None,
        purify: str | Purify | None = DIP,
        mirror: bool = True,
    ):
        super().__init__(classifier)
        check_positive("sigma", sigma)
        check_integer("votes", votes, 1)
        check_integer("seed", seed, 0, none=True)
        if not (purify is None or purify == DIP or callable(purify)):
            raise TypeError(f"purify must be {DIP!r}, None or a function of images, got {purify!r}")
        self.sigma, self.votes, self.seed, self.purify, self.mirror = sigma, votes, seed, purify, mirror

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> log of mean probabilities (B, K).

        Raises:
            TypeError, ValueError: not a floating image batch, or outside [0, 1]; a classifier in training mode, or that
                does not return finite logits (B, K).
        """
        check_images(images)
        seed = secrets.randbits(63) if self.seed is None else self.seed
        logits = []
        for draws in _batches(range(self.votes), images.numel()):
            noise = torch.stack([gaussian_draws(image, seed, draws) for image in images], 1)  # (D, B, C, H, W)
            answers = self.base((images + self.sigma * noise).flatten(0, 1))
            logits.append(answers.view(len(draws), len(images), -1))
        return log_mean_softmax(torch.cat(logits))

    def base(self, noisy: Tensor) -> Tensor:
        """The logits (B, K) whose largest is the answer of h to any finite values (B, C, H, W)."""
        images = noisy.clamp(0, 1)
        if isinstance(self.purify, str):
            logits: Tensor = self._defended(tuple(images.shape[1:]))(images)
            return logits
        check_mode(self.classifier)
        logits = self.classifier(images if self.purify is None else self.purify(images))
        check_logits(logits, len(images))
        return logits

    def _defended(self, shape: tuple[int, ...]) -> DefendedClassifier:
        defence = smoothing_defence_for(shape, self.sigma, mirror=self.mirror)
        purifier = Purifier(defence.fit, seed=0, tile=defence.tile, sigma=self.sigma)
        return DefendedClassifier(self.classifier, purifier, decision=defence.decision)

    @torch.no_grad()
    def count(self, image: Tensor, draws: range, index: int | None = None) -> dict[int, int]:
        """How often h gives each class to these draws of an image (C, H, W); `index` as in `gaussian_draws`."""
        seed = secrets.randbits(63) if self.seed is None else self.seed
        classes = Counter[int]()
        for some in _batches(draws, image.numel()):
            noisy = image + self.sigma * gaussian_draws(image, seed, some, index)
            classes.update(self.base(noisy).argmax(1).tolist())
        return dict(classes)

    def extra_repr(self) -> str:
        """The arguments that are not modules."""
        return f"sigma={self.sigma}, votes={self.votes}, seed={self.seed}, purify={self.purify}, mirror={self.mirror}"


def smooth(
    classifier: nn.Module,
    sigma: float = 0.12,
    votes: int = 16,
    seed: int | None = None,
    *,
    purify: str | Purify | None = DIP,
    mirror: bool = True,
    check: bool | tuple[int, int, int] = False,
) -> SmoothedClassifier:
    """A classifier that answers by the vote of noisy, purified copies. Arguments as in `SmoothedClassifier`.

    It certifies nothing by itself: `certify` gives the radius within which its limit of many votes keeps the class.

    `check` runs `check_classifier`, as in `defend`.
    """
    if check is not False:
        from dipdefense.check.check_classifier import check_classifier  # it imports the defence

        check_classifier(classifier, None if check is True else check).report()
    return SmoothedClassifier(classifier, sigma=sigma, votes=votes, seed=seed, purify=purify, mirror=mirror)


class NoisyPurifier(Purifier):
    """Adds Gaussian noise of std `sigma` to an image, clips to [0, 1], and purifies the result, told sigma.

    A `DefendedClassifier` with it and with the decision of `smoothing_defence_for` is one vote of
    `dipdefense.smooth`, or the mean of as many as the decision has restarts. Attacks and evaluations that know a
    `DefendedClassifier` can so attack a smoothed one. In a backward pass noise and clipping count as the identity.

    Args:
        sigma: standard deviation of the noise, images in [0, 1].
        config: as in `Purifier`; `smoothing_defence_for` has those that were chosen for a sigma.
        seed: of noise and fit; None for fresh entropy at every call. The noise of an image depends on the seed, the
            restart and the image's pixels.
        arguments: further ones of `Purifier`.

    Raises:
        TypeError, ValueError: as `Purifier`; a sigma that is not positive.
    """

    def __init__(self, sigma: float, config: FitConfig | None = None, *, seed: int | None = None, **arguments: Any):
        super().__init__(config, seed=seed, sigma=sigma, **arguments)

    def _check(self) -> None:
        super()._check()
        check_positive("sigma", self.sigma)

    def frames(self, images: Tensor, iterations: Sequence[int] | None, *, restart: int = 0, **options: Any) -> Tensor:
        """See `Purifier.frames`."""
        seed = secrets.randbits(32) if self.seed is None else self.seed
        assert self.sigma is not None
        copies = images.detach().clone()
        for copy in copies:
            copy += self.sigma * gaussian_draws(copy, seed, range(restart, restart + 1))[0]
        noisy = copies.clamp(0, 1) + (images - images.detach())  # the values of the first, the gradient of the second
        return super(NoisyPurifier, self.variant(seed=seed)).frames(noisy, iterations, restart=restart, **options)


def gaussian_draws(image: Tensor, seed: int, draws: range, index: int | None = None) -> Tensor:
    """Standard normal noise (D, C, H, W) for these draws of an image (C, H, W), by a counter-based generator.

    The key of the generator is the seed and the image, its counter the number of the draw. So a draw depends on neither
    the draws beside it nor the other images, and is the same for every classifier and purifier.

    Args:
        image: its shape, dtype and device are those of the noise.
        seed: a non-negative integer.
        draws: numbers of the draws.
        index: names the image; None for its pixels.
    """
    content = image.detach().cpu().contiguous().numpy().tobytes() if index is None else str(index).encode()
    key = int.from_bytes(hashlib.sha256(f"{seed} ".encode() + content).digest()[:16], "big")
    streams = (np.random.Generator(np.random.Philox(key=key, counter=draw << 128)) for draw in draws)
    return torch.stack([torch.from_numpy(stream.standard_normal(tuple(image.shape))).to(image) for stream in streams])


def _batches(draws: range, values: int) -> Iterator[range]:
    """Parts of the draws, each of `values` values, that stay within `VALUES`."""
    most = max(1, VALUES // values)
    for start in range(draws.start, draws.stop, most):
        yield range(start, min(start + most, draws.stop))
