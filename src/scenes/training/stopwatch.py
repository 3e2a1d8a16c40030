"""Measures a fold's time and peak memory, stage by stage."""

import re
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)
REST = "training"  # everything outside the other stages


class Stopwatch:
    """Seconds and peak memory by stage, including those before the fold was resumed."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.memory: dict[str, dict[str, int]] = {}
        self.earlier, self.started = 0.0, time.monotonic()
        reset_peak_memory(device)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times its block as a separate stage."""
        self._count_memory(REST)
        start = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - start
        self._count_memory(name)

    def _count_memory(self, stage: str) -> None:
        """Counts the peak since the last call towards a stage."""
        peaks = self.memory.setdefault(stage, {})
        for kind, mib in peak_memory(self.device).items():
            peaks[kind] = max(mib, peaks.get(kind, 0))
        reset_peak_memory(self.device)

    def state(self) -> dict[str, Any]:
        """The content of time.json, also in checkpoints: seconds in total and by stage, peak memory by stage in MiB."""
        self._count_memory(REST)
        total = self.earlier + time.monotonic() - self.started
        stages = {**self.seconds, REST: max(0.0, total - sum(self.seconds.values()))}
        return {
            "seconds": round(total, 1),
            "stages": {name: round(seconds, 1) for name, seconds in stages.items()},
            "memory": {name: dict(peaks) for name, peaks in self.memory.items()},
        }

    def resume(self, saved: Mapping[str, Any]) -> None:
        """Adds the time and memory before the fold was resumed, as returned by `state`."""
        self.earlier = saved["seconds"]
        for name, seconds in saved["stages"].items():
            if name != REST:
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        for name, peaks in saved["memory"].items():
            now = self.memory.setdefault(name, {})
            now |= {kind: max(mib, now.get(kind, 0)) for kind, mib in peaks.items()}


def peak_memory(device: torch.device) -> dict[str, int]:
    """Measures this process's peak memory since `reset_peak_memory`, in MiB.

    On systems that cannot reset the peak, it is that since the process started.

    Returns:
        ``memory_mib``, the resident memory; and with a GPU ``gpu_memory_mib``, the memory of tensors.
    """
    peak = {"memory_mib": _resident_peak() // MIB}
    if device.type == "cuda":
        peak["gpu_memory_mib"] = torch.cuda.max_memory_allocated(device) // MIB
    return peak


def reset_peak_memory(device: torch.device) -> None:
    """Resets the peak."""
    with suppress(OSError):
        CLEAR_REFS.write_text(RESET_PEAK)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _resident_peak() -> int:
    """The peak in bytes; `ru_maxrss` is in bytes on macOS and in kilobytes elsewhere."""
    with suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text()):
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
