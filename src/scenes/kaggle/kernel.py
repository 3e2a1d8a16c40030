"""What a Kaggle kernel does: predicts the test images with the bundle's folds, or trains them, on all GPUs."""

import base64
import html
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from scenes.competition.path_pattern import needed_files
from scenes.config_file import load_config
from scenes.console import StoppedError, UserError, say
from scenes.data.decode import BadImageError, decode
from scenes.environment import unsatisfied
from scenes.files import write_text
from scenes.model.pretrained import kaggle_input
from scenes.runs import Run, fold_name, folds_text
from scenes.training.workers import INTERRUPTED, OUT_OF_TIME, Slot, Task, gpu_count, local_slots, run_tasks

SEARCH_DEPTH = 5
LEAST_MINUTES = 1.0  # for training, however long finding the data took


@dataclass(frozen=True)
class Submitted:
    """A submission and what it was made from.

    Attributes:
        path: The submission.
        folds: The folds it is the mean of.
        submission: Its two columns.
        probabilities: float32, shape (n, classes); or numbers, shape (n, 1).
        names: The classes' display names.
        images: The test images' files.
    """

    path: Path
    folds: list[int]
    submission: pd.DataFrame
    probabilities: np.ndarray
    names: list[str]
    images: list[Path]

    def examples(self, count: int = 12, side: int = 150) -> "Html":
        """Shows some test images, evenly spread, each with its most probable class."""
        rows = np.linspace(0, len(self.images) - 1, min(count, len(self.images))).round().astype(int)
        return Html("".join(self._figure(row, side) for row in rows))

    def _figure(self, row: int, side: int) -> str:
        best = int(self.probabilities[row].argmax())
        value = self.probabilities[row, best]
        caption = f"{html.escape(self.names[best])} {f'{value:g}' if len(self.names) == 1 else f'{value:.0%}'}"
        try:
            image = Image.fromarray(decode(self.images[row], side).pixels)
        except BadImageError as error:
            shown = html.escape(str(error))
        else:
            packed = io.BytesIO()
            image.save(packed, "JPEG")
            shown = f'<img src="data:image/jpeg;base64,{base64.b64encode(packed.getvalue()).decode()}">'
        return f'<figure style="display:inline-block;margin:4px">{shown}<figcaption>{caption}</figcaption></figure>'


class Html(str):
    """Text that a notebook displays as HTML."""

    def _repr_html_(self) -> str:
        return self


def infer(bundle: Path, budget_minutes: float) -> Submitted:
    """Predicts the test images with each fold of the bundle and writes the submission.

    Each GPU takes one fold after another. After the first fold the submission is complete and valid; each further fold
    makes it the mean of all so far. With all folds its bytes are those of infer.py. A fold that fails on one GPU is
    tried on the others.

    Args:
        bundle: From `attach`.
        budget_minutes: Folds that would not finish by then are left out; the first is always predicted.

    Returns:
        The submission, which is in the working folder.

    Raises:
        UserError: If the competition's files cannot be found or used, or no fold could be predicted.
        StoppedError: If it was interrupted.
    """
    until = time.time() + 60 * budget_minutes
    manifest = _manifest(bundle)
    source, folds = Run(bundle / "runs" / manifest["name"]), manifest["folds"]
    data = source.load_config().data
    root = find_competition(needed_files(data.test_csv, data.test_image_dir or data.image_dir), manifest["competition"])
    with tempfile.TemporaryDirectory(prefix="scenes-") as scratch:
        prediction = _Prediction(source, folds, until, Path(scratch), _data_settings(root, scratch))
        gpus = gpu_count()
        slots = local_slots(min(max(1, gpus), len(folds)), gpus)
        is_interrupted = run_tasks(slots, prediction.next_task, prediction.ended, prediction.is_over)
        if is_interrupted:
            raise StoppedError("interrupted", INTERRUPTED, "the submission has the folds finished so far")
        done = prediction.done
    if not done:
        raise UserError("no fold could be predicted: the lines above say why")
    say(f"{done.path}: {len(done.submission)} rows, the mean of {len(done.folds)} of {len(folds)} folds")
    if missing := [fold_name(fold) for fold in folds if fold not in done.folds]:
        say(f"NOT in it: {', '.join(missing)}, failed or out of time; the lines above say which")
    return done


