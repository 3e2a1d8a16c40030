"""infer.py --images: every image exactly once, whatever interrupts it, and with predict.py's probabilities."""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

for package in ("ray", "pyarrow"):
    pytest.importorskip(package)

import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402

import infer  # noqa: E402
from processes import exit_code, fork  # noqa: E402
from scenes.console import UserError  # noqa: E402
from scenes.inference import at_scale  # noqa: E402

IMAGES = Path("input/SceneImages")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicts in this process: starting Ray and its actors takes seconds, and only one test is about that."""

    def blocks(arguments: tuple[Any, ...], names: list[str], _: str | None) -> Iterator[pa.Table]:
        actor = at_scale.Predictor(*arguments)
        for start in range(0, len(names), 4):
            yield actor(pa.table({"name": [os.fsencode(name) for name in names[start : start + 4]]}))

    monkeypatch.setattr(at_scale, "predicted_blocks", blocks)


def make_list(count: int, file: str = "list.txt") -> list[str]:
    """Lists that many images; returns their paths."""
    names = [str(path) for path in sorted(IMAGES.iterdir())[:count]]
    Path(file).write_text("".join(f"{name}\n" for name in names))
    return names


def work(images: str = "list.txt", *options: str) -> pd.DataFrame:
    infer.main(["--folds", "0", "--tta", "none", *options, "--images", images, "--out", "out"])
    return pq.read_table("out").to_pandas().set_index("path")


def content() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("out").glob("*.parquet")}


def test_what_is_there_is_skipped_and_a_folder_may_have_grown(in_process: None, finished: Path) -> None:
    place = Path("mes photos/été")
    place.mkdir(parents=True)
    images = sorted(IMAGES.iterdir())
    for number in range(5):
        shutil.copy(images[number], place / f"{number}.jpg")
    Path(os.fsdecode(os.fsencode(place) + b"/\xff.jpg")).write_bytes(images[0].read_bytes())
    assert len(work("mes photos")) == 6
    before = content()
    assert len(work("mes photos")) == 6
    assert content() == before
    shutil.copy(images[5], place.parent / "later.jpg")
    table = work("mes photos")
    assert set(table.index) == {*(f"été/{number}.jpg" for number in range(5)), "été/\\udcff.jpg", "later.jpg"}
    assert len(table) == 7
    assert table["error"].isna().all()
    assert before.items() <= content().items()


def test_a_list_of_nothing_but_wrong_paths_fails(in_process: None, finished: Path) -> None:
    Path("list.txt").write_text("no.jpg\nneither.jpg\n")
    with pytest.raises(UserError, match=r"none of the 2 images could be predicted; first error: cannot be read"):
        work()
    assert len(content()) == 1


def test_a_killed_run_is_resumed_and_each_image_is_there_once(
    in_process: None, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_list(96)
    monkeypatch.setattr(at_scale, "PART_ROWS", 1)
    killed = fork(work)
    while not content() and not os.waitid(os.P_PID, killed, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.001)
    os.kill(killed, signal.SIGKILL)
    assert exit_code(killed) == -signal.SIGKILL, Path("log.txt").read_text()
    before = content()
    assert 0 < len(before) < len(names)
    Path("out/.part-00095.parquet.1.tmp").write_bytes(b"PAR1")  # as left by a killed write
    monkeypatch.setattr(at_scale, "PART_ROWS", 8)
    assert sorted(work().index) == names
    assert before.items() <= content().items()


def test_a_prediction_that_is_not_finite_is_an_error_with_the_image(in_process: None, finished: Path) -> None:
    path = Path("runs/tiny/fold0/weights.safetensors")
    with safe_open(path, "pt") as saved:
        metadata = saved.metadata()
    state = load_file(path)
    state["head.1.bias"][:] = np.nan
    save_file(state, path, metadata)
    make_list(3)
    with pytest.raises(UserError, match=r"none of the 3 images could be predicted; first error: .* finite"):
        work()
    table = pq.read_table("out").to_pandas().set_index("path")
    assert table["error"].str.contains("finite").all()
    assert table.drop(columns="error").isna().all(axis=None)


def test_a_disk_that_is_gone_is_no_row_of_errors(
    in_process: None, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(at_scale, "MANY", 4)
    Path("list.txt").write_text("\n".join(f"gone/{number}.jpg" for number in range(4)))
    with pytest.raises(UserError, match=r"gone/0\.jpg.*3 others"):
        work()
    assert not content()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--tta", "five_crop"], "views"),
        (["--folds", "0-1"], "weights"),
        (["--set", "infer.image_size=48"], "image_size"),
        (["--set", "infer.precision=bf16"], "precision"),
    ],
)
def test_resuming_with_something_else_is_refused(
    options: list[str], key: str, in_process: None, finished: Path
) -> None:
    make_list(2)
    work()
    before = content()
    with pytest.raises(UserError, match=rf"(?s)out was started.*{key}: "):
        work("list.txt", *options)
    assert content() == before


def test_a_damaged_part_is_named_and_can_be_made_again(in_process: None, finished: Path) -> None:
    names = make_list(3)
    work()
    part = next(Path("out").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(UserError, match=rf"{part.name}: cannot be read"):
        work()
    part.unlink()
    assert sorted(work().index) == names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "gone", "--out", "out"], "gone: no such folder"),
        (["--images", "x" * 300, "--out", "out"], "no such folder"),
        (["--images", "empty", "--out", "out"], "empty: contains no images"),
        (["--images", "blank.txt", "--out", "out"], r"blank\.txt: contains no images"),
        (["--images", "utf16.txt", "--out", "out"], r"utf16\.txt, line 1: not a text"),
        (["--images", "input", "--out", "blank.txt"], r"blank\.txt: is a file"),
        (["--images", "input"], "--out"),
        (["--ray-address", "auto"], "--images"),
        (["--images", "input", "--out", "out", "--folds", "full"], "full not trained"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str, finished: Path) -> None:
    Path("empty").mkdir()
    Path("blank.txt").write_text("\n \n")
    Path("utf16.txt").write_text("a.jpg\n", encoding="utf-16")
    with pytest.raises(UserError, match=message):
        infer.main(arguments)
    assert not Path("out").exists()


def test_missing_packages_are_named(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"ray and pyarrow.*pip install"):
        infer.main(["--images", "input", "--out", "out"])


def test_what_decides_the_predictions_is_kept_beside_them(in_process: None, finished: Path) -> None:
    make_list(1)
    work()
    made = json.loads(Path("out/_made_by.json").read_text())
    assert (made["run"], made["views"], list(made["weights"])) == ("tiny", ["plain"], ["fold0"])
