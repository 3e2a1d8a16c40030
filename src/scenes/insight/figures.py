"""The figures of the pages: curves by epoch and calibration."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from scenes.insight import page

BINS = 10
MANY = 10  # more lines than this get no legend
CURVES = {
    "val_accuracy": "Held-out accuracy",
    "train_loss": "Training loss",
    "val_loss": "Held-out loss",
    "lr": "Learning rate",
    "images_per_second": "Images per second",
}


def curves(histories: Mapping[str, pd.DataFrame]) -> list[Markup]:
    """Draws a figure for each column of history.csv, with a line for each history.

    Args:
        histories: Folds, or runs, by name; the columns are `epoch`, `steps` and any of CURVES.

    Returns:
        The figures; a column with fewer than two epochs in every history gets none.
    """
    drawn: list[Markup] = []
    for column, title in CURVES.items():
        lines = {name: _points(history, column) for name, history in histories.items()}
        if max((len(line) for line in lines.values()), default=0) < 2:
            continue
        figure, axes = page.figure(title=title)
        for name, line in lines.items():
            axes.plot(line.index, line.to_numpy(), label=name, marker="o", markersize=3, linewidth=1.4)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if column == "images_per_second":
            axes.set_ylim(bottom=0)
        if column == "lr":
            axes.yaxis.set_major_formatter("{x:.3g}")
        if not drawn and 1 < len(lines) <= MANY:  # the colours mean the same in all figures
            axes.legend(fontsize=8)
        drawn.append(page.svg(figure))
    return drawn


def _points(history: pd.DataFrame, column: str) -> pd.Series:
    """A column's values by epoch, without missing ones."""
    if column not in history:
        return pd.Series(dtype=float)
    rows = history[history["steps"] > 0] if column == "lr" else history  # the probe has no learning rate
    return rows.set_index("epoch")[column].dropna()


class Bin(NamedTuple):
    """Predictions of similar confidence.

    Attributes:
        low: The lower edge of the bin.
        high: The upper edge.
        n: The number of predictions.
        confidence: Their mean confidence.
        accuracy: The share that is correct.
        error: The standard error of that share.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    error: float


def calibration(probabilities: np.ndarray, hits: np.ndarray) -> tuple[list[Bin], float]:
    """Compares confidence with accuracy (Guo et al. 2017, arXiv:1706.04599).

    Args:
        probabilities: float, shape (n, classes).
        hits: float, shape (n,): 1 where the most probable class is correct.

    Returns:
        The bins of equal width that are not empty; and the expected calibration error, the mean distance between
        confidence and accuracy.
    """
    confidence = probabilities.max(1).astype(np.float64)
    places = np.minimum((confidence * BINS).astype(int), BINS - 1)
    bins = []
    for place in np.unique(places):
        chosen = places == place
        n, share = int(chosen.sum()), float(hits[chosen].mean())
        error = float(np.sqrt(share * (1 - share) / n))
        bins.append(Bin(place / BINS, (place + 1) / BINS, n, float(confidence[chosen].mean()), share, error))
    gaps = sum(one.n * abs(one.confidence - one.accuracy) for one in bins)
    return bins, gaps / len(hits)


def reliability(bins: Sequence[Bin]) -> Markup:
    """Draws accuracy over confidence; on the diagonal they are equal."""
    figure, axes = page.figure(title="Reliability")
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    confidence, accuracy = [one.confidence for one in bins], [one.accuracy for one in bins]
    axes.errorbar(confidence, accuracy, [one.error for one in bins], marker="o", markersize=5, capsize=3, linewidth=1.4)
    axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02))
    return page.svg(figure)