class _Prediction:
    """The folds still to predict, and the submission of those that are done."""

    def __init__(self, source: Run, folds: Sequence[int], until: float, scratch: Path, settings: list[str]) -> None:
        from scenes.inference.models import run_task
        from scenes.inference.submit import read_inputs

        self.source, self.folds, self.until, self.scratch, self.settings = source, folds, until, scratch, settings
        self.config = source.load_config(settings)
        self.task = run_task(source, self.config, folds)
        self.inputs = read_inputs(self.config, self.task)  # decodes all images; the workers find them in the cache
        self.pending = list(folds)
        self.tried: dict[int, set[Slot]] = {fold: set() for fold in folds}
        self.started: dict[Task, tuple[int, float]] = {}
        self.took = 0.0
        self.done: Submitted | None = None

    def next_task(self, slot: Slot) -> Task | None:
        """Takes a fold that has not failed on this GPU, if it would finish in time."""
        fold = next((fold for fold in self.pending if slot not in self.tried[fold]), None)
        if fold is None:
            return None
        if self.done and time.time() + self.took > self.until:
            say(f"{', '.join(map(fold_name, self.pending))}: not started, as they would not finish in time")
            self.pending.clear()
            return None
        self.pending.remove(fold)
        self.tried[fold].add(slot)
        command = ["-m", "scenes.kaggle.worker", "--run", str(self.source.folder), "--fold", str(fold)]
        log, out = self.scratch / f"{fold_name(fold)}.txt", str(self._file(fold))
        task = Task(fold_name(fold), log, [*command, "--out", out], self.settings)
        self.started[task] = fold, time.time()
        return task

    def ended(self, task: Task, code: int, _: Sequence[str]) -> None:
        """Writes the submission with the new fold, or queues a fold that failed for another GPU."""
        fold, start = self.started[task]
        if code:
            self.pending.append(fold)
        else:
            self.took = time.time() - start
            self.done = self._write([fold for fold in self.folds if self._file(fold).exists()])
            say(f"{self.done.path}: of {', '.join(map(fold_name, self.done.folds))}")

    def is_over(self) -> bool:
        """Whether there is a submission and no time left."""
        return self.done is not None and time.time() > self.until

    def _file(self, fold: int) -> Path:
        return self.scratch / f"{fold_name(fold)}.npz"

    def _write(self, ready: list[int]) -> Submitted:
        """Averages as infer.py does, and rewrites both files."""
        from scenes.inference.models import chosen_ensemble
        from scenes.inference.submit import make_tables, mean_prior

        loaded = [np.load(self._file(fold), allow_pickle=False) for fold in ready]
        classes = loaded[0]["classes"].tolist()
        if any(part["classes"].tolist() != classes for part in loaded):
            raise UserError(f"{self.source.folder}: the folds were trained on different classes")
        predicted = np.concatenate([part["predicted"] for part in loaded])
        chosen = chosen_ensemble(self.source, self.config)
        prior = mean_prior(self.source, ready) if self.inputs.bad else None
        submission, by_output = make_tables(self.inputs, chosen.combine(predicted), chosen.decoding, prior)
        path = working() / "submission.csv"
        for file, table in ((working() / "submission_probabilities.csv", by_output), (path, submission)):
            write_text(file, table.to_csv(index=False, lineterminator="\n"))
        probabilities, names = by_output.iloc[:, 1:].to_numpy(), self.task.names
        return Submitted(path, ready, submission, probabilities, names, self.inputs.table.paths)


def train(bundle: Path, budget_minutes: float) -> None:
    """Trains the bundle's folds on all GPUs; resumes from the output of an earlier version if that is attached.

    Afterwards `runs/NAME` is in the working folder, with a submission of the finished folds if there are test images.

    Args:
        bundle: From `attach`.
        budget_minutes: Training saves its state and stops then.

    Raises:
        UserError: If the competition's files cannot be found, or training fails.
    """
    start = time.time()
    manifest = _manifest(bundle)
    config, folds = load_config(bundle / "config.yaml"), manifest["folds"]
    root = find_competition(needed_files(config.data.train_csv, config.data.image_dir), manifest["competition"])
    run = _resume(manifest["name"])
    with tempfile.TemporaryDirectory(prefix="scenes-") as scratch, chdir(working()):
        settings = _data_settings(root, scratch)
        left = max(LEAST_MINUTES, budget_minutes - (time.time() - start) / 60)
        codes = [_train_py(bundle, folds, [*settings, f"train.time_budget_minutes={left}"], scratch)]
        finished = [fold for fold in folds if run.is_finished(fold)]
        if finished and codes != [0]:  # to score and submit these
            codes.append(_train_py(bundle, finished, settings, scratch))
    _rename_for_kaggle(run, working() / "submissions")
    say(f"runs/{run.name}: {len(finished)} of {len(folds)} folds are finished")
    if failed := [code for code in codes if code not in (0, OUT_OF_TIME)]:
        raise UserError(f"training failed (exit code {failed[0]}): the lines above say why")
    if OUT_OF_TIME in codes:
        say("The time is up; everything is saved. To continue: python src/kernel.py push --train … --again")


