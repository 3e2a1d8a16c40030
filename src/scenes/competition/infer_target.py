"""Infers what is to be predicted, and in what form, from the training rows and the sample submission."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from scenes.competition.inventory import Inventory, Source
from scenes.competition.label_text import FLAGS, sort_labels

NAMES = (  # of label columns, the most common first
    *("label", "labels", "class", "target", "targets", "category", "category_id", "classname", "class_id", "label_id"),
    *("labelId", "tags", "attribute_ids", "diagnosis", "level", "species", "breed", "dx", "Finding Labels"),
)
SPLITS = {"partition", "split", "subset", "fold", "set", "usage", "train", "is_train"}  # never labels
SEPARATORS = (" ", "|", ";", ",")
MOST_GRADES = 30  # more distinct integers than this are a number if the sample's are decimals
SHARED = 0.8  # share of the words in multi-word cells that recur in other cells, if the words are labels


@dataclass(frozen=True)
class Target:
    """What is to be predicted.

    Attributes:
        columns: The label column, or several of 0 and 1.
        why: What that was inferred from.
        is_sure: Whether the sample submission says so.
        task: ``classes``, ``labels`` or ``number``.
        task_why: What that was inferred from.
        metric: A metric that fits the task and the sample's form.
        metric_why: That form.
        separator: What separates the labels of a cell.
        names: The classes' display names, in the order of the sorted labels.
        unknown: What is not sure.
    """

    columns: list[str]
    why: str
    is_sure: bool
    task: str
    task_why: str
    metric: str
    metric_why: str
    separator: str | None = None
    names: list[str] | None = None
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def of_classes(cls, column: str, cells: Sequence[str], sample: Source | None) -> "Target":
        """One column of class labels."""
        metric, form = _class_metric(cells, sample)
        return cls([column], "the images' paths", True, "classes", f"{len(set(cells))} labels", metric, form)


def find_target(table: Source, ids: str, sample: Source | None, files: Inventory) -> Target | None:
    """Infers what is to be predicted from a table's columns; None if no column can be the label."""
    others = [column for column in table.columns if column != ids and column.lower() not in SPLITS]
    asked = list(sample.columns)[1:] if sample else []
    if len(asked) > 1:
        shared = [column for column in asked if column in table.columns]
        if len(shared) > 1:
            return _flag_target(table, shared, asked)
        for column in others:
            words = set(table.columns[column])
            if len(words) > 1 and len(words & set(asked)) >= SHARED * len(words):
                task_why = f"its labels are the sample's columns ({len(asked)})"
                why = "its values are the sample's columns"
                return Target([column], why, True, "classes", task_why, "log_loss", "a probability for each class")
        asked = shared or asked  # the sample may have columns of its own, such as Usage
    is_named = asked or any(name in others for name in NAMES)
    flags = [] if is_named else [column for column in others if set(table.columns[column]) <= set(FLAGS)]
    if len(flags) > 2 and all(sum(map(FLAGS.__getitem__, row)) == 1 for row in table.cells(flags)):
        why = f"of 0 and 1 in {table.file}, exactly one 1 per row"
        return Target(flags, why, False, "classes", why, "accuracy", "a label")
    chosen, why, is_sure = _label_column(table, others, asked, sample)
    return _cell_target(table, chosen, why, is_sure, sample, files) if chosen else None


def _label_column(
    table: Source, others: Sequence[str], asked: Sequence[str], sample: Source | None
) -> tuple[str | None, str, bool]:
    """The column with the labels, the reason, and whether the sample says so."""
    if len(asked) == 1 and asked[0] in others:
        return asked[0], "the sample's other column", True
    by_name = [name for name in NAMES if name in others]
    if by_name and table.is_json:
        return by_name[0], "its name", True
    if len(asked) == 1 and sample:
        guesses = Counter(word for cell in sample.columns[asked[0]] for word in cell.split())
        for column in others:
            known = set(table.columns[column])
            if (
                1 < len(known) < len(table)
                and len(known & set(guesses)) >= min(2, len(guesses))
                and sum(guesses[word] for word in guesses if word in known) > 0.5 * guesses.total()
            ):
                return column, f"the sample's {asked[0]!r} has its values", True
    if by_name:
        return by_name[0], "its name", False
    varied = [column for column in others if 1 < len(set(table.columns[column])) < len(table)]
    return (varied[0], "the only column that could be", False) if len(varied) == 1 else (None, "", False)


