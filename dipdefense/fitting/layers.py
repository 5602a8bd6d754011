"""The layers of a generator, for one network or a stack of B, as fast as torch's own kernels allow.

A *stacked* parameter has a leading dimension B: layer i of the stack works on image i. Feature maps come in *parts*,
which stand for their concatenation along the channels. Since conv(cat(a, b)) = conv(a) + conv(b), the concatenation is
not computed. A part may be `Doubled`, the result of nearest upsampling, which is not computed either. A small map of a
single image is the exception: there the calls take longer than the arithmetic, and the fewest calls are those of torch.
docs/performance.md says how much time each choice saves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PADDINGS", "UPSAMPLINGS", "Conv", "Doubled", "Norm", "Part", "is_small", "reflect", "repeat", "upsample"]

PADDINGS: dict[str, Literal["reflect", "zeros"]] = {"reflection": "reflect", "zero": "zeros"}
UPSAMPLINGS = ("bilinear", "nearest")
BROAD = 64  # pixels a side above which torch's own bilinear upsampling is faster than a matrix product
FOLDED = 14 * 14  # pixels from which `_doubled` is faster than a convolution of the doubled map
FEW = 32 * 32  # pixels up to which a single image is convolved as torch does it
MOST_GROUPS = 65535  # of torch's group normalisation for one image on CUDA: the backward pass launches a block for each


@dataclass(frozen=True)
class Doubled:
    """A map (B, C, 2 H, 2 W) made by nearest upsampling, stored as the small map."""

    small: Tensor  # (B, C, H, W)

    def whole(self) -> Tensor:
        """The map itself, (B, C, 2 H, 2 W)."""
        return F.interpolate(self.small, scale_factor=2)


Part = Tensor | Doubled


class Conv(nn.Conv2d):
    """Convolution that keeps the size (stride 1) or halves it (stride 2).

    Stacked parameters are a weight `(B, O, I, k, k)` and a bias `(B, O)`. An input of batch size 1 is then shared
    by all networks of the stack.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: str = "reflection"):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, padding_mode=PADDINGS[padding])

    def forward(self, *parts: Part) -> Tensor:
        """Parts (B, I_1, H, W) .. (B, I_n, H, W) with I channels in all -> (B, O, H / stride, W / stride)."""
        assert self.bias is not None
        alone = self.weight.dim() == 4
        if alone or (len(self.weight) == 1 and all(map(is_small, parts))):
            weight, bias = (p if alone else p.squeeze(0) for p in (self.weight, self.bias))
            whole: Tensor = self._conv_forward(_concatenated(parts), weight, bias)
            return whole
        weights = torch.split(self.weight, [_stored(part).shape[1] for part in parts], dim=2)
        y = self._stacked(parts[0], weights[0], self.bias)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            y = y + self._stacked(part, weight, None)
        return y

    def _stacked(self, part: Part, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One call for the whole stack; the part is (B, I, H, W), or (1, I, H, W) shared by all."""
        if isinstance(part, Doubled) and self._folds(part.small):
            return self._doubled(part.small, weight, bias)
        x = _whole(part)
        B, outputs = weight.shape[:2]
        if len(x) == B > 1 and self.kernel_size == self.stride == (1, 1):  # a matrix product for each image
            pixels, matrix = x.flatten(2), weight.flatten(2)  # (B, I, H*W), (B, O, I)
            y = matrix @ pixels if bias is None else torch.baddbmm(bias[..., None], matrix, pixels)
            return y.view(B, outputs, *x.shape[2:])
        x, weight = _rounded(x, weight)
        padding = self.kernel_size[0] // 2
        if padding and self.padding_mode == "reflect":
            x, padding = reflect(x, padding), 0
        bias = bias if bias is None else bias.flatten()
        groups, x = len(x), x.reshape(1, -1, *x.shape[2:])  # (1, B*I, H, W)
        y = F.conv2d(x, weight.flatten(0, 1), bias, self.stride, padding, groups=groups)
        return y.view(B, outputs, *y.shape[2:])

    def _folds(self, small: Tensor) -> bool:
        return self.kernel_size == (3, 3) and self.stride == (1, 1) and small.shape[2:].numel() >= FOLDED

    def _doubled(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The same for x doubled, with 16 products for each pixel of x instead of 36.

        Some of any 3x3 pixels of a doubled map are equal, so their weights are added first. Rows r - 1 and r of x give
        rows 2 r - 1 and 2 r of the result. Reflecting a doubled map by one pixel repeats its border.
        """
        B, outputs = weight.shape[:2]
        weight = torch.stack([phase for rows in _halve(weight, -2) for phase in _halve(rows, -1)], 2).flatten(1, 2)
        bias = bias if bias is None else bias.flatten().repeat_interleave(4)
        x, weight = _rounded(x, weight)
        x = repeat(x) if self.padding_mode == "reflect" else F.pad(x, (1, 1, 1, 1))
        y = F.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), bias, groups=len(x))
        y = F.pixel_shuffle(y, 2)[..., 1:-1, 1:-1]
        return y.view(B, outputs, *y.shape[2:])


