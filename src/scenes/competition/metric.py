"""Scores with the number of rows and the standard error beside them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

TOP_K = 5


def log_losses(probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Each row's log loss in nats.

    Args:
        probabilities: Shape (n, classes), rows sum to 1.
        targets: int, shape (n,).

    Returns:
        float64, shape (n,).
    """
    chosen = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    return -np.log(np.clip(chosen, np.finfo(np.float32).tiny, 1.0))


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of n values (0 for one value)."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The share of rows whose most probable class is right, and its standard error."""
    hits = (probabilities.argmax(1) == targets).astype(np.float64)
    return float(hits.mean()), standard_error(hits)


def evaluate(probabilities: np.ndarray, targets: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Computes everything metrics.json holds about one set of predictions.

    Args:
        probabilities: float, shape (n, classes), rows sum to 1.
        targets: int, shape (n,), in 0 … classes - 1.
        classes: The labels.

    Returns:
        Plain values: n, accuracy and log loss with standard errors, macro and per-class precision, recall, F1
        and support, top-5 accuracy where there are more than five classes, and the confusion matrix (rows are
        the truth).
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # not where nothing is scored

    hit_rate, hit_error = accuracy(probabilities, targets)
    losses = log_losses(probabilities, targets)
    predicted = probabilities.argmax(1)
    numbers = list(range(len(classes)))
    per_class = precision_recall_fscore_support(targets, predicted, labels=numbers, zero_division=0.0)
    scores: dict[str, Any] = {
        "n": len(targets),
        "accuracy": hit_rate,
        "accuracy_se": hit_error,
        "log_loss": float(losses.mean()),
        "log_loss_se": standard_error(losses),
        "macro_precision": float(per_class[0].mean()),
        "macro_recall": float(per_class[1].mean()),
        "macro_f1": float(per_class[2].mean()),
    }
    if len(classes) > TOP_K:
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP_K]  # ties go to the first class, as in argmax
        scores[f"top_{TOP_K}_accuracy"] = float((best == targets[:, None]).any(1).mean())
    scores["per_class"] = {
        label: {name: float(per_class[i][c]) for i, name in enumerate(("precision", "recall", "f1"))}
        | {"support": int(per_class[3][c])}
        for c, label in enumerate(classes)
    }
    scores["confusion"] = confusion_matrix(targets, predicted, labels=numbers).tolist()
    return scores


def percent(value: float, error: float | None = None) -> str:
    """Formats an accuracy as ``0.9312 ± 0.0036``."""
    return f"{value:.4f}" + (f" ± {error:.4f}" if error is not None else "")
