"""Runs side by side: scores with paired differences, which see what two standard errors would hide, and curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scenes.competition.metric import standard_error, with_error
from scenes.console import UserError
from scenes.data.folds import FULL, fold_name
from scenes.files import check_file
from scenes.insight import figures, page, sections
from scenes.insight.results import HeldOut, read_held_out, read_histories, read_metrics
from scenes.runs import Run


def compare(runs: Sequence[Run], path: Path, overrides: Sequence[str] = ()) -> Path:
    """Writes a page that compares runs to the first of them, on the images that all of them judged.

    Args:
        runs: Two or more of the same competition, with scored folds.
        path: The page.
        overrides: Other settings than the runs'.

    Raises:
        UserError: If a run has no scores, or the runs have no images or not the same classes in common.
    """
    check_file(path)
    names = [run.name for run in runs]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise UserError(f"the run {twice[0]} is named twice; a comparison needs different runs")
    held, histories = {}, {}
    for run in runs:
        config, metrics = run.load_config(list(overrides)), read_metrics(run)
        if metrics is None:
            raise UserError(f"{run.folder}: has no scored fold to compare; train one, without --folds full")
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
    """Averages the histories of a run's folds by epoch; the model of all rows is no fold."""
    folds = [history for name, history in histories.items() if name != fold_name(FULL)]
    joined = pd.concat(folds) if folds else pd.DataFrame({"epoch": [], "steps": []})
    return joined.groupby("epoch").mean(numeric_only=True).reset_index()


def _common_rows(held: Mapping[str, HeldOut]) -> dict[str, np.ndarray]:
    """Where in each run the images are that all of them have under the same label, in the same order."""
    first, *others = held
    for name in others:
        if held[name].classes != held[first].classes:
            raise UserError(f"{name} was trained on other classes than {first}; only runs of the same can be compared")
    places = {
        name: {(image, target): row for row, (image, target) in enumerate(zip(one.names, one.targets, strict=True))}
        for name, one in held.items()
    }
    common = [key for key in places[first] if all(key in places[name] for name in others)]
    if not common:
        raise UserError(f"{', '.join(held)}: have no image with the same label in common")
    return {name: np.array([places[name][key] for key in common]) for name in held}


def _scores(held: Mapping[str, HeldOut], rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """A row for each run: its scores, and their paired differences to the first run's."""
    first = next(iter(held))
    hits = {name: one.hits[rows[name]] for name, one in held.items()}
    losses = {name: one.losses[rows[name]] for name, one in held.items()}
    table = []
    for name in held:
        gained = int(((hits[name] == 1) & (hits[first] == 0)).sum())
        lost = int(((hits[name] == 0) & (hits[first] == 1)).sum())
        table.append(
            [
                name,
                with_error(float(hits[name].mean()), standard_error(hits[name])),
                sections.difference(hits[name] - hits[first]),
                f"{losses[name].mean():.4f} ± {standard_error(losses[name]):.4f}",
                sections.difference(losses[name] - losses[first]),
                gained if name != first else "",
                lost if name != first else "",
            ]
        )
    columns = [
        "run",
        "accuracy ± s.e.",
        "difference",
        "log loss ± s.e.",
        "difference",
        "only it is right",
        "only it is wrong",
    ]
    return {"columns": columns, "rows": table}
