"""Scores of interest besides the metric: for classes, labels and numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from scenes.competition.metric import accuracy, log_losses, metric_named, ranks, standard_error
from scenes.competition.task import Task

TOP_K = 5


def all_scores(task: Task, predictions: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Computes what metrics.json holds about one set of predictions.

    Args:
        task: What is predicted.
        predictions: float32, shape (n, outputs).
        targets: In the task's form, n.

    Returns:
        Plain values: n, and what `class_scores`, `label_scores` or `number_scores` returns.
    """
    if task.kind == "classes":
        return class_scores(predictions, targets, task.columns)
    return (label_scores if task.kind == "labels" else number_scores)(task, predictions, targets)


def class_scores(probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Computes what metrics.json holds about predicted classes.

    Args:
        probabilities: float, shape (n, classes), rows sum to 1.
        targets: int, shape (n,), in 0 … classes - 1.
        classes: The labels.

    Returns:
        Plain values: n, accuracy and log loss with standard errors, macro and per-class precision, recall, F1
        and support, top-5 accuracy where there are more than five classes, and the confusion matrix without its
        zeros: true class → predicted class → number of rows.
    """
    hit_rate, hit_error = accuracy(probabilities, targets)
    losses = log_losses(probabilities, targets)
    predicted = probabilities.argmax(1)
    hits = predicted[predicted == targets]
    right, given, true = (np.bincount(of, minlength=len(classes)) for of in (hits, predicted, targets))
    per_class = _precision_recall_f1(right, given, true)
    scores: dict[str, Any] = {
        "n": len(targets),
        "accuracy": hit_rate,
        "accuracy_se": hit_error,
        "log_loss": float(losses.mean()),
        "log_loss_se": standard_error(losses),
        **{f"macro_{name}": float(values.mean()) for name, values in per_class.items()},
    }
    if len(classes) > TOP_K:
        scores[f"top_{TOP_K}_accuracy"] = float((ranks(probabilities, targets) <= TOP_K).mean())
    scores["per_class"] = {
        label: {name: float(values[at]) for name, values in per_class.items()} | {"support": int(true[at])}
        for at, label in enumerate(classes)
    }
    cells, counts = confusion(predicted, targets)
    scores["confusion"] = {}
    for (truth, guess), count in zip(cells.tolist(), counts.tolist(), strict=True):
        scores["confusion"].setdefault(classes[truth], {})[classes[guess]] = count
    return scores


def confusion(predicted: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts how often each class was predicted as each class.

    Args:
        predicted: int, shape (n,).
        targets: int, shape (n,).

    Returns:
        The non-zero cells of the confusion matrix, sorted: int, shape (cells, 2), the true and the predicted class; and
        their counts, int, shape (cells,).
    """
    cells, counts = np.unique(np.stack([targets, predicted], 1), axis=0, return_counts=True)
    return cells, counts


def label_scores(task: Task, predictions: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Computes what metrics.json holds about predicted labels.

    Returns:
        Plain values: n; log loss, mean AUC, micro and macro F1, with standard errors; for each label its AUC (None
        if it is always or never present), precision, recall, F1 and support.
    """
    scores: dict[str, Any] = {"n": len(targets)}
    for name in ("log_loss", "roc_auc", "labels_f1_micro", "labels_f1_macro"):
        scores[name], scores[f"{name}_se"] = metric_named(name, task).score(predictions, targets)
    predicted, actual = predictions >= 0.5, targets >= 0.5
    right, given, true = (both.sum(0) for both in (predicted & actual, predicted, actual))
    per_label = _precision_recall_f1(right, given, true)
    auc = metric_named("roc_auc", task).function
    scores["per_label"] = {
        label: {
            "auc": auc(predictions[:, at, None], targets[:, at, None])[0] if 0 < true[at] < len(targets) else None,
            **{name: float(values[at]) for name, values in per_label.items()},
            "support": int(true[at]),
        }
        for at, label in enumerate(task.columns)
    }
    return scores


def _precision_recall_f1(right: np.ndarray, given: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    """Scores from the numbers of rows correctly predicted, predicted and true, by class; 0 where there are none."""
    return {
        "precision": right / np.maximum(1, given),
        "recall": right / np.maximum(1, true),
        "f1": 2 * right / np.maximum(1, given + true),
    }


def number_scores(task: Task, predictions: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Computes what metrics.json holds about predicted numbers.

    Returns:
        Plain values: n; the root mean squared error and the mean absolute error, with standard errors; and R², the
        share of the targets' variance that is explained.
    """
    scores: dict[str, Any] = {"n": len(targets)}
    for name in ("rmse", "mae"):
        scores[name], scores[f"{name}_se"] = metric_named(name, task).score(predictions, targets)
    variance = float(np.var(targets, dtype=np.float64))
    return scores | {"r2": 1 - scores["rmse"] ** 2 / variance if variance else 0.0}


def with_error(value: float, error: float | None = None) -> str:
    """Formats a value and its standard error as ``0.9312 ± 0.0036``."""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
