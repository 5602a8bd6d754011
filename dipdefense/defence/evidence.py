"""The evidence of a decision: the classifier's logits of the input and of its reconstructions, and these images."""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dipdefense.defence.classifier_errors import REFUSALS, first_line

__all__ = [
    "FULL_SIZE",
    "REMEDY",
    "UNMIRRORED",
    "VIEWS",
    "Classify",
    "Evidence",
    "check_iterations",
    "check_views",
    "classify_view",
    "disagreement",
    "log_mean_softmax",
    "refusal_of_view",
    "spread",
]

Classify = Callable[[Tensor], Tensor]  # images (B, C, H, W) in [0, 1] -> logits (B, K)

STEP = 16  # pixels; a multiple of it can be halved four times without a remainder


def shrink(images: Tensor) -> Tensor:
    """Resize images (B, C, H, W): each side above 32 pixels to four fifths, rounded to a multiple of 16."""
    size = [side if side <= 2 * STEP else round(0.8 * side / STEP) * STEP for side in images.shape[2:]]
    if size == list(images.shape[2:]):
        return images
    small = F.interpolate(images, size, mode="bilinear", antialias=True)
    return (
        small + (small.clamp(0, 1) - small).detach()
    )  # rounding can leave [0, 1], and a clamp alone would cut the gradient


# An attack on the bare classifier is made for the image as it is, so it has less effect on a mirrored or smaller
# reconstruction. Mirrored views suit classes that a mirror does not change, so not digits or text. Smaller views need a
# classifier that accepts images of any size.
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda images: images,
    "mirror": lambda images: images.flip(3),
    "small": shrink,
    "small_mirror": lambda images: shrink(images.flip(3)),
}
UNMIRRORED = {"mirror": "identity", "small_mirror": "small"}  # view -> its substitute if a mirror changes the classes
FULL_SIZE = {
    "small": "identity",
    "small_mirror": "mirror",
}  # view -> its substitute if the classifier does not accept it


@dataclass(frozen=True)
class Evidence:
    """The classifier's logits, and the images that a score looks at."""

    bare: Tensor  # (B, K) logits of the input itself
    along: Tensor  # (S, B, K) logits of its reconstructions, over restarts, iterations and views
    images: Tensor  # (B, C, H, W) the input
    scored: Mapping[int, Tensor]  # iteration -> (R, B, C, H, W), its reconstructions over restarts


def classify_view(classify: Classify, images: Tensor, view: str) -> Tensor:
    """Logits (B, K) of one of `VIEWS` of images (B, C, H, W).

    Raises:
        ValueError: the classifier refuses the size of the view.
    """
    seen = VIEWS[view](images)
    try:
        return classify(seen)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as error:
        if seen.shape == images.shape:
            raise
        raise ValueError(f"{_must_take(seen, view)}, got {first_line(error)}: {REMEDY}") from error


REMEDY = "let its first layer resize, or name a decision without that view"


def _must_take(seen: Tensor, view: str) -> str:
    return f"classifier must take images of {seen.shape[2]}x{seen.shape[3]}, which the view {view!r} shows it"


@torch.no_grad()
def refusal_of_view(classifier: nn.Module, shape: tuple[int, ...], view: str) -> str | None:
    """Why a classifier accepts images of a shape (C, H, W), but not a view of them.

    None if it accepts the view, or refuses the images themselves, since then the view is not at fault. The classifier
    is called with one image of noise, in eval mode, and is left as it was.
    """
    image = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    if VIEWS[view](image).shape == image.shape:
        return None
    like = next((p[:0] for p in classifier.parameters() if p.dim() and p.is_floating_point()), image)
    image = image.to(like)
    seen = VIEWS[view](image)
    training = any(module.training for module in classifier.modules())
    subject = copy.deepcopy(classifier).eval() if training else classifier
    answers = []
    with torch.random.fork_rng(devices=[like.device] if like.is_cuda else []):
        for shown in (image, seen):
            try:
                answers.append(subject(shown))
            except torch.OutOfMemoryError:
                raise
            except REFUSALS as error:
                return f"{_must_take(seen, view)}, got {first_line(error)}" if answers else None
    whole, small = answers
    if not (_are_logits(whole) and whole.isfinite().all()):
        return None
    if not _are_logits(small) or small.shape != whole.shape:
        got = tuple(small.shape) if isinstance(small, Tensor) else type(small).__name__
        wanted = f"classifier must return logits {tuple(whole.shape)} for images of every size"
        return f"{wanted}, got {got} for the view {view!r}"
    if not small.isfinite().all():
        return f"{_must_take(seen, view)}, got NaN or infinite logits"
    return None


def _are_logits(output: object) -> bool:
    return isinstance(output, Tensor) and output.dim() == 2


def log_mean_softmax(logits: Tensor) -> Tensor:
    """Logarithm of the mean over S of the softmax: (S, B, K) -> (B, K)."""
    return logits.log_softmax(2).logsumexp(0) - math.log(len(logits))


def disagreement(bare: Tensor, along: Tensor) -> Tensor:
    """How much the reconstructions contradict the bare prediction: 1 minus the mean probability that they give it.

    Args:
        bare: logits of the input, (B, K).
        along: logits of S reconstructions, (S, B, K).

    Returns:
        (B,) in [0, 1]; larger is more adversarial.
    """
    predicted = bare.argmax(1, keepdim=True)
    return (1 - log_mean_softmax(along).exp().gather(1, predicted)[:, 0]).clamp(0, 1)  # rounding can leave [0, 1]


def spread(named: tuple[int, ...] | None, iterations: int) -> tuple[int, ...]:
    """The named iterations, or four that are spaced evenly over the second half of a fit."""
    if named is not None:
        return named
    return tuple(sorted({math.ceil(iterations * sixth / 6) for sixth in (3, 4, 5, 6)}))


def check_iterations(iterations: object) -> tuple[int, ...] | None:
    """Raise unless the value is None or rising iterations, which are returned as a tuple."""
    if iterations is None:
        return None
    listed = list(iterations) if isinstance(iterations, tuple | list) else []
    if not listed or not all(type(i) is int for i in listed) or listed != sorted(set(listed)) or listed[0] < 1:
        raise ValueError(f"iterations must be one or more integers rising from 1 or above, got {iterations!r}")
    return tuple(listed)


def check_views(views: object) -> tuple[str, ...]:
    """Raise unless the value is one or more keys of `VIEWS`, which are returned as a tuple."""
    if not isinstance(views, tuple | list) or not views or not all(isinstance(v, str) and v in VIEWS for v in views):
        raise ValueError(f"views must be one or more of {', '.join(VIEWS)}, got {views!r}")
    if len(set(views)) < len(views):
        raise ValueError(f"views must not repeat, got {views!r}")
    return tuple(views)
