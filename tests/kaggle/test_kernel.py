"""The kernel as Kaggle runs it: both layouts, read-only input, no network, another test set; a budget, two GPUs."""

import json
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient

import infer
import kernel as command
import train
from scenes.console import StoppedError, UserError
from scenes.kaggle import kernel, worker
from scenes.kaggle.bootstrap import attach, sha256
from scenes.training.workers import Slot, Task
from tiny import TINY

os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # otherwise ipykernel's debugger warns
# Prepended to everything that runs in the kernel: any attempt to leave the machine is recorded and fails.
GUARD = """
import os, socket

def _cut(host):
    if str(host) not in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "", "None"):
        with open(os.environ["SCENES_TEST_CALLS"], "a") as file:
            file.write(f"{host}\\n")
        raise OSError(f"no network: {host}")

_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo

def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        _cut(address[0])
    return _connect(self, address)

def getaddrinfo(host, *rest, **more):
    _cut(host)
    return _getaddrinfo(host, *rest, **more)

socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""
OLD, NEW = "old", "new"  # Kaggle's layouts of /kaggle/input


class Stage:
    """Everything a kernel sees, below one folder."""

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.input, self.working, self.temporary = root / "input", root / "working", root / "tmp"
        self.calls = root / "calls"
        for folder in (self.input, self.working, self.temporary, root / "guard"):
            folder.mkdir(parents=True)
        (root / "guard/sitecustomize.py").write_text(GUARD)
        self.settings = {
            "SCENES_KAGGLE_INPUT": str(self.input),
            "SCENES_KAGGLE_WORKING": str(self.working),
            "SCENES_TEST_CALLS": str(self.calls),
            "PYTHONPATH": str(root / "guard"),
            "TMPDIR": str(self.temporary),
            "HOME": str(root),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        for name, value in self.settings.items():
            patch.setenv(name, value)

    def mount(self, built: Path, competition: Path, layout: str, packed: bool = False) -> None:
        """Attaches the dataset and the competition as `datasets create -r zip` and Kaggle would leave them."""
        dataset = self.input / ("scenes-tiny-bundle" if layout == OLD else "datasets/someone/scenes-tiny-bundle")
        shutil.copytree(built / "dataset", dataset)
        (dataset / "dataset-metadata.json").unlink()
        for folder in [path for path in dataset.iterdir() if path.is_dir()] if packed else []:
            shutil.make_archive(str(folder), "zip", folder)
            shutil.rmtree(folder)
        shutil.copytree(competition, self.input / ("scenes" if layout == OLD else "competitions/scenes"))
        self._seal()

    def _seal(self) -> None:
        """Write-protects the input; root can still write, so the content is compared too."""
        for path in [self.input, *self.input.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        self._before = self._snapshot()

    def _snapshot(self) -> dict[str, int]:
        return {str(path): path.stat().st_mtime_ns for path in self.input.rglob("*")}

    def check(self) -> None:
        """Checks that the input is untouched, nothing is left behind, and no address was contacted."""
        assert self._snapshot() == self._before
        assert not self.calls.exists(), self.calls.read_text()
        left = [path.name for path in self.temporary.iterdir() if path.name.startswith("scenes-")]
        assert [name for name in left if not name.startswith("scenes-bundle-")] == []

    def outputs(self) -> list[str]:
        return sorted(path.relative_to(self.working).as_posix() for path in self.working.rglob("*") if path.is_file())

    def run(self, script: Path) -> subprocess.CompletedProcess[str]:
        """Runs a script kernel, in a network namespace without interfaces if the system allows it."""
        cut = ["unshare", "-rn"] if namespaces() else []
        return subprocess.run(
            [*cut, sys.executable, str(script)], cwd=self.working, capture_output=True, text=True, check=False
        )

    def open(self) -> None:
        for path in [self.input, *self.input.rglob("*")]:
            path.chmod(0o755)


def namespaces() -> bool:
    if not shutil.which("unshare"):
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    staged = Stage(tmp_path / "kaggle", monkeypatch)
    yield staged
    staged.open()


@pytest.fixture
def at_home(finished: Path) -> Callable[[], tuple[bytes, bytes]]:
    """The submission and the probabilities that infer.py produces from input/."""

    def predict() -> tuple[bytes, bytes]:
        infer.main(["--run", "runs/tiny", "--out", "home.csv"])
        return Path("home.csv").read_bytes(), Path("home_probabilities.csv").read_bytes()

    return predict


def execute(notebook: Path, stage: Stage) -> str:
    """Runs all cells as Kaggle does; returns what they printed and displayed."""
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    NotebookClient(content, timeout=120, resources={"metadata": {"path": str(stage.working)}}).execute()
    outputs = [output for cell in content.cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") + str(output.get("data", "")) for output in outputs)


def another_test_set() -> None:
    """Simulates the hidden rerun: seven training images under new names, in another order, no sample submission."""
    names = pd.read_csv("input/train.csv", dtype=str)["image_name"][:7]
    for i, name in enumerate(names):
        shutil.copy(f"input/SceneImages/{name}", f"input/SceneImages/hidden{7 - i}.jpg")
    pd.DataFrame({"image_name": [f"hidden{7 - i}.jpg" for i in range(7)]}).to_csv("input/test.csv", index=False)
    Path("input/sample_submission.csv").unlink()


def same_bytes(stage: Stage, expected: tuple[bytes, bytes], rows: int) -> None:
    assert stage.outputs() == ["submission.csv", "submission_probabilities.csv"]
    assert (stage.working / "submission.csv").read_bytes() == expected[0]
    assert (stage.working / "submission_probabilities.csv").read_bytes() == expected[1]
    assert len(expected[0].splitlines()) == 1 + rows
    stage.check()


def test_the_notebook_writes_the_bytes_of_infer_py(
    stage: Stage, built: Callable[..., Path], at_home: Callable[[], tuple[bytes, bytes]]
) -> None:
    folder = built()
    stage.mount(folder, Path("input"), NEW)
    shown = execute(folder / "kernel/notebook.ipynb", stage)
    assert "2 of 2 folds" in shown and "data:image/jpeg;base64" in shown
    same_bytes(stage, at_home(), 24)


class Gpus:
    """Runs the commands of all slots in this process, which is faster; the notebooks cover processes."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        self.fails_on = self.hangs_on = ""

    def start(self, slot: Slot, task: Task) -> "Done":
        task.log("here")
        arguments = task.command()
        option = "--fold" if "--fold" in arguments else "--folds"
        self.started.append((slot.name, arguments[arguments.index(option) + 1]))
        if slot.name in (self.fails_on, self.hangs_on):
            return Done(2 if slot.name == self.fails_on else None)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in slot.environment.items():
                if name != "CUDA_VISIBLE_DEVICES":
                    patch.setenv(name, value)
            try:
                if arguments[0] == "-m":
                    worker.main(arguments[2:])
                else:
                    train.main(arguments[1:])
            except StoppedError as stopped:
                return Done(stopped.exit_code)
            except UserError:
                return Done(2)
        return Done(0)


