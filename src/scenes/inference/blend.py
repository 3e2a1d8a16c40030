"""Several runs as one: are they comparable, what do they add to each other, with which weights, the submission."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.metric import accuracy, log_losses, standard_error, with_error
from scenes.console import UserError, print_table, say
from scenes.files import check_file
from scenes.inference.ensemble import (
    agreement,
    equal_weights,
    hill_climbing_weights,
    nested_mean,
    oracle_accuracy,
    weighted_mean,
)
from scenes.inference.submit import make_tables, mean_prior, predict_folds, read_inputs, write_table
from scenes.runs import Run

ABOUT = ["image_name", "label", "fold"]  # the columns of oof.csv before the classes'


@dataclass(frozen=True)
class Members:
    """What several runs predicted for the same held-out rows.

    Attributes:
        runs: The runs.
        classes: Their labels.
        targets: int64, shape (n,).
        fold_of: int64, shape (n,).
        probabilities: float32, shape (members, n, classes).
    """

    runs: list[Run]
    classes: list[str]
    targets: np.ndarray
    fold_of: np.ndarray
    probabilities: np.ndarray


def read_members(runs: Sequence[Run]) -> Members:
    """Reads the runs' out-of-fold predictions.

    Raises:
        UserError: If there are fewer than two, one has none, or their rows, labels, folds or classes differ.
    """
    if len({run.folder.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError("a blend is made of two runs or more, each named once")
    tables = [_read_oof(run) for run in runs]
    first = tables[0]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _check_alike(runs[0], first, run, table)
    classes = list(first.columns[len(ABOUT) :])
    probabilities = np.stack([table[classes].to_numpy(np.float32) for table in tables])
    targets = first["label"].map({name: number for number, name in enumerate(classes)}).to_numpy(np.int64)
    return Members(list(runs), classes, targets, first["fold"].to_numpy(np.int64), probabilities)


def _read_oof(run: Run) -> pd.DataFrame:
    if not run.oof_file.exists():
        raise UserError(f"{run.folder}: has no oof.csv; train its folds first")
    text = {"image_name": str, "label": str}
    try:
        table = pd.read_csv(run.oof_file, dtype=text, keep_default_na=False)
        table.columns = [*ABOUT, *table.columns[len(ABOUT) :]]  # a class may be called what a column is called
    except ValueError as error:  # of pandas' own kinds
        raise UserError(f"{run.oof_file}: damaged ({error}); give train.py's command again to write it anew") from None
    return table.sort_values("image_name", ignore_index=True)


def _check_alike(run: Run, table: pd.DataFrame, other: Run, others: pd.DataFrame) -> None:
    """Refuses runs whose scores were not made on the same rows by models that saw the same rows."""
    pair = f"{run.folder} and {other.folder}"
    if list(table.columns) != list(others.columns):
        raise UserError(f"{pair}: their classes differ; a blend needs runs of one competition")
    if not table["image_name"].equals(others["image_name"]):
        differ = sorted(set(table["image_name"]) ^ set(others["image_name"]))
        name = differ[0] if differ else table["image_name"][0]
        raise UserError(
            f"{pair}: predicted different rows ({len(table)} and {len(others)}; first difference: {name}); "
            f"train the same folds of the same train.csv"
        )
    for column in ("fold", "label"):
        if (differs := table[column] != others[column]).any():
            row = int(differs.to_numpy().argmax())
            raise UserError(
                f"{pair}: different {column}s ({table['image_name'][row]}: {table[column][row]} and "
                f"{others[column][row]}); a member may have been trained on what another is judged on. "
                f"Give them the same data.folds and data.fold_seed"
            )


def judge(members: Members) -> np.ndarray:
    """Prints what the members add to each other and chooses the weights.

    Optimised weights are taken only where, nested, they beat the plain mean's log loss by more than one paired
    standard error and lose no accuracy: members of different sharpness can gain the one and lose the other.

    Returns:
        float32, shape (members,): the weights.
    """
    names, targets, fold_of = [run.name for run in members.runs], members.targets, members.fold_of
    plain = nested_mean(equal_weights, members.probabilities, targets, fold_of)
    tuned = nested_mean(hill_climbing_weights, members.probabilities, targets, fold_of)
    weights = hill_climbing_weights(members.probabilities, targets)
    gain = log_losses(plain, targets) - log_losses(tuned, targets)
    is_better = gain.mean() > standard_error(gain) and accuracy(tuned, targets)[0] >= accuracy(plain, targets)[0]
    is_tuned = len(np.unique(fold_of)) > 1 and is_better
    rows = [
        *zip(names, members.probabilities, strict=True),
        ("plain mean", plain),
        ("optimised weights, nested", tuned),
    ]
    print_table(
        ["out of fold", "n", "accuracy ± s.e.", "log loss"],
        [(n, len(targets), with_error(*accuracy(p, targets)), f"{log_losses(p, targets).mean():.4f}") for n, p in rows],
    )
    print_table(
        ["same class", *names],
        [(n, *(f"{s:.3f}" for s in shares)) for n, shares in zip(names, agreement(members.probabilities), strict=True)],
    )
    say(f"at least one member is right: {oracle_accuracy(members.probabilities, targets):.4f}")
    alone, best = max((accuracy(p, targets)[0], name) for name, p in zip(names, members.probabilities, strict=True))
    if alone > accuracy(tuned if is_tuned else plain, targets)[0]:
        say(f"no gain: {best} alone has the higher accuracy, {alone:.4f}")
    gained = f"{gain.mean():.4f} ± {standard_error(gain):.4f} log loss"
    if not is_tuned:
        say(f"the plain mean is taken: optimised weights, nested, gain {gained}")
        return equal_weights(members.probabilities, targets)
    shown = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights, strict=True))
    say(f"optimised weights are taken ({shown}): nested, they gain {gained}")
    return weights


def submit_blend(members: Members, weights: np.ndarray, out: Path, overrides: Sequence[str] = ()) -> None:
    """Predicts the test rows with every member and writes the weighted mean's submission and probabilities.

    Args:
        members: The runs.
        weights: float32, shape (members,), sum to 1.
        out: The submission's file.
        overrides: Other settings than the runs', e.g. ``data.root=DIR`` where the images are now.

    Raises:
        UserError: If a member cannot predict, or the members' test rows differ.
    """
    check_file(out)
    predicted, priors, first = [], [], None
    for run in members.runs:
        config = run.load_config(list(overrides))
        folds = run.chosen_folds(None, config.data.folds)
        inputs = read_inputs(config)
        first = first or inputs
        if (inputs.table.names, inputs.bad) != (first.table.names, first.bad):
            raise UserError(f"{run.folder} and {members.runs[0].folder}: their configs lead to different test rows")
        if inputs.bad:
            priors.append(mean_prior(run, folds))
        probabilities, classes = predict_folds(run, config, folds, inputs)
        if classes != members.classes:
            raise UserError(f"{run.folder}: its weights know other classes than its oof.csv")
        predicted.append(probabilities)
    mean = weighted_mean(np.stack(predicted), weights)
    prior = np.average(priors, 0, weights) if priors else None
    submission, by_class = make_tables(config, inputs, mean, members.classes, prior)
    write_table(out.with_name(f"{out.stem}_probabilities.csv"), by_class)
    write_table(out, submission)
