"""The figures of the pages: curves by epoch, reliability, scatter plots and histograms."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from scenes.insight import page

BINS = 10
MAX_POINTS = 2000  # in a scatter plot
MANY = 10  # no legend for more lines than this
CURVES = {
    "train_loss": "Training loss",
    "val_loss": "Held-out loss",
    "lr": "Learning rate",
    "images_per_second": "Images per second",
}


def curves(histories: Mapping[str, pd.DataFrame]) -> list[Markup]:
    """Draws a figure for each column of history.csv, with a line for each history.

    Args:
        histories: Folds, or runs, by name; the columns are `epoch`, `steps`, any of CURVES and ``val_METRIC``.

    Returns:
        The figures; none for columns with fewer than two epochs in every history.
    """
    drawn: list[Markup] = []
    scores = [name for history in histories.values() for name in map(str, history) if name.startswith("val_")]
    titles = {name: f"Held-out {name.removeprefix('val_').replace('_', ' ')}" for name in scores}
    for column, title in (titles | CURVES).items():
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
    """Predictions of similar probability.

    Attributes:
        low: The lower edge of the bin.
        high: The upper edge.
        n: The number of predictions.
        confidence: Their mean probability.
        accuracy: The share that is correct.
        error: The standard error of that share.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    error: float


def bin_confidence(confidence: np.ndarray, is_correct: np.ndarray) -> list[Bin]:
    """Compares probabilities with frequencies (Guo et al. 2017, arXiv:1706.04599).

    Args:
        confidence: float, shape (n,), in 0 … 1.
        is_correct: float, shape (n,): 1 where the prediction is correct, else 0.

    Returns:
        The non-empty bins, all of equal width.
    """
    places = np.minimum((confidence.astype(np.float64) * BINS).astype(int), BINS - 1)
    bins = []
    for place in np.unique(places):
        chosen = places == place
        n, share = int(chosen.sum()), float(is_correct[chosen].mean(dtype=np.float64))
        error = float(np.sqrt(share * (1 - share) / n))
        mean = float(confidence[chosen].mean(dtype=np.float64))
        bins.append(Bin(place / BINS, (place + 1) / BINS, n, mean, share, error))
    return bins


def reliability(binned: Mapping[str, Sequence[Bin]]) -> Markup:
    """Plots frequency against probability, a line for each name; on the diagonal they are equal."""
    figure, axes = page.figure(title="Reliability")
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1, linestyle="--")
    for name, bins in binned.items():
        confidence, accuracy = [one.confidence for one in bins], [one.accuracy for one in bins]
        error = [one.error for one in bins]
        axes.errorbar(confidence, accuracy, error, label=name, marker="o", markersize=5, capsize=3, linewidth=1.4)
    axes.set(xlabel="predicted probability", ylabel="frequency", xlim=(0, 1.02), ylim=(0, 1.02))
    if len(binned) > 1:
        axes.legend(fontsize=8, loc="upper left")
    return page.svg(figure)


def scatter(true: np.ndarray, predicted: np.ndarray, name: str) -> Markup:
    """Plots predicted against true numbers, or a sample of them if there are very many."""
    shown = np.random.default_rng(0).permutation(len(true))[:MAX_POINTS]
    figure, axes = page.figure(title=f"{name}: predicted and true")
    low, high = float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))
    axes.plot([low, high], [low, high], color="#888888", linewidth=1, linestyle="--")
    axes.plot(true[shown], predicted[shown], "o", markersize=3, alpha=0.5, markeredgewidth=0)
    axes.set(xlabel="true", ylabel="predicted")
    return page.svg(figure)


def histogram(values: np.ndarray, title: str, label: str) -> Markup:
    """Plots how often values occur."""
    figure, axes = page.figure(title=title)
    axes.hist(values, bins=min(40, max(10, round(len(values) ** 0.5))))
    axes.grid(visible=False, axis="x")
    axes.set(xlabel=label, ylabel="images")
    return page.svg(figure)
