"""Adversarial validation: whether test images can be told apart from training images."""

from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scenes.randomness import key

PARTS = 5
MIN_ROWS = 20  # of each; with fewer, the AUC would be meaningless
MAX_ROWS = 10_000  # of each; more would only take longer
STRENGTH = 1e-3  # inverse regularisation, which is strong because there are about as many features as rows
MAX_STEPS = 200
SLIGHT, CLEAR = 0.6, 0.8


class Shift(NamedTuple):
    """How well training and test images can be told apart.

    Attributes:
        aucs: The AUC on each held-out part.
        rows: int64, shape (k,): the rows compared; test rows are numbered after all training rows.
        likeness: float64, shape (k,): their probability of being a test row, from a model that was not fitted to them.
    """

    aucs: np.ndarray
    rows: np.ndarray
    likeness: np.ndarray

    @property
    def auc(self) -> float:
        """The mean area under the ROC curve: 0.5 if they cannot be told apart, 1 if always."""
        return float(self.aucs.mean())

    @property
    def spread(self) -> float:
        """The standard deviation over the held-out parts."""
        return float(self.aucs.std())

    @property
    def verdict(self) -> str:
        """What the AUC means for the cross-validation score."""
        if self.auc <= SLIGHT:
            return "train and test look alike: the cross-validation score should hold on the test set"
        if self.auc <= CLEAR:
            return "test images differ somewhat from training images: the test score may be lower than in validation"
        return "test images differ clearly from training images: do not trust the cross-validation score"


def adversarial_validation(train: np.ndarray, test: np.ndarray, seed: int) -> Shift | None:
    """Fits classifiers that tell training rows from test rows, and scores each on held-out rows.

    Args:
        train: float32, shape (n, f): embeddings.
        test: float32, shape (m, f): embeddings.
        seed: Determines the parts, and which rows are used if there are very many.

    Returns:
        The result; None if there are too few rows.
    """
    if min(len(train), len(test)) < MIN_ROWS:
        return None
    generator = np.random.default_rng(key("shift", seed))
    chosen = [np.sort(generator.choice(len(side), min(len(side), MAX_ROWS), replace=False)) for side in (train, test)]
    features = np.concatenate([train[chosen[0]], test[chosen[1]]])
    is_test = np.arange(len(features)) >= len(chosen[0])
    likeness, aucs = np.zeros(len(features)), []
    for fitted, held in StratifiedKFold(PARTS, shuffle=True, random_state=seed % 2**32).split(features, is_test):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=MAX_STEPS))
        model.fit(features[fitted], is_test[fitted])
        likeness[held] = model.predict_proba(features[held])[:, 1]
        aucs.append(roc_auc_score(is_test[held], likeness[held]))
    return Shift(np.array(aucs), np.concatenate([chosen[0], chosen[1] + len(train)]), likeness)
