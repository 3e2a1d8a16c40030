"""Linear models on a frozen body's features, with regularisation chosen on a fifth of the rows."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scenes.competition.strata import stratified_folds
from scenes.randomness import key

# Inverse regularisation, from strong to weak; a good body's standardised features need it strong.
STRENGTHS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
DEFAULT_STRENGTH = 3e-3
MAX_STEPS = 300
ROUGH, FINE = 1e-3, 1e-7  # tolerances: to choose the regularisation, and for the result
MOST_VALUES = 10**8  # rows × outputs that a few cores fit within minutes
MIN_ROWS_TO_CHOOSE = 5  # per class, else the fifth would lack some
RIDGE_PENALTIES = (1e1, 1e2, 1e3, 1e4, 1e5)  # from weak to strong
ABSENT = 10.0  # how much lower than all others the logit of a class without training rows is


class LinearHead(NamedTuple):
    """A linear layer for unscaled features.

    Attributes:
        weights: float32, shape (outputs, f).
        biases: float32, shape (outputs,).
        chosen: The regularisation, for display.
    """

    weights: np.ndarray
    biases: np.ndarray
    chosen: str

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Applies the layer to features of shape (n, f)."""
        return features @ self.weights.T + self.biases


def why_too_large(rows: int, outputs: int) -> str:
    """Says that fitting a head would take longer than training a network to start with; empty if it would not."""
    if rows * outputs <= MOST_VALUES:
        return ""
    return f"a linear probe of {rows} rows and {outputs} outputs would take hours"


def fit_classes(features: np.ndarray, targets: np.ndarray, classes: int, seed: int) -> LinearHead:
    """Fits a multinomial logistic regression.

    Args:
        features: float32, shape (n, f).
        targets: int, shape (n,).
        classes: The number of classes; one without rows is never predicted.
        seed: The seed that chooses the fifth.
    """
    present, places = np.unique(targets, return_inverse=True)
    wanted = np.eye(len(present), dtype=np.float32)[places]
    parts = None
    if np.bincount(targets, minlength=classes).min() >= MIN_ROWS_TO_CHOOSE:
        parts = _parts(targets, seed)
    if len(present) == 2:  # one regression, whose penalty is not that of two
        found = _logistic(features, wanted[:, 1:], parts, exclusive=False)
        weights, biases = np.concatenate([-found.weights, found.weights]), np.concatenate([-found.biases, found.biases])
        found = LinearHead(weights / 2, biases / 2, found.chosen)
    else:
        found = _logistic(features, wanted, parts, exclusive=True)
    weights = np.zeros((classes, features.shape[1]), np.float32)
    biases = np.full(classes, found.biases.min() - ABSENT, np.float32)
    weights[present], biases[present] = found.weights, found.biases
    return LinearHead(weights, biases, found.chosen)


