"""A batch spread over several devices."""

import contextlib
import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dipdefense.defence.wrapper import Wrapper
from dipdefense.fitting.fit import fit_context
from dipdefense.fitting.workers import map_in_threads

__all__ = ["OnDevices"]


class OnDevices(Wrapper):
    """Run a defended classifier, or a purifier, on several devices; each takes an equal part of the batch.

    Each device has a thread and a copy of the module. The copy is made anew at every call, so that it is never out of
    date; this takes no time beside a fit. Results are those of one device, up to rounding, unless `seed` is None.
    Gradients reach the images but not the weights, so this is not for training.

    Args:
        module: images (B, C, H, W) -> a tensor of B rows, in eval mode.
        devices: such as `["cuda:0", "cuda:1"]`; a device may be named twice.

    Raises:
        TypeError: `module` is not a module.
        ValueError: no devices, or one that is unknown to torch.
    """

    def __init__(self, module: nn.Module, devices: Sequence[str | torch.device]):
        super().__init__(module)
        if isinstance(devices, str) or not devices:
            raise ValueError(f"devices must be a list of at least one device, such as ['cuda:0'], got {devices!r}")
        try:
            self.devices = [torch.device(device) for device in devices]
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"devices must be known to torch, such as 'cuda:0' or 'cpu', got {devices!r}") from error

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> B rows, on the device of `images`. Raises what the module raises."""
        parts = [part for part in torch.tensor_split(images, len(self.devices)) if len(part)]
        if len(parts) < 2:
            return self._run(images, self.devices[0])
        grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

        def work(item: tuple[Tensor, torch.device]) -> Tensor:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):  # each thread has its own modes
                return self._run(*item)

        with self._settings():
            return torch.cat(map_in_threads(work, list(zip(parts, self.devices, strict=False)), len(parts)))

    def _run(self, images: Tensor, device: torch.device) -> Tensor:
        rows: Tensor = copy.deepcopy(self.classifier).to(device)(images.to(device))
        return rows.to(images.device)

    def _settings(self) -> contextlib.AbstractContextManager[None]:
        """Set the precision of fits here: it holds for the process, so no device may reset it while others fit."""
        cuda = [device for device in self.devices if device.type == "cuda"]
        return fit_context(cuda[0], "full") if cuda else contextlib.nullcontext()

    def extra_repr(self) -> str:
        """The devices."""
        return f"devices={[str(device) for device in self.devices]}"
