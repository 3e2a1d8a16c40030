"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599): changes the confidence of predictions, not the decisions.

It is applied after averaging over folds, views and members (Rahaman and Thiery 2020, arXiv:2007.08792). If all held-out
rows are correct, the most likely temperature would make every probability 0 or 1. The fit therefore adds one wrong row,
the average row, as Platt smooths targets (1999, Advances in Large Margin Classifiers, section 2.2).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scenes.competition.metric import blocks

TEMPERATURES = (0.05, 20.0)  # the search range
MAX_FITTED = 2**24  # predictions a temperature is fitted to: a thousand rows of 16,000 classes
MIN_ROWS = 20  # with, and without, a label before it gets its own temperature
ECE_BINS = 15
TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Calibration:
    """Temperatures that divide the logits of probabilities.

    Attributes:
        kind: The task's kind: ``classes``, ``labels`` or ``number``.
        temperatures: One for all outputs, or one per label; empty leaves predictions unchanged. Below 1, predictions
            become more confident.
    """

    kind: str
    temperatures: list[float] = field(default_factory=list)

    def apply(self, predictions: np.ndarray) -> np.ndarray:
        """Recalibrates predictions.

        Args:
            predictions: float32, shape (n, outputs).

        Returns:
            float32, shape (n, outputs), with the same most probable class, or the same labels at 0.5 and above.
        """
        if not self.temperatures:
            return predictions
        recalibrated = np.empty(predictions.shape, np.float32)
        for rows in blocks(predictions):
            recalibrated[rows] = self._apply(predictions[rows])
        return recalibrated

    def _apply(self, predictions: np.ndarray) -> np.ndarray:
        temperatures = np.array(self.temperatures)
        if self.kind == "labels":
            return _keep_side(predictions, _sigmoid(_logits(predictions) / temperatures).astype(np.float32))
        scaled = _softmax(_logs(predictions) / temperatures).astype(np.float32)
        # Rounding to float32 may make two flattened probabilities equal that were not.
        best, rows = predictions.argmax(1), np.arange(len(predictions))
        tied = scaled.argmax(1) != best
        scaled[rows[tied], best[tied]] = np.nextafter(scaled[tied].max(1), np.float32(2))
        return scaled

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Calibration":
        """Reads what `to_dict` returned; other keys are ignored."""
        return cls(values["kind"], list(values.get("temperatures", [])))


# From predictions (n, outputs) and targets in the task's form to a calibration.
Fit = Callable[[np.ndarray, np.ndarray], Calibration]


def no_calibration(kind: str) -> Calibration:
    """A calibration that leaves predictions unchanged."""
    return Calibration(kind)


def fit_classes(predictions: np.ndarray, targets: np.ndarray) -> Calibration:
    """Fits the temperature with the lowest log loss for class probabilities (n, classes) and targets (n,)."""
    predictions, targets = _fitted_rows(predictions, targets)
    logs, rows = _logs(predictions), np.arange(len(targets))
    true = logs[rows, targets]
    others = logs.copy()
    others[rows, targets] = -np.inf
    rival = others.max(1) if predictions.shape[1] > 1 else true  # the most probable wrong class

    def loss(temperature: float) -> float:
        scaled = logs / temperature
        highest = scaled.max(1)
        total = np.log(np.exp(scaled - highest[:, None]).sum(1)) + highest
        return _mean_with_wrong_row(total - true / temperature, total - rival / temperature)

    return Calibration("classes", [_best_temperature(loss)])


def fit_labels(predictions: np.ndarray, targets: np.ndarray) -> Calibration:
    """Fits the temperature with the lowest log loss for label probabilities (n, labels) and targets (n, labels)."""
    predictions, targets = _fitted_rows(predictions, targets)
    return Calibration("labels", [_label_temperature(_logits(predictions), targets)])


def fit_each_label(predictions: np.ndarray, targets: np.ndarray) -> Calibration:
    """Fits a temperature for each label; labels with too few rows of either kind share one."""
    predictions, targets = _fitted_rows(predictions, targets)
    logits = _logits(predictions)
    shared = _label_temperature(logits, targets)
    counts = (targets >= 0.5).sum(0)
    is_common = np.minimum(counts, len(targets) - counts) >= MIN_ROWS
    each = [
        _label_temperature(logits[:, at], targets[:, at]) if common else shared for at, common in enumerate(is_common)
    ]
    return Calibration("labels", each)


# The calibrations to try for each kind of task, from simple to complex. Numbers have nothing to calibrate.
FITS: dict[str, list[Fit]] = {"classes": [fit_classes], "labels": [fit_labels, fit_each_label], "number": []}


def calibration_error(predictions: np.ndarray, targets: np.ndarray) -> float:
    """The expected calibration error (Naeini et al. 2015, AAAI) in 15 bins of equal width.

    Args:
        predictions: Probabilities of classes, of which only the highest counts, or of labels, which all count.
        targets: int, shape (n,), or 0/1 of shape (n, labels).
    """
    if targets.ndim == 2:
        confidence, is_right = predictions.ravel(), (targets >= 0.5).ravel()
    else:
        confidence, is_right = predictions.max(1), predictions.argmax(1) == targets
    bins = np.minimum((confidence.astype(np.float64) * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    gaps = np.bincount(bins, is_right - confidence.astype(np.float64), ECE_BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _fitted_rows(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows that temperatures are fitted to: all, or every k-th where there are very many outputs."""
    step = -(-predictions.size // MAX_FITTED)
    return predictions[::step], targets[::step]


def _label_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    signed = np.where(targets >= 0.5, logits, -logits)

    def loss(temperature: float) -> float:
        scaled = signed / temperature
        return _mean_with_wrong_row(np.logaddexp(0, -scaled), np.logaddexp(0, scaled))

    return _best_temperature(loss)


def _mean_with_wrong_row(losses: np.ndarray, if_wrong: np.ndarray) -> float:
    """The mean loss of all rows plus one more: the average row with a wrong target."""
    count = len(losses)
    return float((count * losses.mean() + if_wrong.mean()) / (count + 1))


def _best_temperature(loss: Callable[[float], float]) -> float:
    """The temperature with the lowest loss, which is convex in the inverse temperature."""
    from scipy.optimize import minimize_scalar

    low, high = np.log(TEMPERATURES)
    found = minimize_scalar(lambda log: loss(float(np.exp(log))), bounds=(low, high), method="bounded")
    return round(float(np.exp(found.x)), 4)


def _logs(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.clip(probabilities.astype(np.float64), TINY, 1.0))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    exact = probabilities.astype(np.float64)
    return np.log(np.clip(exact, TINY, 1.0)) - np.log(np.clip(1 - exact, TINY, 1.0))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -logits))


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def _keep_side(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Moves back values that rounding to float32 pushed across one half."""
    below = np.nextafter(np.float32(0.5), np.float32(0))
    return np.where(before >= 0.5, np.maximum(after, np.float32(0.5)), np.minimum(after, below))
