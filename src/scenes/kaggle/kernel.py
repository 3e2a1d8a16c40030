"""What happens in a Kaggle kernel: the bundle's folds predict the test images, or go on training, on all GPUs."""

import base64
import html
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from scenes.config import Config, load_config
from scenes.console import UserError, say
from scenes.data.decode import BadImageError, decode
from scenes.data.folds import fold_name, folds_text
from scenes.environment import unsatisfied
from scenes.files import write_text
from scenes.kaggle.worker import part_file
from scenes.model.weights import kaggle_input
from scenes.runs import Run
from scenes.training.process import OUT_OF_TIME, POLL_SECONDS, Process, gpu_count, only_gpu

SEARCH_DEPTH = 5
LEAST_MINUTES = 1.0  # to train, however long the search for the data took


@dataclass(frozen=True)
class Submitted:
    """A submission and what it was made of.

    Attributes:
        path: The submission.
        folds: Those it is the mean of.
        submission: Its two columns.
        probabilities: float32, shape (n, classes).
        names: The classes for people to read.
        images: The test images' files.
    """

    path: Path
    folds: list[int]
    submission: pd.DataFrame
    probabilities: np.ndarray
    names: list[str]
    images: list[Path]

    def pictures(self, count: int = 12, side: int = 150) -> "Html":
        """Some test images, evenly spread, each with its most probable class."""
        rows = np.linspace(0, len(self.images) - 1, min(count, len(self.images))).round().astype(int)
        return Html("".join(self._picture(row, side) for row in rows))

    def _picture(self, row: int, side: int) -> str:
        best = int(self.probabilities[row].argmax())
        caption = f"{html.escape(self.names[best])} {self.probabilities[row, best]:.0%}"
        try:
            image = Image.fromarray(decode(self.images[row], side).pixels)
        except BadImageError as error:
            picture = html.escape(str(error))
        else:
            packed = io.BytesIO()
            image.save(packed, "JPEG")
            picture = f'<img src="data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}">'
        return f'<figure style="display:inline-block;margin:4px">{picture}<figcaption>{caption}</figcaption></figure>'


class Html(str):
    """Text that a notebook shows as HTML."""

    def _repr_html_(self) -> str:
        return self


def infer(bundle: Path, budget_minutes: float) -> Submitted:
    """Predicts the test images with each fold of the bundle and writes the submission.

    There is one process a GPU. After the first fold the submission is complete and valid; each further fold makes it
    the mean of all so far. With all folds its bytes are those of infer.py.

    Args:
        bundle: From `attach`.
        budget_minutes: Folds that would not be ready by then are left out; the first is always predicted.

    Returns:
        The submission, which lies in the working folder.

    Raises:
        UserError: If the competition's files cannot be found or used, or no fold could be predicted.
    """
    until = time.time() + 60 * budget_minutes
    manifest = _manifest(bundle)
    source, folds = Run(bundle / "runs" / manifest["name"]), manifest["folds"]
    data = source.load_config().data
    root = find_competition([data.test_csv, data.test_image_dir or data.image_dir], manifest["competition"])
    with tempfile.TemporaryDirectory(prefix="scenes-") as scratch:
        settings = [f"data.root={json.dumps(str(root))}", f"data.cache={json.dumps(scratch)}"]
        ensemble = _Ensemble(source, source.load_config(settings), folds, Path(scratch) / "parts")
        command = ["-m", "scenes.kaggle.worker", "--run", str(source.folder), "--parts", str(ensemble.parts)]
        options = ["--until", str(until), "--set", *settings]
        workers = [
            _Process([*command, "--folds", folds_text(dealt), *options], bundle, gpu, scratch)
            for gpu, dealt in _deal(folds)
        ]
        try:
            done = ensemble.follow(workers, until)
        finally:
            for worker in workers:
                worker.kill()
    say(f"{done.path}: {len(done.submission)} rows, the mean of {len(done.folds)} of {len(folds)} folds")
    if missing := [fold_name(fold) for fold in folds if fold not in done.folds]:
        say(f"NOT in it: {', '.join(missing)}, failed or out of time; the lines above say which")
    return done


