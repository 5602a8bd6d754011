"""The most memory that was taken so far."""

from pathlib import Path

import torch

__all__ = ["peak_bytes", "peak_resident"]


def peak_bytes(device: torch.device) -> float:
    """Of a CUDA device, or resident of this process, in bytes."""
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else peak_resident()


def peak_resident() -> float:
    """Peak resident memory of this process in bytes; on Linux ru_maxrss would begin at that of the parent."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 2**10 * float(fields["VmHWM"].split()[0])  # KiB, called kB
    import resource  # not on Windows

    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
