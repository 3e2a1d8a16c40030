"""The contents of a report, section by section: plain values and tables, which the template lays out."""

from typing import Any

import numpy as np

from scenes.competition.metric import log_losses, standard_error
from scenes.competition.scores import class_scores, with_error
from scenes.competition.scores import confusion as count_confusion
from scenes.config import Config, differences, dump
from scenes.insight import figures
from scenes.insight.results import HeldOut, read_times
from scenes.runs import Run, read_json

PAIRS = 100  # of classes that are listed
LARGE_MATRIX = 16  # classes; the numbers of more would not fit a phone

Table = dict[str, list[Any]]


def scores(held: HeldOut, metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores by fold and class, and the key numbers."""
    rows = [_score(f"fold {fold}", held, held.folds == fold) for fold in metrics["folds"]]
    rows.append(_score("all", held, np.ones(len(held.names), bool)))
    overall = class_scores(held.probabilities, held.targets, held.classes)
    per_class = [
        [name, one["support"], *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1"))]
        for name, one in zip(held.class_names, overall["per_class"].values(), strict=True)
    ]
    if len(per_class) > LARGE_MATRIX:
        per_class.sort(key=lambda row: (float(row[-1]), row[0]))  # the worst first
    key_numbers = [
        (with_error(overall["accuracy"], overall["accuracy_se"]), "accuracy ± s.e."),
        (with_error(overall["log_loss"], overall["log_loss_se"]), "log loss ± s.e."),
        (f"{overall['macro_f1']:.4f}", "macro F1"),
        (f"{overall['n']:,}", "held-out images"),
    ]
    return {
        "key_numbers": key_numbers,
        "optimistic": metrics["optimistic"],
        "missing": metrics["of"] - len(metrics["folds"]),
        "by_fold": {"columns": ["held out", "n", "accuracy ± s.e.", "log loss ± s.e."], "rows": rows},
        "by_class": {"columns": ["class", "n", "precision", "recall", "F1"], "rows": per_class},
    }


def _score(name: str, held: HeldOut, chosen: np.ndarray) -> list[Any]:
    hits, losses = held.hits[chosen], held.losses[chosen]
    return [
        name,
        int(chosen.sum()),
        with_error(float(hits.mean()), standard_error(hits)),
        with_error(float(losses.mean()), standard_error(losses)),
    ]


def confusion(held: HeldOut) -> dict[str, Any]:
    """The confusion matrix without its zeros, and the pairs of classes that are confused most."""
    at, counts = count_confusion(held.predicted, held.targets)
    totals = np.bincount(held.targets, minlength=len(held.classes))
    cells = [
        (truth, guess, count, count / int(totals[truth]))
        for (truth, guess), count in zip(at.tolist(), counts.tolist(), strict=True)
    ]
    errors = int((held.hits == 0).sum())
    swaps: dict[tuple[int, int], list[int]] = {}
    for truth, guess, count, _ in cells:
        if truth != guess:
            pair = swaps.setdefault((min(truth, guess), max(truth, guess)), [0, 0])
            pair[truth > guess] += count
    worst = sorted(swaps.items(), key=lambda item: (-sum(item[1]), item[0]))[:PAIRS]
    rows = [
        [f"{held.class_names[one]} ↔ {held.class_names[other]}", sum(pair), f"{sum(pair) / errors:.1%}", *pair]
        for (one, other), pair in worst
    ]
    return {
        "cells": [[truth, guess, count, round(share, 3)] for truth, guess, count, share in cells],
        "matrix": {(truth, guess): (count, share) for truth, guess, count, share in cells},
        "is_large": len(held.classes) > LARGE_MATRIX,
        "class_names": held.class_names,
        "errors": errors,
        "pairs": {"columns": ["classes", "errors", "of all", "→", "←"], "rows": rows},
    }


def calibration(held: HeldOut) -> dict[str, Any]:
    """How well confidence matches accuracy."""
    bins, error = figures.calibration(held.probabilities, held.hits)
    rows = [
        [f"{one.low:.1f} to {one.high:.1f}", one.n, f"{one.confidence:.3f}", with_error(one.accuracy, one.error)]
        for one in bins
    ]
    return {
        "calibration_error": f"{error:.4f}",
        "reliability": figures.reliability(bins),
        "bins": {"columns": ["confidence", "n", "its mean", "accuracy ± s.e."], "rows": rows},
    }


def views(held: HeldOut, metrics: dict[str, Any]) -> Table:
    """Each view's scores and their paired difference to the first, the plain one."""
    losses = [log_losses(view, held.targets) for view in held.views]
    hits = [(view.argmax(1) == held.targets).astype(np.float64) for view in held.views]
    together = [("together", held.hits, held.losses)] if len(held.views) > 1 else []
    rows = []
    for name, hit, loss in [*zip(held.view_names, hits, losses, strict=True), *together]:
        is_kept = metrics["views"].get(name, {}).get("kept", True)
        rows.append(
            [
                name if is_kept else f"{name} (dropped)",
                with_error(float(hit.mean()), standard_error(hit)),
                difference(hit - hits[0]),
                with_error(float(loss.mean()), standard_error(loss)),
                difference(loss - losses[0]),
            ]
        )
    columns = ["view", "accuracy ± s.e.", f"to {held.view_names[0]}", "log loss ± s.e.", f"to {held.view_names[0]} "]
    return {"columns": columns, "rows": rows}


def difference(values: np.ndarray) -> str:
    """The mean of paired differences with its sign and standard error; empty if all are 0."""
    return f"{values.mean():+.4f} ± {standard_error(values):.4f}".replace("-", "−") if values.any() else ""


def times(run: Run, config: Config) -> dict[str, Any]:
    """Seconds and peak memory by fold and stage."""
    recorded = read_times(run, config.data.folds)
    stages = list(dict.fromkeys(stage for one in recorded.values() for stage in one.get("stages", {})))
    seconds = [
        [fold, *(_cell(one.get("stages", {}).get(stage), ".1f") for stage in stages), f"{one['seconds']:.1f}"]
        for fold, one in recorded.items()
    ]
    tables = [{"columns": ["seconds", *stages, "total"], "rows": seconds}]
    for kind, title in (("memory_mib", "peak memory (MiB)"), ("gpu_memory_mib", "peak GPU memory (MiB)")):
        rows = [
            [fold, *(_cell(one.get("memory", {}).get(stage, {}).get(kind), ",.0f") for stage in stages)]
            for fold, one in recorded.items()
        ]
        if any(cell for row in rows for cell in row[1:]):
            tables.append({"columns": [title, *stages], "rows": rows})
    file = run.folder / "time.json"
    preparing = read_json(file, "preparing")["preparing"] if file.exists() else None
    return {"preparing": preparing, "by_stage": tables}


def _cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def settings(config: Config) -> dict[str, Any]:
    """The settings that differ from the defaults, and the whole config."""
    changed = differences(Config(name=config.name), config)
    rows = [[key, str(new), str(old)] for key, old, new in changed]
    return {"changed": {"columns": ["setting", "value", "default"], "rows": rows}, "config": dump(config)}


def environment(run: Run) -> Table:
    """The content of environment.json, a row for each entry."""
    file = run.folder / "environment.json"
    facts = read_json(file) if file.exists() else {}
    packages = facts.pop("packages", {})
    rows = [
        [name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)] for name, value in facts.items()
    ]
    return {"columns": ["what", "which"], "rows": rows + [[name, text] for name, text in packages.items()]}
