"""Likely label errors: rows whose label contradicts the prediction of the fold that held them out."""

from importlib.util import find_spec

import numpy as np
import pandas as pd

from scenes.insight.results import HeldOut

PACKAGE = "cleanlab"


def is_available() -> bool:
    """Whether cleanlab is installed."""
    return find_spec(PACKAGE) is not None


def find_label_errors(held: HeldOut) -> tuple[np.ndarray, pd.DataFrame]:
    """Finds likely label errors with confident learning (Northcutt et al. 2021, arXiv:1911.00068).

    Args:
        held: Held-out predictions of at least two classes.

    Returns:
        Positions in `held`, the least probable label first; and a table of the same rows with the columns image_name,
        label, suggested (the most probable class), probability (of the suggested class) and quality (the probability
        of the label).
    """
    from cleanlab.filter import find_label_issues

    found = find_label_issues(
        held.targets, held.probabilities.astype(np.float64), return_indices_ranked_by="self_confidence", n_jobs=1
    )
    rows = np.asarray(found, np.int64)
    suggested = held.predicted[rows]
    table = {
        "image_name": [held.names[row] for row in rows],
        "label": [held.classes[target] for target in held.targets[rows]],
        "suggested": [held.classes[target] for target in suggested],
        "probability": held.probabilities[rows, suggested].round(4),
        "quality": held.probabilities[rows, held.targets[rows]].round(4),
    }
    return rows, pd.DataFrame(table)
