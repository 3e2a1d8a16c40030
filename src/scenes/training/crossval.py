"""All folds of a run, and what they say together: oof.csv, metrics.json, a table."""

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock
from safetensors import safe_open

from scenes.competition.metric import accuracy, evaluate, log_losses, with_error
from scenes.config import Config
from scenes.console import UserError, print_table, say
from scenes.data.batches import worker_count
from scenes.data.folds import FULL, fold_name, write_or_compare
from scenes.environment import describe
from scenes.files import make_folder, write_text
from scenes.inference.ensemble import nested_mean, view_weights
from scenes.inference.predict import VIEWS
from scenes.model.backbone import parameter_count
from scenes.model.device import explain_precision
from scenes.runs import RUNS, Run, begin, read_json, write_json
from scenes.training import recipe
from scenes.training.distributed import together
from scenes.training.job import Job, prepare
from scenes.training.loop import FoldTraining


def cross_validate(config: Config, folds: Sequence[int], scores: bool = True) -> Run:
    """Trains the folds that are not finished and scores all that are.

    Several processes of a launcher train each fold together; the main one reads and writes the run's files.

    Args:
        config: The experiment.
        folds: Which to train.
        scores: Whether to write oof.csv and metrics.json; not where other processes train folds of the same run.

    Raises:
        UserError: If the data, the config or a saved state cannot be used.
    """
    deadline = time.monotonic() + 60 * (config.train.time_budget_minutes or math.inf)
    with together(config.train.batch_size) as processes:
        with processes.main_first():
            opened = open_run(config, folds) if processes.is_main else (prepare(config, folds), Run(RUNS / config.name))
        job, run = opened
        _introduce(job, run, processes.world)
        for fold in folds:
            if processes.from_main(lambda: run.is_finished(fold)):  # noqa: B023 - called at once
                say(f"{fold_name(fold)}: finished before")
                continue
            rows, held = job.data.rows(fold)
            say(f"{fold_name(fold)}: {len(rows)} rows to train on, {len(held)} held out")
            start = time.monotonic()
            with run.lock(fold) if processes.is_main else nullcontext():
                FoldTraining(job, run, fold, deadline, processes=processes).fit()
            say(f"  {fold_name(fold)} took {_duration(time.monotonic() - start)}")
    if processes.is_main and scores and run.finished_folds(config.data.folds):
        summarise(job, run)
    return run


def open_run(config: Config, folds: Sequence[int]) -> tuple[Job, Run]:
    """Checks and reads all that training needs, and begins the run or goes on with it.

    Raises:
        UserError: If the data or the config cannot be used, or are not what the run began with.
    """
    start = time.monotonic()
    job, run = prepare(config, folds), Run(RUNS / config.name)
    make_folder(run.folder)
    with FileLock(run.folder / ".lock"):  # processes of several machines may be here at once, to train a fold each
        begin(config)
        if not run.folds_file.exists():  # later sessions find all in the cache
            write_json(run.folder / "time.json", {"preparing": round(time.monotonic() - start, 1)})
        write_or_compare(run.folds_file, job.data.fold_table())
        if job.data.skipped:
            skipped = pd.DataFrame(job.data.skipped, columns=["image_name", "reason"])
            write_text(run.folder / "skipped.csv", skipped.to_csv(index=False, lineterminator="\n"))
        if not all(run.is_finished(fold) for fold in folds):  # else it says what trained them
            write_json(run.folder / "environment.json", describe())
    return job, run


