"""Which views and members an ensemble keeps, and with what weights: judged on out-of-fold rows, scored nested."""

from collections.abc import Callable
from itertools import combinations

import numpy as np

from scenes.competition.metric import log_losses, standard_error

# More rounds than these change a weight by less than 1 in 100.
HILL_CLIMBING_ROUNDS = 100

# From members (m, n, classes) and targets (n,) to weights (m,) that sum to 1.
Choice = Callable[[np.ndarray, np.ndarray], np.ndarray]


def view_weights(views: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Keeps the views that do not make the mean's log loss worse by more than one paired standard error.

    Args:
        views: float32, shape (views, n, classes): probabilities; the first view is always kept.
        targets: int, shape (n,).

    Returns:
        float32, shape (views,): equal for those kept, 0 for the others.
    """
    kept = [0]
    for view in range(1, len(views)):
        worse = log_losses(views[[*kept, view]].mean(0), targets) - log_losses(views[kept].mean(0), targets)
        if worse.mean() <= standard_error(worse):
            kept.append(view)
    weights = np.zeros(len(views), np.float32)
    weights[kept] = 1 / len(kept)
    return weights


def equal_weights(members: np.ndarray, _: np.ndarray) -> np.ndarray:
    """The plain mean; float32, shape (members,)."""
    return np.full(len(members), 1 / len(members), np.float32)


def hill_climbing_weights(members: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Adds, again and again, the member that lowers the mean's log loss most (Caruana et al. 2004, ICML).

    Starts from the plain mean, each member counted once, which guards against overfitting to few rows.

    Args:
        members: float32, shape (members, n, classes): probabilities.
        targets: int, shape (n,).

    Returns:
        float32, shape (members,): weights that sum to 1.
    """
    chances = members[:, np.arange(len(targets)), targets].astype(np.float64)  # log loss looks at nothing else
    counts = np.ones(len(members))
    best = _log_loss(counts @ chances / counts.sum())
    for _ in range(HILL_CLIMBING_ROUNDS):
        totals = counts @ chances
        losses = [_log_loss((totals + chance) / (counts.sum() + 1)) for chance in chances]
        if min(losses) >= best:
            break
        best = min(losses)
        counts[int(np.argmin(losses))] += 1
    return (counts / counts.sum()).astype(np.float32)


def _log_loss(chances: np.ndarray) -> float:
    return float(-np.log(np.clip(chances, np.finfo(np.float32).tiny, 1)).mean())


def weighted_mean(members: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Averages probabilities (members, n, classes) to float32, shape (n, classes)."""
    return np.tensordot(weights, members, 1).astype(np.float32)


def nested_mean(choice: Choice, members: np.ndarray, targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """Averages each fold's rows with the weights that the other folds' rows chose, so that the score stays honest.

    Args:
        choice: How weights are chosen.
        members: float32, shape (members, n, classes): out-of-fold probabilities.
        targets: int, shape (n,).
        fold_of: int, shape (n,). Where there is but one fold, weights are equal.

    Returns:
        float32, shape (n, classes).
    """
    mean = np.empty(members.shape[1:], np.float32)
    for fold in np.unique(fold_of):
        held, others = fold_of == fold, fold_of != fold
        chosen = choice if others.any() else equal_weights
        mean[held] = weighted_mean(members[:, held], chosen(members[:, others], targets[others]))
    return mean


def agreement(members: np.ndarray) -> np.ndarray:
    """The share of rows two members give the same class; float64, shape (members, members)."""
    classes = members.argmax(2)
    table = np.eye(len(members))
    for one, other in combinations(range(len(members)), 2):
        table[one, other] = table[other, one] = (classes[one] == classes[other]).mean()
    return table


def oracle_accuracy(members: np.ndarray, targets: np.ndarray) -> float:
    """The share of rows at least one member has right: what no blend by rows can exceed by choosing members."""
    return float((members.argmax(2) == targets).any(0).mean())
