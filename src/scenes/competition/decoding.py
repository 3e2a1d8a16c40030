"""Turns predictions into decisions where the metric does not reward the most probable class or a threshold of 0.5.

Each rule is fitted to out-of-fold rows and has few parameters; whether it pays is decided on rows it was not fitted to
(`inference/ensemble.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from scenes.competition.metric import f_of_rows

THRESHOLDS = np.round(np.arange(0.02, 0.99, 0.02), 2)  # for labels; a finer grid would fit noise
GRADE_CANDIDATES = 100  # possible values of a grade's threshold
SWEEPS = 10  # over the grades' thresholds; they rarely move after the third
SHARE_POWERS = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Decoding:
    """A rule that turns predictions into decisions.

    Attributes:
        rule: ``plain``: the most probable class, labels from 0.5 on, the nearest grade. ``grades``: thresholds on the
            expected grade. ``labels``: a threshold for all labels, or one for each. ``classes``: the largest of the
            probabilities times the classes' weights.
        values: The rule's thresholds or weights.
        lowest: The lowest grade, where numbers are graded.
    """

    rule: str = "plain"
    values: list[float] = field(default_factory=list)
    lowest: float = 0.0

    def apply(self, predictions: np.ndarray) -> np.ndarray:
        """Turns predictions into decisions of the same shape, so that metrics and submission forms read both alike.

        Args:
            predictions: float32, shape (n, outputs).

        Returns:
            float32, shape (n, outputs): 1 for the chosen class and 0 for the others, 0 or 1 for each label, or a grade;
            under ``plain`` the predictions themselves.
        """
        values = np.array(self.values)
        if self.rule == "plain":
            return predictions
        if self.rule == "labels":
            return (predictions >= values).astype(np.float32)
        if self.rule == "classes":
            return _one_hot((predictions * values).argmax(1), predictions.shape[1])
        grades = np.searchsorted(values, expected_grades(predictions) - self.lowest, side="right")
        if predictions.shape[1] == 1:
            return (grades + self.lowest).astype(np.float32)[:, None]
        return _one_hot(grades, predictions.shape[1])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Decoding":
        """Reads what `to_dict` wrote, perhaps among other values; the plain rule if there are none."""
        return cls(values.get("rule", "plain"), list(values.get("values", [])), values.get("lowest", 0.0))


PLAIN = Decoding()
# From predictions (n, outputs) and targets, in the task's form, to a rule.
Fit = Callable[[np.ndarray, np.ndarray], Decoding]


def expected_grades(predictions: np.ndarray) -> np.ndarray:
    """The mean grade under class probabilities (n, grades), or the predicted numbers (n, 1); float64, shape (n,)."""
    if predictions.shape[1] == 1:
        return predictions[:, 0].astype(np.float64)
    return predictions.astype(np.float64) @ np.arange(predictions.shape[1])


def round_grades(predictions: np.ndarray, targets: np.ndarray) -> Decoding:
    """The grade nearest to the expected one, which a squared penalty favours over the most probable."""
    lowest, grades = _grades(predictions, targets)
    return Decoding("grades", [grade + 0.5 for grade in range(grades - 1)], lowest)


def fit_grades(predictions: np.ndarray, targets: np.ndarray) -> Decoding:
    """Moves each threshold on the expected grade in turn to where the quadratic kappa is highest."""
    lowest, grades = _grades(predictions, targets)
    expected, truth = expected_grades(predictions) - lowest, np.asarray(targets, np.float64) - lowest
    # The mean squared difference between each grade and another row's truth, which kappa is relative to.
    by_chance = np.square(np.arange(grades)[:, None] - truth).mean(1)

    def kappa(thresholds: np.ndarray) -> float:
        given = np.searchsorted(thresholds, expected, side="right")
        chance = by_chance[given].mean()
        return float(1 - np.square(given - truth).mean() / chance) if chance else 0.0

    candidates = np.unique(np.quantile(expected, np.linspace(0, 1, GRADE_CANDIDATES)))
    thresholds = np.arange(grades - 1) + 0.5
    best = kappa(thresholds)
    for _ in range(SWEEPS):
        before = best
        for at in range(grades - 1):
            low = thresholds[at - 1] if at else -np.inf
            high = thresholds[at + 1] if at + 2 < grades else np.inf
            for candidate in candidates[(candidates >= low) & (candidates <= high)]:
                moved = np.concatenate([thresholds[:at], [candidate], thresholds[at + 1 :]])
                if (score := kappa(moved)) > best:
                    best, thresholds = score, moved
        if best == before:
            break
    return Decoding("grades", thresholds.tolist(), lowest)


def _grades(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, int]:
    """The lowest grade and how many there are: all classes, or all integers that the targets span."""
    if predictions.shape[1] > 1:
        return 0.0, predictions.shape[1]
    lowest = float(np.min(targets))
    return lowest, round(float(np.max(targets)) - lowest) + 1


def fit_one_threshold(average: str) -> Fit:
    """The threshold for all labels with the best F1, ``micro`` or ``macro``."""

    def fit(predictions: np.ndarray, targets: np.ndarray) -> Decoding:
        hits, given, true = _label_counts(predictions, targets)
        scores = _f1(hits.sum(1), given.sum(1), true.sum()) if average == "micro" else _f1(hits, given, true).mean(1)
        return Decoding("labels", [float(THRESHOLDS[scores.argmax()])])

    return fit


def fit_threshold_of_rows(beta: int) -> Fit:
    """The threshold for all labels with the best mean F score of the rows, see `f_of_rows`."""

    def fit(predictions: np.ndarray, targets: np.ndarray) -> Decoding:
        scores = [f_of_rows(predictions >= threshold, targets, beta).mean() for threshold in THRESHOLDS]
        return Decoding("labels", [float(THRESHOLDS[int(np.argmax(scores))])])

    return fit


def fit_thresholds(average: str) -> Fit:
    """A threshold for each label, so that together they have the best F1, ``micro`` or ``macro``."""

    def fit(predictions: np.ndarray, targets: np.ndarray) -> Decoding:
        hits, given, true = _label_counts(predictions, targets)
        labels = np.arange(len(true))
        best = _f1(hits, given, true).argmax(0)
        # The highest ratio of sums, by Dinkelbach's method (1967, Management Science 13): F1 = 2 hits / (given + true).
        while average == "micro":
            score = _f1(hits[best, labels].sum(), given[best, labels].sum(), true.sum())
            better = (2 * hits - score * given).argmax(0)
            if _f1(hits[better, labels].sum(), given[better, labels].sum(), true.sum()) <= score:
                break
            best = better
        return Decoding("labels", THRESHOLDS[best].tolist())

    return fit


def _label_counts(predictions: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often labels are correctly given, given, and true: two of shape (thresholds, labels), one of (labels,)."""
    is_true = np.asarray(targets) > 0.5
    counts = []
    for threshold in THRESHOLDS:
        is_given = predictions >= threshold
        counts.append(((is_given & is_true).sum(0), is_given.sum(0)))
    hits, given = map(np.stack, zip(*counts, strict=True))
    return hits, given, is_true.sum(0)