def dry_run(config: Config, folds: Sequence[int]) -> None:
    """Does two batches of everything in a scratch folder and says what the full run would take."""
    with together(config.train.batch_size) as processes:
        with processes.main_first():
            job = prepare(config, folds)
            say(f"dry run of {config.name}: two batches of everything, nothing is kept but the image cache")
            start = time.monotonic()
            job.compute_features()  # here, so that it is timed apart; the full run finds them cached
            features = time.monotonic() - start
        with tempfile.TemporaryDirectory() as scratch:
            speed = FoldTraining(job, Run(Path(scratch)), folds[0], step_limit=2, processes=processes).fit()
    rows, held = (len(part) for part in job.data.rows(folds[0]))
    train, views = config.train, len(VIEWS[config.infer.tta])
    seconds = {"features, once (kept)": features} if features >= 1 else {}
    if train.epochs:
        seconds["training a fold"] = train.epochs * rows / speed.train
    if held:
        seconds["judging a fold"] = held * (max(0, train.epochs - 1) + views) / speed.predict
    print_table(["part", "time"], [(part, _duration(value)) for part, value in seconds.items()])
    total = sum(value for part, value in seconds.items() if part.endswith("fold")) * len(folds)
    say(f"the {len(folds)} fold{'s' if len(folds) > 1 else ''} would take about {_duration(total)} on this machine")


def summarise(job: Job, run: Run) -> dict[str, Any]:
    """Writes oof.csv and metrics.json of the finished folds and prints the scores.

    Returns:
        What metrics.json holds.
    """
    config, classes = job.config, job.data.labels.classes
    oof = gather(run, config.data.folds)
    targets, fold_of = job.data.labels.targets[oof.rows], job.data.fold_of[oof.rows]
    about = {
        "image_name": [job.data.table.names[row] for row in oof.rows],
        "label": [classes[target] for target in targets],
        "fold": fold_of,
    }
    # Side by side, not by name: a class may be called what a column is called.
    mean = nested_mean(view_weights, oof.views, targets, fold_of)
    table = pd.concat([pd.DataFrame(about), pd.DataFrame(mean, columns=classes)], axis=1)
    write_text(run.oof_file, table.to_csv(index=False, lineterminator="\n"))

    folds = run.finished_folds(config.data.folds)
    files = {fold: run.time_file(fold) for fold in folds}
    seconds = {fold: read_json(file, "seconds")["seconds"] for fold, file in files.items() if file.exists()}
    kept = view_weights(oof.views, targets) > 0
    metrics = {
        "folds": folds,
        "of": config.data.folds,
        "optimistic": optimistic(config),
        "views": {
            view: dict(zip(("accuracy", "accuracy_se"), accuracy(oof.views[i], targets), strict=True))
            | {"log_loss": float(log_losses(oof.views[i], targets).mean()), "kept": bool(kept[i])}
            for i, view in enumerate(oof.view_names)
        },
        "per_fold": {
            str(fold): dict(zip(("accuracy", "accuracy_se"), accuracy(mean[at], targets[at]), strict=True))
            | {
                "log_loss": float(log_losses(mean[at], targets[at]).mean()),
                "n": int(at.sum()),
                "seconds": seconds.get(fold),
            }
            for fold, at in ((fold, fold_of == fold) for fold in folds)
        },
        "class_names": job.data.labels.class_names,
    } | evaluate(mean, targets, classes)
    write_json(run.metrics_file, metrics)
    _print_scores(run, metrics)
    return metrics


@dataclass(frozen=True)
class OutOfFold:
    """Held-out probabilities of all finished folds.

    Attributes:
        rows: int64, shape (n,): positions in train.csv, ascending.
        views: float32, shape (views, n, classes).
        view_names: What the views are.
    """

    rows: np.ndarray
    views: np.ndarray
    view_names: list[str]


def gather(run: Run, folds: int) -> OutOfFold:
    """Reads what each finished fold predicted for the rows it never saw.

    Raises:
        UserError: If a row stands in two folds, or folds were predicted under different views.
    """
    rows, views, names = [], [], set()
    for fold in run.finished_folds(folds):
        with safe_open(run.fold_oof_file(fold), "np") as saved:
            rows.append(saved.get_tensor("rows"))
            views.append(saved.get_tensor("probabilities"))
            names.add(saved.metadata()["views"])
    if len(names) > 1:
        raise UserError(
            f"{run.folder}: the folds were predicted under different views ({'; '.join(sorted(names))}); "
            f"delete the oof.safetensors of some, so that they are predicted again, or restore infer.tta"
        )
    all_rows = np.concatenate(rows)
    if len(np.unique(all_rows)) != len(all_rows):
        raise UserError(f"{run.folder}: a row is held out by two folds; the fold folders are mixed up")
    order = np.argsort(all_rows)
    return OutOfFold(all_rows[order], np.concatenate(views, 1)[:, order], names.pop().split(","))


