"""The defence as a preprocessor of the adversarial-robustness-toolbox (extra `art`)."""

from typing import Any

import torch
from torch import Tensor

from dipdefense.arguments import check_integer
from dipdefense.defence.purifier import Purifier

try:
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
except ImportError as error:
    raise ImportError(
        "dipdefense.adapters.art needs adversarial-robustness-toolbox: python -m pip install 'dipdefense[art]'"
    ) from error

__all__ = ["DIPPurification"]


class DIPPurification(PreprocessorPyTorch):  # type: ignore[misc]  # ART is untyped
    """Purify what an ART classifier sees: `PyTorchClassifier(..., preprocessing_defences=[DIPPurification()])`.

    A preprocessor maps images to images, so the classifier sees one image: the mean of the reconstructions that the
    default decision would classify one by one. A decision needs `PyTorchClassifier(model=dipdefense.defend(model))`.

    ART passes gradients through `estimate_forward`, which is `forward`, so the purifier's `gradient` is their meaning.

    Args:
        purifier: `Purifier()` if None.
        batch_size: images purified at once; ART hands over whole arrays.
        clip_values: the values of black and white, as in ART's classifier.
        device_type: `cpu` or `gpu`, where ART puts arrays; tensors stay on their device.
        apply_fit: purify when ART trains.
        apply_predict: purify when ART predicts and attacks.

    Raises:
        TypeError: purifier is not a Purifier.
        ValueError: batch_size below 1, clip_values that do not rise, an unknown device_type.
    """

    params = ("purifier", "batch_size", "clip_values", "device_type")

    def __init__(
        self,
        purifier: Purifier | None = None,
        *,
        batch_size: int = 64,
        clip_values: tuple[float, float] = (0.0, 1.0),
        device_type: str = "gpu",
        apply_fit: bool = False,
        apply_predict: bool = True,
    ):
        self.purifier = Purifier() if purifier is None else purifier
        self.batch_size = batch_size
        self.clip_values = clip_values
        self.device_type = device_type
        self._check_params()
        super().__init__(device_type=device_type, is_fitted=True, apply_fit=apply_fit, apply_predict=apply_predict)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        """Images (B, C, H, W) within `clip_values` -> same, purified; labels as they are.

        Raises:
            TypeError, ValueError: not a floating image batch, or outside `clip_values`.
        """
        low, high = self.clip_values
        images = x if (low, high) == (0, 1) else (x - low) / (high - low)
        purified = torch.cat([self.purifier(part) for part in torch.split(images, self.batch_size)])
        return (purified if (low, high) == (0, 1) else purified * (high - low) + low), y

    def _check_params(self) -> None:
        if not isinstance(self.purifier, Purifier):
            raise TypeError(f"purifier must be a Purifier or None, got {type(self.purifier).__name__}")
        check_integer("batch_size", self.batch_size, 1)
        if not self.clip_values[0] < self.clip_values[1]:
            raise ValueError(f"clip_values must rise, as in (0.0, 255.0), got {self.clip_values!r}")
        if self.device_type not in ("cpu", "gpu"):
            raise ValueError(f"device_type must be cpu or gpu, got {self.device_type!r}")
