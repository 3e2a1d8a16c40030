"""Reads rows from the paths of image files, by patterns such as ``train/{label}/{file}``."""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from scenes.competition.find import image_files, is_utf8
from scenes.console import UserError, say

FIELD = re.compile(r"\{(\w+)\}")
PARTS = {"number": r"\d+"}  # a field with this name matches digits; any other, anything but a slash


def is_pattern(source: Path) -> bool:
    """Whether this is a pattern, not a file's path."""
    return bool(FIELD.search(str(source)))


def read_pattern(root: Path, pattern: str, name_column: str) -> pd.DataFrame:
    """Makes a row for each image file whose path matches a pattern, in natural order.

    Args:
        root: The folder that the pattern is relative to.
        pattern: A path with fields in braces, each of which becomes a column; ``{number}`` stands for digits.
        name_column: The column for the image's path below `pattern_folder`.

    Returns:
        The columns as text; the index is the path below `root`.

    Raises:
        UserError: If there is no such folder, or no matching file.
    """
    below = pattern_folder(pattern)
    if not (root / below).is_dir():
        raise UserError(f"{root / below}: no such folder; the pattern {pattern!r} begins there")
    expression = re.compile(as_expression(pattern))
    files = [(below / file).as_posix() for file in image_files(root / below)]
    check_utf8(files)
    rows = {file: match.groupdict() for file in files if (match := expression.fullmatch(file))}
    if not rows:
        example = f", e.g. {files[0]}" if files else ""
        raise UserError(f"{root / below}: none of its {len(files)} images match the pattern {pattern!r}{example}")
    if others := [file for file in files if file not in rows]:
        counts = f"{len(others)} of {len(files)} images"
        say(f"{root / below}: {counts} do not match {pattern!r} and are left out: {others[0]}")
    order = sorted(rows, key=natural)
    columns = pd.DataFrame([rows[file] for file in order], index=order, dtype=str)
    return columns.assign(**{name_column: [Path(file).relative_to(below).as_posix() for file in order]})


def pattern_folder(pattern: str) -> Path:
    """The folder that all paths of a pattern are in."""
    return Path(f"{FIELD.split(pattern)[0]}x").parent


def needed_files(source: Path, image_dir: Path) -> list[Path]:
    """What these rows and their images need in the data folder, relative to it."""
    return [pattern_folder(source.as_posix())] if is_pattern(source) else [source, image_dir]


def as_expression(pattern: str) -> str:
    """The pattern as a regular expression with a named group per field; a repeated field must match the same text.

    Raises:
        UserError: If a field's name cannot be a column.
    """
    texts = FIELD.split(pattern)
    names = texts[1::2]
    if strange := [name for name in names if not name.isidentifier()]:
        raise UserError(f"the pattern {pattern!r}: {{{strange[0]}}} cannot be a column's name; use a word")
    groups = [
        f"(?P={name})" if name in names[:at] else f"(?P<{name}>{PARTS.get(name, '[^/]+?')})"
        for at, name in enumerate(names)
    ]
    fixed = [re.escape(text) for text in texts[::2]]
    return "".join(part for pair in zip(fixed, [*groups, ""], strict=True) for part in pair)


def check_utf8(files: Sequence[str]) -> None:
    """Rejects paths that a text file cannot hold.

    Raises:
        UserError: Naming the first of them.
    """
    for file in files:
        if not is_utf8(file):
            raise UserError(f"{file!a}: a name that is not UTF-8, so no CSV can hold it; rename the file")


def natural(text: str) -> tuple[list[str | int], str]:
    """A key that sorts 9.jpg before 10.jpg; numbers and words alternate, so that like is compared with like."""
    parts = re.split("([0-9]+)", text)
    return [int(part) if i % 2 else part.casefold() for i, part in enumerate(parts)], text
