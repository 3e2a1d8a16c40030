"""Linear models on a frozen body's features, their regularisation chosen on a fifth of the rows."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from scenes.randomness import key

# Inverse regularisation, from strong to weak; standardised features of a good body want it strong.
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DEFAULT_STRENGTH = 3e-3
MAX_STEPS = 300
MIN_ROWS_TO_CHOOSE = 5  # of each class, else the fifth would lack some
RIDGE_PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)  # from weak to strong
ABSENT = 10.0  # how much lower than all others the logit of a class without training rows is


class LinearHead(NamedTuple):
    """A linear layer for features as they are.

    Attributes:
        weights: float32, shape (outputs, f).
        biases: float32, shape (outputs,).
        chosen: The regularisation, for people to read.
    """

    weights: np.ndarray
    biases: np.ndarray
    chosen: str

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Applies the layer to features of shape (n, f)."""
        return features @ self.weights.T + self.biases


def fit_classes(features: np.ndarray, targets: np.ndarray, classes: int, seed: int) -> LinearHead:
    """Fits a multinomial logistic regression.

    Args:
        features: float32, shape (n, f).
        targets: int, shape (n,).
        classes: How many; one without a row is never predicted.
        seed: Of the fifth's choice.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    counts = np.bincount(targets, minlength=classes)
    strength = DEFAULT_STRENGTH
    if counts.min() >= MIN_ROWS_TO_CHOOSE:
        kept, held = _parts(len(targets), targets, seed)
        scaler, regression = StandardScaler(), LogisticRegression(max_iter=MAX_STEPS, warm_start=True)
        rows, held_rows = scaler.fit_transform(features[kept]), scaler.transform(features[held])

        def loss(candidate: float) -> float:  # each candidate starts from the one before
            _quietly(regression.set_params(C=candidate).fit, rows, targets[kept])
            return _log_loss(regression.predict_proba(held_rows)[np.arange(len(held)), targets[held]])

        strength = min(STRENGTHS, key=loss)
    scaler, regression = StandardScaler(), LogisticRegression(C=strength, max_iter=MAX_STEPS)
    _quietly(regression.fit, scaler.fit_transform(features), targets)
    weights, biases = regression.coef_, regression.intercept_
    if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes
        weights, biases = np.concatenate([-weights, weights]) / 2, np.concatenate([-biases, biases]) / 2
    all_weights = np.zeros((classes, features.shape[1]))
    all_biases = np.full(classes, biases.min() - ABSENT)
    all_weights[regression.classes_], all_biases[regression.classes_] = weights, biases
    return _unscaled(all_weights, all_biases, scaler.mean_, scaler.scale_, f"C = {strength:g}")


def fit_labels(features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
    """Fits a logistic regression for each label, all with the same regularisation.

    Args:
        features: float32, shape (n, f).
        targets: float32, shape (n, labels), of 0 and 1; a label that is always the same gets its share as it is.
        seed: Of the fifth's choice.
    """
    from sklearn.preprocessing import StandardScaler

    kept, held = _parts(len(targets), None, seed)
    scaler = StandardScaler()
    rows, held_rows = scaler.fit_transform(features[kept]), scaler.transform(features[held])

    def loss(candidate: float) -> float:
        weights, biases = _regressions(rows, targets[kept], candidate)
        chances = 1 / (1 + np.exp(-(held_rows @ weights.T + biases)))
        return _log_loss(np.where(targets[held] > 0.5, chances, 1 - chances))

    strength = min(STRENGTHS, key=loss) if len(kept) >= 2 * MIN_ROWS_TO_CHOOSE else DEFAULT_STRENGTH
    scaler = StandardScaler()
    weights, biases = _regressions(scaler.fit_transform(features), targets, strength)
    return _unscaled(weights, biases, scaler.mean_, scaler.scale_, f"C = {strength:g}")


def fit_number(features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
    """Fits a ridge regression.

    Args:
        features: float32, shape (n, f).
        targets: float32, shape (n, 1).
        seed: Of the fifth's choice.
    """
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    numbers = targets[:, 0]
    kept, held = _parts(len(numbers), None, seed)
    scaler = StandardScaler()
    rows, held_rows = scaler.fit_transform(features[kept]), scaler.transform(features[held])

    def loss(penalty: float) -> float:
        return float(((Ridge(penalty).fit(rows, numbers[kept]).predict(held_rows) - numbers[held]) ** 2).mean())

    penalty = min(RIDGE_PENALTIES, key=loss)
    scaler = StandardScaler()
    regression = Ridge(penalty).fit(scaler.fit_transform(features), numbers)
    weights, biases = regression.coef_[None], np.array([regression.intercept_])
    return _unscaled(weights, biases, scaler.mean_, scaler.scale_, f"penalty = {penalty:g}")


def _parts(count: int, strata: np.ndarray | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into four fifths to fit and one fifth to choose by."""
    from sklearn.model_selection import train_test_split

    state = key("probe", seed) % 2**32
    return train_test_split(np.arange(count), test_size=1 / 5, stratify=strata, random_state=state)


def _regressions(rows: np.ndarray, targets: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """A binary logistic regression a column of `targets`: weights (labels, f) and biases (labels,)."""
    from sklearn.linear_model import LogisticRegression

    weights, biases = np.zeros((targets.shape[1], rows.shape[1])), np.zeros(targets.shape[1])
    for label, column in enumerate(targets.T):
        share = np.clip(column.mean(), 1 / (len(column) + 2), 1 - 1 / (len(column) + 2))
        if column.min() == column.max():  # nothing to learn but the share
            biases[label] = np.log(share / (1 - share))
            continue
        regression = LogisticRegression(C=strength, max_iter=MAX_STEPS)
        _quietly(regression.fit, rows, column > 0.5)
        weights[label], biases[label] = regression.coef_[0], regression.intercept_[0]
    return weights, biases


def _unscaled(weights: np.ndarray, biases: np.ndarray, mean: np.ndarray, scale: np.ndarray, chosen: str) -> LinearHead:
    """Turns a layer for standardised features into one for features as they are."""
    scaled = weights / scale
    return LinearHead(scaled.astype(np.float32), (biases - scaled @ mean).astype(np.float32), chosen)


def _log_loss(chances: np.ndarray) -> float:
    return float(-np.log(np.clip(chances.astype(np.float64), np.finfo(np.float32).tiny, 1.0)).mean())


def _quietly(fit: Callable[..., object], rows: np.ndarray, targets: np.ndarray) -> None:
    """Fits without a warning of steps that ran out: after so many the rest does not matter."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fit(rows, targets)