def fit_labels(features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
    """Fits a logistic regression for each label, all with the same regularisation.

    Args:
        features: float32, shape (n, f).
        targets: float32, shape (n, labels), of 0 and 1; for a label that never changes, its share is predicted.
        seed: The seed that chooses the fifth.
    """
    parts = _parts(np.zeros(len(targets), np.int64), seed)
    return _logistic(features, targets, parts if len(parts[0]) >= 2 * MIN_ROWS_TO_CHOOSE else None, exclusive=False)


def fit_number(features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
    """Fits a ridge regression.

    Args:
        features: float32, shape (n, f).
        targets: float32, shape (n, 1).
        seed: The seed that chooses the fifth.
    """
    rows, mean, scale = _standardised(features)
    kept, held = _parts(np.zeros(len(rows), np.int64), seed)
    solve = _ridge(rows[kept], targets[kept])
    penalty = min(RIDGE_PENALTIES, key=lambda each: float(((rows[held] @ solve(each) - targets[held]) ** 2).mean()))
    return _unscaled(_ridge(rows, targets)(penalty).T, mean, scale, f"penalty = {penalty:g}")


def _parts(strata: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Splits rows into four fifths to fit and one fifth to choose by, stratified."""
    is_held = stratified_folds(strata, 5, key("probe", seed) % 2**32) == 0
    return np.flatnonzero(~is_held), np.flatnonzero(is_held)


def _standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of mean 0 and variance 1, and a last column of ones for the biases; their means and scales."""
    mean, scale = features.mean(0, dtype=np.float64), features.std(0, dtype=np.float64)
    scale[scale <= 1e-6 * np.abs(mean)] = 1  # features that are constant but for rounding
    rows = np.ones((len(features), features.shape[1] + 1), np.float32)
    np.divide(features - mean.astype(np.float32), scale.astype(np.float32), out=rows[:, :-1])
    return rows, mean, scale


def _unscaled(solution: np.ndarray, mean: np.ndarray, scale: np.ndarray, chosen: str) -> LinearHead:
    """Turns weights for standardised features, biases last, into a layer for unscaled features."""
    weights = solution[:, :-1] / scale
    return LinearHead(weights.astype(np.float32), (solution[:, -1] - weights @ mean).astype(np.float32), chosen)


def _ridge(rows: np.ndarray, numbers: np.ndarray) -> Callable[[float], np.ndarray]:
    """Prepares least squares; the returned function takes the penalty."""
    moments, projected = (rows.T @ rows).astype(np.float64), rows.T @ numbers

    def solve(penalty: float) -> np.ndarray:
        return np.linalg.solve(moments + np.diag(_penalties(len(moments), penalty)), projected)

    return solve


def _penalties(count: int, penalty: float) -> np.ndarray:
    """The penalty of each weight; the bias, the last one, has none."""
    return np.append(np.full(count - 1, penalty, np.float32), np.float32(0))


def _logistic(
    features: np.ndarray, targets: np.ndarray, parts: tuple[np.ndarray, np.ndarray] | None, exclusive: bool
) -> LinearHead:
    """Fits logistic regressions that share rows and regularisation.

    Args:
        features: float32, shape (n, f).
        targets: float32, shape (n, outputs), of 0 and 1.
        parts: Rows to fit and rows to choose the regularisation by; None for the default regularisation.
        exclusive: Whether each row has exactly one 1, and the outputs are one softmax.
    """
    standardised, mean, scale = _standardised(features)
    rarest = 1 / (len(targets) + 2)
    share = targets.mean(0).clip(rarest, 1 - rarest)
    # For an output that never changes, the share is all there is to learn.
    learned = np.where(targets.min(0) == targets.max(0), share, targets).astype(np.float32)
    rows, wanted = torch.from_numpy(standardised), torch.from_numpy(learned)
    solution = torch.zeros(rows.shape[1], wanted.shape[1])
    solution[-1] = torch.from_numpy(np.log(share) if exclusive else np.log(share / (1 - share)))
    strength = DEFAULT_STRENGTH
    if parts is not None:
        kept, held = parts
        problem = rows[kept], wanted[kept], exclusive
        held_rows, held_wanted = rows[held], wanted[held]
        curvature = _curvature(*problem, solution)
        tried, losses = [solution], []
        for candidate in STRENGTHS:  # each starts from the previous one
            tried.append(_minimise(*problem, tried[-1], curvature, candidate, ROUGH))
            losses.append(_loss(held_rows @ tried[-1], held_wanted, exclusive)[0])
            if losses[-1] > min(losses):
                break  # weaker ones overfit even more
        best = int(np.argmin(losses))
        strength, solution = STRENGTHS[best], tried[best + 1]
    curvature = _curvature(rows, wanted, exclusive, solution)
    solution = _minimise(rows, wanted, exclusive, solution, curvature, strength, FINE)
    return _unscaled(solution.numpy().T, mean, scale, f"C = {strength:g}")


def _minimise(
    rows: Tensor,
    wanted: Tensor,
    exclusive: bool,
    start: Tensor,
    curvature: Tensor,
    strength: float,
    tolerance: float,
) -> Tensor:
    """Minimises the mean loss and the penalty; returns the solution, float32, shape (f + 1, outputs).

    L-BFGS needs few steps where the curvature is the same in all directions, so it works on the solution times a root
    of the curvature. torch multiplies such narrow matrices several times as fast as NumPy.

    Args:
        rows: float32, shape (n, f + 1), the last column of ones.
        wanted: float32, shape (n, outputs).
        exclusive: See `_logistic`.
        start: float32, shape (f + 1, outputs).
        curvature: From `_curvature`.
        strength: Inverse regularisation, scikit-learn's C.
        tolerance: Fitting ends when a step lowers the result by less than this share.
    """
    from scipy.optimize import minimize  # slow to import, and only needed here

    penalties = torch.from_numpy(_penalties(len(curvature), 1 / (strength * len(rows))))
    floor = 1e-5 * curvature.diagonal().mean()  # there is no curvature where features are collinear
    root = torch.linalg.cholesky(curvature + torch.diag(penalties + floor))

    def solution(point: np.ndarray) -> Tensor:
        scaled = torch.from_numpy(point.reshape(start.shape).astype(np.float32))
        return torch.linalg.solve_triangular(root.T, scaled, upper=True)

    def objective(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights = solution(point)
        loss, excess = _loss(rows @ weights, wanted, exclusive)
        penalty = penalties[:, None] * weights
        slope = torch.linalg.solve_triangular(root, rows.T @ excess / len(rows) + penalty, upper=False)
        return loss + float((penalty * weights).sum(dtype=torch.float64)) / 2, slope.double().numpy().ravel()

    options = {"maxiter": MAX_STEPS, "ftol": tolerance, "gtol": 1e-5}
    found = minimize(objective, (root.T @ start).numpy().ravel(), jac=True, method="L-BFGS-B", options=options)
    return solution(found.x)


def _curvature(rows: Tensor, wanted: Tensor, exclusive: bool, solution: Tensor) -> Tensor:
    """The curvature of the mean loss at a solution, averaged over outputs: float32, shape (f + 1, f + 1)."""
    chances = _loss(rows @ solution, wanted, exclusive)[1] + wanted
    scaled = rows * (chances * (1 - chances)).mean(1, keepdim=True).clamp(0).sqrt()
    return scaled.T @ scaled / len(rows)


def _loss(logits: Tensor, wanted: Tensor, exclusive: bool) -> tuple[float, Tensor]:
    """The mean over rows of the outputs' summed losses; and how much each probability is too high, (n, outputs)."""
    if exclusive:
        log_chances = logits.log_softmax(1)
        return -float((log_chances * wanted).sum(dtype=torch.float64)) / len(logits), log_chances.exp() - wanted
    losses = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    return float(losses.sum(dtype=torch.float64)) / len(logits), logits.sigmoid() - wanted
