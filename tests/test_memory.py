"""A long run takes no more memory than a short one."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from scenes.training import checkpoint
from tiny import TINY

EPOCHS = 30
SETTLED = 10  # epochs after which allocators and caches no longer grow
LIMIT = 40.0  # KiB per epoch; one batch of this run is 144 KiB of float32 pixels


def resident() -> float:
    """This process's memory in KiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says so plainly")
def test_memory_stays_flat_over_many_epochs(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    save = checkpoint.save

    def measured(folder: Path, state: dict[str, Any]) -> None:  # at the end of each epoch
        save(folder, state)
        taken.append(resident())

    monkeypatch.setattr(checkpoint, "save", measured)
    train.main(["tiny.yaml", "--folds", "0", "--set", *TINY, f"train.epochs={EPOCHS}", "train.batch_size=12"])
    assert len(taken) == EPOCHS
    slope = np.polyfit(np.arange(EPOCHS - SETTLED), taken[SETTLED:], 1)[0]
    assert slope < LIMIT, f"{slope:.0f} KiB an epoch: {[round(kib) for kib in taken]}"
    print(f"{slope:.1f} KiB an epoch")
