"""By how much a classifier is right."""

import math

from torch import Tensor

__all__ = ["margin"]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of the label (B,) less the largest other one of (B, K): (B,), above 0 where the classifier is right.

    Its negative is f_6 of Carlini and Wagner (2017).
    """
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return own - others
