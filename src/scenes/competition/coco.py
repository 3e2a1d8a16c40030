"""COCO-style JSON as rows: each image joined with its annotations."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from scenes.competition.csv_file import read_utf8
from scenes.competition.table import problem_for_places, some
from scenes.console import Problem, UserError, raise_problems

IMAGE_KEYS = ("id", "image_id", "imageId")  # an image's id where it is listed
JOIN_KEYS = ("image_id", "imageId")  # and where it is annotated
Rows = dict[str, dict[str, str]]  # cells by column, by id


def read_json(file: Path, wanted: list[str], separator: str | None) -> tuple[pd.DataFrame, list[Problem]]:
    """Reads one row per image from a COCO file (`images`, `annotations`) or a bare list of images.

    The columns are the image's keys and those of its annotations. If an image has several annotations, equal values
    count once; different ones are joined by `separator`, in order.

    Args:
        file: The JSON file.
        wanted: Columns that the rows must have.
        separator: Separates the labels of an image (`data.label_separator`); by default a space.

    Returns:
        The rows as text, indexed by ``images[3]`` and the like; and what is wrong with the others.

    Raises:
        UserError: If there are no such rows.
    """
    content = load(file)
    images = content.get("images") if isinstance(content, dict) else content
    if not are_objects(images):
        raise UserError(f"{file}: no list of images; expected `images` and `annotations`, or a list of images")
    key = id_key(images)
    if key is None:
        raise UserError(
            f"{file}: images[0] has none of the keys {', '.join(IMAGE_KEYS)}; it has {some(list(images[0]))}"
        )
    rows, problems = _index_images(file, images, key)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if annotations and not are_objects(annotations):
        raise UserError(f"{file}: `annotations` is not a list of objects; get the file again")
    problems += _join(file, rows, annotations or [], wanted, separator)
    places = [f"images[{row.pop('')}]" for row in rows.values()]
    columns = pd.DataFrame(list(rows.values()), index=places, dtype=str).fillna("")
    if missing := [column for column in wanted if column not in columns]:
        has = some(columns.columns.tolist())
        raise UserError(
            f"{file}: no key {', '.join(map(repr, missing))} in its images and annotations; they have {has}"
        )
    return columns, problems


def load(file: Path) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: If it is missing, cut off or damaged.
    """
    text = read_utf8(file)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text.rstrip()) - 1
        what = "the JSON is cut off" if is_cut else f"not valid JSON ({error.msg})"
        raise UserError(f"{file}, line {error.lineno}: {what}; get the file again") from None
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{file}: not readable ({error})") from None
    except RecursionError:
        raise UserError(f"{file}: nested too deeply") from None


def are_objects(content: object) -> TypeGuard[list[dict[str, Any]]]:
    """Whether a part of a JSON file is a non-empty list of objects."""
    return isinstance(content, list) and bool(content) and all(isinstance(each, dict) for each in content)


def id_key(images: list[dict[str, Any]]) -> str | None:
    """The key that holds the images' ids."""
    return next((key for key in IMAGE_KEYS if key in images[0]), None)


def _index_images(file: Path, images: list[dict[str, Any]], key: str) -> tuple[Rows, list[Problem]]:
    """The images' values as text, by id; under the key "" the position in the list."""
    rows: Rows = {}
    nameless, repeated = [], []
    for at, image in enumerate(images):
        name = as_text(image.get(key))
        if not name:
            nameless.append((f"images[{at}]", str(image)))
        elif name in rows:
            repeated.append((f"images[{at}]", name))
        else:
            rows[name] = {"": str(at), **{column: as_text(value) for column, value in image.items()}}
    problems = problem_for_places(file, nameless, f"without {key!r}", "get the file again, or remove them")
    problems += problem_for_places(file, repeated, f"with an {key!r} that an earlier image has", "keep one of them")
    if not rows:
        raise_problems(problems)
    return rows, problems


def _join(
    file: Path, rows: Rows, annotations: Sequence[Mapping[str, Any]], wanted: list[str], separator: str | None
) -> list[Problem]:
    """Adds the annotations' values to the images' rows."""
    strange: list[tuple[int | str, str]] = []
    own = {column for row in rows.values() for column in row}
    joined: dict[str, dict[str, list[str]]] = {}
    for at, annotation in enumerate(annotations):
        name = next((as_text(annotation[key]) for key in JOIN_KEYS if key in annotation), "")
        if name not in rows:
            strange.append((f"annotations[{at}]", name))
            continue
        values = joined.setdefault(name, {})
        for column, value in annotation.items():
            if column not in own and column not in JOIN_KEYS and column != "id":
                values.setdefault(column, []).extend(map(as_text, value if isinstance(value, list) else [value]))
    problems = problem_for_places(file, strange, "that annotate no image in `images`", "get the file again")
    several: list[tuple[int | str, str]] = []
    for name, values in joined.items():
        cells = {column: (separator or " ").join(dict.fromkeys(texts)) for column, texts in values.items()}
        rows[name] |= cells
        if separator is None and any(len(set(values.get(column, ()))) > 1 for column in wanted):
            several += [(name, cells[column]) for column in wanted if len(set(values.get(column, ()))) > 1]
    remedy = "for several labels per image add --set \"data.label_separator=' '\"; otherwise remove all but one"
    return problems + problem_for_places(file, several, "with annotations that differ", remedy)


def as_text(value: object) -> str:
    """A JSON value as a cell: numbers as written, nothing for null."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
