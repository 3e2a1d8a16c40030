"""A tiny competition and a tiny trained run, made once per session and shared by the command-line tests."""

import os
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

# Set before torch is imported: tests, and the processes they start or fork, run on the CPU. tests/gpu/ gives the GPUs
# back to its child processes.
os.environ.setdefault("SCENES_TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""
# The suite runs in two processes on two cores; more threads than cores slow torch down a lot and change sums.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest

import train
from scenes.competition.sample import draw
from tiny import TINY, make_workspace


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in sample, small: 96 training and 24 test rows of 48 px. Read-only."""
    root = tmp_path_factory.mktemp("sample") / "input"
    draw(root, train_rows=96, test_rows=24, size=48)
    return root


@pytest.fixture
def workspace(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An otherwise empty current folder with the sample as input/ and an all-default config, tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    return make_workspace(tmp_path, sample)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """A folder with a finished run, runs/tiny, of the sample. Read-only: see `finished`."""
    with chdir(make_workspace(tmp_path_factory.mktemp("trained"), sample)):
        train.main(["tiny.yaml", "--set", *TINY])
        return Path.cwd()


@pytest.fixture
def finished(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `trained` as the current folder."""
    root = tmp_path / "finished"
    shutil.copytree(trained, root)
    monkeypatch.chdir(root)
    return root


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n`, neighbouring tests share a process and its fixtures; an idle process takes over tests from others."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None
