"""Combines views and members into one prediction: weights, calibration, decoding; chosen out of fold, scored nested.

For each fold, a choice is fitted to the rows of all other folds and applied to the fold's own rows, so it is scored on
rows it has not seen. A more complex choice is made only if it scores better this way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from scenes.competition import decoding as decodings
from scenes.competition.decoding import PLAIN, Decoding
from scenes.competition.metric import Metric, metric_named
from scenes.competition.task import Task
from scenes.inference import calibration as calibrations
from scenes.inference.calibration import Calibration, no_calibration

# Further rounds would change a weight by less than 1 in 100.
HILL_CLIMBING_ROUNDS = 100

# From members (m, n, outputs) and targets to weights (m,) that sum to 1.
Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Ensemble:
    """Turns the predictions of views or members into one.

    Attributes:
        weights: float32, shape (members,), sum to 1.
        calibration: Applied to the weighted mean.
        decoding: Applied to the calibrated mean.
    """

    weights: np.ndarray
    calibration: Calibration
    decoding: Decoding = PLAIN

    def predict(self, members: np.ndarray) -> np.ndarray:
        """The calibrated mean: from float32 (members, n, outputs) to float32 (n, outputs)."""
        return self.calibration.apply(weighted_mean(members, self.weights))

    def decide(self, members: np.ndarray) -> np.ndarray:
        """The decoded result of `predict`, in the same shape."""
        return self.decoding.apply(self.predict(members))


@dataclass(frozen=True)
class Recipe:
    """How an ensemble is fitted to members and targets: each part builds on the ones before it."""

    weigh: Weigh
    calibrate: calibrations.Fit
    decode: decodings.Fit

    def fit(self, members: np.ndarray, targets: np.ndarray) -> Ensemble:
        """Fits weights, calibration and decoding, in this order."""
        weights = self.weigh(members, targets)
        mean = weighted_mean(members, weights)
        calibration = self.calibrate(mean, targets)
        return Ensemble(weights, calibration, self.decode(calibration.apply(mean), targets))


@dataclass(frozen=True)
class Fitted:
    """An ensemble and its predictions for rows that it was not fitted to.

    Attributes:
        ensemble: Fitted to all rows.
        predictions: float32, shape (n, outputs): each fold's rows, predicted by an ensemble fitted to the other folds.
        decisions: The predictions, decoded.
        uncalibrated: The predictions without calibration.
    """

    ensemble: Ensemble
    predictions: np.ndarray
    decisions: np.ndarray
    uncalibrated: np.ndarray


def fit_ensemble(
    weigh: Weigh,
    members: np.ndarray,
    targets: np.ndarray,
    fold_of: np.ndarray,
    task: Task,
    metric: Metric,
) -> Fitted:
    """Chooses how predictions are calibrated and decoded.

    A temperature is used if it lowers the log loss; anything more complex, and any decoding, only if it wins by more
    than one paired standard error.

    Args:
        weigh: How the members are weighted.
        members: float32, shape (members, n, outputs): out-of-fold predictions.
        targets: n targets in the task's form.
        fold_of: int, shape (n,). With a single fold nothing can be scored, so nothing is chosen.
        task: What is predicted.
        metric: The metric that scores it.
    """
    plain = no_calibration(task.kind)

    def nested(recipe: Recipe, apply: Callable[[Ensemble, np.ndarray], np.ndarray]) -> np.ndarray:
        return nested_predictions(recipe, apply, members, targets, fold_of)

    recipe = Recipe(weigh, lambda *_: plain, lambda *_: PLAIN)
    uncalibrated = predictions = nested(recipe, Ensemble.predict)
    has_folds = len(np.unique(fold_of)) > 1
    for number, fit in enumerate(calibrations.FITS[task.kind] if has_folds else []):
        tried = Recipe(weigh, fit, recipe.decode)
        candidate = nested(tried, Ensemble.predict)
        gain, error = metric_named("log_loss", task).gain(predictions, candidate, targets)
        if gain > (error if number else 0) and not _loses(metric, predictions, candidate, targets):
            recipe, predictions = tried, candidate
    decisions = predictions
    for decode in decodings.FITS.get(metric.name, []) if has_folds else []:
        tried = Recipe(weigh, recipe.calibrate, decode)
        candidate = nested(tried, Ensemble.decide)
        gain, error = metric.gain(decisions, candidate, targets)
        if gain > error:
            recipe, decisions = tried, candidate
    ensemble = recipe.fit(members, targets) if has_folds else Ensemble(equal_weights(members, targets), plain)
    return Fitted(ensemble, predictions, decisions, uncalibrated)


def _loses(metric: Metric, before: np.ndarray, after: np.ndarray, targets: np.ndarray) -> bool:
    """Whether the metric gets worse by more than one paired standard error."""
    gain, error = metric.gain(before, after, targets)
    return gain < -error


def nested_predictions(
    recipe: Recipe,
    apply: Callable[[Ensemble, np.ndarray], np.ndarray],
    members: np.ndarray,
    targets: np.ndarray,
    fold_of: np.ndarray,
) -> np.ndarray:
    """Predicts each fold's rows with the ensemble fitted to the other folds; with one fold, with the plain mean.

    Returns:
        float32, shape (n, outputs).
    """
    predictions = np.empty(members.shape[1:], np.float32)
    folds = np.unique(fold_of)
    if len(folds) < 2:
        return weighted_mean(members, equal_weights(members, targets))
    for fold in folds:
        held, others = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        ensemble = recipe.fit(members.take(others, 1), targets[others])
        predictions[held] = apply(ensemble, members.take(held, 1))
    return predictions


def selection_metric(metric: Metric, task: Task) -> Metric:
    """The metric that chooses views and weights: the metric itself, or the log loss if the metric sees only decisions.

    Decisions change in only a few rows at a time, so choosing by them would mostly be choosing by chance.
    """
    sees_all = metric.wants in ("probabilities", "number")
    return metric if sees_all else metric_named("rmse" if task.kind == "number" else "log_loss", task)


def cost(metric: Metric, predictions: np.ndarray, targets: np.ndarray) -> float:
    """A metric as a cost to minimise; see `cost_name`."""
    value = metric.score(predictions, targets)[0]
    return 1 - value if metric.larger_is_better else value


def cost_name(metric: Metric) -> str:
    """The name of `cost`, e.g. ``log loss``, ``1 - roc auc`` or ``rmse``."""
    return ("1 - " if metric.larger_is_better else "") + metric.name.replace("_", " ")


def view_weights(metric: Metric) -> Weigh:
    """Keeps the views that do not make the mean worse by more than one paired standard error of a metric.

    Weights are equal for the views kept and 0 for the others; the first view is always kept.
    """

    def weigh(views: np.ndarray, targets: np.ndarray) -> np.ndarray:
        weights = _share(len(views), [0])
        for view in range(1, len(views)):
            tried = _share(len(views), [*np.flatnonzero(weights), view])
            if not _loses(metric, weighted_mean(views, weights), weighted_mean(views, tried), targets):
                weights = tried
        return weights

    return weigh


def _share(count: int, chosen: Sequence[int]) -> np.ndarray:
    """Equal weights for those chosen, 0 for the others: float32, shape (count,)."""
    weights = np.zeros(count, np.float32)
    weights[chosen] = 1 / len(chosen)
    return weights


def equal_weights(members: np.ndarray, _: Any) -> np.ndarray:
    """The plain mean; float32, shape (members,)."""
    return _share(len(members), range(len(members)))


def hill_climbing_weights(members: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Repeatedly adds the member that lowers the mean's loss most (Caruana et al. 2004, ICML).

    The loss is the log loss, or for numbers the mean squared error. It starts from the plain mean, with each member
    counted once, which guards against overfitting to few rows.

    Args:
        members: float32, shape (members, n, outputs).
        targets: n targets in the task's form.

    Returns:
        float32, shape (members,): weights that sum to 1.
    """
    if members.shape[2] == 1:
        parts = members[:, :, 0] - targets.astype(np.float64)
        loss: Callable[[np.ndarray], float] = _mean_square
    else:  # the log loss looks only at the probability of the truth
        exact = members.astype(np.float64)
        is_true = targets >= 0.5
        chosen = (
            np.where(is_true, exact, 1 - exact) if targets.ndim == 2 else exact[:, np.arange(len(targets)), targets]
        )
        parts, loss = chosen.reshape(len(members), -1), _log_loss
    counts = np.ones(len(members))
    best = loss(counts @ parts / counts.sum())
    for _ in range(HILL_CLIMBING_ROUNDS):
        totals = counts @ parts
        losses = [loss((totals + part) / (counts.sum() + 1)) for part in parts]
        if min(losses) >= best:
            break
        best = min(losses)
        counts[int(np.argmin(losses))] += 1
    return (counts / counts.sum()).astype(np.float32)


