"""Seconds, once the device has done what it was asked."""

import time

import torch

__all__ = ["clock"]


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
