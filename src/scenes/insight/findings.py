"""Describes the findings of a survey in sentences, with remedies."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from scenes.insight.quality import OUTLYING
from scenes.insight.readable import Side
from scenes.insight.shift import MIN_ROWS
from scenes.insight.survey import SIDES, Survey

EXAMPLES = 3
SINGULAR = {"classes": "class", "labels": "label", "number": "range"}
UNBALANCED = 10  # ratio of the largest to the smallest class


class Finding(NamedTuple):
    """A line of the summary and what to do about it."""

    what: str
    remedy: str = ""


def find(survey: Survey, groups_remedy: str) -> list[Finding]:
    """Describes what a survey found.

    Args:
        survey: The survey.
        groups_remedy: The remedy for near duplicates among the training images.
    """
    return [
        *_rows(survey),
        *_unreadable(survey),
        *_files(survey.looks),
        *_duplicates(survey, groups_remedy),
        *_outliers(survey.looks),
        *_shift(survey),
    ]


def _rows(survey: Survey) -> Iterator[Finding]:
    data = survey.data
    names, counts = [name for name, _ in data.groups], np.array([len(rows) for _, rows in data.groups])
    least, most = int(counts.argmin()), int(counts.argmax())
    one = SINGULAR[data.task.kind]
    span = f"{counts[least]:,} ({names[least]}) to {counts[most]:,} ({names[most]}) a {one}"
    if counts[least] == counts[most]:
        span = f"{counts[least]:,} a {one}"
    uneven = data.task.kind == "classes" and counts[most] >= UNBALANCED * counts[least]
    remedy = "if the metric weighs all classes equally: --set train.class_weights=balanced" if uneven else ""
    what = f"of {data.task.columns[0]!r}" if one == "range" else f"in {len(names)} {data.task.kind}"
    yield Finding(f"{len(data.train):,} training images {what}, {span}", remedy)
    yield Finding(f"{len(data.test):,} test images" if data.test else "no test images")
    for problem in data.problems:
        yield Finding(f"{problem.where}: {problem.what}", problem.remedy)


def _unreadable(survey: Survey) -> Iterator[Finding]:
    remedies = (
        "data.on_bad_image=skip trains without them; or name them in data.drop",
        "infer.on_bad_image=prior predicts class frequencies for them",
    )
    for side, remedy in zip(survey.data.sides, remedies, strict=False):
        if side.unreadable:
            yield Finding(f"{side.table.file}: {_listed(side)}", f"replace the files; or --set {remedy}")


def _listed(side: Side) -> str:
    bad = side.unreadable
    examples = ", ".join(f"line {line} ({name}: {why})" for line, name, why in bad[:EXAMPLES])
    more = f" and {len(bad) - EXAMPLES} more" if len(bad) > EXAMPLES else ""
    return f"{len(bad)} image{'s' if len(bad) > 1 else ''} cannot be read: {examples}{more}"


def _files(looks: pd.DataFrame) -> Iterator[Finding]:
    parts = []
    for column in ("size", "mode", "format"):
        counts = Counter(looks[column]).most_common()
        value, count = counts[0]
        others = f" and {len(counts) - 1} more ({len(looks) - count:,} images)" if len(counts) > 1 else ""
        parts.append(f"{column} {value}{others}")
    yield Finding("files: " + "; ".join(parts))


def _duplicates(survey: Survey, groups_remedy: str) -> Iterator[Finding]:
    pairs = survey.pairs
    for kind, chosen in (("identical images", pairs["exact"]), ("near duplicates", ~pairs["exact"])):
        counts = [f"{int((chosen & (pairs['side'] == side)).sum()):,} {side}" for side in SIDES]
        in_train = bool((chosen & (pairs["side"] == SIDES[0])).any())
        remedy = groups_remedy if kind == "near duplicates" and in_train else ""
        yield Finding(f"{kind}, pairs: " + (", ".join(counts) if chosen.any() else "none"), remedy)
    conflicts = int(pairs["conflict"].sum())
    relabel = "data.relabel corrects a label, " if survey.data.task.kind == "classes" else ""
    remedy = f"see the page; {relabel}data.drop leaves a row out" if conflicts else ""
    yield Finding(f"duplicate pairs with different labels: {conflicts or 'none'}", remedy)


def _outliers(looks: pd.DataFrame) -> Iterator[Finding]:
    brightness, sharpness = looks["brightness_z"], looks["sharpness_z"]
    counts = [int(far.sum()) for far in (brightness < -OUTLYING, brightness > OUTLYING, sharpness < -OUTLYING)]
    yield Finding("outliers: {} dark, {} bright, {} blurred or hazy images".format(*counts))


def _shift(survey: Survey) -> Iterator[Finding]:
    if survey.no_embeddings:
        yield Finding(f"image content was not compared: {survey.no_embeddings}")
    elif survey.shift:
        shift = survey.shift
        yield Finding(f"train against test: AUC {shift.auc:.3f} ± {shift.spread:.3f}: {shift.verdict}")
    elif survey.data.test:
        yield Finding(f"train against test: not measured (needs {MIN_ROWS} images of each)")
