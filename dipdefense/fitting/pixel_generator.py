"""A generator without a network: a fit optimises the pixels themselves, to compare with a learning-free prior."""

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

__all__ = ["Pixels"]


class Pixels(nn.Module):
    """A generator whose only parameter is the image; of z it uses the size alone.

    Without a prior it reproduces the observed image with its noise, so it is meant for a `prior` of `fit` such as
    `total_variation`. Its values can leave [0, 1].
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
        image = self.image.clone()  # a fit keeps its iterates and writes to its parameters
        return image if image.dim() == 4 else image[None]
