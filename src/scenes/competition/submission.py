"""What a submission looks like, which follows from the metric, the task and the sample submission's columns."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from scenes.competition.csv_file import read_columns
from scenes.competition.decoding import PLAIN, Decoding
from scenes.competition.metric import Metric, competition_metric
from scenes.competition.rows import id_column, sample_file
from scenes.competition.table import Table, column_of, some
from scenes.competition.task import Number, Task
from scenes.config import Config
from scenes.console import Problem, say

ORIGIN = "get the competition's sample submission again, or remove it"


@dataclass(frozen=True)
class Form:
    """The form of a submission.

    Attributes:
        kind: One of `WRITERS`.
        task: What is predicted.
        header: The id column, then the value columns.
        ids: The rows' ids, in order, each once.
        outputs: The outputs of the value columns, if there is a column for each; else that of the positive class.
        labels: What each output is called.
        k: How many labels a ranking has.
        separator: What separates the labels of a set.
        id_place: Where the sample has the id among its columns.
        doubt: Why the labels may not be what the competition expects; empty if nothing suggests that.
    """

    kind: str
    task: Task
    header: list[str]
    ids: list[str]
    outputs: list[int]
    labels: list[str]
    k: int = 1
    separator: str = " "
    id_place: int = 0
    doubt: str = ""

    def write(self, names: Sequence[str], predictions: np.ndarray, decoding: Decoding = PLAIN) -> pd.DataFrame:
        """Makes the submission.

        Args:
            names: The id of each predicted image; the predictions of images with the same id are averaged.
            predictions: float32, shape (n, outputs).
            decoding: How predictions become labels.

        Returns:
            The columns of the header, with rows in the order of `ids`.
        """
        averaged = _average(names, predictions, self.ids)
        columns = [pd.Series(cells) for cells in WRITERS[self.kind](self, averaged, decoding)]
        columns.insert(self.id_place, pd.Series(self.ids))
        id_name, *header = self.header
        header.insert(self.id_place, id_name)
        table = pd.concat(columns, axis=1)
        table.columns = pd.Index(header)
        return table

    def __str__(self) -> str:
        """Describes the form for display."""
        shown = ",".join(self.header) if len(self.header) < 8 else f"{','.join(self.header[:4])},… ({len(self.header)})"
        return f"{shown}: {ABOUT[self.kind].format(k=self.k, positive=self.task.names[self.outputs[-1]])}"


ABOUT = {
    "probabilities": "a probability per column",
    "decisions": "0 or 1 per column",
    "positive": "the probability of {positive!r}",
    "label": "one label",
    "ranking": "the {k} most probable labels, best first",
    "set": "all labels that apply",
    "number": "a number",
    "grade": "a whole number",
}


def _average(names: Sequence[str], predictions: np.ndarray, ids: Sequence[str]) -> np.ndarray:
    """The mean prediction of each id's images: float32, shape (ids, outputs)."""
    place = {name: at for at, name in enumerate(ids)}
    at = np.array([place[name] for name in names])
    if len(names) == len(ids):
        return predictions[np.argsort(at)]
    sums = np.zeros((len(ids), predictions.shape[1]))
    np.add.at(sums, at, predictions)
    return (sums / np.bincount(at, minlength=len(ids))[:, None]).astype(np.float32)


Writer = Callable[[Form, np.ndarray, Decoding], Sequence[Sequence[object] | np.ndarray]]


def _probabilities(form: Form, predictions: np.ndarray, _: Decoding) -> list[np.ndarray]:
    """A column for each output; class probabilities sum to 1 even as the float32 they are written as."""
    exact = predictions.astype(np.float64)
    if form.task.kind == "classes":
        exact /= exact.sum(1, keepdims=True)
    return list(exact[:, form.outputs].astype(np.float32).T)


def _decisions(form: Form, predictions: np.ndarray, decoding: Decoding) -> list[np.ndarray]:
    """A column of 0 and 1 for each output."""
    decided, task = decoding.apply(predictions), form.task
    is_chosen = decided >= 0.5 if task.kind == "labels" else decided.argmax(1)[:, None] == np.arange(task.outputs)
    return list(is_chosen[:, form.outputs].astype(np.int64).T)


def _positive(form: Form, predictions: np.ndarray, _: Decoding) -> list[np.ndarray]:
    """The probability of one class of two."""
    return [predictions[:, form.outputs[0]]]


