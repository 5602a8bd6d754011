"""No network at all: the pixels themselves are what a fit optimises, so that a learning-free prior can be compared."""

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

__all__ = ["Pixels"]


class Pixels(nn.Module):
    """A generator whose only parameter is the image; it takes the size of z and nothing else from it.

    With no other term in the loss it reproduces the observed image, noise and all; it is meant for `prior` of `fit`,
    such as `total_variation`. Values are not held within [0, 1].
    """

    stride = 1

    def __init__(self, in_channels: int = 1, out_channels: int = 3):
        super().__init__()
        self.out_channels = out_channels
        self.image = UninitializedParameter()

    def forward(self, z: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (1, C_out, H, W), or (B, C_out, H, W) of stacked parameters; mid-grey at first."""
        if isinstance(self.image, UninitializedParameter):
            self.image.materialize((self.out_channels, *z.shape[2:]), device=z.device, dtype=z.dtype)
            nn.init.constant_(self.image, 0.5)
        return self.image if self.image.dim() == 4 else self.image[None]
