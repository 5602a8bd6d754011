"""What an attack borrows and gives back: the classifier's mode and gradients, the global random state."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["as_found"]


@contextlib.contextmanager
def as_found(classifier: nn.Module, device: torch.device, seed: int | None) -> Iterator[int]:
    """Within: evaluation mode, gradients enabled, global generators seeded. After: everything as before.

    Args:
        classifier: whose modes and parameters' `.grad` are put back.
        device: whose global generator is seeded, besides the CPU's.
        seed: of the global generators; `None` is fresh entropy.

    Yields:
        The seed.
    """
    training = [(module, module.training) for module in classifier.modules()]
    gradients = [(parameter, parameter.grad) for parameter in classifier.parameters()]
    seed = torch.Generator().seed() if seed is None else seed
    # All devices in use, since torch.manual_seed in another library would seed them too.
    cuda = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(cuda), torch.inference_mode(False), torch.enable_grad():
            classifier.eval()
            for parameter, _ in gradients:
                parameter.grad = None  # a backward pass would add to the caller's tensor in place
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield seed
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, gradient in gradients:
            parameter.grad = gradient
