"""The parts of a report common to all tasks: scores, calibration, views, times, settings, environment."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from scenes.competition.metric import Metric, metric_named
from scenes.competition.scores import with_error
from scenes.competition.task import Task
from scenes.config import Config
from scenes.config_file import differences, dump
from scenes.insight import figures
from scenes.insight.results import HeldOut, read_times
from scenes.runs import Run, read_json

Table = dict[str, list[Any]]

# Shown beside the competition's metric.
OTHER_METRICS = {
    "classes": ("accuracy", "log_loss", "f1_macro"),
    "labels": ("roc_auc", "log_loss", "labels_f1_macro"),
    "number": ("rmse", "mae"),
}
SHORT = 2  # metrics in a table
ACRONYMS = re.compile(r"\b(rmse|mae|roc auc|f1|map)\b")


def metrics_of(metric: Metric, task: Task) -> list[Metric]:
    """The competition's metric, then others worth looking at."""
    names = dict.fromkeys([metric.name, *OTHER_METRICS[task.kind]])
    return [metric_named(name, task) for name in names]


def title(metric: Metric) -> str:
    """A metric's readable name."""
    return ACRONYMS.sub(lambda found: found[0].upper(), metric.name.replace("_", " "))


def scores(held: HeldOut, metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores by fold and the key numbers; the competition's metric is that of metrics.json, decoded and nested."""
    shown = metrics_of(held.metric, held.task)
    headline = metrics["metric"]
    key_numbers = [(with_error(headline["value"], headline["se"]), f"{title(held.metric)} ± s.e.")]
    for other in shown[1:]:
        key_numbers.append((with_error(*other.score(held.predictions, held.targets)), f"{title(other)} ± s.e."))
    key_numbers.append((f"{len(held.names):,}", "held-out images"))
    rows = []
    for fold in metrics["folds"]:
        at, own = held.folds == fold, metrics["per_fold"][str(fold)]
        others = [with_error(*other.score(held.predictions[at], held.targets[at])) for other in shown[1:SHORT]]
        rows.append([f"fold {fold}", int(at.sum()), with_error(own["value"], own["se"]), *others])
    rows.append(["all", len(held.names), *(number for number, _ in key_numbers[:SHORT])])
    return {
        "key_numbers": key_numbers,
        "direction": "higher" if held.metric.larger_is_better else "lower",
        "images": len(held.names),
        "optimistic": metrics["optimistic"],
        "missing": metrics["of"] - len(metrics["folds"]),
        "by_fold": {
            "columns": ["held out", "n", *(f"{title(each)} ± s.e." for each in shown[:SHORT])],
            "rows": rows,
        },
    }


def calibration(held: HeldOut, metrics: dict[str, Any]) -> dict[str, Any]:
    """How well probabilities match frequencies, before and after calibration."""
    chosen = metrics["calibration"]
    curves = {"calibrated" if chosen["temperatures"] else "held out": held.predictions}
    if chosen["temperatures"]:
        curves = {"before": held.uncalibrated, **curves}
    binned = {name: figures.bin_confidence(*_confidence(values, held.targets)) for name, values in curves.items()}
    last = list(binned.values())[-1]
    rows = [
        [f"{one.low:.1f} to {one.high:.1f}", one.n, f"{one.confidence:.3f}", with_error(one.accuracy, one.error)]
        for one in last
    ]
    return {
        "temperatures": chosen["temperatures"],
        "one_fold": len(metrics["folds"]) == 1,
        "calibration": chosen,
        "reliability": figures.reliability(binned),
        "bins": {"columns": ["probability", "n", "mean", "frequency ± s.e."], "rows": rows},
    }


def _confidence(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of the predicted class, or of every label, and whether it was correct, 1 or 0."""
    if targets.ndim == 2:
        return predictions.ravel(), targets.ravel()
    return predictions.max(1), (predictions.argmax(1) == targets).astype(np.float64)


def views(held: HeldOut, metrics: dict[str, Any]) -> Table:
    """Each view's scores and their paired difference from the first view."""
    shown = metrics_of(held.metric, held.task)[:SHORT]
    parts = dict(zip(held.view_names, held.views, strict=True))
    first = held.views[0]
    if len(parts) > 1:
        parts["together"] = held.uncalibrated
    rows = []
    for name, predictions in parts.items():
        is_kept = metrics["views"].get(name, {}).get("kept", True)
        cells = [name if is_kept else f"{name} (dropped)"]
        for metric in shown:
            cells += [
                with_error(*metric.score(predictions, held.targets)),
                difference(metric, first, predictions, held.targets),
            ]
        rows.append(cells)
    columns = [column for each in shown for column in (f"{title(each)} ± s.e.", f"vs. {held.view_names[0]}")]
    return {"columns": ["view", *columns], "rows": rows}


def difference(metric: Metric, before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> str:
    """How much a metric changes between two predictions, with its paired standard error; "" if they are equal."""
    if np.array_equal(before, after):
        return ""
    gain, error = metric.gain(before, after, targets)
    change = gain if metric.larger_is_better else -gain
    return f"{change:+.4f} ± {error:.4f}".replace("-", "−")


def times(run: Run, config: Config) -> dict[str, Any]:
    """Seconds and peak memory by fold and stage."""
    recorded = read_times(run, config.data.folds)
    stages = list(dict.fromkeys(stage for one in recorded.values() for stage in one.get("stages", {})))
    seconds = [
        [fold, *(_cell(one.get("stages", {}).get(stage), ".1f") for stage in stages), f"{one['seconds']:.1f}"]
        for fold, one in recorded.items()
    ]
    tables = [{"columns": ["seconds", *stages, "total"], "rows": seconds}]
    for kind, heading in (("memory_mib", "peak memory (MiB)"), ("gpu_memory_mib", "peak GPU memory (MiB)")):
        rows = [
            [fold, *(_cell(one.get("memory", {}).get(stage, {}).get(kind), ",.0f") for stage in stages)]
            for fold, one in recorded.items()
        ]
        if any(cell for row in rows for cell in row[1:]):
            tables.append({"columns": [heading, *stages], "rows": rows})
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
    rows = [[name, _joined(value)] for name, value in facts.items()]
    return {"columns": ["what", "which"], "rows": rows + [[name, text] for name, text in packages.items()]}


def _joined(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