@dataclass
class Done:
    code: int | None

    def poll(self) -> int | None:
        return self.code

    def kill(self) -> None:
        pass


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    two = Gpus()
    monkeypatch.setattr(Slot, "start", lambda slot, task: two.start(slot, task))
    monkeypatch.setattr(kernel, "gpu_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    return two


def test_two_gpus_share_the_folds(
    stage: Stage, built: Callable[..., Path], at_home: Callable[[], tuple[bytes, bytes]], gpus: Gpus
) -> None:
    stage.mount(built(), Path("input"), NEW)
    done = kernel.infer(attached(stage), budget_minutes=60)
    assert gpus.started == [("GPU 0", "0"), ("GPU 1", "1")]
    assert done.folds == [0, 1]
    assert done.path.read_bytes() == at_home()[0]


def test_the_script_copes_with_packed_folders_in_the_old_layout_and_another_test_set(
    stage: Stage, built: Callable[..., Path], at_home: Callable[[], tuple[bytes, bytes]], gpus: Gpus
) -> None:
    folder = built("--script")  # before the test set changes: none of it may be in the bundle
    another_test_set()
    stage.mount(folder, Path("input"), OLD, packed=True)
    runpy.run_path(str(folder / "kernel/script.py"))
    same_bytes(stage, at_home(), 7)


def test_a_fold_whose_gpu_failed_is_predicted_by_the_other_one(
    stage: Stage, built: Callable[..., Path], at_home: Callable[[], tuple[bytes, bytes]], gpus: Gpus
) -> None:
    stage.mount(built(), Path("input"), NEW)
    gpus.fails_on = "GPU 1"
    done = kernel.infer(attached(stage), budget_minutes=60)
    assert gpus.started == [("GPU 0", "0"), ("GPU 1", "1"), ("GPU 0", "1")]
    assert done.path.read_bytes() == at_home()[0]


@pytest.mark.parametrize("misfortune", ["fails_on", "hangs_on"])
def test_one_gpu_failing_leaves_a_valid_submission_that_says_what_it_lacks(
    stage: Stage,
    built: Callable[..., Path],
    gpus: Gpus,
    capsys: pytest.CaptureFixture[str],
    misfortune: str,
) -> None:
    stage.mount(built(), Path("input"), NEW)
    setattr(gpus, misfortune, "GPU 1")
    done = kernel.infer(attached(stage), budget_minutes=1e-9)
    assert done.folds == [0]
    assert "NOT in it: fold1" in capsys.readouterr().out
    infer.main(["--run", "runs/tiny", "--folds", "0", "--out", "home.csv"])
    assert done.path.read_bytes() == Path("home.csv").read_bytes()


def test_no_gpu_succeeding_is_an_error(stage: Stage, built: Callable[..., Path], gpus: Gpus) -> None:
    stage.mount(built("--folds", "1"), Path("input"), NEW)
    gpus.fails_on = "GPU 0"
    with pytest.raises(UserError, match="no fold could be predicted"):
        kernel.infer(attached(stage), budget_minutes=60)


def test_folds_that_would_be_late_are_left_out_but_not_the_first(
    stage: Stage,
    built: Callable[..., Path],
    gpus: Gpus,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(kernel, "gpu_count", lambda: 1)
    stage.mount(built(), Path("input"), NEW)
    done = kernel.infer(attached(stage), budget_minutes=1e-9)
    printed = capsys.readouterr().out
    assert done.folds == [0]
    assert len(pd.read_csv(done.path)) == 24
    assert gpus.started == [("GPU 0", "0")]
    assert "NOT in it: fold1" in printed


# ------------------------------------------------------------------------------------------------------ inputs


def attached(stage: Stage) -> Path:
    """The mounted bundle, as found by the notebook's first cell."""
    manifest = next(stage.input.rglob("manifest.json"))
    return attach("someone/scenes-tiny-bundle", sha256(manifest))


def spoil(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)


def test_a_damaged_file_is_refused_by_name(stage: Stage, built: Callable[..., Path]) -> None:
    stage.mount(built(), Path("input"), OLD)
    spoil(stage.input / "scenes-tiny-bundle/runs/tiny/fold1/weights.safetensors")
    with pytest.raises(RuntimeError, match=r"1 of \d+ files .*fold1/weights\.safetensors.*push"):
        attached(stage)


def test_another_version_of_the_dataset_is_refused(stage: Stage, built: Callable[..., Path]) -> None:
    digest = sha256(built() / "dataset/manifest.json")
    stage.mount(built("--folds", "0"), Path("input"), NEW)
    with pytest.raises(RuntimeError, match=r"someone/scenes-tiny-bundle .*other manifests: .*Add Input"):
        attach("someone/scenes-tiny-bundle", digest)


def test_a_dataset_uploaded_as_one_archive_is_found(stage: Stage, built: Callable[..., Path]) -> None:
    folder = built() / "dataset"
    (stage.input / "broken.zip").write_bytes(b"cut off")
    shutil.make_archive(str(stage.input / "mine"), "zip", folder)
    assert (attach("someone/x", sha256(folder / "manifest.json")) / "src/infer.py").is_file()


def competition(*folders: str) -> Path:
    """Makes folders with a competition's files below the input."""
    for folder in folders:
        (kernel.kaggle_input() / folder / "images").mkdir(parents=True)
        (kernel.kaggle_input() / folder / "test.csv").touch()
    return kernel.find_competition([Path("test.csv"), Path("images")], "scenes").relative_to(kernel.kaggle_input())


@pytest.mark.parametrize(
    ("folders", "found"),
    [
        (["scenes"], "scenes"),
        (["competitions/scenes"], "competitions/scenes"),
        (["competitions/scenes/data"], "competitions/scenes/data"),
        (["datasets/someone/copy"], "datasets/someone/copy"),
        (["a-copy", "competitions/scenes"], "competitions/scenes"),
    ],
)
def test_the_competition_is_found_where_it_is(stage: Stage, folders: list[str], found: str) -> None:
    assert str(competition(*folders)) == found


def test_no_or_several_competitions_are_refused(stage: Stage) -> None:
    with pytest.raises(UserError, match=r"no folder below .* holds test\.csv and images: attach .* scenes"):
        competition()
    with pytest.raises(UserError, match=r"2 folders hold .*: .*/a, .*/b; detach"):
        competition("a", "b")


# ---------------------------------------------------------------------------------------------------- training


@pytest.fixture
def training(workspace: Path, stage: Stage) -> Path:
    """The tiny experiment as a training kernel, mounted; returns what was built."""
    Path("tiny.yaml").write_text("")
    options = ["--owner", "someone", "--competition", "scenes", "--script", "--set", *TINY]
    command.main(["build", "--train", "tiny.yaml", *options])
    stage.mount(Path("runs/tiny/kaggle_train"), Path("input"), NEW)
    return Path("runs/tiny/kaggle_train").absolute()


def test_a_training_script_trains_scores_and_predicts(stage: Stage, training: Path, trained: Path) -> None:
    done = stage.run(training / "kernel/script.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 folds are finished" in done.stdout
    for name in ("fold0/weights.safetensors", "fold1/weights.safetensors", "oof.csv"):
        assert (stage.working / "runs/tiny" / name).read_bytes() == (trained / "runs/tiny" / name).read_bytes(), name
    assert len(pd.read_csv(stage.working / "submission.csv")) == 24
    assert len(pd.read_csv(stage.working / "submission_probabilities.csv")) == 24
    assert not (stage.working / "submissions").exists()
    stage.check()


def test_training_out_of_time_resumes_from_its_previous_output(
    stage: Stage, training: Path, trained: Path, gpus: Gpus, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = attached(stage)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "LEAST_MINUTES", 1e-9)
        kernel.train(bundle, budget_minutes=1e-9)
    assert "--again" in capsys.readouterr().out
    assert list(stage.working.glob("runs/tiny/fold?/weights.safetensors")) == []
    assert len(list(stage.working.glob("runs/tiny/fold?/last.pt"))) == 1

    stage.open()
    stage.working.rename(stage.input / "notebooks")  # the output, attached as input
    stage.working.mkdir()
    stage._seal()
    gpus.started.clear()
    kernel.train(bundle, budget_minutes=60)
    assert "resuming" in capsys.readouterr().out
    assert gpus.started == [("all GPUs", "0,1")]  # for train.py to distribute
    for name in ("fold0/weights.safetensors", "fold1/weights.safetensors", "oof.csv"):
        assert (stage.working / "runs/tiny" / name).read_bytes() == (trained / "runs/tiny" / name).read_bytes(), name
    assert json.loads((stage.working / "runs/tiny/metrics.json").read_text())["folds"] == [0, 1]
    assert len(pd.read_csv(stage.working / "submission.csv")) == 24
    stage.check()


def test_a_fold_that_fails_leaves_the_others_and_their_submission(stage: Stage, training: Path, gpus: Gpus) -> None:
    broken = stage.working / "runs/tiny/fold1/last.pt"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"damaged")
    with pytest.raises(UserError, match="exit code 2"):
        kernel.train(attached(stage), budget_minutes=60)
    assert gpus.started == [("all GPUs", "0,1"), ("all GPUs", "0")]
    assert json.loads((stage.working / "runs/tiny/metrics.json").read_text())["folds"] == [0]
    assert len(pd.read_csv(stage.working / "submission.csv")) == 24
