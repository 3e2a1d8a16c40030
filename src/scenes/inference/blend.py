"""Blends several runs: checks that they are comparable, scores and weights them, writes the submission."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.metric import Metric, accuracy, competition_metric, log_losses
from scenes.competition.scores import with_error
from scenes.competition.task import Task, task_from_dict
from scenes.console import UserError, print_table, say
from scenes.files import check_file
from scenes.inference.ensemble import (
    Ensemble,
    Fitted,
    Weigh,
    agreement,
    equal_weights,
    fit_ensemble,
    hill_climbing_weights,
    oracle_accuracy,
    selection_metric,
)
from scenes.inference.models import run_task
from scenes.inference.oof import ABOUT, read_oof
from scenes.inference.submit import Inputs, make_tables, mean_prior, predict_folds, read_inputs, write_table
from scenes.runs import Run, read_json


@dataclass(frozen=True)
class Members:
    """Predictions of several runs for the same held-out rows.

    Attributes:
        runs: The runs.
        task: What they predict.
        metric: The metric that scores them.
        targets: n targets in the task's form.
        fold_of: int64, shape (n,): the fold of each row.
        predictions: float32, shape (members, n, outputs).
    """

    runs: list[Run]
    task: Task
    metric: Metric
    targets: np.ndarray
    fold_of: np.ndarray
    predictions: np.ndarray


def read_members(runs: Sequence[Run], overrides: Sequence[str] = ()) -> Members:
    """Reads the runs' out-of-fold predictions.

    Args:
        runs: The runs.
        overrides: Settings that replace the runs', e.g. ``metric=log_loss``.

    Raises:
        UserError: If there are fewer than two runs, one has no predictions, or their rows, labels, folds, classes or
            metrics differ.
    """
    if len({run.folder.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError("a blend needs at least two runs, each named once")
    tables = [read_oof(run).sort_values("image_name", kind="stable", ignore_index=True) for run in runs]
    first = tables[0]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _check_alike(runs[0], first, run, table)
    task = task_from_dict(read_json(runs[0].metrics_file, "task")["task"])
    predictions = np.stack([table.iloc[:, len(ABOUT) :].to_numpy(np.float32) for table in tables])
    targets = task.from_texts(first["label"].tolist())
    metrics = [competition_metric(run.load_config(list(overrides)), task) for run in runs]
    for run, metric in zip(runs, metrics, strict=True):
        if metric.name != metrics[0].name:
            scored = f"{runs[0].folder} is scored by {metrics[0].name}, {run.folder} by {metric.name}"
            raise UserError(f"{scored}; choose one, e.g. --set metric={metrics[0].name}")
    return Members(list(runs), task, metrics[0], targets, first["fold"].to_numpy(np.int64), predictions)


def _check_alike(run: Run, table: pd.DataFrame, other: Run, others: pd.DataFrame) -> None:
    """Refuses runs that were not trained and scored on the same rows."""
    pair = f"{run.folder} and {other.folder}"
    if list(table.columns) != list(others.columns):
        raise UserError(f"{pair}: their classes differ; a blend needs runs of the same competition")
    if not table["image_name"].equals(others["image_name"]):
        differ = sorted(set(table["image_name"]) ^ set(others["image_name"]))
        name = differ[0] if differ else table["image_name"][0]
        raise UserError(
            f"{pair}: predicted different rows ({len(table)} and {len(others)}; first difference: {name}); "
            f"train the same folds on the same train.csv"
        )
    for column in ("fold", "label"):
        if (differs := table[column] != others[column]).any():
            row = int(differs.to_numpy().argmax())
            raise UserError(
                f"{pair}: different {column}s ({table['image_name'][row]}: {table[column][row]} and "
                f"{others[column][row]}); a member may have been trained on what another is scored on. "
                f"Give them the same data.folds and data.fold_seed"
            )


def evaluate_blend(members: Members) -> Ensemble:
    """Prints what the members add to each other and chooses weights, calibration and decoding.

    Optimised weights are used only if, in nested scoring, they beat the plain mean by more than one paired standard
    error (in the metric, or in the log loss if the metric sees only decisions) and do not worsen the metric itself:
    with members of different confidence, the log loss can improve while the metric gets worse.
    """
    names, targets = [run.name for run in members.runs], members.targets

    def fitted(weigh: Weigh, predictions: np.ndarray) -> Fitted:
        return fit_ensemble(weigh, predictions, targets, members.fold_of, members.task, members.metric)

    plain, tuned = (fitted(weigh, members.predictions) for weigh in (equal_weights, hill_climbing_weights))
    each = [fitted(equal_weights, member[None]).decisions for member in members.predictions]
    selection = selection_metric(members.metric, members.task)
    gain, error = selection.gain(plain.predictions, tuned.predictions, targets)
    loses = members.metric.gain(plain.decisions, tuned.decisions, targets)[0] < 0
    is_tuned = len(np.unique(members.fold_of)) > 1 and gain > error and not loses
    _print_members(members, names, each, plain, tuned)
    taken = tuned if is_tuned else plain
    alone = [members.metric.score(decisions, targets)[0] for decisions in each]
    best = int(np.argmax(alone) if members.metric.larger_is_better else np.argmin(alone))
    if members.metric.is_better(alone[best], than=members.metric.score(taken.decisions, targets)[0]):
        say(f"no gain: {names[best]} alone has a better {members.metric.name}, {alone[best]:.4f}")
    gained = f"{gain:.4f} ± {error:.4f} {selection.name}"
    if is_tuned:
        shown = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, taken.ensemble.weights, strict=True))
        say(f"optimised weights are taken ({shown}): nested, they gain {gained}")
    else:
        say(f"the plain mean is taken: optimised weights, nested, gain {gained}")
    return taken.ensemble


def _print_members(
    members: Members, names: Sequence[str], each: Sequence[np.ndarray], plain: Fitted, tuned: Fitted
) -> None:
    """Prints the scores of the members and of their means, and how alike the members are."""
    metric, task, targets = members.metric, members.task, members.targets
    rows = list(zip(names, members.predictions, each, strict=True))
    rows.append(("plain mean", plain.predictions, plain.decisions))
    rows.append(("optimised weights, nested", tuned.predictions, tuned.decisions))
    header = ["out of fold", "n", f"{metric.name} ± s.e."]
    is_classes = task.kind == "classes"
    if is_classes:
        header += [name for name in ("accuracy ± s.e.", "log loss") if name != header[-1]]
    table = []
    for name, predictions, decisions in rows:
        cells = {
            header[2]: with_error(*metric.score(decisions, targets)),
            "accuracy ± s.e.": with_error(*accuracy(predictions, targets)) if is_classes else "",
            "log loss": f"{log_losses(predictions, targets).mean():.4f}" if is_classes else "",
        }
        table.append((name, len(targets), *(cells[column] for column in header[2:])))
    print_table(header, table)
    alike = agreement(members.predictions, task)
    what = {"classes": "same class", "labels": "same labels", "number": "correlation"}[task.kind]
    print_table(
        [what, *names],
        [(name, *(f"{share:.3f}" for share in shares)) for name, shares in zip(names, alike, strict=True)],
    )
    for run in members.runs:
        if why := read_json(run.metrics_file, "optimistic")["optimistic"]:
            say(f"the scores are optimistic, because those of {run.name} are: {why}")
    if is_classes:
        say(f"at least one member is right: {oracle_accuracy(members.predictions, targets):.4f}")


def submit_blend(members: Members, ensemble: Ensemble, out: Path, overrides: Sequence[str] = ()) -> None:
    """Predicts the test rows with every member and writes the submission and the probabilities of the ensemble.

    Args:
        members: The runs.
        ensemble: From `evaluate_blend`.
        out: The submission file.
        overrides: Settings that replace the runs', e.g. ``data.root=DIR`` if the images have moved.

    Raises:
        UserError: If a member cannot predict, or the members' test rows differ.
    """
    check_file(out)
    predicted, priors = [], []
    first: Inputs | None = None
    for run in members.runs:
        config = run.load_config(list(overrides))
        folds = run.chosen_folds(None, config.data.folds)
        inputs = read_inputs(config, run_task(run, config, folds))
        first = first or inputs
        if (inputs.table.names, inputs.bad) != (first.table.names, first.bad):
            raise UserError(f"{run.folder} and {members.runs[0].folder}: their configs lead to different test rows")
        if inputs.bad:
            priors.append(mean_prior(run, folds))
        if inputs.form.task.columns != members.task.columns:
            raise UserError(f"{run.folder}: the classes of its weights differ from those of its oof.csv")
        predicted.append(predict_folds(run, config, folds, inputs))
    assert first
    mean = ensemble.predict(np.stack(predicted))
    prior = np.average(priors, 0, ensemble.weights) if priors else None
    submission, by_output = make_tables(first, mean, ensemble.decoding, prior)
    write_table(out.with_name(f"{out.stem}_probabilities.csv"), by_output)
    write_table(out, submission)
