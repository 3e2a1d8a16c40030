"""Splits rows so that each part has its share of every stratum."""

import numpy as np
import pandas as pd


def stratified_folds(strata: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Assigns the rows of each stratum to the folds in turn, then shuffles within the stratum.

    The folds are those of scikit-learn's StratifiedKFold, whose import takes as long as torch's.

    Args:
        strata: int, shape (n,).
        folds: The number of folds.
        seed: The seed of the shuffling.

    Returns:
        int64, shape (n,): each row's fold.
    """
    codes = pd.factorize(strata)[0]
    order = np.argsort(codes, kind="stable")
    fold_of = np.empty(len(codes), np.int64)
    fold_of[order] = np.arange(len(codes)) % folds
    generator = np.random.RandomState(seed)
    for rows in np.split(order, np.cumsum(np.bincount(codes))[:-1]):
        shares = np.sort(fold_of[rows])
        generator.shuffle(shares)
        fold_of[rows] = shares
    return fold_of
