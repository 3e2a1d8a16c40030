"""Trains all folds of a run and scores them together: oof.csv, metrics.json, a table."""

import gc
import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from scenes.config import Config
from scenes.console import print_table, say
from scenes.data.batches import worker_count
from scenes.data.folds import write_or_compare
from scenes.data.resident import where_to_crop
from scenes.environment import describe
from scenes.files import make_folder, write_text
from scenes.inference.evaluate import evaluate_run
from scenes.inference.views import views_of
from scenes.model.backbone import parameter_count
from scenes.model.device import explain_precision
from scenes.runs import RUNS, Run, begin, fold_name, write_json
from scenes.training import recipe
from scenes.training.distributed import together
from scenes.training.job import Job
from scenes.training.loop import train_fold
from scenes.training.prepare import prepare


def cross_validate(config: Config, folds: Sequence[int], scores: bool = True) -> Run:
    """Trains the unfinished folds and scores all finished ones.

    The processes of a launcher train each fold together; only the main one reads and writes the run's files.

    Args:
        config: The experiment.
        folds: Which folds to train.
        scores: Whether to write oof.csv and metrics.json; False where other processes train folds of the same run.

    Raises:
        UserError: If the data, the config or a saved state cannot be used.
    """
    deadline = time.monotonic() + 60 * (config.train.time_budget_minutes or math.inf)
    with together(config.train.batch_size) as processes:
        with processes.main_first():
            if processes.is_main:
                job, run = open_run(config, folds)
            else:
                run = Run(RUNS / config.name)
                job = prepare(config, folds).pinned(run)
        _print_summary(job, run, config, processes.world)
        for fold in folds:
            if processes.from_main(lambda: run.is_finished(fold)):  # noqa: B023 - called at once
                say(f"{fold_name(fold)}: already finished")
                continue
            rows, held = job.data.rows(fold)
            say(f"{fold_name(fold)}: {len(rows)} rows to train on, {len(held)} held out")
            start = time.monotonic()
            with run.lock(fold) if processes.is_main else nullcontext():
                train_fold(job, run, fold, deadline, processes=processes)
            if job.device.type == "cuda":
                gc.collect()  # imports during the first fold leave a reference cycle that keeps its network alive
            say(f"  {fold_name(fold)} took {_duration(time.monotonic() - start)}")
    if processes.is_main and scores and run.finished_folds(config.data.folds):
        summarise(job, run)
    return run


def open_run(config: Config, folds: Sequence[int]) -> tuple[Job, Run]:
    """Reads and checks everything that training needs, and starts or resumes the run.

    Raises:
        UserError: If the data or the config cannot be used, or differ from what the run began with.
    """
    start = time.monotonic()
    job, run = prepare(config, folds), Run(RUNS / config.name)
    make_folder(run.folder)
    with FileLock(run.folder / ".lock"):  # several machines may get here at once, each to train a fold
        begin(job.config)
        if not run.folds_file.exists():  # later, everything is in the cache
            write_json(run.folder / "time.json", {"preparing": round(time.monotonic() - start, 1)})
        write_or_compare(run.folds_file, job.data.fold_table())
        if job.data.skipped:
            skipped = pd.DataFrame(job.data.skipped, columns=["image_name", "reason"])
            write_text(run.folder / "skipped.csv", skipped.to_csv(index=False, lineterminator="\n"))
        if not run.precision_file.exists():
            chosen = {"train": job.precision, "infer": job.predict_precision, "crops": job.crops}
            write_json(run.precision_file, chosen)
        if not all(run.is_finished(fold) for fold in folds):  # otherwise keep the record of what trained them
            write_json(run.folder / "environment.json", describe())
            job = job.pinned(run)
    return job, run


def dry_run(config: Config, folds: Sequence[int]) -> None:
    """Runs two batches of everything in a scratch folder and estimates how long the full run would take."""
    with together(config.train.batch_size) as processes:
        with processes.main_first():
            job = prepare(config, folds)
            say(f"dry run of {config.name}: two batches of everything; only the image cache is kept")
            start = time.monotonic()
            job.compute_features()  # here, to time it separately; the full run finds them cached
            features = time.monotonic() - start
        with tempfile.TemporaryDirectory() as scratch:
            speed = train_fold(job, Run(Path(scratch)), folds[0], step_limit=2, processes=processes)
    rows, held = (len(part) for part in job.data.rows(folds[0]))
    train, views = job.config.train, len(views_of(job.config))
    seconds = {"features, once (kept)": features} if features >= 1 else {}
    if train.epochs:
        seconds["training a fold"] = train.epochs * rows / speed.train
    if held:
        epochs = 0 if job.trains_on_features else max(0, train.epochs - 1)  # from features it takes no time
        seconds["validating a fold"] = held * (epochs + views) / speed.predict
    print_table(["part", "time"], [(part, _duration(value)) for part, value in seconds.items()])
    total = sum(value for part, value in seconds.items() if part.endswith("fold")) * len(folds)
    say(f"the {len(folds)} fold{'s' if len(folds) > 1 else ''} would take about {_duration(total)} on this machine")


def summarise(job: Job, run: Run) -> dict[str, Any]:
    """Scores the finished folds: writes oof.csv and metrics.json, and returns the content of metrics.json."""
    data = job.data
    return evaluate_run(run, job.config, data.task, data.table.names, data.targets, data.fold_of)


def _print_summary(job: Job, run: Run, asked: Config, processes: int) -> None:
    """Prints what is trained on what, and each automatic choice with its reason; `asked` is the config as written."""
    config, model = job.config, job.new_model()
    device = describe()["devices"]
    say(
        f"{run.folder}: {config.model.name}, {parameter_count(model) / 1e6:.1f} million weights, {config.image_size} px"
    )
    data, task = job.data, job.data.task
    what = f"{task.outputs} {task.kind}" if task.outputs > 1 else f"the number {task.columns[0]!r}"
    say(f"  {len(data.table)} rows, {what}, {config.data.folds} folds, scored by {data.metric.name}")
    several = f"{processes} processes, " if processes > 1 else ""
    say(f"  {several}{device[0] if isinstance(device, list) else device}")
    train, loader = config.train, config.loader
    chosen = explain_precision(asked.train.precision, job.device)
    training = _explained(job.precision, chosen) if not job.trains_on_features else "fp32 (only the head trains)"
    predicting = _explained(job.predict_precision, explain_precision(asked.infer.precision, job.device))
    say(f"  training in {training}, predicting in {predicting}")
    if job.device.type != "cpu" and not job.trains_on_features:
        place, why = where_to_crop(data.training_images.shapes, config.augment, job.device)
        say(f"  crops and flips on the {job.crops.upper()} ({why if place == job.crops else 'as the run began'})")
    workers = "the network needs all cores" if job.device.type == "cpu" else "the cores feed the GPU, 16 at most"
    why = f"auto: {workers}" if loader.workers == "auto" else "as set"
    say(f"  {worker_count(loader.workers, job.device)} loader workers ({why})")
    if recipe.has_batch_norm(model):
        is_frozen = recipe.freezes_batch_norm(train, job.pretrained is not None)
        kept = "keeps its pretrained statistics: few epochs under those of batches cost accuracy"
        learns = "learns its statistics" if job.pretrained else "learns its statistics, since none are pretrained"
        say(f"  batch norm {kept if is_frozen else learns}")


def _explained(precision: str, chosen: str) -> str:
    """A precision and the reason for it, given what this machine would choose."""
    return chosen if chosen.startswith(precision) else f"{precision} (as the run began)"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
