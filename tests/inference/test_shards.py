"""infer.py --images: every image exactly once over the shards, whatever stops them; nothing else is merged."""

import csv
import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import infer
import predict
from scenes.console import UserError
from scenes.inference import shards
from scenes.inference.shards import Shard, read_names, span

IMAGES = Path("input/SceneImages")
QUICK = ["--run", "runs/tiny", "--folds", "0", "--tta", "none"]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "PART_ROWS", 8)
    monkeypatch.setattr(shards, "MANY", 4)


def make_list(count: int, file: str = "list.txt") -> list[str]:
    """Lists so many images; returns their paths."""
    names = [str(path) for path in sorted(IMAGES.iterdir())[:count]]
    Path(file).write_text("".join(f"{name}\n" for name in names))
    return names


def work(shard: str = "1/1", images: str = "list.txt", out: str = "out", options: list[str] = QUICK) -> None:
    infer.main([*options, "--images", images, "--shard", shard, "--out", out])


def merged(out: str = "out") -> pd.DataFrame:
    infer.main(["--merge", out])
    return pq.read_table(f"{out}/predictions.parquet").to_pandas()


def content(folder: str = "out") -> dict[str, bytes]:
    files = (path for path in Path(folder).rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# ---------------------------------------------------------------------------------------------------- dealing


@given(
    lines=st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=30),
    ends=st.booleans(),
    count=st.integers(1, 40),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_line_is_in_exactly_one_shard(lines: list[bytes], ends: bool, count: int, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_bytes(b"\n".join(lines) + b"\n" * ends)
    spans = [span(file, Shard(number, count)) for number in range(1, count + 1)]
    assert [start for start, _ in spans] == [0, *(end for _, end in spans[:-1])]
    assert spans[-1][1] == file.stat().st_size
    dealt = [name for start, end in spans for name in read_names(file, start, end)]
    first, *others = lines or [b""]
    cleaned = [line.rstrip(b"\r\n") for line in (first.removeprefix(b"\xef\xbb\xbf"), *others)]
    assert dealt == [os.fsdecode(line) for line in cleaned if line.strip()]


@pytest.mark.parametrize("text", ["0/0", "0/4", "5/4", "x", "1", "1/2/3", "-1/4", "1/4 ", "1.0/4", "/4", "1/", "٣/٤"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="give I/N with I from 1 to N"):
        shards.parse_shard(text)


# ----------------------------------------------------------------------------------------------- the right rows


def test_the_shards_together_are_what_predict_says(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = make_list(43)
    for number in (3, 1, 2):
        infer.main(["--images", "list.txt", "--shard", f"{number}/3", "--out", "out"])
    table = merged()
    assert table["path"].tolist() == names
    capsys.readouterr()
    predict.main([*names, "--format", "csv", "--top", "99"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    for (_, found), row in zip(table.iterrows(), rows, strict=True):
        ends = ["", *(f"_{place}" for place in range(2, 7))]
        wanted = {f"p_{row[f'label{end}']}": float(row[f"confidence{end}"]) for end in ends}
        assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
        assert found["label"] == row["label"]
        assert found["confidence"] == max(found[name] for name in wanted)
    assert table["error"].isna().all()
    parts = list(Path("out").glob("shard-*/part-*"))
    assert sum(pq.read_metadata(part).num_rows for part in parts) == 43
    assert pq.read_schema(parts[0]).field("p_0").type == "float"


def test_a_folder_is_listed_once_for_all_shards(finished: Path, tmp_path: Path) -> None:
    place = tmp_path / "mes photos/été"
    place.mkdir(parents=True)
    for number, path in enumerate(sorted(IMAGES.iterdir())[:11]):
        shutil.copy(path, place.parent / f"{number}.jpg" if number % 2 else place / f"{number}.jpg")
    Path(os.fsdecode(os.fsencode(place) + b"/\xff.jpg")).write_bytes((place / "0.jpg").read_bytes())
    work("1/2", images=str(place.parent))
    shutil.copy(place / "0.jpg", place / "00 came too late.jpg")
    work("2/2", images=str(place.parent))
    table = merged()
    assert sorted(table["path"]) == sorted(
        [*(f"{i}.jpg" if i % 2 else f"été/{i}.jpg" for i in range(11)), "été/\\udcff.jpg"]
    )
    assert table["error"].isna().all()


def test_more_shards_than_images_leaves_some_empty(finished: Path) -> None:
    names = make_list(2)
    for number in range(1, 6):
        work(f"{number}/5")
    assert merged()["path"].tolist() == names


# -------------------------------------------------------------------------------------------- stopped and resumed


def killed(command: Callable[[], None], moment: int) -> int:
    """Runs a command in a forked process that is killed when it syncs a file for the n-th time; its signal."""
    child = os.fork()
    if not child:
        try:
            done: list[int] = []
            sync = os.fsync

            def strike(descriptor: int) -> None:
                done.append(descriptor)
                if len(done) == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                sync(descriptor)

            os.fsync = strike  # type: ignore[assignment]
            command()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def test_a_killed_shard_goes_on_to_the_same_bytes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_list(43)
    work("2/2", out="whole")
    for moment in (3, 4, 5, 8, 9):  # each file is synced, and then its folder
        shutil.rmtree("out", ignore_errors=True)
        assert killed(lambda: work("2/2"), moment) == signal.SIGKILL
        before = content()
        assert before != content("whole")
        capsys.readouterr()
        work("2/2")
        assert content() == content("whole")
        there = sum(name.endswith(".parquet") for name in before)
        assert f"{there} of them there already" in capsys.readouterr().out


def test_what_is_done_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_list(20)
    work()
    before = content()
    times = {path: path.stat().st_mtime_ns for path in Path("out").rglob("part-*")}
    Path("out/shard-00001-of-00001/part-00001.parquet").unlink()
    work()
    assert content() == before
    assert sum(path.stat().st_mtime_ns != time for path, time in times.items()) == 1
    monkeypatch.setattr(shards, "predict_batches", None)
    work()
    assert content() == before


def test_a_shard_is_one_processes(finished: Path) -> None:
    make_list(20)
    work("1/2")
    with FileLock("out/shard-00002-of-00002/.lock"), pytest.raises(UserError, match="another process is at this shard"):
        work("2/2")


def longer_list() -> None:
    with Path("list.txt").open("a") as file:
        file.write("one more.jpg\n")


def other_first() -> None:
    text = Path("list.txt").read_text()
    Path("list.txt").write_text(text.replace(text[:60], text[:60].swapcase(), 1))


def other_later() -> None:
    lines = Path("list.txt").read_text().splitlines()
    lines[5] = lines[5].swapcase()
    Path("list.txt").write_text("\n".join([*lines, ""]))


def other_weights() -> None:
    shutil.copy("runs/tiny/fold1/weights.safetensors", "runs/tiny/fold0/weights.safetensors")


@pytest.mark.parametrize(
    ("change", "shard", "options", "message"),
    [
        (longer_list, "1/2", [], "list_bytes: "),
        (other_first, "1/2", [], "first_image: "),
        (other_later, "1/2", [], r"part-00000\.parquet: is of other images"),
        (other_weights, "1/2", [], "weights: "),
        (lambda: None, "1/3", [], "shards: 2 → 3"),
        (lambda: None, "2/2", ["--tta", "five_crop"], r"views: \['plain'\] → \['centre', "),
        (lambda: None, "2/2", ["--folds", "0-1"], "weights: "),
        (lambda: None, "1/2", ["--set", "infer.image_size=48"], "image_size: 32 → 48"),
        (lambda: None, "2/2", ["--set", "infer.precision=bf16"], "precision: 'fp32' → 'bf16'"),
    ],
)
def test_going_on_with_something_else_is_refused(
    change: Callable[[], None], shard: str, options: list[str], message: str, finished: Path
) -> None:
    make_list(40)
    work("1/2")
    Path("out/shard-00001-of-00002/done.json").unlink()
    Path("out/shard-00001-of-00002/part-00001.parquet").unlink()
    before = content()
    change()
    with pytest.raises(UserError, match=message):
        work(shard, options=[*QUICK, *options])
    assert content() == before


# ------------------------------------------------------------------------------------------------------- merging


def shard_folder(number: int) -> Path:
    return Path(f"out/shard-{number:05d}-of-00003")


def double() -> None:
    shutil.rmtree(shard_folder(2))
    shutil.copytree(shard_folder(1), shard_folder(2))


def swap_parts() -> None:
    first, second = (shard_folder(1) / f"part-0000{number}.parquet" for number in (0, 1))
    first.rename("kept")
    second.rename(first)
    Path("kept").rename(second)


def spoil(name: str, data: bytes) -> None:
    Path("out", name).write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: shutil.rmtree(shard_folder(2)), "1 of 3 shards are not done: 2/3"),
        (lambda: (shard_folder(3) / "done.json").unlink(), "1 of 3 shards are not done: 3/3"),
        (double, "shard-00002-of-00003: not what belongs here"),
        (lambda: shutil.copytree(shard_folder(1), "out/shard-00001-of-00002"), "not one of its 3 shards"),
        (lambda: (shard_folder(1) / "part-00001.parquet").unlink(), r"1 of 3 parts missing; give .* --shard 1/3"),
        (lambda: spoil("shard-00001-of-00003/part-00003.parquet", b""), "shard-00001-of-00003: not what belongs here"),
        (swap_parts, "its parts are not those it was done with"),
        (lambda: spoil("shard-00001-of-00003/part-00000.parquet", b"PAR1"), r"part-00000\.parquet: cannot be read"),
        (lambda: spoil("shard-00001-of-00003/done.json", b"{}"), r"done\.json: damaged"),
        (lambda: spoil("manifest.json", b"{"), r"manifest\.json: damaged"),
        (lambda: Path("out/manifest.json").unlink(), "holds no shards"),
    ],
)
def test_what_does_not_belong_together_is_not_merged(
    damage: Callable[[], object], message: str, finished_shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage()
    before = content()
    with pytest.raises(UserError, match=message):
        infer.main(["--merge", "out"])
    assert content() == before


@pytest.fixture(scope="module")
def three_shards(tmp_path_factory: pytest.TempPathFactory, trained: Path) -> Path:
    """Three finished shards of 50 images. Not to be written to: see `finished_shards`."""
    root = tmp_path_factory.mktemp("shards")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(trained)
        patch.setattr(shards, "PART_ROWS", 8)
        names = [str(path.resolve()) for path in sorted(IMAGES.iterdir())[:50]]
        (root / "list.txt").write_text("\n".join(names))
        for number in (1, 2, 3):
            work(f"{number}/3", images=str(root / "list.txt"), out=str(root / "out"))
    return root


@pytest.fixture
def finished_shards(three_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `three_shards` as the current folder."""
    shutil.copytree(three_shards, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path


def test_merging_again_changes_nothing(finished_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = merged()
    first = content()
    assert merged().equals(table)
    assert content() == first
    counts = table["label"].value_counts()
    printed = capsys.readouterr().out
    assert "50 images of 3 shards" in printed
    assert all(
        any(line.split()[:2] == [label, str(count)] for line in printed.splitlines()) for label, count in counts.items()
    )


# ----------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "gone", "--out", "out"], "gone: no such folder, and no such list"),
        (["--images", "x" * 300, "--out", "out"], "no such folder"),
        (["--images", "empty", "--out", "out"], "empty: no image in this folder"),
        (["--images", "blank.txt", "--out", "out"], r"blank\.txt: lists no images"),
        (["--images", "marked.txt", "--out", "out"], r"marked\.txt: lists no images"),
        (["--images", "utf16.txt", "--out", "out"], r"utf16\.txt: not a UTF-8 text"),
        (["--images", "input", "--out", "blank.txt"], r"blank\.txt: is a file where a folder"),
        (["--images", "input"], "go together"),
        (["--shard", "1/2"], "go together"),
        (["--images", "input", "--out", "out", "--shard", "3/2"], "--shard 3/2: give I/N"),
        (["--images", "input", "--out", "out", "--folds", "full"], "full not trained"),
        (["--merge", "empty"], "empty: holds no shards"),
        (["--merge", "empty", "--images", "input"], "goes alone"),
        (["--merge", "empty", "--set", "infer.tta=none"], "goes alone"),
        (["--images", "broken", "--out", "out"], "a name with a line break"),
        (["--images", "begun", "--out", "out"], "a name with a line break or byte-order mark"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], message: str, finished: Path) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/a\nb.jpg").touch()
    Path("begun").mkdir()
    Path("begun/\ufeffa.jpg").touch()
    Path("blank.txt").write_text("\n \n")
    Path("marked.txt").write_text("\ufeff\n")
    Path("utf16.txt").write_text("a.jpg\n", encoding="utf-16")
    with pytest.raises(UserError, match=message):
        infer.main(arguments)
    assert not list(Path("out").rglob("*.txt"))


def test_without_pyarrow_it_says_how_to_get_it(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(infer, "find_spec", lambda _: None)
    for arguments in (["--images", "input", "--out", "out"], ["--merge", "out"]):
        with pytest.raises(UserError, match="pip install pyarrow=="):
            infer.main(arguments)


# -------------------------------------------------------------------------------------------------------- memory

PARTS, SETTLED = 48, 16
LIMIT = 16.0  # KiB a part; its rows alone are 30, its pictures 400


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says so plainly")
def test_memory_stays_flat_over_many_parts(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = make_list(64)
    Path("list.txt").write_text("\n".join(names * PARTS))
    taken: list[float] = []
    write = shards.write_atomic

    def measured(path: Path, writer: Callable[[Path], object]) -> None:
        write(path, writer)
        taken.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1024)

    monkeypatch.setattr(shards, "PART_ROWS", 64)
    monkeypatch.setattr(shards, "write_atomic", measured)
    work()
    assert len(taken) == PARTS
    slope = np.polyfit(np.arange(PARTS - SETTLED), taken[SETTLED:], 1)[0]
    assert slope < LIMIT, f"{slope:.0f} KiB a part: {[round(kib) for kib in taken]}"
    print(f"{slope:.1f} KiB a part")
    assert json.loads(Path("out/shard-00001-of-00001/done.json").read_text())["rows"] == 64 * PARTS
