"""What a computation has cost so far: time, and peak memory."""

import time
from pathlib import Path

import torch

__all__ = ["clock", "peak_bytes", "peak_resident"]


def clock(device: torch.device) -> float:
    """The time in seconds, after the device has finished all work that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_bytes(device: torch.device) -> float:
    """Peak memory of a CUDA device, or else the peak resident memory of this process, in bytes."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_resident()


def peak_resident() -> float:
    """Peak resident memory of this process in bytes; on Linux ru_maxrss would include the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 2**10 * float(fields["VmHWM"].split()[0])  # KiB, called kB
    import resource  # not on Windows

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
