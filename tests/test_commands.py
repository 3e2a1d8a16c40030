"""The README's commands as a user types them, in a copy of the repository, on a tiny competition."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """A copy of what git would clone, with the sample in input/."""
    folder = tmp_path_factory.mktemp("a clone") / "repo"
    folder.mkdir()
    for name in ("src", "configs", "train.sh", "setup.sh", "requirements.txt", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    shutil.copytree(sample, folder / "input")
    return folder


def command(folder: Path, *arguments: str) -> str:
    """Runs a command with the tests' Python as the active one; returns its output."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


def test_train_sh_then_infer_py(clone: Path) -> None:
    settings = ["model.name=test_efficientnet", "model.weights=none", "image_size=32", "train.epochs=1", "data.folds=2"]
    printed = command(clone, "bash", "train.sh", "configs/effnet_b3.yaml", "--set", *settings)
    assert "CV accuracy" in printed
    assert "n = 96" in printed
    assert not (clone / ".venv").exists()
    run = clone / "runs/effnet_b3"
    assert len(list(run.glob("fold?/weights.safetensors"))) == 2
    submission = clone / "submissions/effnet_b3.csv"
    first = submission.read_bytes()
    submission.unlink()
    printed = command(clone, "python", "src/infer.py", "--folds", "0-1")
    assert "runs/effnet_b3" in printed
    assert submission.read_bytes() == first
    assert (
        pd.read_csv(submission)["image_name"].tolist() == pd.read_csv(clone / "input/test.csv")["image_name"].tolist()
    )
