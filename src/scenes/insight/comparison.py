"""Compares runs: scores with paired differences, which are more precise than separate scores, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scenes.competition.scores import with_error
from scenes.console import UserError
from scenes.files import check_file
from scenes.insight import figures, page, sections
from scenes.insight.results import HeldOut, read_held_out, read_histories, read_metrics
from scenes.runs import FULL, Run, fold_name


def compare(runs: Sequence[Run], path: Path, overrides: Sequence[str] = ()) -> Path:
    """Writes a page that compares runs with the first one, on the images that all of them predicted.

    Args:
        runs: Two or more runs of the same competition, with scored folds.
        path: The page.
        overrides: Settings that replace the runs'.

    Raises:
        UserError: If a run has no scores, or the runs have different classes or no images in common.
    """
    check_file(path)
    names = [run.name for run in runs]
    if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"the run {repeated[0]} is given twice; name each run once")
    held, histories = {}, {}
    for run in runs:
        config, metrics = run.load_config(list(overrides)), read_metrics(run)
        if metrics is None:
            raise UserError(f"{run.folder} has no scored fold to compare; train a fold other than --folds full")
        held[run.name] = read_held_out(run, config, metrics)
        histories[run.name] = mean_history(read_histories(run, config.data.folds))
    rows = _common_rows(held)
    page.render(
        "comparison.html",
        path,
        names=names,
        images=len(rows[names[0]]),
        table=_scores(held, rows),
        curves=figures.curves(histories),
    )
    return path


def mean_history(histories: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Averages the histories of a run's folds by epoch, except that of the model trained on all rows."""
    folds = [history for name, history in histories.items() if name != fold_name(FULL)]
    joined = pd.concat(folds) if folds else pd.DataFrame({"epoch": [], "steps": []})
    return joined.groupby("epoch").mean(numeric_only=True).reset_index()


def _common_rows(held: Mapping[str, HeldOut]) -> dict[str, np.ndarray]:
    """The positions, in each run, of the images that all runs have with the same label, in the same order."""
    first, *others = held
    for name in others:
        if (held[name].task.kind, held[name].task.columns) != (held[first].task.kind, held[first].task.columns):
            raise UserError(f"{name} was trained on different classes than {first}; compare runs with the same classes")
    places = {
        name: {key: row for row, key in enumerate(zip(one.names, one.task.as_texts(one.targets), strict=True))}
        for name, one in held.items()
    }
    common = [key for key in places[first] if all(key in places[name] for name in others)]
    if not common:
        raise UserError(f"{', '.join(held)} have no image with the same label in common")
    return {name: np.array([places[name][key] for key in common]) for name in held}


def _scores(held: Mapping[str, HeldOut], rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A row per run: its scores and their paired differences from the first run's."""
    first = next(iter(held))
    targets = held[first].targets[rows[first]]
    decided = {name: one.decoding.apply(one.predictions)[rows[name]] for name, one in held.items()}
    predicted = {name: one.predictions[rows[name]] for name, one in held.items()}
    right = {name: one.is_right[rows[name]] for name, one in held.items()}
    headline, *others = sections.metrics_of(held[first].metric, held[first].task)[:2]
    has_classes = held[first].task.kind != "number"
    table = []
    for name in held:
        cells: list[Any] = [name]
        for metric, values in ((headline, decided), *((other, predicted) for other in others)):
            change = sections.difference(metric, values[first], values[name], targets)
            cells += [with_error(*metric.score(values[name], targets)), change]
        if has_classes:
            only_one = (right[name] & ~right[first], ~right[name] & right[first])
            cells += [int(each.sum()) if name != first else "" for each in only_one]
        table.append(cells)
    columns = ["run"]
    for metric in (headline, *others):
        columns += [f"{sections.title(metric)} ± s.e.", "difference"]
    return {"columns": columns + ["only this is correct", "only this is wrong"] * has_classes, "rows": table}
