"""A tiny competition to train in, and settings that train in a second and end in the same bytes on a GPU too."""

import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import train

TINY = [
    "model.name=test_efficientnet",
    "model.weights=none",
    "image_size=32",
    "train.epochs=2",
    "train.batch_size=16",
    "train.lr=1e-2",
    "train.warmup_epochs=0",
    "train.label_smoothing=0",
    "train.deterministic=true",
    "train.precision=fp32",
    "infer.precision=fp32",
    "data.folds=2",
    "report=false",
]


def make_workspace(root: Path, sample: Path) -> Path:
    """Makes a folder with a sample competition as input/ and an all-default tiny.yaml; returns the folder."""
    shutil.copytree(sample, root / "input")
    (root / "tiny.yaml").write_text("")
    return root


def copy_after(work: Callable[[], object], source: Path, folder: Path) -> Path:
    """Copies a workspace into a folder and does some work in the copy; returns the copy."""
    root = shutil.copytree(source, folder / "root")
    with chdir(root):
        work()
    return root


def fit(*arguments: str) -> None:
    """Trains tiny.yaml with train.py's options and settings; later settings win over TINY's."""
    options = [argument for argument in arguments if argument.startswith("--")]
    settings = [argument for argument in arguments if not argument.startswith("--")]
    train.main(["tiny.yaml", *options, "--set", *TINY, *settings])


def results(root: Path) -> dict[str, bytes]:
    """The bytes of all files that must not depend on how a run was executed."""
    patterns = ("runs/*/oof.csv", "runs/*/folds.csv", "runs/*/*/*.safetensors", "submissions/*.csv")
    files = [file for pattern in patterns for file in root.glob(pattern)]
    return {str(file.relative_to(root)): file.read_bytes() for file in files}
