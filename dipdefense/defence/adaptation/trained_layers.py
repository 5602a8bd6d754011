"""Which parameters of a classifier are adapted, by name, and the statistics of its batch normalisation."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

__all__ = ["LAYERS", "find_trained", "reestimate_batch_norm"]


def _none(net: nn.Module, image: Tensor) -> list[nn.Parameter]:
    """No parameter. A classifier without batch normalisation is refused, since nothing of it would change."""
    if not _batch_norms(net):
        raise ValueError(
            "classifier must have batch normalisation with running statistics for layers 'batch_norm', "
            f"{type(net).__name__} has none: use layers='last' or layers='all'"
        )
    return []


def _last(net: nn.Module, image: Tensor) -> list[nn.Parameter]:
    """The parameters of the linear or convolutional layer that ran last."""
    ran: list[nn.Module] = []
    candidates = [m for m in net.modules() if isinstance(m, nn.Linear | _ConvNd) and any(True for _ in m.parameters())]
    hooks = [layer.register_forward_pre_hook(lambda layer, given: ran.append(layer)) for layer in candidates]
    try:
        with torch.no_grad():
            net(image[None])
    finally:
        for hook in hooks:
            hook.remove()
    return list(ran[-1].parameters()) if ran else []


def _all(net: nn.Module, image: Tensor) -> list[nn.Parameter]:
    """All parameters."""
    return [parameter for parameter in net.parameters() if parameter.is_floating_point()]


# From cheap to dear. All of them re-estimate the statistics of batch normalisation, if there is any, before they train.
LAYERS: dict[str, Callable[[nn.Module, Tensor], list[nn.Parameter]]] = {
    "batch_norm": _none,
    "last": _last,
    "all": _all,
}


def find_trained(layers: str, net: nn.Module, image: Tensor) -> list[nn.Parameter]:
    """The parameters of a net that an entry of `LAYERS` trains; `image` (C, H, W) shows which layer runs last.

    Raises:
        ValueError: an unknown name; a net without batch normalisation or without the parameters that the name means.
    """
    if layers not in LAYERS:
        raise ValueError(f"layers must be one of {', '.join(LAYERS)}, got {layers!r}")
    parameters = LAYERS[layers](net, image)
    if not parameters and LAYERS[layers] is not _none:
        kind = "linear or convolutional layer with parameters" if layers == "last" else "parameters"
        raise ValueError(f"classifier must have {kind} for layers {layers!r}, {type(net).__name__} has none")
    return parameters


@torch.no_grad()
def reestimate_batch_norm(net: nn.Module, inputs: Tensor, batch: int) -> None:
    """Set the running statistics of batch normalisation to the mean and variance over all inputs (M, C, H, W).

    One pass. Within a batch every layer normalises by the statistics of that batch, as in training, so that deeper
    layers see normalised values; the moments of the batches are pooled, not averaged with a momentum.

    Source: Wu and Johnson (2021), "Rethinking 'Batch' in BatchNorm", section 3 (PreciseBN).
    Differs from `torch.optim.swa_utils.update_bn`: dropout stays off, and the variance between batches counts.

    Args:
        net: in eval mode, as it is afterwards; its running statistics are written.
        inputs: images.
        batch: inputs of a pass, at least 2; the batches have this size or a little more.
    """
    moments: dict[nn.Module, _Moments] = {layer: _Moments() for layer in _batch_norms(net)}
    if not moments:
        return
    counts = [None if n is None else n.clone() for n in (layer.num_batches_tracked for layer in _batch_norms(net))]
    hooks = [layer.register_forward_pre_hook(lambda layer, given: moments[layer].add(given[0])) for layer in moments]
    try:
        for layer in moments:
            layer.train()
        for part in torch.tensor_split(inputs, max(1, len(inputs) // batch)):
            net(part)
    finally:
        for hook in hooks:
            hook.remove()
        for layer in moments:
            layer.eval()
    for layer, count in zip(_batch_norms(net), counts, strict=True):
        layer.num_batches_tracked = count
        moments[layer].write(layer)


class _Moments:
    """The number, mean and sum of squared deviations of the values of each channel, over batches."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, torch.zeros(()).double(), torch.zeros(()).double()

    def add(self, values: Tensor) -> None:
        """Pool with a batch (B, C, ...). Source: Chan, Golub and LeVeque (1983), eq. (1.5)."""
        flat = values.transpose(0, 1).flatten(1)  # (C, n)
        variance, mean = (moment.cpu().double() for moment in torch.var_mean(flat, 1, correction=0))
        n, squares = flat.shape[1], variance * flat.shape[1]
        total, gap = self.n + n, mean - self.mean
        self.squares = self.squares + squares + gap.square() * (self.n * n / total)
        self.mean = self.mean + gap * (n / total)
        self.n = total

    def write(self, layer: _BatchNorm) -> None:
        """Set the running mean, and the running variance without bias, as torch does; not of a layer that never ran."""
        if self.n and layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(self.mean)
            layer.running_var.copy_(self.squares / (self.n - 1))


def _batch_norms(net: nn.Module) -> list[_BatchNorm]:
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]
