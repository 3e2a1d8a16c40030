"""infer.py --images: every image exactly once, whatever stops it, and predict.py's probabilities."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
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
import predict  # noqa: E402
from scenes.console import UserError  # noqa: E402
from scenes.inference import at_scale  # noqa: E402

ROOT = Path(__file__).parents[2]
IMAGES = Path("input/SceneImages")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Predicts in this process: starting Ray and its actors costs seconds, and only two tests are about it."""

    def blocks(arguments: tuple[Any, ...], names: list[str], _: str | None) -> Iterator[pa.Table]:
        actor = at_scale.Predictor(*arguments)
        for start in range(0, len(names), 4):
            yield actor(pa.table({"name": [os.fsencode(name) for name in names[start : start + 4]]}))

    monkeypatch.setattr(at_scale, "predicted_blocks", blocks)


def make_list(count: int, file: str = "list.txt") -> list[str]:
    """Lists so many images; returns their paths."""
    names = [str(path) for path in sorted(IMAGES.iterdir())[:count]]
    Path(file).write_text("".join(f"{name}\n" for name in names))
    return names


def work(images: str = "list.txt", *options: str) -> pd.DataFrame:
    infer.main(["--folds", "0", "--tta", "none", *options, "--images", images, "--out", "out"])
    return pq.read_table("out").to_pandas().set_index("path")


def content() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in Path("out").glob("*.parquet")}


def test_a_list_gets_predicts_probabilities_and_unreadable_images_a_reason(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = make_list(20)
    Path("cut.jpg").write_bytes(Path(names[0]).read_bytes()[:300])
    listed = [*names, "cut.jpg", "gone/é.jpg", names[3], "cut.jpg"]  # some twice
    Path("list.txt").write_text("\ufeff" + "\r\n\r\n".join(listed), encoding="utf-8")
    infer.main(["--images", "list.txt", "--out", "out"])
    table = pq.read_table("out").to_pandas().set_index("path")
    assert sorted(table.index) == sorted({*listed})
    bad = table.loc[["cut.jpg", "gone/é.jpg"]]
    assert bad["error"].notna().all()
    assert bad.drop(columns="error").isna().all(axis=None)
    good = table.loc[names]
    assert good["error"].isna().all()
    capsys.readouterr()
    predict.main([*names, "--format", "csv", "--top", "99"])
    for row in csv.DictReader(io.StringIO(capsys.readouterr().out)):
        found = good.loc[row["image"]]
        ends = ["", *(f"_{place}" for place in range(2, 7))]
        wanted = {f"p_{row[f'label{end}']}": float(row[f"confidence{end}"]) for end in ends}
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
        assert (found["label"], found["confidence"]) == (row["label"], max(found[name] for name in wanted))
    assert pq.read_schema(next(Path("out").glob("*.parquet"))).field("p_0").type == "float"


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


def test_a_killed_run_is_resumed_and_each_image_is_there_once(
    in_process: None, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = make_list(96)
    program = (
        "import sys; sys.path.insert(0, 'src'); sys.argv[0] = 'src/infer.py'; import infer; "
        "from scenes.inference import at_scale as a; a.BLOCK_ROWS = a.PART_ROWS = 1; infer.main()"
    )
    arguments = ["--folds", "0", "--images", str(Path("list.txt").resolve()), "--out", str(Path("out").resolve())]
    run = ["--run", str(Path("runs/tiny").resolve())]
    killed = subprocess.Popen(
        [sys.executable, "-c", program, *run, *arguments],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not content() and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    before = content()
    assert 0 < len(before) < len(names)
    Path("out/.part-00095.parquet.1.tmp").write_bytes(b"PAR1")  # as a write that was killed leaves it
    monkeypatch.setattr(at_scale, "PART_ROWS", 8)
    infer.main([*run, *arguments])
    assert before.items() <= content().items()
    table = pq.read_table("out").to_pandas()
    assert sorted(table["path"]) == names


def test_a_prediction_that_is_not_finite_is_an_error_with_the_image(in_process: None, finished: Path) -> None:
    path = Path("runs/tiny/fold0/weights.safetensors")
    with safe_open(path, "pt") as saved:
        metadata = saved.metadata()
    state = load_file(path)
    state["head.1.bias"][:] = np.nan
    save_file(state, path, metadata)
    make_list(3)
    table = work()
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
    with pytest.raises(UserError, match=rf"(?s)out was begun.*{key}: "):
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
        (["--images", "empty", "--out", "out"], "empty: no images"),
        (["--images", "blank.txt", "--out", "out"], r"blank\.txt: no images"),
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
