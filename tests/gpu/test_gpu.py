"""Training on a GPU, in processes that can see it; the rest of the suite hides the GPUs (tests/conftest.py)."""

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pandas as pd
import pytest
import torch

import train
from tiny import TINY

OUT_OF_TIME = 3
# Batches whose memory is reused immediately, for a GPU that is far behind.
BATCHES_ARRIVE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from scenes.model.prefetch import prefetched
device = torch.device("cuda")
work = torch.randn(4096, 4096, device=device)
def batches():
    for number in range(40):
        yield torch.full((64, 300, 300, 3), number, dtype=torch.uint8).pin_memory(), torch.tensor([number]).pin_memory()
sound = []
for images, number in prefetched(batches(), device):
    for _ in range(20):
        work @ work
    sound.append((images == number).all())
assert len(sound) == 40 and all(map(bool, sound))
"""


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process that can see the GPUs."""
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    if (gpus := os.environ["SCENES_TEST_GPUS"]) != "all":
        environment["CUDA_VISIBLE_DEVICES"] = gpus
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@cache
def has_gpu() -> bool:
    if not torch.backends.cuda.is_built():
        return False
    return start("-c", "import torch; print(torch.cuda.is_available())").stdout.strip() == "True"


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    if not has_gpu():
        pytest.skip("no GPU")


def fit(*settings: str) -> subprocess.CompletedProcess[str]:
    options = [*TINY, "train.checkpoint_minutes=1e-9", *settings]
    return start(str(Path(train.__file__)), "tiny.yaml", "--folds", "0", "--set", *options)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
def test_training_stops_after_a_step_resumes_and_ends_in_the_same_bytes(workspace: Path, precision: str) -> None:
    settings = f"train.precision={precision}"
    stopped = fit(settings, "train.time_budget_minutes=1e-9")
    assert stopped.returncode == OUT_OF_TIME, stopped.stdout + stopped.stderr
    assert Path("runs/tiny/fold0/last.pt").exists()
    assert json.loads(Path("runs/tiny/precision.json").read_text())["crops"] == "gpu"
    resumed = fit(settings)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"training in {precision}" in resumed.stdout
    history = pd.read_csv("runs/tiny/fold0/history.csv")
    assert len(history) == 2

    weights = Path("runs/tiny/fold0/weights.safetensors").read_bytes()
    shutil.rmtree("runs")
    straight = fit(settings)
    assert straight.returncode == 0, straight.stdout + straight.stderr
    assert Path("runs/tiny/fold0/weights.safetensors").read_bytes() == weights


def test_batches_arrive_whole_while_the_gpu_is_behind() -> None:
    done = start("-c", BATCHES_ARRIVE, str(Path(train.__file__).parent))
    assert done.returncode == 0, done.stderr


def test_a_fold_in_a_child_process_uses_the_gpu(workspace: Path) -> None:
    script = str(Path(train.__file__))
    done = start(script, "tiny.yaml", "--parallel", "2", "--submit", "--set", *TINY, "train.precision=fp32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "on GPU 0" in Path("runs/tiny/fold0/log.txt").read_text()
    assert Path("submissions/tiny.csv").exists()
