"""A tiny competition and a tiny trained run, made once a session and shared by the command-line tests."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before torch is imported: tests, and the processes they start or fork, run on the CPU. tests/gpu/ gives its child
# processes the GPUs back.
os.environ.setdefault("SCENES_TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch

import train
from scenes.competition.sample import draw
from tiny import TINY


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    # The suite runs in two processes on two cores; more threads than cores slow torch down a lot.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in sample, small: 96 training and 24 test rows of 48 px. Not to be written to."""
    root = tmp_path_factory.mktemp("sample") / "input"
    draw(root, train_rows=96, test_rows=24, size=48)
    return root


@pytest.fixture
def workspace(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder with the sample as input/ and an all-default config tiny.yaml."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sample, "input")
    Path("tiny.yaml").write_text("")
    return tmp_path


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """A folder with a finished run, runs/tiny, of the sample. Not to be written to: see `finished`."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        shutil.copytree(sample, "input")
        Path("tiny.yaml").write_text("")
        train.main(["tiny.yaml", "--set", *TINY])
    return root


@pytest.fixture
def finished(tmp_path: Path, trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of `trained` as the current folder."""
    root = tmp_path / "finished"
    shutil.copytree(trained, root)
    monkeypatch.chdir(root)
    yield root


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how many bad and odd inputs were tried (tests/test_bad_input.py), in all processes together."""
    reports = terminalreporter.stats.get("passed", [])
    tried = sum(count for report in reports for name, count in report.user_properties if name == "inputs tried")
    if tried:
        terminalreporter.write_line(f"{tried} bad or odd inputs tried")