class _Ensemble:
    """Turns the folds' files, as they appear, into the submission of all so far."""

    def __init__(self, source: Run, config: Config, folds: Sequence[int], parts: Path) -> None:
        from scenes.inference.submit import read_inputs

        self.source, self.config, self.folds, self.parts = source, config, folds, parts
        self.inputs = read_inputs(config)  # decodes all images before the workers start, which open the cache
        parts.mkdir()

    def follow(self, workers: Sequence["_Process"], until: float) -> Submitted:
        done: Submitted | None = None
        while True:
            alive = any(worker.poll() is None for worker in workers)  # asked first: what ended has written its files
            ready = [fold for fold in self.folds if part_file(self.parts, fold).exists()]
            if ready and (done is None or ready != done.folds):
                done = self.write(ready)
                say(f"{done.path}: of {', '.join(map(fold_name, ready))}")
            if not alive or (done and time.time() > until):
                break
            time.sleep(POLL_SECONDS)
        if not done:
            raise UserError("no fold could be predicted: the lines above say why")
        return done

    def write(self, ready: list[int]) -> Submitted:
        """Averages and checks as infer.py does, and writes both files anew."""
        from scenes.inference.submit import average, make_tables, mean_prior

        loaded = [np.load(part_file(self.parts, fold), allow_pickle=False) for fold in ready]
        classes = loaded[0]["classes"].tolist()
        if any(part["classes"].tolist() != classes for part in loaded):
            raise UserError(f"{self.source.folder}: the folds were trained on different classes")
        probabilities = average(np.concatenate([part["predicted"] for part in loaded]))
        prior = mean_prior(self.source, ready) if self.inputs.bad else None
        submission, by_class = make_tables(self.config, self.inputs, probabilities, classes, prior)
        path = working() / "submission.csv"
        for file, table in ((working() / "submission_probabilities.csv", by_class), (path, submission)):
            write_text(file, table.to_csv(index=False, lineterminator="\n"))
        names = self.config.data.class_names or classes
        return Submitted(path, ready, submission, by_class.iloc[:, 1:].to_numpy(), names, self.inputs.table.paths)


def train(bundle: Path, budget_minutes: float) -> None:
    """Trains the bundle's folds, going on from the output of an earlier version of the kernel if that is attached.

    The folds are dealt to the GPUs. In the end `runs/NAME` lies in the working folder, and a submission of the finished
    folds where there are test images.

    Args:
        bundle: From `attach`.
        budget_minutes: Training saves its state and stops then.

    Raises:
        UserError: If the competition's files cannot be found, or training fails.
    """
    start = time.time()
    manifest = _manifest(bundle)
    config_file = bundle / "config.yaml"
    config, folds = load_config(config_file), manifest["folds"]
    root = find_competition([config.data.train_csv, config.data.image_dir], manifest["competition"])
    run = _resume(manifest["name"])
    with tempfile.TemporaryDirectory(prefix="scenes-") as scratch:
        settings = [f"data.root={json.dumps(str(root))}", f"data.cache={json.dumps(scratch)}"]
        left = max(LEAST_MINUTES, budget_minutes - (time.time() - start) / 60)

        def command(folds: Sequence[int], *more: str) -> int:
            script = [str(bundle / "src" / "train.py"), str(config_file), "--parallel", "auto", "--submit"]
            options = ["--folds", folds_text(folds), "--set", *settings, *more]
            process = _Process([*script, *options], bundle, None, working())
            try:
                return process.wait()
            finally:
                process.kill()

        codes = [command(folds, f"train.time_budget_minutes={left}")]
        finished = [fold for fold in folds if run.is_finished(fold)]
        if finished and codes != [0]:
            codes.append(command(finished))
    _name_as_kaggle_wants(run, working() / "submissions")
    say(f"runs/{run.name}: {len(finished)} of {len(folds)} folds are finished")
    if failed := [code for code in codes if code not in (0, OUT_OF_TIME)]:
        raise UserError(f"training failed (exit code {failed[0]}): the lines above say why")
    if OUT_OF_TIME in codes:
        say("The time was up; everything is saved. To go on: python src/kernel.py push --train … --again")


