"""Finds likely label errors: rows whose label contradicts the prediction of the fold that held them out."""

from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np
import pandas as pd

from scenes.competition.task import Task

PACKAGE = "cleanlab"


def is_available() -> bool:
    """Whether cleanlab is installed."""
    return find_spec(PACKAGE) is not None


def find_label_errors(
    task: Task, names: Sequence[str], targets: np.ndarray, predictions: np.ndarray
) -> tuple[np.ndarray, pd.DataFrame]:
    """Finds likely label errors with confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    Args:
        task: Classes or labels.
        names: The n rows' ids.
        targets: Their targets in the task's form.
        predictions: float32, shape (n, outputs): held-out probabilities.

    Returns:
        Row numbers, least probable label first; and a table of the same rows with the columns image_name, label,
        suggested (the most probable label), probability (of the suggestion) and quality (the probability of the label).
        The probability of a set of labels is that of its least probable decision.
    """
    from cleanlab.filter import find_label_issues

    exact = predictions.astype(np.float64)
    multi_label = task.kind == "labels"
    # A label that all rows have, or none, cannot be judged; and cleanlab needs at least two outputs.
    judged = np.flatnonzero(targets.min(0) < targets.max(0)) if multi_label else np.arange(task.outputs)
    given = [np.flatnonzero(row >= 0.5).tolist() for row in targets[:, judged]] if multi_label else targets
    options = {"return_indices_ranked_by": "self_confidence", "n_jobs": 1, "multi_label": multi_label}
    found = find_label_issues(given, exact[:, judged], **options) if len(judged) > 1 else []
    rows = np.asarray(found, np.int64)
    if multi_label:
        suggested = (exact >= 0.5).astype(np.float32)
        probability = np.where(suggested > 0, exact, 1 - exact).min(1)[rows]
        quality = np.where(targets >= 0.5, exact, 1 - exact).min(1)[rows]
    else:
        suggested = exact.argmax(1)
        probability, quality = exact[rows, suggested[rows]], exact[rows, targets[rows]]
    table = {
        "image_name": [names[row] for row in rows],
        "label": task.as_texts(targets[rows]),
        "suggested": task.as_texts(suggested[rows]),
        "probability": probability.astype(np.float32).round(4),
        "quality": quality.astype(np.float32).round(4),
    }
    return rows, pd.DataFrame(table)
