"""A clock that waits for the device."""

import time

import torch

__all__ = ["clock"]


def clock(device: torch.device) -> float:
    """The time in seconds, after the device has finished all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
