"""Crops made on a device match those the CPU makes; here the device is the CPU, with torch instead of OpenCV."""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from scenes.data.augment import FLIPS, AugmentedImages, compose
from scenes.data.batches import Sample
from scenes.data.resident import WAYS, DrawnCrops, ResidentImages, where_to_crop
from scenes.training import job, prepare, recipe
from tiny import fit

CPU, GPU = torch.device("cpu"), torch.device("cuda")
SHAPES = [(60, 60), (60, 80), (75, 60), (64, 64), (60, 61)]


def picture(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (height // 3, width // 3, 3), np.uint8)
    return cv2.resize(noise, (width, height))


IMAGES = [picture(seed, *shape) for seed, shape in enumerate(SHAPES)]


@pytest.mark.parametrize("size", [24, 112], ids=["smaller", "larger"])
@pytest.mark.parametrize(("augment", "symmetry"), [("none", "all"), *(("light", symmetry) for symmetry in FLIPS)])
def test_crops_and_flips_are_those_of_the_cpu(augment: str, symmetry: str, size: int) -> None:
    shapes = np.array(SHAPES)
    augmented = AugmentedImages(IMAGES, augment, size, 7, 0, symmetry)
    samples = [Sample(row, epoch) for epoch in range(1, 9) for row in range(len(IMAGES))]
    drawn = DrawnCrops(augmented, shapes).__getitems__(samples)
    made = ResidentImages(IMAGES, shapes, CPU).crops(drawn.images, size)
    assert made.dtype == torch.uint8
    assert made.is_contiguous(memory_format=torch.channels_last)
    expected = augmented.__getitems__(samples)
    assert drawn.rows.equal(expected.rows)
    difference = (made.permute(0, 2, 3, 1).int() - expected.images.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.2  # OpenCV rounds in fixed point


def test_a_crop_that_shrinks_in_one_direction_only_is_close_to_the_cpus() -> None:
    augmented = AugmentedImages(IMAGES, "light", 60, 7, 0)
    samples = [Sample(row, epoch) for epoch in range(8) for row in range(len(IMAGES))]
    drawn = DrawnCrops(augmented, np.array(SHAPES)).__getitems__(samples)
    made = ResidentImages(IMAGES, np.array(SHAPES), CPU).crops(drawn.images, 60)
    difference = (made.permute(0, 2, 3, 1).int() - augmented.__getitems__(samples).images.int()).abs().float()
    assert difference.mean() < 4


def test_every_way_is_known() -> None:
    (step,) = (step for step in compose("light", 32, "all").transforms if type(step).__name__ == "D4")
    assert {step.get_params()["group_element"] for _ in range(200)} == set(WAYS)


def test_the_gpu_is_chosen_where_all_images_take_a_third_of_its_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = np.array([(100, 50), (50, 100)])
    padded = 2 * 100 * 100 * 3
    for free, place in ((3 * padded, "gpu"), (3 * padded - 1, "cpu")):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 * 2**30))
        assert where_to_crop(shapes, "light", GPU)[0] == place
        for augment in ("medium", "strong", [{"HorizontalFlip": {"p": 0.5}}]):
            assert where_to_crop(shapes, augment, GPU)[0] == "cpu"
        assert where_to_crop(shapes, "light", CPU)[0] == "cpu"


def test_a_run_resumes_with_its_crops_to_the_same_bytes(
    workspace: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path("runs/tiny/fold0/weights.safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "where_to_crop", lambda *_: ("gpu", ""))
        fit("--folds=0")
        straight = weights.read_bytes()
        loss, expected = (
            pd.read_csv(root / "runs/tiny/fold0/history.csv")["train_loss"] for root in (workspace, trained)
        )
        assert loss.tolist() == pytest.approx(expected.tolist(), rel=0.02)  # the images differ by one grey level
        shutil.rmtree("runs")
        stop_at(patch, 4)
    assert json.loads(Path("runs/tiny/precision.json").read_text())["crops"] == "gpu"
    checkpoint = Path("runs/tiny").rename("kept")
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "where_to_crop", lambda *_: ("gpu", ""))
        shutil.copytree(checkpoint, "runs/tiny")
        fit("--folds=0")
        assert weights.read_bytes() == straight
    shutil.rmtree("runs/tiny")
    shutil.copytree(checkpoint, "runs/tiny")
    capsys.readouterr()
    fit("--folds=0")
    assert "began with crops made on a GPU" in capsys.readouterr().out
    assert weights.exists()


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Trains until a given step, where it is interrupted when the loop asks for the rate."""
    learning_rate = recipe.learning_rate

    def interrupted(at: int, *arguments: Any) -> float:
        if at == step:
            raise KeyboardInterrupt
        return learning_rate(at, *arguments)

    with patch.context() as inner:
        inner.setattr(recipe, "learning_rate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit("--folds=0", "train.checkpoint_minutes=1e-9")


def test_images_the_gpu_has_no_room_for_after_all_are_cropped_on_the_cpu(
    workspace: Path, trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(prepare, "where_to_crop", lambda *_: ("gpu", ""))
    monkeypatch.setattr(job, "ResidentImages", full)
    fit("--folds=0")
    assert "do not fit into GPU memory" in capsys.readouterr().out
    names = "runs/tiny/fold0/weights.safetensors"
    assert Path(names).read_bytes() == (trained / names).read_bytes()