def _train_py(bundle: Path, folds: Sequence[int], settings: Sequence[str], scratch: str) -> int:
    """Runs train.py, which uses all GPUs; returns its exit code."""
    arguments = [str(bundle / "src" / "train.py"), str(bundle / "config.yaml")]
    options = ["--parallel", "auto", "--submit", "--folds", folds_text(folds)]
    tasks = [Task("", Path(scratch) / "log.txt", [*arguments, *options], settings)]
    slot = Slot("all GPUs", {"SCENES_KAGGLE_INPUT": str(bundle)})  # where it looks for pretrained weights
    codes: list[int] = []
    run_tasks([slot], lambda _: tasks.pop() if tasks else None, lambda _task, code, _lines: codes.append(code))
    return codes[0] if codes else INTERRUPTED


def _data_settings(root: Path, scratch: str) -> list[str]:
    """The ``--set`` pairs that make a run read the competition's files; the cache ends with the kernel."""
    return [f"data.root={json.dumps(str(root))}", f"data.cache={json.dumps(scratch)}"]


def _rename_for_kaggle(run: Run, submissions: Path) -> None:
    """Moves NAME.csv and NAME_probabilities.csv up, as submission.csv and submission_probabilities.csv."""
    if submissions.exists():
        for file in sorted(submissions.iterdir()):
            file.replace(working() / file.name.replace(run.name, "submission", 1))
        submissions.rmdir()


def find_competition(files: Sequence[Path], slug: str) -> Path:
    """Finds the folder with the competition's files, wherever Kaggle mounted it.

    Args:
        files: What must be there, relative to that folder.
        slug: The competition's name, to choose among several such folders.

    Raises:
        UserError: If there is none, or more than one.
    """
    root = kaggle_input()
    found = [folder for folder in _folders(root, SEARCH_DEPTH) if all((folder / file).exists() for file in files)]
    named = [folder for folder in found if slug in folder.relative_to(root).parts]
    chosen = named or found
    wanted = " and ".join(map(str, files))
    if not chosen:
        raise UserError(f"no folder below {root} holds {wanted}: attach the competition {slug} with Add Input")
    if len(chosen) > 1:
        raise UserError(
            f"{len(chosen)} folders hold {wanted}: {', '.join(map(str, chosen))}; detach all but the competition's"
        )
    say(f"competition: {chosen[0]}")
    return chosen[0]


def working() -> Path:
    """Returns the folder whose files are the kernel's output; tests set SCENES_KAGGLE_WORKING."""
    return Path(os.environ.get("SCENES_KAGGLE_WORKING", "/kaggle/working"))


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """Yields a folder and those below it, in order."""
    yield folder
    if depth:
        for inner in sorted(entry.name for entry in os.scandir(folder) if entry.is_dir()):
            yield from _folders(folder / inner, depth - 1)


def _manifest(bundle: Path) -> dict[str, Any]:
    """Reads the manifest, and reports packages on this machine that are outside the supported ranges."""
    for line in unsatisfied(pyproject=bundle / "pyproject.toml"):
        say(f"not tested with this: {line}")
    return json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))


def _resume(name: str) -> Run:
    """Copies the run out of an attached earlier output, without the read-only permissions of the input."""
    run = Run(working() / "runs" / name)
    earlier = [folder for folder in kaggle_input().glob(f"**/runs/{name}") if (folder / "config.yaml").is_file()]
    if len(earlier) > 1:
        raise UserError(f"several outputs hold runs/{name}: {', '.join(map(str, earlier))}; detach all but one")
    for file in sorted(earlier[0].rglob("*")) if earlier and not run.folder.exists() else []:
        if file.is_file():
            target = run.folder / file.relative_to(earlier[0])
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    say(f"resuming {earlier[0]}" if earlier else f"runs/{name} starts from scratch: no earlier output is attached")
    return run
