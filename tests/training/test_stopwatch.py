"""Time and memory are counted for each stage, over all sessions."""

import mmap
from types import SimpleNamespace

import pytest
import torch

from scenes.training import stopwatch
from scenes.training.stopwatch import CLEAR_REFS, Stopwatch, peak_memory, reset_peak_memory

CPU = torch.device("cpu")
MANY = 300  # MiB


@pytest.mark.skipif(not CLEAR_REFS.exists(), reason="this system cannot reset the peak")
def test_a_peak_counts_from_the_reset_on() -> None:
    reset_peak_memory(CPU)
    before = peak_memory(CPU)["memory_mib"]
    held = mmap.mmap(-1, MANY * 2**20)  # not malloc, which may keep freed memory
    held.write(bytes(MANY * 2**20))
    during = peak_memory(CPU)["memory_mib"]
    assert before + 0.9 * MANY < during
    held.close()
    assert abs(peak_memory(CPU)["memory_mib"] - during) < 0.1 * MANY  # the kernel counts in batches of pages
    reset_peak_memory(CPU)
    assert peak_memory(CPU)["memory_mib"] < during - 0.8 * MANY


def test_stages_add_up_over_the_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now))
    first = Stopwatch(CPU)
    with first.stage("features"):
        now += 3
    now += 2
    saved = first.state()
    assert (saved["seconds"], saved["stages"]) == (5, {"features": 3, "training": 2})
    now += 1000  # between sessions
    second = Stopwatch(CPU)
    second.resume(saved)
    for _ in range(2):
        with second.stage("features"):
            now += 1.5
    now += 4
    state = second.state()
    assert (state["seconds"], state["stages"]) == (12, {"features": 6, "training": 6})
    assert set(state["memory"]) == {"features", "training"}
    assert state["memory"]["features"]["memory_mib"] >= saved["memory"]["features"]["memory_mib"]
