"""The demo page of a run: what it says about images, the files of a Space, and the page in a real browser."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import demo
from scenes.competition.task import Classes, Labels, Number
from scenes.console import UserError
from scenes.inference.models import ChosenEnsemble
from scenes.insight.demo import Demo, export_space, load_demo
from scenes.insight.neighbours import Neighbours, load_neighbours
from scenes.runs import Run

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium")


def loaded(names: str = "[buildings, forest, glacier, mountain, sea, street]") -> Demo:
    run = Run(Path("runs/tiny"))
    return load_demo(run, run.load_config([f"data.class_names={names}"]), [0, 1])


def test_an_image_is_predicted_explained_and_compared(finished: Path) -> None:
    image = Path("input/SceneImages/0.jpg")
    shown = loaded().explain(image)
    assert shown["answer"] == shown["bars"][0][0]
    assert 0 < sum(chance for _, chance in shown["bars"]) <= 1
    assert shown["heat"].startswith("data:image/jpeg")
    nearest = shown["neighbours"]
    assert len(nearest) == 6
    assert re.search(r"(buildings|forest|glacier|mountain|sea|street), 0\.jpg, similarity 1\.00", nearest[0]["caption"])


def test_the_prediction_is_that_of_predict_py(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import predict

    predict.main(["input/SceneImages/3.jpg", "--run", "runs/tiny", "--format", "csv", "--top", "1"])
    name, chance = capsys.readouterr().out.splitlines()[1].split(",")[-2:]
    (answer, confidence), *_ = loaded("[a0, a1, a2, a3, a4, a5]").explain(Path("input/SceneImages/3.jpg"))["bars"]
    assert answer[1:] == name.strip()[-1]
    assert confidence == pytest.approx(float(chance), abs=1e-3)


def test_a_bad_file_and_a_hostile_name_do_no_harm(finished: Path) -> None:
    bad = Path("<img src=x onerror=alert(1)>.jpg")
    bad.write_text("no image")
    html = loaded('["<script>", b, c, d, e, f]').show([str(bad), "input/SceneImages/0.jpg"])
    assert "<img src=x" not in html and "<script" not in html
    assert html.count("<article") == 2 and "cannot be read" in html
    assert loaded().show(None).count("<article") == 0


def test_without_training_images_there_is_nothing_to_compare_with(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("input/SceneImages/0.jpg", "kept.jpg")
    shutil.rmtree("input")
    assert "neighbours" not in loaded().explain(Path("kept.jpg"))
    assert "train.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("task", "values", "answer"),
    [
        (Classes(["a", "b"], ["cat", "dog"]), [0.2, 0.8], "dog"),
        (Labels(["a", "b", "c"], ["cat", "dog", "cow"]), [0.6, 0.1, 0.7], "cat, cow"),
        (Labels(["a", "b"], ["cat", "dog"]), [0.3, 0.1], "no label"),
        (Number(["age"], ["age"], 5, 2, 0, 10), [12.345], "age: 12.35"),
    ],
)
def test_every_task_has_an_answer(
    task: Classes | Labels | Number, values: list[float], answer: str, finished: Path
) -> None:
    run = Run(Path("runs/tiny"))
    chosen = ChosenEnsemble.__new__(ChosenEnsemble, *[None] * len(ChosenEnsemble._fields))
    described = Demo("x", run.load_config(), task, [], chosen, None, None)._describe(
        np.array(values, np.float32), np.array(values, np.float32)
    )
    assert described["answer"] == answer
    assert len(described["bars"]) == (0 if task.kind == "number" else len(values))


def test_neighbours_are_the_most_similar() -> None:
    units = np.eye(8, dtype=np.float32)
    found = Neighbours(np.zeros(8, np.float32), units, [f"c{at}" for at in range(8)], ["data:"] * 8)
    nearest = found.nearest(np.array([0, 3, 1, 0, 0, 0, 0, 0], np.float32))
    assert [one["caption"][:2] for one in nearest[:2]] == ["c1", "c2"]


def test_a_space_runs_on_its_own(finished: Path) -> None:
    demo.main(["runs/tiny", "--export", "space", "--set", "infer.batch_size=3"])
    space = Path("space").resolve()
    assert Run(space / "run").load_config().infer.batch_size == 3
    assert {file.name for file in space.iterdir()} == {"README.md", "app.py", "requirements.txt", "run", "scenes"}
    assert "pytorch-model" not in (space / "requirements.txt").read_text()
    kept = load_neighbours(space / "run")
    assert kept and len(kept.captions) == 96
    shutil.copy("input/SceneImages/5.jpg", space)
    expected = load_demo(Run(Path("runs/tiny")), Run(Path("runs/tiny")).load_config(), [0, 1]).explain(space / "5.jpg")
    shutil.rmtree("input")
    code = (
        "from pathlib import Path; from scenes.insight.demo import load_demo; from scenes.runs import Run; "
        "run = Run(Path('run')); shown = load_demo(run, run.load_config(), [0, 1]).explain(Path('5.jpg')); "
        "print(shown['answer'], len(shown['neighbours']))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=space, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{expected['answer']} 6"
    with pytest.raises(UserError, match="space: "):
        export_space(Run(Path("runs/tiny")), Run(Path("runs/tiny")).load_config(), [0], space)


@pytest.mark.skipif(find_spec("gradio") is not None, reason="gradio is installed")
def test_what_is_not_installed_is_named(finished: Path) -> None:
    with pytest.raises(UserError, match="pip install gradio=="):
        demo.main(["runs/tiny"])


# -------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture
def address(finished: Path) -> Iterator[str]:
    """Where the page is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "src/demo.py"), "runs/tiny", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for _ in range(240):
            time.sleep(0.5)
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.stdout and process.stdout.read()
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
@pytest.mark.skipif(find_spec("gradio") is None, reason="gradio is not installed")
def test_images_are_dropped_in_and_explained(address: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked: list[str] = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.locator("input[type=file]").first.set_input_files(["input/SceneImages/0.jpg", "input/SceneImages/1.jpg"])
        page.locator("article.explained").nth(1).wait_for(timeout=60_000)
        assert page.locator("article .answer").count() == 2
        assert page.locator("article .near img").count() == 12
        assert page.locator("article .heat img").first.evaluate("(one) => one.naturalWidth") > 0
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        browser.close()
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert outside == []
