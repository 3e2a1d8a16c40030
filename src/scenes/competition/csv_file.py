"""Reads CSVs strictly: every cell is kept as text, every row with its line."""

import csv
import io
from pathlib import Path

import pandas as pd

from scenes.competition.table import problem_for_places
from scenes.console import Problem, UserError, raise_problems

COLUMN_KEYS = "names are set by data.image_column, data.label_column, …; python src/prepare.py detect infers them"
csv.field_size_limit(2**31 - 1)  # a cell may be long, such as a run-length encoded mask; Python's limit is 128 KiB


def read_columns(file: Path, wanted: list[str], origin: str = COLUMN_KEYS) -> tuple[pd.DataFrame, list[Problem]]:
    """Reads a CSV as text.

    Args:
        file: The CSV.
        wanted: Columns that it must have, once each.
        origin: What decides the columns' names, for the message.

    Returns:
        The rows, indexed by the line each begins on; and what is wrong with the others.

    Raises:
        UserError: If there is no such table.
    """
    lines, rows = read_cells(file)
    if not rows:
        raise UserError(f"{file}: empty; it needs a header line with {', '.join(wanted)}")
    header, *rows = rows
    _check_header(file, header, wanted, origin)
    fits = [len(cells) == len(header) for cells in rows]
    ragged = [(line, ",".join(cells)) for line, cells, fit in zip(lines[1:], rows, fits, strict=True) if not fit]
    what = f"with a different number of cells than the header's {len(header)}"
    problems = problem_for_places(file, ragged, what, "put quotes around cells that contain commas")
    kept = [row for row, fit in enumerate(fits) if fit]
    if not kept:
        raise_problems(problems or [Problem(str(file), "a header but no rows")])
    index = [lines[row + 1] for row in kept]
    return pd.DataFrame([rows[row] for row in kept], index=index, columns=header, dtype=str), problems


def read_cells(file: Path, most: int | None = None) -> tuple[list[int], list[list[str]]]:
    """Reads the line on which each row begins, and the rows, header first; blank lines are skipped.

    pandas would truncate rows that are too long and pad those that are too short.

    Args:
        file: The CSV.
        most: Stop after this many rows.

    Raises:
        UserError: If the file is missing or not a CSV in UTF-8.
    """
    text = read_utf8(file)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    lines, rows, begins = [], [], 1
    try:
        for cells in reader:
            if cells:
                lines.append(begins)
                rows.append(cells)
                if len(rows) == most:
                    break
            begins = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{file}, line {begins}: not a comma-separated table: {error}") from None
    return lines, rows


def read_utf8(file: Path) -> str:
    """Reads a text file, with or without a byte order mark.

    Raises:
        UserError: If it is missing or not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(
            f"{file}: no such file. Put the competition's files there (input/README.md says how), or try the built-in "
            "sample: bash train.sh configs/quickstart.yaml"
        ) from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file}, line {line}: not UTF-8 text; save it as UTF-8") from None


def _check_header(file: Path, header: list[str], wanted: list[str], origin: str) -> None:
    if missing := [column for column in wanted if column not in header]:
        wrong = [name for sign, name in ((";", "semicolons"), ("\t", "tabs")) if sign in "".join(header)]
        hint = f"; separate the columns by commas, not {wrong[0]}" if wrong else ""
        has = ", ".join(map(repr, header[:50])) + (", …" if len(header) > 50 else "")
        raise UserError(f"{file}: no column {', '.join(map(repr, missing))}; it has {has}{hint} ({origin})")
    if repeated := [column for column in wanted if header.count(column) > 1]:
        raise UserError(f"{file}: several columns {', '.join(map(repr, repeated))}; rename all but one")
