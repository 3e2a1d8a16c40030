"""Stratified folds that never split a group; identical images are a group."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from scenes.console import Problem, UserError, raise_problems
from scenes.data.competition import problem_for_rows
from scenes.files import write_text

FULL = -1  # the fold that trains on every row, for the last submission


def fold_name(fold: int) -> str:
    """The fold's folder in a run: fold0, fold1, … or full."""
    return "full" if fold == FULL else f"fold{fold}"


def parse_folds(text: str, folds: int) -> list[int]:
    """Reads ``0``, ``0-4``, ``0,2,4`` or ``full``.

    Returns:
        Fold numbers in ascending order without repeats, or ``[FULL]``.

    Raises:
        UserError: If it is none of these, or a fold is not in 0 … folds - 1.
    """
    if text == "full":
        return [FULL]
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UserError(f"--folds takes 0, 0-4, 0,2,4 or full; got {text!r}")
        chosen.update(range(int(first), int(last or first) + 1))
    if max(chosen) >= folds:
        raise UserError(f"--folds {text}: there are {folds} folds, 0 to {folds - 1} (data.folds)")
    return sorted(chosen)


def group_rows(pixel_hashes: np.ndarray, groups: Sequence[str] | None) -> np.ndarray:
    """Joins rows that share their pixels or their group, directly or through others.

    Args:
        pixel_hashes: (n,) strings.
        groups: n group labels, or None.

    Returns:
        int64, shape (n,): group numbers from 0.
    """
    by_pixels = pd.factorize(pixel_hashes)[0]
    if groups is None:
        return by_pixels.astype(np.int64)
    by_group = pd.factorize(np.asarray(groups, object))[0]
    # Pixels and groups are the nodes of a graph, rows its edges.
    pixel_count = int(by_pixels.max()) + 1
    nodes = pixel_count + int(by_group.max()) + 1
    edges = coo_matrix((np.ones(len(by_pixels)), (by_pixels, by_group + pixel_count)), (nodes, nodes))
    return connected_components(edges, directed=False)[1][by_pixels].astype(np.int64)


def make_folds(targets: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> np.ndarray:
    """Deals rows into folds so that each has every class in proportion and no group is split.

    Args:
        targets: int, shape (n,).
        groups: int, shape (n,).
        folds: How many.
        seed: Of the deal.

    Returns:
        int64, shape (n,): each row's fold.

    Raises:
        UserError: If there are fewer groups than folds.
    """
    groups_count = len(np.unique(groups))
    if groups_count < folds:
        raise UserError(f"{groups_count} groups cannot be dealt into {folds} folds: lower data.folds")
    has_groups = groups_count < len(groups)
    splitter = (StratifiedGroupKFold if has_groups else StratifiedKFold)(folds, shuffle=True, random_state=seed)
    fold_of = np.full(len(targets), -1, np.int64)
    for fold, (_, held_out) in enumerate(splitter.split(targets, targets, groups if has_groups else None)):
        fold_of[held_out] = fold
    return fold_of


def given_folds(column: Sequence[str], folds: int, groups: np.ndarray, csv: Path) -> np.ndarray:
    """Checks folds that the user supplied.

    Raises:
        UserError: If one is not in 0 … folds - 1, is never used, or a group is split.
    """
    allowed = {str(fold) for fold in range(folds)}
    wrong = [row for row, value in enumerate(column) if value not in allowed]
    problems = problem_for_rows(
        csv, wrong, column, f"with a fold outside 0 … {folds - 1}", "mend them or set data.folds"
    )
    if not wrong:
        if unused := sorted(allowed - set(column)):
            problems.append(Problem(str(csv), f"no row has the fold {', '.join(unused)}", "lower data.folds"))
        table = pd.DataFrame({"group": groups, "fold": column})
        split = np.flatnonzero((table.groupby("group").fold.transform("nunique") > 1).to_numpy())
        what = "with identical images or a group in several folds"
        problems += problem_for_rows(
            csv, split, column, what, "give them one fold: a model must not be judged on what it saw"
        )
    raise_problems(problems, "The supplied folds cannot be used")
    return np.array([int(value) for value in column], np.int64)


def write_or_compare(path: Path, table: pd.DataFrame) -> None:
    """Writes folds.csv once; later only compares.

    Args:
        path: The run's folds.csv.
        table: Columns image_name, label, pixels (hash), group and fold, one row a training row.

    Raises:
        UserError: If the file exists and its rows differ: the data changed under the run.
    """
    if not path.exists():
        write_text(path, table.to_csv(index=False, lineterminator="\n"))
        return
    old = pd.read_csv(path, dtype=str, keep_default_na=False)
    new = table.astype(str)
    if old.equals(new):
        return
    if len(old) != len(new):
        what = f"it has {len(new)} rows, the run began with {len(old)}"
    elif list(old) != list(new):
        what = f"{path} has other columns"
    else:
        row, column = np.argwhere(old.to_numpy() != new.to_numpy())[0]
        name = list(new)[column]
        what = f"line {row + 2}: {name} is {new.iat[row, column]!r}, was {old.iat[row, column]!r}"
    raise UserError(
        f"the training data changed since {path.parent} began ({what}). Its folds would no longer mean the same.\n"
        f"  → restore the data; or start a run of another name: --set name=NEW; or delete {path.parent}"
    )
