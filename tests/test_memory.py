"""A long run takes no more memory than a short one, and thousands of classes no more than their predictions."""

import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from scenes.competition.metric import metric_named
from scenes.competition.scores import class_scores
from scenes.competition.task import class_task
from scenes.inference.calibration import Calibration
from scenes.inference.ensemble import view_weights
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


TASK = class_task([f"{number:05d}" for number in range(40_000)])
MAP = metric_named("map@5", TASK)
LOG_LOSS = metric_named("log_loss", TASK)


@pytest.mark.parametrize(
    ("work", "arrays"),
    [
        (lambda views, targets: MAP.score(views[0], targets), 1.0),
        (lambda views, targets: class_scores(views[0], targets, TASK.columns), 1.5),
        (lambda views, targets: Calibration("classes", [0.5]).apply(views[0]), 2.0),
        (lambda views, targets: view_weights(LOG_LOSS)(views, targets), 3.5),
        (lambda views, targets: TASK.as_outputs(targets), 1.5),
    ],
)
def test_thousands_of_classes_take_little_more_memory_than_their_predictions(
    work: Callable[[np.ndarray, np.ndarray], object], arrays: float
) -> None:
    """In arrays of the size of one view's predictions, beside those given."""
    generator = np.random.default_rng(0)
    views = generator.random((2, 200, len(TASK.columns)), np.float32)
    targets = generator.integers(0, len(TASK.columns), 200)
    tracemalloc.start()
    try:
        work(views, targets)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak / views[0].nbytes < arrays
