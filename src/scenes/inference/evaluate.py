"""Scores all finished folds of a run together: oof.csv, metrics.json, a table on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from scenes.competition.metric import Metric, accuracy, competition_metric, log_losses, metric_named
from scenes.competition.scores import all_scores, with_error
from scenes.competition.task import Task
from scenes.config import Config
from scenes.console import UserError, print_table, say
from scenes.data.folds import ALWAYS_TRAINED
from scenes.files import write_atomic
from scenes.inference.calibration import calibration_error
from scenes.inference.ensemble import Fitted, cost, cost_name, fit_ensemble, selection_metric, view_weights
from scenes.runs import Run, read_json, write_json

OUTPUTS_SHOWN = 20  # classes or labels in the table on the terminal


@dataclass(frozen=True)
class OutOfFold:
    """Held-out predictions of all finished folds.

    Attributes:
        rows: int64, shape (n,): positions in the training table, ascending.
        views: float32, shape (views, n, outputs).
        view_names: The names of the views.
    """

    rows: np.ndarray
    views: np.ndarray
    view_names: list[str]


def gather(run: Run, folds: int) -> OutOfFold:
    """Reads what each finished fold predicted for the rows it never saw.

    Raises:
        UserError: If a row is held out by two folds, or folds were predicted with different views.
    """
    rows, views, names = [], [], set()
    for fold in run.finished_folds(folds):
        with safe_open(run.fold_oof_file(fold), "np") as saved:
            rows.append(saved.get_tensor("rows"))
            views.append(saved.get_tensor("probabilities"))
            names.add(saved.metadata()["views"])
    if len(names) > 1:
        raise UserError(
            f"{run.folder}: the folds were predicted with different views ({'; '.join(sorted(names))}); "
            f"delete the oof.safetensors of some folds, so that they are predicted again, or restore infer.tta"
        )
    all_rows = np.concatenate(rows)
    if len(np.unique(all_rows)) != len(all_rows):
        raise UserError(f"{run.folder}: a row is held out by two folds; the fold folders are mixed up")
    order = np.argsort(all_rows)
    return OutOfFold(all_rows[order], np.concatenate(views, 1).take(order, 1), names.pop().split(","))


def optimistic(config: Config, never_held_out: int = 0) -> str | None:
    """Why the cross-validation score is too optimistic, or None; `never_held_out` rows train in every fold."""
    reasons = []
    if never_held_out:
        reasons.append(
            f"{never_held_out} rows of rare classes, the hardest ones, train in every fold and are not scored"
        )
    if config.train.early_stopping:
        reasons.append("early stopping chose each fold's epoch on the rows the fold is scored on")
    if config.train.schedule == "plateau":
        reasons.append("the plateau schedule followed the rows the fold is scored on")
    if config.selected_on:
        reasons.append(f"settings or labels were chosen by scores on the same rows ({', '.join(config.selected_on)})")
    return "; ".join(reasons) or None


def evaluate_run(
    run: Run, config: Config, task: Task, names: Sequence[str], targets: np.ndarray, fold_of: np.ndarray
) -> dict[str, Any]:
    """Chooses the run's views, calibration and decoding, writes oof.csv and metrics.json and prints the scores.

    Args:
        run: A run with at least one finished fold.
        config: Its config.
        task: What is predicted.
        names: The ids of all training rows.
        targets: Their targets, in the task's form.
        fold_of: int, shape (n,): their folds, or ALWAYS_TRAINED.

    Returns:
        The content of metrics.json.
    """
    metric = competition_metric(config, task)
    oof = gather(run, config.data.folds)
    never_held_out = int((fold_of == ALWAYS_TRAINED).sum())
    targets, fold_of = targets[oof.rows], fold_of[oof.rows]
    selection = selection_metric(metric, task)
    fitted = fit_ensemble(view_weights(selection), oof.views, targets, fold_of, task, metric)
    about = {"image_name": [names[row] for row in oof.rows], "label": task.as_texts(targets), "fold": fold_of}
    # Joined by position, not by name: a class may have the name of a column.
    table = pd.concat([pd.DataFrame(about), pd.DataFrame(fitted.predictions, columns=task.columns)], axis=1)
    write_atomic(run.oof_file, lambda path: table.to_csv(path, index=False, lineterminator="\n"))

    folds = run.finished_folds(config.data.folds)
    metrics = {
        "folds": folds,
        "of": config.data.folds,
        "optimistic": optimistic(config, never_held_out),
        "task": task.to_dict(),
        "metric": {"name": metric.name, "larger_is_better": metric.larger_is_better}
        | _scored(metric, fitted.decisions, targets),
        "cost": cost_name(selection),
        "views": {
            view: _short_scores(task, metric, oof.views[at], targets) | {"kept": bool(fitted.ensemble.weights[at] > 0)}
            for at, view in enumerate(oof.view_names)
        },
        "calibration": _calibration(task, fitted, targets),
        "decoding": fitted.ensemble.decoding.to_dict() | _scored(metric, fitted.predictions, targets, "plain_"),
        "per_fold": _by_fold(run, folds, task, metric, fitted, targets, fold_of),
        "class_names": task.names,
    } | all_scores(task, fitted.predictions, targets)
    write_json(run.metrics_file, metrics)
    _print_scores(task, metrics)
    return metrics


def _scored(metric: Metric, predictions: np.ndarray, targets: np.ndarray, prefix: str = "") -> dict[str, float]:
    value, error = metric.score(predictions, targets)
    return {f"{prefix}value": value, f"{prefix}se": error}


def _short_scores(task: Task, metric: Metric, predictions: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The metric and, for classes, also accuracy and log loss."""
    scores = _scored(metric, predictions, targets)
    if task.kind == "classes":
        scores |= dict(zip(("accuracy", "accuracy_se"), accuracy(predictions, targets), strict=True))
        scores["log_loss"] = float(log_losses(predictions, targets).mean())
    return scores


