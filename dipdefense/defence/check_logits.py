"""The check of a classifier's output."""

from torch import Tensor

__all__ = ["check_logits"]


def check_logits(logits: object, n: int, name: str = "classifier") -> None:
    """Raise unless the output of a classifier for `n` images is a finite tensor (n, K).

    Raises:
        ValueError: it is not; the message begins with `name`.
    """
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != n:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        images = "1 image" if n == 1 else f"{n} images"
        raise ValueError(f"{name} must return logits (B, K) for {images}, got {got}")
    if not logits.isfinite().all():
        raise ValueError(f"{name} must return finite logits, got NaN or infinite values")
