"""The numbers of a report, section by section: plain tables that its template lays out."""

from typing import Any

import numpy as np

from scenes.competition.metric import evaluate, log_losses, standard_error, with_error
from scenes.config import Config, differences, dump
from scenes.insight import figures
from scenes.insight.results import HeldOut, read_times
from scenes.runs import Run, read_json

PAIRS = 10
STAGES = ("features", "probe", "training", "judging", "predicting")  # in time.json
LARGE_MATRIX = 24  # classes; more cannot be read as a table

Table = dict[str, list[Any]]


def scores(held: HeldOut, metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores by fold and class, and the key numbers."""
    rows = [_score(f"fold {fold}", held, held.folds == fold) for fold in metrics["folds"]]
    rows.append(_score("all", held, np.ones(len(held.names), bool)))
    judged = evaluate(held.probabilities, held.targets, held.classes)
    per_class = [
        [name, one["support"], *(f"{one[key]:.3f}" for key in ("precision", "recall", "f1"))]
        for name, one in zip(held.class_names, judged["per_class"].values(), strict=True)
    ]
    key_numbers = [
        (with_error(judged["accuracy"], judged["accuracy_se"]), "accuracy ± s.e."),
        (f"{judged['log_loss']:.4f} ± {judged['log_loss_se']:.4f}", "log loss ± s.e."),
        (f"{judged['macro_f1']:.4f}", "macro F1"),
        (f"{judged['n']:,}", "held-out images"),
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
        f"{losses.mean():.4f} ± {standard_error(losses):.4f}",
    ]


def confusion(held: HeldOut) -> dict[str, Any]:
    """The confusion matrix, as a table or a figure, and the pairs of classes that are confused most."""
    count = len(held.classes)
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (held.targets, held.predicted), 1)
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    errors = int(matrix.sum() - matrix.trace())
    pairs: list[list[Any]] = []
    for one, other in zip(*np.triu_indices(count, 1), strict=True):
        there, back = int(matrix[one, other]), int(matrix[other, one])
        if there + back:
            names = f"{held.class_names[one]} ↔ {held.class_names[other]}"
            pairs.append([names, there + back, f"{(there + back) / errors:.1%}", there, back])
    pairs.sort(key=lambda pair: -pair[1])
    return {
        "matrix": matrix.tolist() if count <= LARGE_MATRIX else None,
        "matrix_figure": figures.large_confusion(shares) if count > LARGE_MATRIX else None,
        "shares": shares.tolist(),
        "class_names": held.class_names,
        "errors": errors,
        "pairs": {
            "columns": ["classes", "errors", "of all", "→", "←"],
            "rows": pairs[:PAIRS],
        },
    }


def calibration(held: HeldOut) -> dict[str, Any]:
    """How far confidence can be believed."""
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
                f"{loss.mean():.4f} ± {standard_error(loss):.4f}",
                difference(loss - losses[0]),
            ]
        )
    columns = ["view", "accuracy ± s.e.", f"to {held.view_names[0]}", "log loss ± s.e.", f"to {held.view_names[0]} "]
    return {"columns": columns, "rows": rows}


def difference(values: np.ndarray) -> str:
    """A mean of paired differences with its sign and its standard error; nothing where all are 0."""
    return f"{values.mean():+.4f} ± {standard_error(values):.4f}".replace("-", "−") if values.any() else ""


def times(run: Run, config: Config) -> dict[str, Any]:
    """Seconds and peak memory by fold and stage."""
    recorded = read_times(run, config.data.folds)
    stages = [stage for stage in STAGES if any(stage in one.get("stages", {}) for one in recorded.values())]
    seconds = [
        [fold, *(_cell(one.get("stages", {}).get(stage), ".1f") for stage in stages), f"{one['seconds']:.1f}"]
        for fold, one in recorded.items()
    ]
    tables = [{"columns": ["seconds", *stages, "in all"], "rows": seconds}]
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
    """The config: what differs from the defaults, and all of it."""
    changed = differences(Config(name=config.name), config)
    rows = [[key, str(new), str(old)] for key, old, new in changed]
    return {"changed": {"columns": ["setting", "value", "default"], "rows": rows}, "config": dump(config)}


def environment(run: Run) -> Table:
    """What environment.json holds, a row for each fact."""
    file = run.folder / "environment.json"
    facts = read_json(file) if file.exists() else {}
    packages = facts.pop("packages", {})
    rows = [
        [name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)] for name, value in facts.items()
    ]
    return {"columns": ["what", "which"], "rows": rows + [[name, text] for name, text in packages.items()]}