def _calibration(task: Task, fitted: Fitted, targets: np.ndarray) -> dict[str, Any]:
    """The temperatures, with the nested log loss and calibration error before and after."""
    found: dict[str, Any] = fitted.ensemble.calibration.to_dict()
    if task.kind == "number":
        return found
    log_loss = metric_named("log_loss", task)
    for when, predictions in (("before", fitted.uncalibrated), ("after", fitted.predictions)):
        found[f"log_loss_{when}"] = log_loss.score(predictions, targets)[0]
        found[f"ece_{when}"] = calibration_error(predictions, targets)
    return found


def _by_fold(
    run: Run,
    folds: Sequence[int],
    task: Task,
    metric: Metric,
    fitted: Fitted,
    targets: np.ndarray,
    fold_of: np.ndarray,
) -> dict[str, dict[str, Any]]:
    """Each fold's scores, rows and seconds."""
    found = {}
    for fold in folds:
        at = fold_of == fold
        scores = _short_scores(task, metric, fitted.predictions[at], targets[at])
        scores |= _scored(metric, fitted.decisions[at], targets[at])
        # Sweeps minimise this.
        scores["cost"] = cost(selection_metric(metric, task), fitted.predictions[at], targets[at])
        file = run.time_file(fold)
        seconds = read_json(file, "seconds")["seconds"] if file.exists() else None
        found[str(fold)] = scores | {"n": int(at.sum()), "seconds": seconds}
    return found


def score_table(metrics: dict[str, Any]) -> tuple[list[str], dict[str, list[str]]]:
    """The readable part of metrics.json: the names of the scores, and the scores of each fold and of ``all``."""
    name = metrics["metric"]["name"]
    columns = ["accuracy ± s.e.", "log loss"] if metrics["task"]["kind"] == "classes" else []
    if name not in ("accuracy", "log_loss") or not columns:
        columns.insert(0, f"{name} ± s.e.")
    cells = {
        f"{name} ± s.e.": lambda scores: with_error(scores["value"], scores["se"]),
        "accuracy ± s.e.": lambda scores: with_error(scores["accuracy"], scores["accuracy_se"]),
        "log loss": lambda scores: f"{scores['log_loss']:.4f}",
    }
    parts = metrics["per_fold"] | {"all": metrics | {key: metrics["metric"][key] for key in ("value", "se")}}
    rows = {part: [str(scores["n"]), *(cells[column](scores) for column in columns)] for part, scores in parts.items()}
    return ["n", *columns], rows


def _print_scores(task: Task, metrics: dict[str, Any]) -> None:
    columns, rows = score_table(metrics)
    lines = [(part if part == "all" else f"fold {part}", *cells) for part, cells in rows.items()]
    print_table(["out of fold", *columns], lines)
    _print_outputs(task, metrics)
    name = metrics["metric"]["name"]
    part = "" if len(metrics["folds"]) == metrics["of"] else f" ({len(metrics['folds'])} of {metrics['of']} folds)"
    score = with_error(metrics["metric"]["value"], metrics["metric"]["se"])
    extras = {
        "classes": ("accuracy", "log_loss", "macro_f1"),
        "labels": ("roc_auc", "log_loss", "labels_f1_macro"),
        "number": ("rmse", "mae", "r2"),
    }[task.kind]
    shown = {"f1_macro": "macro_f1"}.get(name, name)
    others = "".join(f", {key.replace('_', ' ')} {metrics[key]:.4f}" for key in extras if key != shown)
    say(f"CV {name}{part}: {score} (n = {metrics['n']}){others}")
    _print_choices(metrics)


def _print_outputs(task: Task, metrics: dict[str, Any]) -> None:
    """Prints a table of the scores of each class or label."""
    if task.kind == "number":
        return
    found = metrics["per_class" if task.kind == "classes" else "per_label"].values()
    keys = ["precision", "recall", "f1"] if task.kind == "classes" else ["auc", "precision", "recall", "f1"]
    rows = [
        (name, scores["support"], *("" if scores[key] is None else f"{scores[key]:.3f}" for key in keys))
        for name, scores in zip(task.names, found, strict=True)
    ]
    header = [{"f1": "F1", "auc": "AUC"}.get(key, key) for key in keys]
    print_table(["class" if task.kind == "classes" else "label", "n", *header], rows[:OUTPUTS_SHOWN])


def _print_choices(metrics: dict[str, Any]) -> None:
    """Prints what was chosen out of fold, and whether the score is optimistic."""
    calibration, decoding = metrics["calibration"], metrics["decoding"]
    if calibration["temperatures"]:
        temperatures = sorted(set(calibration["temperatures"]))
        shown = f"{temperatures[0]:.2f}" + (f" to {temperatures[-1]:.2f}" if len(temperatures) > 1 else "")
        say(
            f"Calibrated with temperature {shown}: log loss {calibration['log_loss_before']:.4f} → "
            f"{calibration['log_loss_after']:.4f}, calibration error {calibration['ece_before']:.4f} → "
            f"{calibration['ece_after']:.4f}."
        )
    if decoding["rule"] != "plain":
        say(f"Decoded with thresholds chosen out of fold; the score without them is {decoding['plain_value']:.4f}.")
    if dropped := [view for view, scores in metrics["views"].items() if not scores["kept"]]:
        say(f"The mean is better without these views, which submissions leave out: {', '.join(dropped)}.")
    if metrics["optimistic"]:
        say(f"This score is optimistic: {metrics['optimistic']}.")
