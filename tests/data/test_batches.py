"""Each row is used once per epoch, each image at every requested size."""

import os
import shutil
import signal
import sys
from collections import namedtuple
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scenes.data import batches
from scenes.data.batches import (
    EvalImages,
    Schedule,
    StepSampler,
    eval_loader,
    fit_shared_memory,
    resize,
    worker_count,
)

CPU = torch.device("cpu")
SIZE = 24
SETTINGS = settings(derandomize=True, max_examples=25, deadline=None)


def images(*shapes: tuple[int, int]) -> list[np.ndarray]:
    """Smooth random images."""
    generator = np.random.default_rng(0)
    return [cv2.GaussianBlur(generator.integers(0, 256, (*shape, 3), np.uint8), (5, 5), 0) for shape in shapes]


IMAGES = images((40, 50), (64, 64), (33, 90), (20, 20))


# ---------------------------------------------------------------------------------------------------- order


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 6), st.integers(0, 3), st.integers(-1, 4))
def test_every_row_once_an_epoch(count: int, batch: int, epochs: int, seed: int, fold: int) -> None:
    rows = np.arange(count) * 3 + 5
    schedule = Schedule(rows, epochs, batch, seed, fold)
    batches = [schedule.batch(step) for step in range(schedule.steps)]
    assert {len(samples) for samples in batches} == {batch}
    seen = [sample for samples in batches for sample in samples]
    for epoch in range(epochs):
        assert sorted(sample.row for sample in seen if sample.epoch == epoch) == rows.tolist()
        assert {sample.epoch for sample in seen[epoch * count : (epoch + 1) * count]} == {epoch}
    assert len(seen) - epochs * count < batch  # only what fills up the last batch


@SETTINGS
@given(st.integers(1, 40), st.integers(1, 50), st.integers(1, 6))
def test_an_epoch_ends_once(count: int, batch: int, epochs: int) -> None:
    schedule = Schedule(np.arange(count), epochs, batch, 0, 0)
    ends = {step: schedule.ends_epoch(step) for step in range(schedule.steps)}
    ended = [epoch for epoch in ends.values() if epoch is not None]
    assert ended == sorted(set(ended))
    assert ends[schedule.steps - 1] == epochs
    if batch <= count:
        assert ended == list(range(1, epochs + 1))
    for step, epoch in ends.items():
        assert schedule.epoch(step) == step * batch // count
        if epoch is not None and step < schedule.steps - 1:  # modes that depend on the epoch change immediately
            assert schedule.epoch(step + 1) == epoch


@pytest.mark.parametrize("first", [0, 3, 5, 11, 12])
def test_a_resumed_schedule_gives_the_same_batches(first: int) -> None:
    def schedule() -> Schedule:
        return Schedule(np.arange(17), 5, 7, 3, 1)

    whole = list(StepSampler(schedule(), 0))
    rest = StepSampler(schedule(), first)
    assert list(rest) == whole[first:]
    assert len(rest) == len(whole) - first
    assert whole[0] == schedule().batch(0)


def test_orders_differ_by_epoch_seed_and_fold() -> None:
    def order(seed: int, fold: int, epoch: int) -> list[int]:
        return [sample.row for sample in Schedule(np.arange(50), 2, 50, seed, fold).batch(epoch)]

    orders = [tuple(order(*place)) for place in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))]
    assert len(set(orders)) == 4
    assert all(sorted(each) == list(range(50)) for each in orders)


# ---------------------------------------------------------------------------------------------- prediction


def test_resize_keeps_the_whole_image() -> None:
    quarters = np.zeros((80, 120, 3), np.uint8)
    quarters[:40, :60], quarters[:40, 60:], quarters[40:, :60] = (200, 0, 0), (0, 200, 0), (0, 0, 200)
    small = resize(quarters, 20)
    assert small.shape == (20, 20, 3)
    assert small.dtype == np.uint8
    for y, x, colour in ((2, 2, (200, 0, 0)), (2, 17, (0, 200, 0)), (17, 2, (0, 0, 200)), (17, 17, (0, 0, 0))):
        assert tuple(small[y, x]) == colour
    assert resize(small, 20) is small
    assert resize(small, 33).shape == (33, 33, 3)
    assert {resize(image, 20).shape for image in images((1, 500), (500, 1), (1, 1), (21, 19))} == {(20, 20, 3)}


def test_shrinking_averages() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    np.testing.assert_array_equal(resize(stripes, 16), 100)


@pytest.mark.parametrize("workers", [0, 2])
def test_eval_batches_keep_the_order_at_every_size(workers: int) -> None:
    rows = np.array([3, 1, 1, 0, 2])
    loader = eval_loader(EvalImages(IMAGES, rows, [SIZE, 30, SIZE]), 2, workers, CPU)  # type: ignore[arg-type]
    batches = [batch.canvases for batch in loader]
    assert [len(canvases[SIZE]) for canvases in batches] == [2, 2, 1]
    for size in (SIZE, 30):
        together = torch.cat([canvases[size] for canvases in batches]).numpy()
        np.testing.assert_array_equal(together, np.stack([resize(IMAGES[row], size) for row in rows]))


def test_a_signal_does_not_reach_a_worker_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def first_thing() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(torch.utils.data._utils.signal_handling, "_set_worker_signal_handlers", first_thing)
    loader = eval_loader(EvalImages(IMAGES, np.arange(4), [SIZE]), 2, 1, CPU)  # type: ignore[arg-type]
    assert sum(len(batch.canvases[SIZE]) for batch in loader) == 4


def test_worker_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker_count("auto", CPU) == 0
    assert worker_count("auto", torch.device("cuda")) >= 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert worker_count("auto", torch.device("cuda")) == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # a launcher's two processes share the machine
    assert worker_count("auto", torch.device("cuda")) == 4
    assert worker_count(3, CPU) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere shared memory is no folder")
def test_workers_are_as_many_as_shared_memory_has_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mib = 2**20
    disk = namedtuple("disk", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk(64 * mib, 0, 64 * mib))
    assert fit_shared_memory(16, mib) == 16
    assert not capsys.readouterr().out
    fitting = fit_shared_memory(16, 4 * mib)
    assert 1 <= fitting <= 64 // (3 * 4)
    assert f"{fitting} loader workers instead of 16" in capsys.readouterr().out
    assert fit_shared_memory(16, 64 * mib) == 0
    monkeypatch.setattr(batches, "SHARED_MEMORY", tmp_path / "absent")
    assert fit_shared_memory(2, mib) == 0
    assert fit_shared_memory(0, mib) == 0


def test_batches_are_the_same_with_workers_that_shared_memory_has_no_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "SHARED_MEMORY", Path("absent"))
    loader = eval_loader(EvalImages(IMAGES, np.arange(4), [SIZE]), 2, 2, CPU)  # type: ignore[arg-type]
    assert loader.num_workers == (0 if sys.platform == "linux" else 2)
    assert sum(len(batch.canvases[SIZE]) for batch in loader) == 4
