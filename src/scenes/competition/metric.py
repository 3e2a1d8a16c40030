"""What scores predictions: one entry per metric, each with a standard error.

A metric is a function of predictions and targets that returns its value and each row's influence on it: how much the
value would change, times n, if the row weighed a little more. The standard error of the value is that of the mean
of the influences (the infinitesimal jackknife, Efron 1982, chapter 6; for the AUC DeLong et al. 1988), and the standard
error of the difference between two predictions is that of the mean of their differences.
"""

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from scenes.competition.table import some
from scenes.competition.task import Task
from scenes.config import Config
from scenes.console import UserError

# From predictions (n, outputs) and targets to the value and the influences, float64, shape (n,).
Function = Callable[[np.ndarray, np.ndarray], tuple[float, np.ndarray]]

DEFAULT = {"classes": "accuracy", "labels": "roc_auc", "number": "rmse"}
BLOCK_VALUES = 2**20  # predictions that are worked on at once


@dataclass(frozen=True)
class Metric:
    """How predictions are scored.

    Attributes:
        name: As in the config.
        wants: What a submission contains: ``labels``, ``probabilities``, ``ranking``, ``sets`` or ``number``.
        larger_is_better: The direction.
        function: The value and the influences.
        k: How many labels of a ranking count; 1 for all other metrics.
    """

    name: str
    wants: str
    larger_is_better: bool
    function: Function
    k: int = 1

    def score(self, predictions: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """Scores predictions.

        Args:
            predictions: float32, shape (n, outputs).
            targets: In the task's form.

        Returns:
            The value and its standard error.
        """
        value, influences = self.function(predictions, targets)
        return value, standard_error(influences)

    def gain(self, before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
        """How much better `after` is than `before` on the same rows, positive if it is, and the standard error."""
        sign = 1 if self.larger_is_better else -1
        (old, old_influences), (new, new_influences) = (self.function(each, targets) for each in (before, after))
        return sign * (new - old), standard_error(new_influences - old_influences)

    def is_better(self, value: float, than: float) -> bool:
        """Whether one value is better than another."""
        return value > than if self.larger_is_better else value < than


def metric_named(name: str, task: Task) -> Metric:
    """Finds a metric.

    Args:
        name: One of `METRICS`, with a number in place of k, as ``map@5``.
        task: What is predicted.

    Raises:
        UserError: If there is no such metric, or it does not fit the task.
    """
    number = re.search(r"(?<=[@_])[1-9]\d{0,3}$", name)
    key = f"{name[: number.start()]}k" if number else name
    entry = None if name.endswith("k") else METRICS.get(key)
    if not entry:
        near = difflib.get_close_matches(name, METRICS, 1, 0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UserError(f"metric: unknown {name!r}; {hint}available: {', '.join(METRICS)} (k is a number)")
    tasks, wants, larger_is_better, function = entry
    if task.kind not in tasks:
        fitting = [other for other, (kinds, *_) in METRICS.items() if task.kind in kinds]
        raise UserError(f"metric: {name} does not fit task {task.kind}; these do: {', '.join(fitting)}")
    if name == "quadratic_kappa" and task.kind == "classes":
        _check_grades(task)
    if task.kind == "labels" and wants == "labels":
        wants = "sets"
    k = int(number[0]) if number else 1
    if number:
        return Metric(name, wants, larger_is_better, lambda predictions, targets: function(predictions, targets, k), k)
    return Metric(name, wants, larger_is_better, function)


def _check_grades(task: Task) -> None:
    """Rejects classes that are not grades in order, one step apart: 0, 1, 2; grade_1, grade_2; A, B."""
    numbers = [re.fullmatch(r"\D*(\d+)|([A-Za-z])", label) for label in task.columns]
    grades = [int(match[1]) if match[1] else ord(match[2]) for match in numbers if match]
    if len(grades) < len(numbers) or np.any(np.diff(grades) != 1):
        raise UserError(
            f"metric: quadratic_kappa needs grades one step apart, not the classes {some(task.columns)}; write 0, 1, "
            "2, … into the label column, or set task: number if grades are missing"
        )


def competition_metric(config: Config, task: Task) -> Metric:
    """The metric that the config names, or else the task's usual one; errors as for `metric_named`."""
    return metric_named(config.metric or DEFAULT[task.kind], task)


def _mean(values: np.ndarray) -> tuple[float, np.ndarray]:
    """A mean of rows, and each row's influence on it."""
    mean = float(values.mean(dtype=np.float64))
    return mean, values - mean


def _hits(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Which rows are entirely right: the most probable class, or every label at 0.5; float64, shape (n,)."""
    if targets.ndim == 2:
        return ((predictions >= 0.5) == (targets >= 0.5)).all(1).astype(np.float64)
    return (predictions.argmax(1) == targets).astype(np.float64)


def _accuracy(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    return _mean(_hits(predictions, targets))


def _balanced_accuracy(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean recall of the classes that have rows."""
    hits = _hits(predictions, targets)
    counts = np.bincount(targets, minlength=predictions.shape[1])
    recalls = np.bincount(targets, hits, predictions.shape[1]) / np.maximum(counts, 1)
    present = counts > 0
    influences = (hits - recalls[targets]) * len(targets) / (counts[targets] * present.sum())
    return float(recalls[present].mean()), influences


def _f1(predicted: np.ndarray, actual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """F1 of each column of 0 and 1; 0 where nothing is predicted and nothing is present.

    Returns:
        The values, shape (columns,), and the influences, shape (n, columns).
    """
    twice_right, both = 2.0 * predicted * actual, predicted + actual.astype(np.float64)
    weight = both.mean(0)
    values = twice_right.mean(0) / np.where(weight > 0, weight, 1)
    return values, (twice_right - values * both) / np.where(weight > 0, weight, 1)


def _f1_macro(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean F1 of the classes that are predicted or present."""
    predicted = predictions.argmax(1)
    values, influences = _f1_by_class(predicted, targets, predictions.shape[1])
    present = np.zeros(predictions.shape[1], bool)
    present[predicted] = present[targets] = True
    return float(values[present].mean()), influences / present.sum()


def _f1_by_class(predicted: np.ndarray, targets: np.ndarray, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """F1 of each class and each row's influence on their sum, without an array of rows by classes."""
    right = np.bincount(targets[predicted == targets], minlength=classes)
    both = np.bincount(predicted, minlength=classes) + np.bincount(targets, minlength=classes)
    values, weight = 2 * right / np.maximum(both, 1), np.maximum(both, 1) / len(targets)
    hit = predicted == targets
    influences = np.where(hit, 2 * (1 - values[targets]) / weight[targets], 0.0)
    missed = -values[targets] / weight[targets] - values[predicted] / weight[predicted]
    return values, np.where(hit, influences, missed)


def _labels_f1_micro(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """F1 over all pairs of a row and a label; a label is predicted from 0.5 on."""
    predicted, actual = predictions >= 0.5, targets >= 0.5
    twice_right, both = 2.0 * (predicted & actual).sum(1), predicted.sum(1) + actual.sum(1, dtype=np.float64)
    weight = both.mean() or 1.0
    value = float(twice_right.mean() / weight)
    return value, (twice_right - value * both) / weight


def _labels_f1_macro(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean of the labels' F1."""
    values, influences = _f1(predictions >= 0.5, targets >= 0.5)
    return float(values.mean()), influences.mean(1)


def f_of_rows(chosen: np.ndarray, targets: np.ndarray, beta: int) -> np.ndarray:
    """Each row's F score (van Rijsbergen 1979), in which recall counts beta times as much as precision.

    Chosen labels are bool, shape (n, labels), targets 0 or 1; float64, shape (n,), 0 where both have no label.
    """
    actual = targets >= 0.5
    both = beta**2 * actual.sum(1) + chosen.sum(1)
    return (1 + beta**2) * (chosen & actual).sum(1) / np.maximum(both, 1)


def _labels_f_samples(predictions: np.ndarray, targets: np.ndarray, beta: int) -> tuple[float, np.ndarray]:
    return _mean(f_of_rows(predictions >= 0.5, targets, beta))


def _log_loss(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The loss of the true class in nats; for labels, the mean over them."""
    if targets.ndim == 1:
        return _mean(log_losses(predictions, targets))
    chances = np.where(targets >= 0.5, predictions, 1 - predictions.astype(np.float64))
    return _mean(-np.log(np.clip(chances, np.finfo(np.float32).tiny, 1.0)).mean(1))


def _roc_auc(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean over labels, or over classes against the rest; with two classes, the second one's.

    A column whose rows are all the same has no AUC and is left out; if that leaves none, the value is 0.5.
    """
    actual = targets >= 0.5 if targets.ndim == 2 else targets[:, None] == np.arange(predictions.shape[1])
    if targets.ndim == 1 and predictions.shape[1] == 2:
        predictions, actual = predictions[:, 1:], actual[:, 1:]
    values, influences = [], np.zeros(len(targets))
    for scores, is_positive in zip(predictions.T, actual.T, strict=True):
        if 0 < is_positive.sum() < len(is_positive):
            value, own = _column_auc(scores, is_positive)
            values.append(value)
            influences += own
    return (float(np.mean(values)), influences / len(values)) if values else (0.5, influences)


def _column_auc(scores: np.ndarray, is_positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The chance that a positive row scores higher than a negative one; ties count half."""
    from scipy.stats import rankdata

    positives, negatives = int(is_positive.sum()), int((~is_positive).sum())
    among_own = np.empty(len(scores))
    among_own[is_positive], among_own[~is_positive] = rankdata(scores[is_positive]), rankdata(scores[~is_positive])
    below = rankdata(scores) - among_own  # how many of the other kind are below
    wins = np.where(is_positive, below / negatives, 1 - below / positives)
    value = float(wins[is_positive].mean())
    share = np.where(is_positive, positives, negatives) / len(scores)
    return value, (wins - value) / share


def _quadratic_kappa(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Agreement of grades beyond chance, weighted by the squared distance (Cohen 1968); numbers are rounded.

    1 - (mean squared distance) / (that of independent draws from both); 0 if all are the same grade.
    """
    grades = predictions.argmax(1) if targets.dtype.kind in "iu" else np.rint(predictions[:, 0])
    given, true = grades.astype(np.float64), np.rint(targets).astype(np.float64)
    distances, (given_off, true_off) = (given - true) ** 2, (given - given.mean(), true - true.mean())
    shift = given.mean() - true.mean()
    observed, expected = distances.mean(), given.var() + true.var() + shift**2
    if expected == 0:
        return 0.0, np.zeros(len(targets))
    by_row = given_off**2 - given.var() + true_off**2 - true.var() + 2 * shift * (given_off - true_off)
    return float(1 - observed / expected), -(distances - observed) / expected + observed / expected**2 * by_row


def blocks(predictions: np.ndarray) -> Iterator[slice]:
    """Slices of rows, few enough that arrays of their size take little memory even with thousands of outputs."""
    rows = max(1, BLOCK_VALUES // predictions.shape[1])
    yield from (slice(start, start + rows) for start in range(0, len(predictions), rows))


def ranks(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The place of each row's true class among its predictions, from 1; ties go to the first class.

    Args:
        predictions: Shape (n, classes).
        targets: int, shape (n,).

    Returns:
        int64, shape (n,).
    """
    found = np.empty(len(targets), np.int64)
    for rows in blocks(predictions):
        block, true = predictions[rows], targets[rows, None]
        chosen = np.take_along_axis(block, true, 1)
        is_earlier = np.arange(predictions.shape[1]) < true
        found[rows] = 1 + (block > chosen).sum(1) + ((block == chosen) & is_earlier).sum(1)
    return found


def _map_at_k(predictions: np.ndarray, targets: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """Mean average precision of the k best classes, one of which is right: 1 / its rank."""
    places = ranks(predictions, targets)
    return _mean(np.where(places <= k, 1 / places, 0.0))


def _top_k(predictions: np.ndarray, targets: np.ndarray, k: int) -> tuple[float, np.ndarray]:
    """The share of rows whose true class is among the k best."""
    return _mean((ranks(predictions, targets) <= k).astype(np.float64))


def _rmse(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    mean, influences = _mean((predictions[:, 0].astype(np.float64) - targets) ** 2)
    value = mean**0.5
    return value, influences / (2 * value) if value else influences


def _mae(predictions: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    return _mean(np.abs(predictions[:, 0].astype(np.float64) - targets))


# Name: the tasks it fits, what a submission is made of, whether larger is better, how it is computed.
METRICS: dict[str, tuple[tuple[str, ...], str, bool, Callable[..., tuple[float, np.ndarray]]]] = {
    "accuracy": (("classes", "labels"), "labels", True, _accuracy),
    "balanced_accuracy": (("classes",), "labels", True, _balanced_accuracy),
    "f1_macro": (("classes",), "labels", True, _f1_macro),
    "f1_micro": (("classes",), "labels", True, _accuracy),  # with one class per row they are the same
    "log_loss": (("classes", "labels"), "probabilities", False, _log_loss),
    "roc_auc": (("classes", "labels"), "probabilities", True, _roc_auc),
    "quadratic_kappa": (("classes", "number"), "labels", True, _quadratic_kappa),
    "map@k": (("classes",), "ranking", True, _map_at_k),
    "top_k": (("classes",), "ranking", True, _top_k),
    "labels_f1_micro": (("labels",), "sets", True, _labels_f1_micro),
    "labels_f1_macro": (("labels",), "sets", True, _labels_f1_macro),
    "labels_f1_samples": (("labels",), "sets", True, partial(_labels_f_samples, beta=1)),  # the mean over rows
    "labels_f2_samples": (("labels",), "sets", True, partial(_labels_f_samples, beta=2)),
    "rmse": (("number",), "number", False, _rmse),
    "mae": (("number",), "number", False, _mae),
}


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of n values (0 for one value)."""
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


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


def accuracy(probabilities: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """The share of rows whose most probable class is right, and its standard error."""
    value, influences = _accuracy(probabilities, targets)
    return value, standard_error(influences)
