"""The purifier in a torchvision v2 pipeline whose samples are more than one image."""

from typing import Any

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from dipdefense.defence.purifier import Purifier

__all__ = ["Purify"]


class Purify(v2.Transform):  # type: ignore[misc]  # torchvision is untyped
    """Purify the `tv_tensors.Image` of a sample, such as (image, label); labels, boxes and masks are not changed.

    In a pipeline of images alone the `Purifier` itself can be used. Both belong after `v2.ToImage()` and
    `v2.ToDtype(torch.float32, scale=True)`.

    Args:
        purifier: `Purifier()` if None.
    """

    def __init__(self, purifier: Purifier | None = None):
        super().__init__()
        self.purifier = Purifier() if purifier is None else purifier
        self.training = self.purifier.training

    _transformed_types = (tv_tensors.Image,)

    def transform(self, inpt: Tensor, params: dict[str, Any]) -> Tensor:
        """One image of the sample, (C, H, W) or (B, C, H, W) in [0, 1] -> same.

        Raises:
            TypeError, ValueError: not a floating image, or outside [0, 1].
        """
        return tv_tensors.wrap(self.purifier(inpt), like=inpt)  # type: ignore[no-any-return]
