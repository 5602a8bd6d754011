"""The generators f_theta(z): three architectures as plain modules.

Every network maps `(B, C_in, H, W)` to `(B, C_out, H, W)` in [0, 1]; H and W are multiples of `stride`. Its parameters
are its own, as in any module, or *stacked*: passed through `torch.func.functional_call` with a leading dimension B,
they are B independent networks that one call evaluates, image i by network i. Only `Conv` and `Norm` distinguish the
two. Normalisation is per image and channel (batch normalisation of a single image), so images do not affect each
other.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from dipdefense.fitting.layers import PADDINGS, UPSAMPLINGS, Conv, Norm, Part, upsample

__all__ = ["ARCHITECTURES", "Autoencoder", "SkipNet", "UNet"]

DOWNSAMPLINGS: dict[str, Callable[[], nn.Module] | None] = {
    "stride": None,  # the convolution itself has stride 2
    "max": lambda: nn.MaxPool2d(2),
    "average": lambda: nn.AvgPool2d(2),
}


class Block(nn.Module):
    """Convolution, normalisation, activation; halves the size if `downsampling` names how."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        padding: str,
        downsampling: str | None = None,
        sharpness: float | None = None,
    ):
        super().__init__()
        pool = None if downsampling is None else DOWNSAMPLINGS[downsampling]
        self.conv = Conv(inputs, outputs, kernel, 2 if downsampling == "stride" else 1, padding)
        self.pool = nn.Identity() if pool is None else pool()
        self.norm = Norm(outputs, slope=0.2, sharpness=sharpness)

    def forward(self, *parts: Part) -> Tensor:
        """Parts (B, I_1, H, W) .. (B, I_n, H, W) -> (B, O, H, W), or half of H and W."""
        y: Tensor = self.norm(self.pool(self.conv(*parts)))
        return y


class Blocks(nn.Sequential):
    """Blocks one after another; the first takes the parts."""

    def forward(self, *parts: Part) -> Tensor:
        """Parts (B, I_1, H, W) .. (B, I_n, H, W) -> (B, O, H', W')."""
        first, *rest = self
        x: Tensor = first(*parts)
        for block in rest:
            x = block(x)
        return x


class Norms(nn.ModuleList):
    """A normalisation for each part."""

    def __init__(self, parts: Sequence[int]):
        super().__init__(Norm(channels) for channels in parts)

    def forward(self, *parts: Part) -> list[Part]:
        """Parts (B, I_1, H, W) .. (B, I_n, H, W) -> the same, normalised."""
        return [norm(part) for norm, part in zip(self, parts, strict=True)]


class SkipNet(nn.Module):
    """The hourglass of the deep image prior, with a few skip channels at every scale.

    With 32 input channels, five scales of 128 and 4 skip channels it has 2,217,831 parameters, as published.

    Source: Ulyanov et al. (2018), supplementary figure 21.

    Args:
        in_channels: channels of z.
        out_channels: channels of the image.
        channels: width of each scale, finest first.
        skip_channels: width of the skip branch at each scale; 0 for none.
        kernel_down: kernel size of the encoder, one for all scales or one for each; odd.
        kernel_up: kernel size of the decoder.
        kernel_skip: kernel size of the skip branch.
        upsampling: `bilinear` or `nearest`.
        downsampling: `stride`, `max` or `average`.
        padding: `reflection` or `zero`.
        sharpness: of a softplus in place of the rectifier, which makes the fit a smooth function of the image; None
            for the rectifier.

    Raises:
        ValueError: a list of another length than `channels`, an even kernel, an unknown name.
    """

    def __init__(
        self,
        in_channels: int = 32,
        out_channels: int = 3,
        *,
        channels: Sequence[int] = (128, 128, 128, 128, 128),
        skip_channels: Sequence[int] | int = 4,
        kernel_down: Sequence[int] | int = 3,
        kernel_up: Sequence[int] | int = 3,
        kernel_skip: Sequence[int] | int = 1,
        upsampling: str = "bilinear",
        downsampling: str = "stride",
        padding: str = "reflection",
        sharpness: float | None = None,
    ):
        super().__init__()
        _check(channels, upsampling, downsampling, padding, sharpness)
        scales = len(channels)
        skips = _per_scale(skip_channels, scales, "skip_channels", least=0)
        k_down = _kernels(kernel_down, scales, "kernel_down")
        k_up = _kernels(kernel_up, scales, "kernel_up")
        k_skip = _kernels(kernel_skip, scales, "kernel_skip")
        self.stride = 2**scales
        self.upsampling = upsampling
        self.down, self.enter, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.skip = nn.ModuleDict()  # keyed by scale; a scale without skip channels has none
        for i, (inputs, width) in enumerate(pairwise((in_channels, *channels))):
            deeper = channels[min(i + 1, scales - 1)]
            self.down.append(
                Blocks(
                    Block(inputs, width, k_down[i], padding, downsampling, sharpness),
                    Block(width, width, k_down[i], padding, None, sharpness),
                )
            )
            if skips[i]:
                self.skip[str(i)] = Block(inputs, skips[i], k_skip[i], padding, None, sharpness)
            parts = [skips[i], deeper] if skips[i] else [deeper]
            self.enter.append(Norms(parts))
            self.up.append(
                Blocks(
                    Block(sum(parts), width, k_up[i], padding, None, sharpness),
                    Block(width, width, 1, padding, None, sharpness),
                ),
            )
        self.out = Conv(channels[0], out_channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W) in [0, 1]."""
        across, x = [], z
        for scale, down in enumerate(self.down):
            across.append([self.skip[str(scale)](x)] if str(scale) in self.skip else [])
            x = down(x)
        for skipped, enter, up in zip(reversed(across), reversed(self.enter), reversed(self.up), strict=True):
            x = up(*enter(*skipped, upsample(x, self.upsampling)))
        return torch.sigmoid(self.out(x))


class UNet(nn.Module):
    """Encoder-decoder whose skip connections carry all channels of every scale.

    Source: Ronneberger et al. (2015), figure 1, with padded convolutions and per-image normalisation.
    Arguments as in `SkipNet`.
    """

    def __init__(
        self,
        in_channels: int = 32,
        out_channels: int = 3,
        *,
        channels: Sequence[int] = (16, 32, 64, 64),
        kernel: int = 3,
        upsampling: str = "bilinear",
        downsampling: str = "max",
        padding: str = "reflection",
        sharpness: float | None = None,
    ):
        super().__init__()
        _check(channels, upsampling, downsampling, padding, sharpness)
        (kernel,) = _kernels(kernel, 1, "kernel")
        self.stride = 2 ** (len(channels) - 1)
        self.upsampling = upsampling

        def twice(inputs: int, outputs: int, halve: str | None = None) -> Blocks:
            return Blocks(
                Block(inputs, outputs, kernel, padding, halve, sharpness),
                Block(outputs, outputs, kernel, padding, None, sharpness),
            )

        self.enter = twice(in_channels, channels[0])
        self.down = nn.ModuleList(twice(fine, coarse, downsampling) for fine, coarse in pairwise(channels))
        self.up = nn.ModuleList(twice(fine + coarse, fine) for fine, coarse in pairwise(channels))
        self.out = Conv(channels[0], out_channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W) in [0, 1]."""
        across = [self.enter(z)]
        for down in self.down:
            across.append(down(across[-1]))
        x = across.pop()
        for up in reversed(self.up):
            x = up(across.pop(), upsample(x, self.upsampling))
        return torch.sigmoid(self.out(x))