def _f1(hits: np.ndarray, given: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F1 from counts; 0 where there is nothing to find and nothing was given."""
    return 2 * hits / np.maximum(given + true, 1)


def fit_class_weights(average_of: str) -> Fit:
    """Weights classes by a power of their share, so that rare ones are chosen more often.

    Args:
        average_of: What is averaged over the classes with equal weights: ``f1`` or ``recall``.
    """

    def fit(predictions: np.ndarray, targets: np.ndarray) -> Decoding:
        counts = np.bincount(targets, minlength=predictions.shape[1])
        shares = np.maximum(counts, 1) / len(targets)
        weights = [shares**-power for power in SHARE_POWERS]

        def score(candidate: np.ndarray) -> float:
            chosen = (predictions * candidate).argmax(1)
            hits = np.bincount(targets[chosen == targets], minlength=len(counts))
            given = np.bincount(chosen, minlength=len(counts))
            present = counts + (given if average_of == "f1" else 0) > 0
            each = _f1(hits, given, counts) if average_of == "f1" else hits / np.maximum(counts, 1)
            return float(each[present].mean())

        return Decoding("classes", max(weights, key=score).tolist())

    return fit


def _one_hot(chosen: np.ndarray, classes: int) -> np.ndarray:
    return (chosen[:, None] == np.arange(classes)).astype(np.float32)


# Rules that may do better than the plain one, from simple to complex, by the metric's name.
FITS: dict[str, list[Fit]] = {
    "quadratic_kappa": [round_grades, fit_grades],
    "labels_f1_micro": [fit_one_threshold("micro"), fit_thresholds("micro")],
    "labels_f1_macro": [fit_one_threshold("macro"), fit_thresholds("macro")],
    "labels_f1_samples": [fit_threshold_of_rows(1)],
    "labels_f2_samples": [fit_threshold_of_rows(2)],
    "f1_macro": [fit_class_weights("f1")],
    "balanced_accuracy": [fit_class_weights("recall")],
}