def optimistic(config: Config) -> str | None:
    """Why the cross-validation score is better than the truth, if it is."""
    if config.train.early_stopping:
        return "early stopping chose each fold's epoch by the rows the fold is scored on"
    if config.train.schedule == "plateau":
        return "the plateau schedule followed the rows the fold is scored on"
    return None


def _introduce(job: Job, run: Run, processes: int) -> None:
    config = job.config
    model = job.new_model()
    device = describe()["devices"]
    say(
        f"{run.folder}: {config.model.name}, {parameter_count(model) / 1e6:.1f} million weights, {config.image_size} px"
    )
    say(f"  {len(job.data.table)} rows, {len(job.data.labels.classes)} classes, {config.data.folds} folds")
    several = f"{processes} processes, " if processes > 1 else ""
    say(f"  {several}{device[0] if isinstance(device, list) else device}")
    train, infer, loader = config.train, config.infer, config.loader
    training = explain_precision(train.precision, job.device, job.bf16_pays)
    say(f"  training in {training}, predicting in {explain_precision(infer.precision, job.device)}")
    workers = "the network needs all cores" if job.device.type == "cpu" else "the cores feed the GPU, 16 at most"
    why = f"auto: {workers}" if loader.workers == "auto" else "as set"
    say(f"  {worker_count(loader.workers, job.device)} loader workers ({why})")
    if recipe.has_batch_norm(model):
        is_frozen = recipe.freezes_batch_norm(train, job.pretrained is not None)
        kept = "keeps its pretrained statistics: few epochs under those of batches cost accuracy"
        learns = "learns its statistics" if job.pretrained else "learns its statistics, since none are pretrained"
        say(f"  batch norm {kept if is_frozen else learns}")


def _print_scores(run: Run, metrics: dict[str, Any]) -> None:
    rows = [
        (
            f"fold {fold}",
            scores["n"],
            with_error(scores["accuracy"], scores["accuracy_se"]),
            f"{scores['log_loss']:.4f}",
        )
        for fold, scores in metrics["per_fold"].items()
    ]
    rows.append(
        ("all", metrics["n"], with_error(metrics["accuracy"], metrics["accuracy_se"]), f"{metrics['log_loss']:.4f}")
    )
    print_table(["out of fold", "n", "accuracy ± s.e.", "log loss"], rows)
    names = metrics["class_names"]
    per_class = [
        (name, scores["support"], *(f"{scores[key]:.3f}" for key in ("precision", "recall", "f1")))
        for name, scores in zip(names, metrics["per_class"].values(), strict=True)
    ]
    print_table(["class", "n", "precision", "recall", "F1"], per_class[:20])
    part = "" if len(metrics["folds"]) == metrics["of"] else f" ({len(metrics['folds'])} of {metrics['of']} folds)"
    score = with_error(metrics["accuracy"], metrics["accuracy_se"])
    say(
        f"CV accuracy{part}: {score} (n = {metrics['n']}), log loss {metrics['log_loss']:.4f}, "
        f"macro F1 {metrics['macro_f1']:.4f}"
    )
    if dropped := [view for view, scores in metrics["views"].items() if not scores["kept"]]:
        say(f"The mean is better without the view {', '.join(dropped)}: left out of submissions.")
    if metrics["optimistic"]:
        say(f"This score is optimistic: {metrics['optimistic']}.")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


__all__ = ["FULL", "cross_validate", "dry_run", "gather", "optimistic", "summarise"]
