"""The tiny run as a dataset and a kernel."""

from collections.abc import Callable
from pathlib import Path

import pytest

import kernel


@pytest.fixture
def built(finished: Path) -> Callable[..., Path]:
    """Builds the bundle of the finished tiny run; returns the folder."""

    def build(*options: str) -> Path:
        kernel.main(["build", "--run", "runs/tiny", "--owner", "someone", "--competition", "scenes", *options])
        return finished / "runs/tiny/kaggle"

    return build