def _label(form: Form, predictions: np.ndarray, decoding: Decoding) -> list[list[str]]:
    """The label of the chosen class."""
    return [[form.labels[best] for best in decoding.apply(predictions).argmax(1)]]


def _ranking(form: Form, predictions: np.ndarray, _: Decoding) -> list[list[str]]:
    """The labels of the k most probable classes, best first."""
    best = np.argsort(-predictions, axis=1, kind="stable")[:, : form.k]
    return [[form.separator.join(form.labels[at] for at in row) for row in best]]


def _set(form: Form, predictions: np.ndarray, decoding: Decoding) -> list[list[str]]:
    """All labels that apply, at least the most probable one, since no training row lacks a label."""
    is_chosen = decoding.apply(predictions) >= 0.5
    is_empty = ~is_chosen.any(1)
    is_chosen[is_empty, predictions[is_empty].argmax(1)] = True
    return [[form.separator.join(form.labels[at] for at in np.flatnonzero(row)) for row in is_chosen]]


def _number(form: Form, predictions: np.ndarray, _: Decoding) -> list[np.ndarray]:
    """The number, within the range of the training rows."""
    assert isinstance(form.task, Number)
    return [predictions[:, 0].clip(form.task.low, form.task.high)]


def _grade(form: Form, predictions: np.ndarray, decoding: Decoding) -> list[np.ndarray]:
    """The number rounded to an integer, within the range of the training rows."""
    return [np.rint(_number(form, decoding.apply(predictions), decoding)[0]).astype(np.int64)]


WRITERS: dict[str, Writer] = {
    "probabilities": _probabilities,
    "decisions": _decisions,
    "positive": _positive,
    "label": _label,
    "ranking": _ranking,
    "set": _set,
    "number": _number,
    "grade": _grade,
}


def plan_submission(config: Config, task: Task, test: Table) -> tuple[Form | None, list[Problem]]:
    """Finds the form of a competition's submissions.

    Args:
        config: Has the metric, and perhaps a form that overrides it.
        task: What is predicted.
        test: The test rows.

    Returns:
        The form, None if none fits; and all problems.

    Raises:
        UserError: If the metric is unknown or does not fit the task, or the sample submission is not a table.
    """
    metric = competition_metric(config, task)
    ids, file = list(dict.fromkeys(test.names)), sample_file(config.data)
    if file is None:
        data = config.data
        is_one = task.outputs < 3 and task.kind == "classes"  # with two classes, one probability gives both
        wants_columns = (config.submission or metric.wants) == "probabilities" and not is_one
        values = data.label_columns or (task.columns if wants_columns else [data.label_column])
        return _fit(config, task, metric, [data.id_column or data.image_column, *values], ids, "the metric")
    columns, problems = read_columns(file, [], ORIGIN)
    header = columns.columns.tolist()
    place = header.index(id_column(header, config.data))
    rows, header = columns.iloc[:, place].tolist(), [header.pop(place), *header]
    if len(header) < 2:
        return None, [*problems, Problem(str(file), f"has one column, {header[0]!r}", ORIGIN)]
    form, form_problems = _fit(config, task, metric, header, rows, str(file))
    if form:
        doubt = _doubt(form, columns.iloc[:, 0 if place else 1].tolist(), file)
        form = replace(form, id_place=place, doubt=doubt)
    return form, problems + _id_problems(file, rows, ids, test) + form_problems


def check_submission_form(config: Config, task: Task, test: Table) -> list[Problem]:
    """Finds why no submission could be written, before any training; arguments and errors as for `plan_submission`."""
    form, problems = plan_submission(config, task, test)
    if form and form.doubt:
        say(form.doubt)
    return problems


def _doubt(form: Form, cells: Sequence[str], file: Path) -> str:
    """Says if a sample submission's cells have none of the labels that would be written."""
    if form.kind not in ("label", "ranking", "set"):
        return ""
    several = form.kind != "label"
    words = {word for cell in cells for word in (cell.split(form.separator) if several else [cell]) if word}
    if not words or words & set(form.labels):
        return ""
    return (
        f"{file}: has {some(sorted(words))} where a submission would have labels such as {some(form.labels)}; if the "
        "competition wants other texts, set data.submission_labels"
    )


