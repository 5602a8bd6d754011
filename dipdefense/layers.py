"""The layers of a generator, for one network or a stack of B, as fast as torch's own kernels allow.

A *stacked* parameter has a leading dimension B: layer i of the stack works on image i. Feature maps come in
*parts* that count as concatenated along their channels; conv(cat(a, b)) = conv(a) + conv(b), so no part is copied
to stand beside another. docs/performance.md says what each choice is worth.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PADDINGS", "UPSAMPLINGS", "Conv", "Norm", "reflect", "upsample"]

PADDINGS: dict[str, Literal["reflect", "zeros"]] = {"reflection": "reflect", "zero": "zeros"}
UPSAMPLINGS = ("bilinear", "nearest")
BROAD = 64  # input pixels a side from which torch's own bilinear upsampling beats a matrix product


class Conv(nn.Conv2d):
    """Convolution that keeps the size (stride 1) or halves it (stride 2).

    Stacked parameters are a weight `(B, O, I, k, k)` and a bias `(B, O)`. An input of batch size 1 is then shared
    by all networks of the stack.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, padding: str = "reflection"):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, padding_mode=PADDINGS[padding])

    def forward(self, *parts: Tensor) -> Tensor:
        """Parts (B, I_1, H, W) .. (B, I_n, H, W) with I channels in all -> (B, O, H / stride, W / stride)."""
        assert self.bias is not None
        if self.weight.dim() == 4:
            return super().forward(torch.cat(parts, 1) if len(parts) > 1 else parts[0])
        weights = torch.split(self.weight, [part.shape[1] for part in parts], dim=2)
        y = self._stacked(parts[0], weights[0], self.bias)
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            y = y + self._stacked(part, weight, None)
        return y

    def _stacked(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """One call for the whole stack; x is (B, I, H, W), or (1, I, H, W) shared by all."""
        B, outputs, inputs = weight.shape[:3]
        if len(x) == B > 1 and self.kernel_size == self.stride == (1, 1):  # a matrix product for each image
            pixels, matrix = x.flatten(2), weight.flatten(2)  # (B, I, H*W), (B, O, I)
            y = matrix @ pixels if bias is None else torch.baddbmm(bias[..., None], matrix, pixels)
            return y.view(B, outputs, *x.shape[2:])
        if len(x) > 1 and inputs > 3 and inputs % 8:  # up to five times slower than the next multiple of 16
            more = -inputs % 16
            x, weight = F.pad(x, (0, 0, 0, 0, 0, more)), F.pad(weight, (0, 0, 0, 0, 0, more))
        padding = self.kernel_size[0] // 2
        if padding and self.padding_mode == "reflect":
            x, padding = reflect(x, padding), 0
        bias = bias if bias is None else bias.flatten()
        groups, x = len(x), x.reshape(1, -1, *x.shape[2:])  # (1, B*I, H, W)
        y = F.conv2d(x, weight.flatten(0, 1), bias, self.stride, padding, groups=groups)
        return y.view(B, outputs, *y.shape[2:])


class Norm(nn.Module):
    """Normalise each channel of each image to its own mean and variance, scale, shift and, if asked, rectify."""

    def __init__(self, channels: int, slope: float = 1.0, sharpness: float | None = None):
        """`slope` of the leaky rectifier for negative values; 1 leaves them as they are.

        With a sharpness b its kink is that of log(1 + exp(b x)) / b in place of max(x, 0).
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.slope = slope
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> same; weight and bias are (C,) or stacked (B, C)."""
        weight, bias = (p.expand(x.shape[:2]).reshape(-1) for p in (self.weight, self.bias))
        flat = x.reshape(1, -1, *x.shape[2:])  # (1, B*C, H, W): every channel of every image is a group
        y = F.group_norm(flat, flat.shape[1], weight, bias)
        if self.slope != 1 and self.sharpness is not None:
            y = self.slope * y + (1 - self.slope) * F.softplus(y, self.sharpness)
        elif self.slope != 1:
            y = F.leaky_relu_(y, self.slope)  # in place before the view: on a view it would copy
        return y.view(x.shape)


def upsample(x: Tensor, mode: str) -> Tensor:
    """Twice the size: (B, C, H, W) -> (B, C, 2 H, 2 W); `mode` is one of UPSAMPLINGS."""
    if mode == "nearest":
        return F.interpolate(x, scale_factor=2)
    if max(x.shape[2:]) > BROAD:
        return F.interpolate(x, scale_factor=2, mode="bilinear")
    rows, columns = (_doubling(side, x) for side in x.shape[2:])
    return rows @ (x @ columns.T)


def _doubling(side: int, like: Tensor) -> Tensor:
    """Linear interpolation to twice the length, as a matrix (2 n, n)."""
    eye = torch.eye(side, dtype=like.dtype, device=like.device)
    return F.interpolate(eye[None], scale_factor=2, mode="linear")[0].T


def reflect(x: Tensor, width: int) -> Tensor:
    """Continue images beyond their borders: (B, C, H, W) -> (B, C, H + 2 width, W + 2 width), 1 <= width < H, W."""
    padded: Tensor = _Reflect.apply(x, width)
    return padded


class _Reflect(torch.autograd.Function):
    """Reflection padding whose gradient is a few sums of slices: torch's own is slow, and on CUDA not repeatable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, width: int) -> Tensor:
        ctx.width = width
        return F.pad(x, (width,) * 4, "reflect")

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """What lies beyond the border goes where it came from."""
        p = ctx.width
        y = gradient[..., p:-p, :].clone()
        y[..., 1 : p + 1, :] += gradient[..., :p, :].flip(-2)
        y[..., -p - 1 : -1, :] += gradient[..., -p:, :].flip(-2)
        y[..., p + 1 : 2 * p + 1] += y[..., :p].flip(-1)
        y[..., -2 * p - 1 : -p - 1] += y[..., -p:].flip(-1)
        return y[..., p:-p], None
