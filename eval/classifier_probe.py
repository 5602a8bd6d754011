"""A classifier's logits for a few images, which identify it when a run is continued.

A digest of weights and code misses attributes, closures and hooks. So a run classifies some images of its data set, and
the same images with noise, and keeps the logits in its folder. They are compared within a tolerance. They are not part
of a hash, since the last digits differ with another number of threads or another build of a library, and even rounded
values can then differ.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dipdefense.defence.check_logits import check_logits
from eval.datasets import ImageDataset

__all__ = ["Answers", "difference_in_answers", "probe", "probe_images"]

Answers = dict[str, Any] | None  # plain values; None if the logits change from call to call

PROBED = 4  # images, the first of the data set, and as many with noise
NOISE = 0.1  # its standard deviation, images in [0, 1]
TOLERANCE = 1e-3  # as a share of the spread of the logits, in float32
ROUNDINGS = 4  # the tolerance in roundings of the logits, if that is larger
TF32 = 2**-10  # rounding of convolutions on a CUDA device, which still return float32


def probe_images(dataset: ImageDataset) -> Tensor:
    """The probe images, (2 N, C, H, W): N of the data set, then the same with noise of a fixed seed."""
    images = dataset.batch(range(min(PROBED, len(dataset))))
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([images, (images + NOISE * noise).clamp(0, 1)])


@torch.no_grad()
def probe(classifier: Callable[[Tensor], Tensor], images: Tensor) -> Answers:
    """The logits of images (B, C, H, W), classified one at a time, since every classifier accepts a single image.

    The global random generators are seeded meanwhile, and restored.

    Raises:
        ValueError: logits that are not finite, or not (1, K).
    """
    logits, again = _ask(classifier, images), _ask(classifier, images)
    rounding = max(torch.finfo(logits.dtype).eps if logits.is_floating_point() else 0, TF32 if logits.is_cuda else 0)
    answers = {
        "tolerance": max(TOLERANCE, ROUNDINGS * rounding),
        "logits": [[float(f"{logit:.6g}") for logit in row] for row in logits.tolist()],
    }
    same = difference_in_answers(answers, answers | {"logits": again.tolist()}) is None
    return answers if same else None


def difference_in_answers(before: Answers, now: Answers) -> str | None:
    """How the stored answers differ from the present ones, beyond the tolerance; None if they do not."""
    if before is None or now is None:
        return None if before is now else "as the logits of one of the two change from call to call"
    old, new = torch.tensor(before["logits"]), torch.tensor(now["logits"])
    if old.shape != new.shape:
        return f"whose logits are of shape {tuple(old.shape)} where this one's are of {tuple(new.shape)}"
    gap, spread = (old - new).abs().max().item(), (old.max() - old.min()).item()
    if gap <= max(before["tolerance"], now["tolerance"]) * spread:
        return None
    return f"whose logits differ from this one's by up to {gap:.3g}, in a range of {spread:.3g}"


def _ask(classifier: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    device = images.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(0)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(0)
        logits = [classifier(image[None]) for image in images]
    for one in logits:
        check_logits(one, 1)
    return torch.cat(logits)
