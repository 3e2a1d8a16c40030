"""Ray itself, started once: images at scale, folds in parallel, retries after kills."""

import csv
import io
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import infer
import predict
from processes import STEADY, logged, meanwhile, steady, until
from scenes.ray_cluster import connect
from scenes.training.workers import Task, make_slots, run_tasks
from tiny import fit, results

ray = pytest.importorskip("ray")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    """Ray on this machine alone with two cores, and without prestarted workers."""
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        connect("local", "this test", num_cpus=2, object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


@pytest.fixture(autouse=True)
def _one_thread_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# -------------------------------------------------------------------------------------------------- images at scale


def test_a_list_gets_predicts_probabilities_and_unreadable_images_a_reason(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(path) for path in sorted(Path("input/SceneImages").iterdir())[:20]]
    Path("cut.jpg").write_bytes(Path(names[0]).read_bytes()[:300])
    listed = [*names, "cut.jpg", "gone/é.jpg", names[3], "cut.jpg"]  # some twice
    Path("list.txt").write_text("\ufeff" + "\r\n\r\n".join(listed), encoding="utf-8")
    infer.main(["--images", "list.txt", "--out", "out"])
    table = parquet.read_table("out").to_pandas().set_index("path")
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
    assert parquet.read_schema(next(Path("out").glob("*.parquet"))).field("p_0").type == "float"


# ------------------------------------------------------------------------------------------------- folds in parallel


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def find_process(*words: str) -> int:
    """Finds the process whose command line contains all the words."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if set(words) <= set(line) and Path.cwd() == (folder / "cwd").resolve():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError("no such process")


def test_more_threads_than_a_machine_has_cores_do_not_wait_for_one_that_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    slots = make_slots("ray", 5)
    assert [slot.on_ray["num_cpus"] for slot in slots if slot.on_ray] == [1, 1]
    assert slots[0].environment == {"OMP_NUM_THREADS": "4"}


def test_ray_trains_what_is_missing_into_the_same_files(trained: Path, finished: Path) -> None:
    shutil.rmtree("runs/tiny/fold0")
    Path("runs/tiny/oof.csv").unlink()
    fit("--parallel=ray")
    assert results(finished) == results(trained)
    assert "fold0 epoch 2" in Path("runs/tiny/fold0/log.txt").read_text()


def test_ray_replaces_a_killed_process_and_a_killed_worker_and_passes_a_signal_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tasks, codes = [steady("one"), steady("two")], {}

    def disturb() -> None:
        until(logged("begun", "one", "two"))
        os.kill(find_process("-c", STEADY, "one"), signal.SIGKILL)
        os.kill(parent_of(find_process("-c", STEADY, "two")), signal.SIGKILL)
        until(lambda: all(Path(name, "log.txt").read_text().count("begun") == 2 for name in ("one", "two")), 90)
        os.kill(os.getpid(), signal.SIGTERM)

    slots = make_slots("ray", 2)
    with meanwhile(disturb):
        assert run_tasks(
            slots, lambda _: tasks.pop() if tasks else None, lambda task, code, _: codes.update({task: code})
        )
    assert list(codes.values()) == [130, 130]
    assert all("interrupted" in Path(name, "log.txt").read_text() for name in ("one", "two"))


def test_ray_refuses_a_machine_that_does_not_share_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    slot, task = make_slots("ray", 1)[0], steady("one")
    monkeypatch.setattr(Task, "log", lambda *_: None)  # what is written here is not visible there
    running = slot.start(task)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    until(lambda: running.poll() is not None)
    assert running.poll() == 1
    assert "shared storage" in Path("one/log.txt").read_text()