def _id_problems(file: Path, rows: list[str], ids: list[str], test: Table) -> list[Problem]:
    """Compares the sample's ids with the test rows'."""
    problems = []
    if repeated := [name for name, count in Counter(rows).items() if count > 1]:
        problems.append(Problem(str(file), f"repeats the id {some(repeated)}", ORIGIN))
    known, listed = set(ids), set(rows)
    own = column_of(test.columns.items(), listed) if known != listed else None
    remedy = f"set data.id_column: {own}" if own else "use the files of one competition, or remove the sample"
    if strange := [name for name in dict.fromkeys(rows) if name not in known]:
        problems.append(Problem(str(file), f"lists {len(strange)} ids that {test.file} lacks: {some(strange)}", remedy))
    if missing := [name for name in ids if name not in listed]:
        problems.append(Problem(str(file), f"lacks {len(missing)} ids of {test.file}: {some(missing)}", remedy))
    return problems


def _fit(
    config: Config, task: Task, metric: Metric, header: list[str], ids: list[str], source: str
) -> tuple[Form | None, list[Problem]]:
    """Chooses the kind of form by what is wanted and the value columns."""
    values, wants = header[1:], config.submission or metric.wants
    written = config.data.submission_labels
    if strange := [label for label in written if label not in task.columns]:
        what = f"names {some(strange)}, which are not labels of the training rows"
        return None, [Problem("data.submission_labels", what, f"the labels are {some(task.columns)}")]
    labels = [written.get(label, label) for label in task.columns]
    places = {text: at for texts in (task.names, task.columns, labels) for at, text in enumerate(texts)}
    outputs = _outputs(task, values, places)
    kind = None
    if outputs is not None:
        is_decided = (task.kind == "labels" and wants in ("sets", "labels")) or config.submission == "labels"
        kind = "decisions" if is_decided else "probabilities"
    elif len(values) > 1:
        return None, [_columns_problem(task, values, places, source)]
    elif task.kind == "number":
        kind = "grade" if wants == "labels" else "number"
    elif task.kind == "labels":
        kind = "set" if wants in ("sets", "labels") else None
    elif wants == "probabilities":
        kind = "positive" if task.outputs == 2 else None
    else:
        kind = {"labels": "label", "ranking": "ranking"}.get(wants)
    if kind is None:
        return None, [_form_problem(config, task, metric, values, source)]
    if kind == "positive":
        outputs = [places.get(values[0], 1)]
    separator = (config.data.label_separator or " ") if kind == "set" else " "
    k = min(metric.k, task.outputs)
    return Form(kind, task, header, ids, outputs or [task.outputs - 1], labels, k, separator), []


def _outputs(task: Task, values: list[str], places: dict[str, int]) -> list[int] | None:
    """The output of each value column, if each has one: all for classes, at least some for labels.

    Args:
        task: What is predicted.
        values: The columns.
        places: The outputs by all that they are called: names, the data's spelling, the submission's.
    """
    if task.kind == "number" or (len(values) == 1 and task.outputs > 1 and task.kind == "classes"):
        return None
    found = [places[column] for column in values if column in places]
    if len(set(found)) < len(values) or (task.kind == "classes" and len(found) < task.outputs):
        return None
    return found


def _columns_problem(task: Task, values: list[str], places: dict[str, int], source: str) -> Problem:
    """Says which of several value columns are not outputs; arguments as for `_outputs`."""
    found = {places[column] for column in values if column in places}
    parts = []
    if strange := [column for column in values if column not in places]:
        parts.append(f"has the columns {some(strange)}, which are not labels of the training rows")
    if missing := [label for at, label in enumerate(task.columns) if at not in found]:
        parts.append(f"lacks columns for {some(missing)}")
    what = " and ".join(parts) or f"has several columns for one label: {some(values)}"
    return Problem(source, what, "use the files of one competition, or set data.label_columns, data.class_names")


def _form_problem(config: Config, task: Task, metric: Metric, values: list[str], source: str) -> Problem:
    """Says that one column cannot hold what is wanted."""
    by = f"submission: {config.submission}" if config.submission else f"metric {metric.name} wants {metric.wants}"
    what = f"{by} of {task.outputs} {task.kind}, but the only column is {values[0]!r}"
    remedy = "set the competition's metric, or submission: " + ("sets" if task.kind == "labels" else "labels")
    return Problem(source, what, remedy)
