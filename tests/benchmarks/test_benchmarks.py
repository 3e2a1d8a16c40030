"""The speed benchmarks on tiny inputs: they finish, write their section, and compute what they claim."""

import importlib
import json
import math
import os
import runpy
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
TINY = ["model.name=test_efficientnet", "model.weights=none", "image_size=32", "infer.image_size=null"]
TINY += ["train.batch_size=16", "infer.batch_size=16", "train.epochs=1", "data.folds=2", "loader.workers=0"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Imports a benchmark that writes its results to RESULTS.md in a temporary folder."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(importlib.import_module("results"), "RESULTS", tmp_path / "RESULTS.md")
    return importlib.import_module


def tables(tmp_path: Path, section: str) -> list[list[str]]:
    """Returns the cells of all rows of a section's tables."""
    text = (tmp_path / "RESULTS.md").read_text()
    assert f"<!-- {section} -->" in text
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def forked(work: Callable[[], object]) -> int:
    """Does some work in a process that need not import torch again; returns its id."""
    child = os.fork()
    if not child:
        with suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    return child


def test_throughput_has_each_rate_beside_its_limit(load: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    throughput = load("throughput")
    monkeypatch.setattr(throughput.Bench, "start_up", lambda self: 7.0)  # about as long as it really takes
    throughput.main(["--steps", "2", "--repeats", "1", "--set", *TINY])
    found = {cells[0]: cells[1:] for cells in tables(workspace, "throughput effnet_lite0")}
    for name in ("training, decoded before", "inference, from files", "decoding into the cache"):
        own, limit, ratio = (float(cell.split()[0]) for cell in found[name])
        assert ratio == pytest.approx(own / limit, rel=0.02)
    assert found["start-up: imports, s"] == ["7.0 (7.0 to 7.0)"]
    assert "memory" in found["peak in training, MiB"][0]


def test_settings_multiply_up_to_the_whole_gain(load: Any, workspace: Path) -> None:
    config = workspace / "tiny.yaml"
    config.write_text("model: {name: test_efficientnet}\nimage_size: 32\n")
    load("settings").main([str(config), "--batch", "2", "--seconds", "0.01", "--repeats", "1"])
    ((name, *cells),) = tables(workspace, "settings")[1:]
    assert name == "tiny"
    values = [float(cell.split()[0]) for cell in cells]
    training, predicting = values[:4], values[4:]
    for _, *steps, whole in (training, predicting):
        assert math.prod(steps) == pytest.approx(whole, rel=0.05)


def test_inference_counts_files_and_views(load: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inference = load("inference")
    monkeypatch.setattr(inference, "has_fastai", lambda: False)
    inference.main(["--images", "5", "--large", "3", "--large-size", "200", "--repeats", "1", "--set", *TINY])
    header, *lines = tables(workspace, "inference")
    assert [line[:2] for line in lines] == [
        [files, views] for files in ("5 files of 32 px", "3 files of 200 px") for views in ("1", "2", "5")
    ]
    assert len(header) == 7


def test_scaling_has_a_line_for_each_size(load: Any, workspace: Path) -> None:
    load("scaling").main(["--sizes", "30", "60", "--pixels", "32"])
    _, few, many, step = tables(workspace, "scaling")
    assert (few[0], many[0]) == ("30", "60")
    assert float(step[1]) == pytest.approx(float(many[1]) / float(few[1]) / 2, abs=0.3)


def test_trials_are_timed_from_outside_and_not_repeated(load: Any, workspace: Path) -> None:
    benchmark = load("time_to_accuracy")
    command = ["--folds", "0", "--epochs", "1", "--only", "five-epochs", "--set", *TINY]
    benchmark.main(command)
    kept = next(Path("runs/benchmarks/time_to_accuracy").glob("*.json"))
    (point,) = json.loads(kept.read_text())["points"]
    assert point["seconds"] > 1  # Python and torch alone take longer
    kept.write_text(json.dumps({"points": [point | {"seconds": 77.0, "accuracy": 0.9}]}))
    benchmark.main(command)
    assert tables(workspace, "time to accuracy")[1][1:4] == ["77 s (77 to 77)", "77 s (77 to 77)", "not reached"]


def test_another_checkout_is_measured_too(load: Any, workspace: Path) -> None:
    benchmark = load("time_to_accuracy")
    for folder in ("src", "configs"):
        shutil.copytree(benchmark.ROOT / folder, workspace / "before" / folder)
    options = ["--folds", "0", "--only", "five-epochs", "--against", "before"]
    benchmark.main([*options, "--set", *TINY])
    now, before = tables(workspace, "time to accuracy")[1:]
    assert before[0] == f"before: {now[0]}"
    assert before[-2] == now[-2] != "not reached"  # the same accuracy


@pytest.mark.parametrize("script", ["plain_loop", "fastai_peer"])
def test_a_peer_notes_each_epoch_with_and_without_the_allocator_setting(
    script: str, load: Any, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script == "fastai_peer" and not find_spec("fastai"):
        pytest.skip("fastai is not installed")
    benchmark = load("time_to_accuracy")
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # set by the caller; must not reach a peer "as it comes"
    environments = []

    def run(command: list[str], cwd: Path, env: dict[str, str], **_: object) -> None:
        environments.append({name: value for name, value in env.items() if name.startswith("MALLOC_")})

        def script() -> None:
            os.chdir(cwd)
            sys.argv = command[1:]
            runpy.run_path(command[1], run_name="__main__")

        assert os.waitpid(forked(script), 0)[1] == 0

    monkeypatch.setattr(benchmark, "subprocess", SimpleNamespace(run=run))
    for name in ("plain-loop", "plain-loop-malloc"):
        monkeypatch.setitem(benchmark.ARMS, name, benchmark.ARMS[name]._replace(script=f"{script}.py"))
    benchmark.main(["--folds", "1", "--epochs", "2", "--only", "plain-loop", "plain-loop-malloc", "--set", *TINY])
    assert environments == [{}, {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}]
    files = list(Path("runs/benchmarks/time_to_accuracy").glob("*.json"))
    assert len(files) == 2
    for file in files:
        points = json.loads(file.read_text())["points"]
        assert 0 < points[0]["seconds"] < points[-1]["seconds"]
        assert all(0 <= point["accuracy"] <= 1 for point in points)
    labels = [line[0] for line in tables(workspace, "time to accuracy")[1:]]
    assert len(set(labels)) == 2 and any("as it comes" in label for label in labels)


@pytest.fixture
def arms(load: Any) -> tuple[ModuleType, dict[str, list[list[Any]]]]:
    """Returns two arms' points on three folds."""
    benchmark = load("time_to_accuracy")
    point = benchmark.Point
    own = [[point(30, 0.89), point(100, 0.92)], [point(40, 0.91)], [point(20, 0.87), point(90, 0.93)]]
    other = [[point(300, 0.90)], [point(200, 0.85)], [point(400, 0.91), point(500, 0.89)]]
    return benchmark, {"three-epochs": own, "fastai": other}


def test_the_time_to_an_accuracy_is_the_first_points_that_has_it(arms: Any) -> None:
    benchmark, results = arms
    assert [benchmark.time_to(0.90, fold) for fold in results["three-epochs"]] == [100, 40, 90]
    assert [benchmark.time_to(0.90, fold) for fold in results["fastai"]] == [300, math.inf, 400]
    assert benchmark.time_to(0.88, [benchmark.Point(100, 0.8799999952316284)]) == 100  # 0.88 in float32
    lines = benchmark.table(results, {"three-epochs": "ours", "fastai": "theirs"})
    assert "90 s (40 to 100) |" in lines[2]
    start = "| theirs | 400 s (300 to 400, 2 of 3) | 400 s (300 to 400, 2 of 3) | not reached (400 to 400, 1 of 3) |"
    assert lines[3].startswith(start)
    assert "| not reached | not reached | 0.8900 (0.8500 to 0.9000) | 300 s (200 to 500) |" in lines[3]


def test_peers_are_a_multiple_of_this_projects_quickest(arms: Any) -> None:
    benchmark, results = arms
    lines = {line[2:6]: line for line in benchmark.comparison(results, benchmark.ARMS) if line.startswith("- ")}
    assert "90 s" in lines["0.90"] and "4.4 ×" in lines["0.90"] and "more than" not in lines["0.90"]
    assert "more than 3.3 ×" in lines["0.91"]
    assert "0.93" not in lines


def test_a_section_replaces_its_older_self_alone(load: Any, tmp_path: Path) -> None:
    write = load("results").write_section
    for name, text in (("a", "old"), ("b", "other"), ("a", r"new \1")):
        write(name, "Title", text)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "old" not in text and "other" in text and text.index(r"new \1") < text.index("other")


def test_the_walkthrough_finds_its_commands_and_pictures(load: Any) -> None:
    walkthrough = load("walkthrough")
    text = walkthrough.PAGE.read_text()
    commands = [block["command"].split() for block in walkthrough.BLOCK.finditer(text)]
    assert len(commands) == text.count("```console") >= 6
    named = [word for words in commands for word in words if word.startswith(("src/", "configs/"))]
    named += [f"docs/{picture['file']}" for picture in walkthrough.PICTURE.finditer(text)]
    assert [name for name in named if not (walkthrough.ROOT / name).is_file()] == []
    assert text.count("](walkthrough/") == len(walkthrough.PICTURE.findall(text)) >= 3


def test_the_score_table_has_a_row_for_each_run_of_a_shipped_config(
    load: Any, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = load("accuracy")
    monkeypatch.setattr(benchmark, "ROOT", finished)
    Path("configs").mkdir()
    for name in ("tiny", "other"):
        Path(f"configs/{name}.yaml").touch()
    for name in ("plants.v2.tiny", "mine"):
        shutil.copytree("runs/tiny", f"runs/{name}")
    lines = benchmark.table().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "`tiny`" in line]
    assert [row[:2] for row in rows] == [["plants.v2", "`tiny`"], ["scenes", "`tiny`"]]
    metrics = json.loads(Path("runs/tiny/metrics.json").read_text())
    assert rows[0][3:6] == [f"{metrics['log_loss']:.4f}", f"{metrics['calibration']['ece_after']:.4f}", "96"]
    assert lines[-1] == "Not measured yet: `other`."
    assert len(lines) == 6
