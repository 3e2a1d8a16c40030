"""The rows of a competition's file, and messages that name them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scenes.console import Problem

EXAMPLES = 5


@dataclass(frozen=True)
class Table:
    """Rows with an id and an image each.

    Attributes:
        file: Where they were read.
        names: Their ids as the file has them, n strings: what a submission prints.
        paths: The image files, n paths.
        columns: All columns as strings, n rows. The index says where each row is: the line it begins on in a CSV, else
            a text such as ``images[3]``.
    """

    file: Path
    names: list[str]
    paths: list[Path]
    columns: pd.DataFrame

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int]) -> "Table":
        """The same table with these rows only."""
        names, paths = [self.names[row] for row in rows], [self.paths[row] for row in rows]
        return Table(self.file, names, paths, self.columns.iloc[list(rows)])


def problem_for_rows(
    table: Table, rows: Sequence[int] | np.ndarray, values: Sequence[str], what: str, remedy: str
) -> list[Problem]:
    """Makes one problem of all rows that share it, with the first few as examples.

    Args:
        table: The rows' table.
        rows: Positions of the wrong rows, from 0.
        values: What to quote, for each row of the table.
        what: What is wrong with them.
        remedy: What to do.
    """
    places = table.columns.index
    return problem_for_places(table.file, [(places[row], values[row]) for row in rows], what, remedy)


def problem_for_places(file: Path, found: Sequence[tuple[int | str, str]], what: str, remedy: str) -> list[Problem]:
    """The same for rows that are not in a table, given their places and what to quote."""
    return [Problem(str(file), _rows(found, what), remedy)] if found else []


def bad_image_rows(table: Table, reasons: Mapping[int, str], what: str) -> str:
    """Says in one line which rows' images cannot be read, with the first few as examples.

    Args:
        table: The rows' table.
        reasons: What is wrong, by row.
        what: What happens to them.
    """
    places = table.columns.index
    found = [(places[row], f"{table.names[row]}: {why}") for row, why in reasons.items()]
    return f"{table.file}: {_rows(found, what)}"


def column_of(columns: Iterable[tuple[Any, Iterable[str]]], values: set[str]) -> str | None:
    """The name of the first column with exactly these values, in any order; None if there is none."""
    return next((name for name, cells in columns if set(cells) == values), None)


def some(texts: Sequence[str]) -> str:
    """The first few texts, quoted, and how many more there are."""
    quoted = ", ".join(f"{text[:80]!r}" for text in texts[:EXAMPLES])
    return quoted + (f" and {len(texts) - EXAMPLES} more" if len(texts) > EXAMPLES else "")


def _rows(found: Sequence[tuple[int | str, str]], what: str) -> str:
    examples = ", ".join(f"{_place(place)} ({value[:80]!r})" for place, value in found[:EXAMPLES])
    more = f" and {len(found) - EXAMPLES} more" if len(found) > EXAMPLES else ""
    return f"{len(found)} row{'s' if len(found) > 1 else ''} {what}: {examples}{more}"


def _place(place: int | str) -> str:
    return place if isinstance(place, str) else f"line {place}"