def _flag_target(table: Source, shared: list[str], asked: list[str]) -> Target:
    """The target in several columns of 0 and 1."""
    cells = table.cells(shared)
    ones = [sum(FLAGS.get(cell, 0) for cell in row) for row in cells]
    unknown = []
    if missing := len(asked) - len(shared):
        unknown.append(f"{missing} of the sample's columns are not in {table.file}")
    if other := next((cell for row in cells for cell in row if cell not in FLAGS), None):
        unknown.append(f"{table.file} has values besides 0 and 1 in them, such as {other!r}: several numbers per row")
    is_one_hot = all(count == 1 for count in ones)
    task = "classes" if is_one_hot else "labels"
    task_why = "each row has exactly one 1" if is_one_hot else "rows have any number of ones"
    metric = "log_loss" if is_one_hot else "roc_auc"
    form = f"a probability for each {'class' if is_one_hot else 'label'}"
    why = f"the sample's columns, of 0 and 1 in {table.file}"
    return Target(shared, why, True, task, task_why, metric, form, unknown=unknown)


def _cell_target(
    table: Source, column: str, why: str, is_sure: bool, sample: Source | None, files: Inventory
) -> Target:
    """The target in one column: separated labels, numbers or class labels."""
    cells = table.columns[column]
    asked = list(sample.columns.values())[1] if sample and len(sample.columns) == 2 else []
    if separator := _separator(cells):
        words = {word for cell in cells for word in cell.split(separator)}
        task_why = f"cells of several words, {len(words)} in all"
        return Target([column], why, is_sure, "labels", task_why, "labels_f1_micro", "a set of labels", separator)
    if _is_number(cells, asked):
        return Target([column], why, is_sure, "number", f"{len(set(cells))} different numbers", "rmse", "a number")
    metric, form = _class_metric(cells, sample)
    names = _class_names(sort_labels(list(set(cells))), files)
    different, unknown = len(set(cells)), []
    are_integers = not table.is_json and all(map(str.isdigit, set(cells)))
    if are_integers and not names and 2 < different <= 11 and metric == "accuracy":
        unknown = [f"whether {column!r} is grades: if so, the metric may be quadratic_kappa"]
    if are_integers and different > max(MOST_GRADES, len(cells) / 2):
        unknown = [f"whether {column!r} is a quantity: if so, set task: number"]
    task_why = f"{different} different labels"
    return Target([column], why, is_sure, "classes", task_why, metric, form, names=names, unknown=unknown)


def _separator(cells: Sequence[str]) -> str | None:
    """What separates the labels of a cell: a character whose parts recur in different cells."""
    texts = set(cells)
    for sign in SEPARATORS:
        parts = {text: {part for part in text.split(sign) if part} for text in texts if sign in text.strip()}
        counts = Counter(part for text in texts for part in {*text.split(sign)} if part)
        words = {word for found in parts.values() for word in found}
        if words and sum(counts[word] > 1 for word in words) >= SHARED * len(words) and len(counts) <= len(texts):
            return sign
    return None


def _is_number(cells: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether a column is a quantity: decimals, or many integers where the sample has decimals."""
    texts = set(cells)
    if not all(re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", text, re.IGNORECASE) for text in texts):
        return False
    if any("." in text and float(text) % 1 for text in texts):
        return True
    return len(texts) > MOST_GRADES and any("." in cell and _fraction(cell) for cell in asked)


def _fraction(text: str) -> bool:
    return bool(re.fullmatch(r"\d+\.\d+", text)) and bool(float(text) % 1)


def _class_metric(cells: Sequence[str], sample: Source | None) -> tuple[str, str]:
    """A common metric for class labels, and the form of submission it was chosen for."""
    asked = list(sample.columns.values())[1] if sample and len(sample.columns) == 2 else []
    labels = set(cells)
    if sample and len(sample.columns) > 2 and len(labels & set(sample.columns)) >= SHARED * len(labels):
        return "log_loss", "a probability for each class"
    if any(_fraction(word) for cell in asked for word in cell.split() if " " in cell):
        return "accuracy", "a label, since labels with confidences or boxes, as the sample has, cannot be written"
    most = max((len(cell.split()) for cell in asked), default=0)
    if most > 1 and not any(" " in label for label in labels):
        return f"map@{most}", f"up to {most} labels per row, best first"
    if len(labels) == 2 and (labels == {"0", "1"} or any(_fraction(cell) for cell in asked)):
        return "roc_auc", f"the probability of {max(labels)!r}"
    return "accuracy", "a label"


def _class_names(labels: Sequence[str], files: Inventory) -> list[str] | None:
    """The labels' names, from a JSON file that maps each label to its name."""
    for content in files.json.values():
        if (
            isinstance(content, dict)
            and set(content) == set(labels)
            and all(isinstance(v, str) for v in content.values())
        ):
            return [content[label] for label in labels]
    return None