def _mean_square(errors: np.ndarray) -> float:
    return float(np.square(errors).mean())


def _log_loss(probabilities: np.ndarray) -> float:
    return float(-np.log(np.clip(probabilities, np.finfo(np.float32).tiny, 1)).mean())


def weighted_mean(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Averages predictions (members, n, outputs) to float32, shape (n, outputs)."""
    mean = np.zeros(members.shape[1:], np.float32)
    for member, weight in zip(members, weights, strict=True):
        if weight:
            mean += np.float32(weight) * member
    return mean


def agreement(members: np.ndarray, task: Task) -> np.ndarray:
    """How alike each two members are: the share of equal classes or labels, or for numbers the correlation.

    Returns:
        float64, shape (members, members).
    """
    if task.kind == "number":
        return np.corrcoef(members[:, :, 0])
    decided = members.argmax(2) if task.kind == "classes" else members >= 0.5
    table = np.eye(len(members))
    for one, other in combinations(range(len(members)), 2):
        table[one, other] = table[other, one] = (decided[one] == decided[other]).mean()
    return table


def oracle_accuracy(members: np.ndarray, targets: np.ndarray) -> float:
    """The share of rows that at least one member gets right: the upper limit of choosing a member for each row."""
    return float((members.argmax(2) == targets).any(0).mean())
