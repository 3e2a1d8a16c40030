"""The disk fills up: a plain message, nothing half-written under its final name, the same bytes after making room."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import infer
import scenes.data.images
import train
from scenes import script
from tiny import TINY, results

FROZEN = ["augment=none", "train.trainable_stages=0", "train.linear_probe=false"]
CHECKPOINTS = ["train.checkpoint_minutes=1e-9"]  # one after every step
PAGE = 4096

Disk = Callable[[str, int], Callable[[], None]]


@pytest.fixture
def small_disk(request: pytest.FixtureRequest) -> Iterator[Disk]:
    """Mounts a disk on a folder, keeping its content, with that many bytes free; the returned function makes room."""
    mounted: list[str] = []

    def mount(folder: str, free: int) -> Callable[[], None]:
        if not shutil.which("mount"):
            pytest.skip("there is no mount command")
        place = Path(folder).absolute()
        place.mkdir(exist_ok=True)
        kept = place.with_name("kept")
        shutil.copytree(place, kept, symlinks=True)
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", place], capture_output=True, text=True, check=False
        )
        if made.returncode:
            pytest.skip(f"mounting a small disk is not permitted here: {made.stderr.strip()}")
        mounted.append(str(place))
        shutil.copytree(kept, place, dirs_exist_ok=True, symlinks=True)
        ballast = place / "ballast"
        with ballast.open("wb") as file:
            state = os.statvfs(place)
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - free)
        return ballast.unlink

    yield mount
    for place in mounted:
        subprocess.run(["umount", "-l", place], check=True)


def run(main: Callable[[list[str]], None], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs a script; returns its exit code and stderr."""
    handler = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    try:
        script.run(lambda: main(arguments))
    except SystemExit as done:
        return int(done.code or 0), capsys.readouterr().err
    finally:
        signal.signal(signal.SIGTERM, handler)
    return 0, capsys.readouterr().err


def fit(capsys: pytest.CaptureFixture[str], *settings: str) -> tuple[int, str]:
    return run(train.main, ["tiny.yaml", "--set", *TINY, *settings], capsys)


def check_refusal(outcome: tuple[int, str], place: str) -> None:
    code, errors = outcome
    assert code == 2, errors or "did not fail"
    assert "No space left on device" in errors
    assert place in errors
    assert "Traceback" not in errors


def check_whole(folder: Path) -> None:
    """Checks that every file with a final name can be read, and that no others are left."""
    assert list(folder.rglob("*.tmp")) == []
    assert list(folder.rglob("*.part*")) == []
    readers: dict[str, Callable[[Path], object]] = {
        ".pt": lambda path: torch.load(path, weights_only=True),
        ".safetensors": load_file,
        ".csv": lambda path: path.stat().st_size > 1 and pd.read_csv(path),  # no history before the first epoch
        ".json": lambda path: json.loads(path.read_text()),
        ".npy": np.load,
        ".npz": lambda path: dict(np.load(path)),
    }
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in readers:
            readers[path.suffix](path)


def size(folder: Path) -> int:
    """The bytes a folder takes on a disk that allocates whole pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.45, 0.95])
def test_while_a_fold_trains(
    share: float, trained: Path, workspace: Path, small_disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    make_room = small_disk("runs", int(size(trained / "runs") * share) // PAGE * PAGE)
    check_refusal(fit(capsys, *CHECKPOINTS), "runs/tiny")
    check_whole(workspace / "runs")
    make_room()
    assert fit(capsys, *CHECKPOINTS) == (0, "")
    assert results(workspace) == results(trained)


def test_while_the_scores_are_written(
    trained: Path, finished: Path, small_disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("runs/tiny/oof.csv").unlink()
    make_room = small_disk("runs", PAGE)
    check_refusal(fit(capsys), "runs/tiny/oof.csv")
    check_whole(finished / "runs")
    assert not Path("runs/tiny/oof.csv").exists()
    make_room()
    assert fit(capsys) == (0, "")
    assert results(finished) == results(trained)


@pytest.mark.parametrize("free", [PAGE, 300_000])
def test_while_images_are_decoded(
    free: int,
    trained: Path,
    workspace: Path,
    small_disk: Disk,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Otherwise the cache would not even start to fill so small a disk: images would be decoded on demand.
    monkeypatch.setattr(scenes.data.images, "FREE_DISK_RESERVE", 0)
    make_room = small_disk(".cache", free // PAGE * PAGE)
    check_refusal(fit(capsys), ".cache/images-")
    check_whole(workspace / ".cache")
    assert not Path("runs").exists()
    make_room()
    assert fit(capsys) == (0, "")
    assert results(workspace) == results(trained)


def test_while_features_are_kept(
    workspace: Path, small_disk: Disk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenes.data.images, "FREE_DISK_RESERVE", 0)
    assert fit(capsys, *FROZEN) == (0, "")
    expected = results(workspace)
    shutil.rmtree("runs")
    (features,) = Path(".cache").glob("features-*.npy")
    features.unlink()
    make_room = small_disk(".cache", PAGE)
    check_refusal(fit(capsys, *FROZEN), features.name)
    check_whole(workspace / ".cache")
    make_room()
    assert fit(capsys, *FROZEN) == (0, "")
    assert results(workspace) == expected


def test_while_a_submission_is_written(finished: Path, small_disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(infer.main, [], capsys) == (0, "")
    expected = results(finished)
    Path("submissions/tiny.csv").write_text("an older one\n")
    Path("submissions/tiny_probabilities.csv").unlink()
    make_room = small_disk("submissions", 0)
    check_refusal(run(infer.main, [], capsys), "submissions/tiny")
    check_whole(finished / "submissions")
    assert Path("submissions/tiny.csv").read_text() == "an older one\n"
    make_room()
    assert run(infer.main, [], capsys) == (0, "")
    assert Path("submissions/tiny.1.csv").read_text() == "an older one\n"
    assert {name: content for name, content in results(finished).items() if ".1." not in name} == expected
