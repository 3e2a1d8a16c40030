"""Infers what a competition is from its files alone: rows, images, labels, task, groups and a likely metric."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from scenes.competition.find import is_litter
from scenes.competition.infer_rows import (
    Detected,
    Rows,
    infer_test_rows,
    lists_images,
    path_rows,
    sample_ids,
    table_rows,
)
from scenes.competition.inventory import TABLES, Inventory
from scenes.competition.table import some
from scenes.console import UserError

ARCHIVES = {".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz"}
GROUPS = re.compile(r"patient|subject|person|driver|location|(^|_)(group|scene|site|series|study|seq|sequence)(_|$)")


def detect(root: Path) -> Detected:
    """Infers the description of the competition in a folder.

    Raises:
        UserError: If there are no images, or no training rows can be found.
    """
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; put the competition's files there")
    files = Inventory(root)
    if not files.images:
        raise UserError(_no_images(root, files))
    found = Detected()
    # Of those for several stages, the one with the most rows.
    sample = max((table for table in files.tables if table.is_sample), key=len, default=None)
    if sample and (own := sample_ids(files, sample)) != next(iter(sample.columns)):
        sample = replace(sample, columns={own: sample.columns[own], **sample.columns})
        found.set("data.id_column", own, "names images in the sample")
    rows = table_rows(files, sample, found)
    lists = [table for table in files.tables if table.role == "train" or lists_images(files, table)]
    if rows is None and not lists and not any("train" in name.lower() for name in files.unreadable):
        rows = path_rows(files, sample, found)
    unread = [*files.unreadable.values()]
    if rows is None:
        places = ["in the images' paths; for a folder per class there is also python src/prepare.py folders DIR"]
        places += [f"in {table.file}, with the columns {some(list(table.columns))}" for table in files.tables]
        places += [f"read: {why}" for why in unread]
        remedy = "set data.train_csv, data.image_column, data.label_column and data.image_dir"
        raise UserError(f"{root}: no training rows found; {remedy}" + "".join(f"\n  not {place}" for place in places))
    found.unknown += [f"what is in {why}" for why in unread]
    infer_test_rows(files, rows, sample, found)
    if sample and sample.file != "sample_submission.csv":
        found.set("data.sample_submission", sample.file, "the file of that kind")
    _describe_target(rows, found)
    _groups(rows, found)
    found.set("symmetry", "mirror", "guessed; none for text or digits, all where orientation has no meaning (cells)")
    return found


def _no_images(root: Path, files: Inventory) -> str:
    """Why a folder without images cannot be used."""
    wide = [table for table in files.tables if len(table.columns) > 100]
    if wide:
        return (
            f"{root}: no image files, but {wide[0].file} has {len(wide[0].columns)} columns: pixels in a CSV are not "
            "read; write each row as an image file, and a CSV with its name and label"
        )
    kinds = Counter(Path(name).suffix.lower() for _, _, names in os.walk(root) for name in names if not is_litter(name))
    others = [(kind, count) for kind, count in kinds.most_common() if kind and kind not in TABLES]
    if others and not kinds.keys() & ARCHIVES:
        kind, count = others[0]
        return f"{root}: no image files, but {count} {kind} files, which are not read; write the images as image files"
    return f"{root}: no image files; unpack the archives there, or give the folder that holds them"


def _describe_target(rows: Rows, found: Detected) -> None:
    """Records the labels, the task and the metric."""
    target = rows.target
    if len(target.columns) > 1:
        found.set("data.label_columns", target.columns, target.why)
    elif target.columns != ["label"] or not rows.source.file.endswith(".csv"):
        found.set("data.label_column", target.columns[0], target.why)
    if target.separator:
        found.set("data.label_separator", target.separator, "separates the labels of a cell")
    if target.names:
        found.set("data.class_names", target.names, "display names")
    found.set("task", target.task, target.task_why)
    found.set("metric", target.metric, f"guessed for {target.metric_why}; set the competition's own")
    found.summary.append(
        ("labels", ", ".join(target.columns[:6]) + (", …" if len(target.columns) > 6 else ""), target.why)
    )
    found.summary.append(("task", target.task, target.task_why))
    found.summary.append(("metric", f"{target.metric} (a guess)", target.metric_why))
    found.unknown.append(f"the metric: {target.metric} is a guess for {target.metric_why}; --set metric=…")
    found.unknown.extend(target.unknown)


def _groups(rows: Rows, found: Detected) -> None:
    """Uses a column such as a patient's for groups if its values repeat and no class is in a single group."""
    taken = {*rows.target.columns, found.values["data.image_column"]}
    for column, cells in rows.source.columns.items():
        is_group = column not in taken and GROUPS.search(column.lower()) and all(cells)
        if not is_group or not 5 <= len(set(cells)) < len(cells):
            continue
        if _has_class_in_one_group(rows, cells):
            note = f"whether rows with the same {column!r} must share a fold: some classes are in only one of them"
            found.unknown.append(f"{note} (data.group_column)")
            continue
        why = f"{len(set(cells))} values in {len(cells)} rows: rows with the same value share a fold"
        found.set("data.group_column", column, why)
        found.summary.append(("groups", column, why))
        return


def _has_class_in_one_group(rows: Rows, groups: Sequence[str]) -> bool:
    """Whether all rows of some class are in one group."""
    target = rows.target
    if target.task != "classes" or len(target.columns) > 1:
        return False
    within: dict[str, set[str]] = {}
    for label, group in zip(rows.source.columns[target.columns[0]], groups, strict=True):
        within.setdefault(label, set()).add(group)
    return any(len(found) == 1 for found in within.values())
