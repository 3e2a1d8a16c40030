"""Stratified folds that never split a group; identical images form a group."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.strata import stratified_folds
from scenes.competition.table import Table, problem_for_rows
from scenes.console import Problem, UserError, raise_problems
from scenes.files import write_text

ALWAYS_TRAINED = -1  # the fold of rows that no fold holds out


def group_rows(*groupings: Sequence[str] | np.ndarray) -> np.ndarray:
    """Joins rows that share a value in any grouping, directly or through others.

    Args:
        *groupings: Each has n values: pixel hashes, groups, near duplicates.

    Returns:
        int64, shape (n,): group numbers from 0, in the order of their first rows.
    """
    codes = [pd.factorize(np.asarray(values, object))[0].astype(np.int64) for values in groupings]
    if len(codes) == 1:
        return codes[0]
    firsts = np.concatenate([np.unique(code, return_index=True)[1][code] for code in codes])
    rows = np.tile(np.arange(len(codes[0])), len(codes))
    return connected_rows(rows, firsts, len(codes[0]))  # each row and the first one with the same value


def connected_rows(first: np.ndarray, second: np.ndarray, count: int) -> np.ndarray:
    """Groups rows that are connected by pairs, directly or through others.

    Args:
        first: int, shape (pairs,): one row of each pair.
        second: int, shape (pairs,): the other.
        count: The number of rows.

    Returns:
        int64, shape (count,): group numbers from 0, in the order of their first rows.
    """
    from scipy.sparse import coo_matrix  # slow to import, and predicting does not need it
    from scipy.sparse.csgraph import connected_components

    edges = coo_matrix((np.ones(len(first)), (first, second)), (count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)


def make_folds(strata: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Splits rows into folds so that each has its share of every stratum and no group is split.

    Args:
        strata: int, shape (n,): what to balance; or 0/1, shape (n, labels), to balance each label separately
            (iterative stratification, Sechidis et al. 2011).
        groups: int, shape (n,).
        folds: The number of folds.
        seed: The seed of the split.

    Returns:
        int64, shape (n,): each row's fold. A fold may be empty if there are too few or too uneven groups.
    """
    members, group_of = np.unique(groups, return_inverse=True)
    if len(members) < folds:
        return group_of.astype(np.int64)
    if strata.ndim == 2:
        return _iterative_folds(strata, group_of, folds, seed)
    if np.unique(strata, return_counts=True)[1].max() < folds:
        strata = np.zeros(len(strata), np.int64)  # there is nothing to balance
    if len(members) == len(groups):
        return stratified_folds(strata, folds, seed)
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, and only needed here

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about strata with fewer rows than folds
        return _fold_of(splitter.split(strata, strata, groups), len(strata))