class Norm(nn.Module):
    """Normalise each channel of each image to its own mean and variance, scale, shift and, if asked, rectify."""

    def __init__(self, channels: int, slope: float = 1.0, sharpness: float | None = None):
        """`slope` is that of the leaky rectifier for negative values; 1 means no rectifier.

        With a sharpness b, log(1 + exp(b x)) / b replaces max(x, 0) in it.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope = slope
        self.sharpness = sharpness

    def forward(self, x: Part) -> Part:
        """(B, C, H, W) -> same; weight and bias are (C,) or stacked (B, C)."""
        if isinstance(x, Doubled):  # doubling changes neither the mean nor the variance
            return Doubled(self(x.small))
        y = self._normalised(x) if x.is_cuda and x.shape[:2].numel() > MOST_GROUPS else self._normalised_in_groups(x)
        if self.slope != 1 and self.sharpness is not None:
            y = self.slope * y + (1 - self.slope) * F.softplus(y, self.sharpness)
        elif self.slope != 1:
            y = F.leaky_relu_(y, self.slope)  # in place, before the view, since on a view it would copy
        return y.view(x.shape) if y.shape != x.shape else y

    def _normalised_in_groups(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (1, B*C, H, W): every channel of every image is a group."""
        if len(x) == 1:
            return F.group_norm(x, x.shape[1], self.weight.view(-1), self.bias.view(-1))
        weight, bias = (p.expand(x.shape[:2]).reshape(-1) for p in (self.weight, self.bias))
        flat = x.reshape(1, -1, *x.shape[2:])
        return F.group_norm(flat, flat.shape[1], weight, bias)

    def _normalised(self, x: Tensor) -> Tensor:
        """The same in one more pass over the maps and with C groups, however many images: (B, C, H, W) -> same."""
        weight, bias = (p[..., None, None] for p in (self.weight, self.bias))
        return torch.addcmul(bias, F.group_norm(x, x.shape[1]), weight)


def is_small(part: Part) -> bool:
    """Is a map of a single image convolved as torch does it? On CUDA torch's reflection is not reproducible."""
    stored = _stored(part)
    return stored.is_cpu and stored.shape[2:].numel() <= (FOLDED - 1 if isinstance(part, Doubled) else FEW)


def _concatenated(parts: Sequence[Part]) -> Tensor:
    whole = [_whole(part) for part in parts]
    return torch.cat(whole, 1) if len(whole) > 1 else whole[0]


def _stored(part: Part) -> Tensor:
    return part.small if isinstance(part, Doubled) else part


def _whole(part: Part) -> Tensor:
    return part.whole() if isinstance(part, Doubled) else part


def _rounded(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Add zero channels up to a multiple of 8; without them grouped kernels are up to five times slower.

    x is (B, I, H, W), weight (B, O, I, k, k).
    """
    inputs = x.shape[1]
    if len(x) == 1 or inputs <= 3 or inputs % 8 == 0:
        return x, weight
    more = (0, 0, 0, 0, 0, -inputs % 8)
    return F.pad(x, more), F.pad(weight, more)


def _halve(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Three weights along `dim` added up to two, for the odd and for the even places of a doubled map."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first + middle, last], dim), torch.stack([first, middle + last], dim)


def upsample(x: Tensor, mode: str) -> Part:
    """Twice the size: (B, C, H, W) -> (B, C, 2 H, 2 W); `mode` is one of UPSAMPLINGS."""
    if mode == "nearest":
        return Doubled(x)
    if max(x.shape[2:]) > BROAD:
        return F.interpolate(x, scale_factor=2, mode="bilinear")
    rows, columns = (_doubling(side, x) for side in x.shape[2:])
    return rows @ (x @ columns.T)


def _doubling(side: int, like: Tensor) -> Tensor:
    """Linear interpolation to twice the length, as a matrix (2 n, n)."""
    eye = torch.eye(side, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], scale_factor=2, mode="linear")[0].T


def reflect(x: Tensor, width: int) -> Tensor:
    """Pad images by reflection: (B, C, H, W) -> (B, C, H + 2 width, W + 2 width), 1 <= width < H, W."""
    padded: Tensor = _Continue.apply(x, width, "reflect")
    return padded


def repeat(x: Tensor) -> Tensor:
    """Pad images by one pixel that repeats their border: (B, C, H, W) -> (B, C, H + 2, W + 2)."""
    padded: Tensor = _Continue.apply(x, 1, "replicate")
    return padded


class _Continue(torch.autograd.Function):
    """Padding whose gradient is a few sums of slices; torch's own is slow, and not deterministic on CUDA."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int, mode: str) -> Tensor:
        ctx.width, ctx.axis = width, int(mode == "reflect")  # 1: the border itself is not repeated
        return F.pad(x, (width,) * 4, mode)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of a padded pixel is added to that of the pixel that it copies."""
        p, q = ctx.width, ctx.width + ctx.axis
        y = gradient.clone()
        y[..., q : p + q, :] += y[..., :p, :].flip(-2)
        y[..., -p - q : -q, :] += y[..., -p:, :].flip(-2)
        y[..., q : p + q] += y[..., :p].flip(-1)
        y[..., -p - q : -q] += y[..., -p:].flip(-1)
        return y[..., p:-p, p:-p], None, None