def _name_as_kaggle_wants(run: Run, submissions: Path) -> None:
    """Moves NAME.csv and NAME_probabilities.csv up, as submission.csv and submission_probabilities.csv."""
    if submissions.exists():
        for file in sorted(submissions.iterdir()):
            file.replace(working() / file.name.replace(run.name, "submission", 1))
        submissions.rmdir()


def find_competition(files: Sequence[Path], slug: str) -> Path:
    """Finds the folder that holds the competition's files, wherever Kaggle mounted it.

    Args:
        files: What must be there, relative to that folder.
        slug: The competition's name: decides where several folders qualify.

    Raises:
        UserError: If there is none, or more than one.
    """
    root = kaggle_input()
    found = [folder for folder in _folders(root, SEARCH_DEPTH) if all((folder / file).exists() for file in files)]
    named = [folder for folder in found if slug in folder.relative_to(root).parts]
    chosen = named or found
    wanted = " and ".join(map(str, files))
    if not chosen:
        raise UserError(f"no folder below {root} holds {wanted}: attach the competition {slug} by Add Input")
    if len(chosen) > 1:
        raise UserError(
            f"{len(chosen)} folders hold {wanted}: {', '.join(map(str, chosen))}; detach all but the competition's"
        )
    say(f"competition: {chosen[0]}")
    return chosen[0]


def working() -> Path:
    """The folder whose files are the kernel's output; SCENES_KAGGLE_WORKING moves it for tests."""
    return Path(os.environ.get("SCENES_KAGGLE_WORKING", "/kaggle/working"))


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """A folder and those below it, in order."""
    yield folder
    if depth:
        for inner in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            yield from _folders(folder / inner, depth - 1)


def _manifest(bundle: Path) -> dict[str, Any]:
    """Reads the manifest, and says what of the machine's packages is outside the tested ranges."""
    for line in unsatisfied(pyproject=bundle / "pyproject.toml"):
        say(f"not tested with this: {line}")
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def _resume(name: str) -> Run:
    """Copies the run out of an attached earlier output; input is read-only, and so would be plain copies of it."""
    run = Run(working() / "runs" / name)
    earlier = [folder for folder in kaggle_input().glob(f"**/runs/{name}") if (folder / "config.yaml").is_file()]
    if len(earlier) > 1:
        raise UserError(f"several outputs hold runs/{name}: {', '.join(map(str, earlier))}; detach all but one")
    for file in sorted(earlier[0].rglob("*")) if earlier and not run.folder.exists() else []:
        if file.is_file():
            target = run.folder / file.relative_to(earlier[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    say(f"going on from {earlier[0]}" if earlier else f"runs/{name} starts anew: no earlier output is attached")
    return run


def _deal(folds: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Each GPU's folds; without a GPU all go to one process."""
    gpus = max(1, gpu_count())
    return [(gpu, list(folds[gpu::gpus])) for gpu in range(min(gpus, len(folds)))]


class _Process(Process):
    """A process of the bundle; what it prints is passed on line by line, which a notebook shows."""

    def __init__(self, arguments: list[str], bundle: Path, gpu: int | None, folder: str | Path) -> None:
        """Starts it on one GPU, or with None on all."""
        environment = {
            "PYTHONPATH": os.pathsep.join(filter(None, (str(bundle / "src"), os.environ.get("PYTHONPATH")))),
            "PYTHONDONTWRITEBYTECODE": "1",  # the input is read-only
            "SCENES_KAGGLE_INPUT": str(bundle),  # where training looks for pretrained weights
        }
        if gpu is not None:
            environment |= only_gpu(gpu)
        super().__init__(arguments, environment, Path(folder), subprocess.PIPE)
        prefix = "" if gpu is None else f"[process {gpu}] "
        self._printer = threading.Thread(target=self._pass_on, args=(prefix,), daemon=True)
        self._printer.start()

    def _pass_on(self, prefix: str) -> None:
        assert self.output
        for line in io.TextIOWrapper(self.output, encoding="utf-8", errors="replace"):
            say(prefix + line.rstrip())

    def wait(self) -> int:
        """Its exit code, when all it printed is passed on."""
        self._printer.join()
        return super().wait()