class Autoencoder(nn.Module):
    """Encoder-decoder without skip connections: all detail passes through the coarsest scale.

    Arguments as in `SkipNet`.
    """

    def __init__(
        self,
        in_channels: int = 32,
        out_channels: int = 3,
        *,
        channels: Sequence[int] = (16, 32, 64),
        kernel: int = 3,
        upsampling: str = "bilinear",
        downsampling: str = "stride",
        padding: str = "reflection",
        sharpness: float | None = None,
    ):
        super().__init__()
        _check(channels, upsampling, downsampling, padding, sharpness)
        (kernel,) = _kernels(kernel, 1, "kernel")
        self.stride = 2 ** len(channels)
        self.upsampling = upsampling
        self.down = nn.Sequential(
            *(Block(a, b, kernel, padding, downsampling, sharpness) for a, b in pairwise((in_channels, *channels)))
        )
        wide = tuple(reversed(channels))
        self.up = nn.ModuleList(
            Block(a, b, kernel, padding, None, sharpness) for a, b in pairwise((*wide, channels[0]))
        )
        self.out = Conv(channels[0], out_channels, 1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W) in [0, 1]."""
        x = self.down(z)
        for up in self.up:
            x = up(upsample(x, self.upsampling))
        return torch.sigmoid(self.out(x))


ARCHITECTURES: dict[str, type[nn.Module]] = {"autoencoder": Autoencoder, "unet": UNet, "skip": SkipNet}


def _check(channels: Sequence[int], upsampling: str, downsampling: str, padding: str, sharpness: float | None) -> None:
    whole = not isinstance(channels, int) and all(isinstance(c, int) for c in channels)
    if not whole or not channels or min(channels) < 1:
        raise ValueError(f"channels must be a list of positive integers, one for each scale, got {channels!r}")
    for name, value, known in (
        ("upsampling", upsampling, UPSAMPLINGS),
        ("downsampling", downsampling, DOWNSAMPLINGS),
        ("padding", padding, PADDINGS),
    ):
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if sharpness is not None and not (isinstance(sharpness, int | float) and sharpness > 0):
        raise ValueError(f"sharpness must be positive, or None for the rectifier, got {sharpness!r}")


def _per_scale(value: Sequence[int] | int, scales: int, name: str, least: int) -> list[int]:
    values = [value] * scales if isinstance(value, int) else list(value)
    if len(values) != scales or not all(isinstance(v, int) for v in values) or min(values) < least:
        raise ValueError(f"{name} must be {least} or more, one number or {scales} of them, got {value}")
    return values


def _kernels(value: Sequence[int] | int, scales: int, name: str) -> list[int]:
    kernels = _per_scale(value, scales, name, least=1)
    if any(k % 2 == 0 for k in kernels):
        raise ValueError(f"{name} must be odd, got {value}")
    return kernels
