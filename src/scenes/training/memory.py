"""How much memory a process has needed at most."""

import resource
import sys

import torch

MIB = 2**20


def peak_memory(device: torch.device) -> dict[str, int]:
    """Measures this process's highest memory so far, in MiB: resident, and of tensors on its GPU if it has one."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    peak = {"memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // MIB}
    if device.type == "cuda":
        peak["gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) // MIB
    return peak
