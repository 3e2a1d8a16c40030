"""The parts of a report that differ by task: confused classes, errors by label, errors of numbers."""

from typing import Any

import numpy as np

from scenes.competition.scores import confusion, label_scores
from scenes.insight import figures
from scenes.insight.results import HeldOut

LARGE_MATRIX = 16  # classes; with more, the numbers would not fit on a phone
PAIRS = 100  # how many to list


def of_classes(held: HeldOut) -> dict[str, Any]:
    """Scores by class, the confusion matrix without its zeros, and the most confused pairs of classes."""
    names = held.task.names
    count = len(names)
    true, given = (np.bincount(each, minlength=count) for each in (held.targets, held.decided))
    hits = np.bincount(held.targets[held.is_right], minlength=count)
    ratios = hits / np.maximum(given, 1), hits / np.maximum(true, 1), 2 * hits / np.maximum(given + true, 1)
    by_class: list[list[Any]] = [
        [name, int(true[at]), *(f"{ratio[at]:.3f}" for ratio in ratios)] for at, name in enumerate(names)
    ]
    if count > LARGE_MATRIX:
        by_class.sort(key=lambda row: (float(row[-1]), row[0]))  # worst first
    at, counts = confusion(held.decided, held.targets)
    cells = [
        (truth, guess, rows, rows / int(true[truth]))
        for (truth, guess), rows in zip(at.tolist(), counts.tolist(), strict=True)
    ]
    return {
        "by_output": {"columns": ["class", "n", "precision", "recall", "F1"], "rows": by_class},
        "cells": [[truth, guess, rows, round(share, 3)] for truth, guess, rows, share in cells],
        "matrix": {(truth, guess): (rows, share) for truth, guess, rows, share in cells},
        "is_large": count > LARGE_MATRIX,
        "names": names,
        "errors": int((~held.is_right).sum()),
        "pairs": {"columns": ["classes", "errors", "of all", "→", "←"], "rows": _confused_pairs(cells, names)},
    }


def _confused_pairs(cells: list[tuple[int, int, int, float]], names: list[str]) -> list[list[Any]]:
    swaps: dict[tuple[int, int], list[int]] = {}
    for truth, guess, count, _ in cells:
        if truth != guess:
            pair = swaps.setdefault((min(truth, guess), max(truth, guess)), [0, 0])
            pair[truth > guess] += count
    errors = sum(map(sum, swaps.values()))
    worst = sorted(swaps.items(), key=lambda item: (-sum(item[1]), item[0]))[:PAIRS]
    return [
        [f"{names[one]} ↔ {names[other]}", sum(pair), f"{sum(pair) / errors:.1%}", *pair]
        for (one, other), pair in worst
    ]


def of_labels(held: HeldOut) -> dict[str, Any]:
    """Scores by label with the thresholds in use, and which labels are missed or added together."""
    names, decided, targets = held.task.names, held.decided, held.targets
    thresholds = held.decoding.values if held.decoding.rule == "labels" else [0.5]
    thresholds = list(np.broadcast_to(thresholds, len(names)))
    aucs = label_scores(held.task, held.predictions, targets)["per_label"]
    rows: list[list[Any]] = []
    for at, (name, one) in enumerate(zip(names, aucs.values(), strict=True)):
        given, true = decided[:, at] > 0, targets[:, at] >= 0.5
        hits, misses, extras = (int(each.sum()) for each in (given & true, ~given & true, given & ~true))
        f1 = 2 * hits / max(1, 2 * hits + misses + extras)
        auc = "" if one["auc"] is None else f"{one['auc']:.3f}"
        rows.append([name, int(true.sum()), auc, f"{f1:.3f}", f"{thresholds[at]:.2f}", misses, extras])
    if len(names) > LARGE_MATRIX:
        rows.sort(key=lambda row: (float(row[3]), row[0]))  # worst first
    missed, added = (targets > decided).astype(np.int64), (decided > targets).astype(np.int64)
    together: list[list[Any]] = []
    for kind, table in (
        ("added in place of", missed.T @ added),
        ("missed with", np.triu(missed.T @ missed, 1)),
        ("added with", np.triu(added.T @ added, 1)),
    ):
        for one, other in np.argwhere(table).tolist():
            first, second = (other, one) if kind == "added in place of" else (one, other)
            together.append([names[first], kind, names[second], int(table[one, other])])
    together.sort(key=lambda row: -row[-1])
    return {
        "by_output": {
            "columns": ["label", "n", "AUC", "F1", "threshold", "missed", "added"],
            "rows": rows,
        },
        "errors": int((~held.is_right).sum()),
        "together": {"columns": ["label", "is", "label", "images"], "rows": together[:PAIRS]},
    }


def of_numbers(held: HeldOut) -> dict[str, Any]:
    """Predicted against true numbers, and the errors by true value."""
    predicted = held.predictions[:, 0].astype(np.float64)
    residuals = predicted - held.targets
    name = held.task.names[0]
    edges = np.unique(np.quantile(held.targets, np.linspace(0, 1, 11)))
    part = np.clip(np.searchsorted(edges, held.targets, side="right") - 1, 0, max(0, len(edges) - 2))
    rows = []
    for at in np.unique(part):
        own = residuals[part == at]
        span = f"{edges[at]:.4g} to {edges[min(at + 1, len(edges) - 1)]:.4g}"
        rows.append([span, len(own), f"{own.mean():+.4g}".replace("-", "−"), f"{np.sqrt((own**2).mean()):.4g}"])
    return {
        "name_of_number": name,
        "errors": len(residuals),
        "scatter": figures.scatter(held.targets, predicted, name),
        "residuals": figures.histogram(residuals, "Errors", "predicted − true"),
        "by_size": {"columns": [f"true {name}", "n", "mean error", "RMSE"], "rows": rows},
    }