def _iterative_folds(labels: np.ndarray, group_of: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Splits groups by the labels that any of their rows has; arguments as for `make_folds`, groups from 0."""
    from iterstrat.ml_stratifiers import MultilabelStratifiedKFold

    of_group = np.zeros((group_of.max() + 1, labels.shape[1] + 1), np.int64)
    np.maximum.at(of_group[:, :-1], group_of, labels)
    of_group[:, -1] = 1  # the splitter needs two columns, and a constant one balances how many groups a fold has
    splitter = MultilabelStratifiedKFold(folds, shuffle=True, random_state=seed)
    return _fold_of(splitter.split(of_group, of_group), len(of_group))[group_of]


def _fold_of(splits: Iterable[tuple[np.ndarray, np.ndarray]], count: int) -> np.ndarray:
    fold_of = np.zeros(count, np.int64)
    for fold, (_, held_out) in enumerate(splits):
        fold_of[held_out] = fold
    return fold_of


def keep_rare_classes(
    targets: np.ndarray, groups: np.ndarray, fold_of: np.ndarray, folds: int
) -> tuple[np.ndarray, list[int]]:
    """Lets the rows of rare classes train in every fold, as a fold that held them out would learn too little of them.

    A class is rare if it has fewer rows than there are folds, or if one fold would hold out all of them.

    Args:
        targets: int, shape (n,): each row's class.
        groups: int, shape (n,); a group with a row of a rare class trains in every fold as a whole.
        fold_of: int64, shape (n,): each row's fold.
        folds: The number of folds; 0 to keep only classes that a single fold would hold out.

    Returns:
        Each row's fold, `ALWAYS_TRAINED` for these rows; and the classes without a held-out row.
    """
    rows_of = np.bincount(targets)
    folds_of = np.bincount(np.unique(np.stack([targets, fold_of]), axis=1)[0])
    is_rare = (rows_of < folds) | (folds_of == 1)
    kept = np.where(np.isin(groups, groups[is_rare[targets]]), ALWAYS_TRAINED, fold_of)
    held_out = np.bincount(targets[kept != ALWAYS_TRAINED], minlength=len(rows_of))
    return kept, np.flatnonzero((rows_of > 0) & (held_out == 0)).tolist()


def given_folds(table: Table, column: str, folds: int, groups: np.ndarray) -> np.ndarray:
    """Checks the folds that the user supplies in a column.

    Args:
        table: The training rows.
        column: The name of the column with the folds.
        folds: The expected number of folds.
        groups: int, shape (n,).

    Returns:
        int64, shape (n,): each row's fold.

    Raises:
        UserError: If a fold is not in 0 … folds - 1 or is never used, or a group is split.
    """
    given = table.columns[column].tolist()
    allowed = {str(fold): fold for fold in range(folds)}
    wrong = [row for row, value in enumerate(given) if value not in allowed]
    what = f"with a fold outside 0 … {folds - 1}"
    problems = problem_for_rows(table, wrong, given, what, "correct them or set data.folds")
    if not wrong:
        used = set(given)
        if unused := [value for value in allowed if value not in used]:
            what = f"no row has the fold {', '.join(unused)}"
            problems.append(Problem(str(table.file), what, "lower data.folds"))
        pairs = pd.DataFrame({"group": groups, "fold": given})
        split = np.flatnonzero((pairs.groupby("group").fold.transform("nunique") > 1).to_numpy())
        what = "with identical images or a group in several folds"
        remedy = "give them one fold: a model must not be scored on what it has seen"
        problems += problem_for_rows(table, split, table.names, what, remedy)
    raise_problems(problems, "The supplied folds cannot be used")
    return np.array([allowed[value] for value in given], np.int64)


def write_or_compare(path: Path, table: pd.DataFrame) -> None:
    """Writes folds.csv if it does not exist, else compares it.

    Args:
        path: The run's folds.csv.
        table: Columns image_name, label, pixels (hash), group and fold, one row per training row.

    Raises:
        UserError: If the file exists and its rows differ: the data changed under the run.
    """
    text = table.to_csv(index=False, lineterminator="\n")
    if not path.exists():
        write_text(path, text)
    if path.read_bytes() == text.encode():
        return
    try:
        old = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:  # pandas' own errors are ValueErrors
        raise UserError(f"{path}: damaged ({error}); delete {path.parent} or start a run with another name") from None
    new = table.astype(str)
    if list(old) != list(new):
        what = f"{path} has different columns"
    elif len(old) != len(new):
        what = f"it has {len(new)} rows, the run began with {len(old)}"
    else:
        differs = np.argwhere(old.to_numpy(object) != new.to_numpy(object))
        if not len(differs):
            return
        row, column = differs[0]
        what = f"row {row + 1}: {list(new)[column]} is {new.iat[row, column]!r}, was {old.iat[row, column]!r}"
        if {list(new)[column] for _, column in differs} == {"pixels"} and len(differs) == len(new):
            what = "every image has a new hash: the images changed, or an older version of this project began the run"
    raise UserError(
        f"the training data changed since {path.parent} began ({what}). Its folds would no longer mean the same.\n"
        f"  → restore the data; or start a run with another name: --set name=NEW; or delete {path.parent}"
    )
