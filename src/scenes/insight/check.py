"""Looks a competition over before training: a summary on the terminal, and a page with pictures."""

import os
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
from markupsafe import Markup

from scenes.config import Config
from scenes.console import say
from scenes.data.augment import compose
from scenes.files import check_file, write_result
from scenes.insight import page, sheets
from scenes.insight.duplicates import group_pairs
from scenes.insight.findings import find
from scenes.insight.quality import OUTLYING
from scenes.insight.readable import Readable
from scenes.insight.shift import SLIGHT
from scenes.insight.survey import SIDES, Survey, survey

GROUPS = "near_duplicates.csv"
SHOWN = 12  # pictures in a gallery of extremes
PAIRS_SHOWN = 36
VALUES_SHOWN = 10
BARS = 40  # with more classes the table has to do
AUGMENTED = 6


def check(config: Config, out: Path) -> None:
    """Looks at all there is to see before training; bad data is reported, and the rest looked at.

    Args:
        config: The experiment.
        out: The page's file; one that is no page of ours is kept under a number. Beside it goes near_duplicates.csv, if
            there are any in train.

    Raises:
        UserError: If there is not one training image that can be read, or `out` cannot be a file.
    """
    check_file(out)
    compose(config.augment, config.image_size)  # a wrong transform is found here, not after the work
    if config.data.sample:
        from scenes.competition.sample import draw

        draw(config.data.root)
    known = survey(config)
    groups = _write_groups(known, out.with_name(GROUPS))
    below_root = os.path.relpath(groups.resolve(), config.data.root.resolve()) if groups else ""
    remedy = f"in {groups}; to give each group one fold: --set {shlex.quote(f'data.near_duplicates={below_root}')}"
    findings = find(known, remedy)
    data, pairs = known.data, known.pairs
    page.render(
        "check.html",
        out,
        name=config.name,
        findings=findings,
        no_embeddings=known.no_embeddings,
        unreadable=[[str(side.table.csv), *row] for side in data.sides for row in side.unreadable],
        classes=_classes(data),
        class_figure=_class_figure(data),
        files=[(column, _tally(data, known.looks[column])) for column in ("size", "mode", "format")],
        conflicts=_pair_gallery(data, pairs[pairs["conflict"]]),
        pairs=_pairs(known),
        extremes=_extremes(known),
        shift=known.shift,
        shifted=_shifted(known),
        augment=config.augment if isinstance(config.augment, str) else "the config's own",
        augmentations=sheets.augmentations(data, config, AUGMENTED),
        contact_sheets=sheets.contact_sheets(data, config.seed),
    )
    for finding in findings:
        say(finding.what + (f"\n  → {finding.remedy}" if finding.remedy else ""))
    say(f"pictures: {out}")


def _write_groups(known: Survey, path: Path) -> Path | None:
    """Writes which training images show nearly the same, if any do; a file of other content is kept under a number."""
    pairs = known.pairs[known.pairs["side"] == SIDES[0]]
    if pairs["exact"].all():  # training finds the others itself
        return None
    table = known.data.train.table
    groups = group_pairs(pairs, len(table))
    rows = pd.DataFrame({"image_name": table.names, "group": groups})[groups > 0]
    write_result(path, rows.to_csv(index=False, lineterminator="\n"))
    return path


def _classes(data: Readable) -> list[list[object]]:
    counts = np.bincount(data.labels.targets, minlength=len(data.labels.classes))
    named = zip(data.labels.class_names, data.labels.classes, counts, strict=True)
    return [[name, label, f"{count:,}", f"{count / counts.sum():.1%}"] for name, label, count in named]


def _class_figure(data: Readable) -> Markup | str:
    names = data.labels.class_names
    if len(names) > BARS:
        return ""
    figure, axes = page.figure(height=0.8 + 0.22 * len(names), title="Training images by class")
    axes.barh(names[::-1], np.bincount(data.labels.targets, minlength=len(names))[::-1])
    axes.grid(visible=False, axis="y")
    return page.svg(figure)


def _tally(data: Readable, values: pd.Series) -> list[list[object]]:
    """Counts how often each value comes in train and in test; of many, the most frequent."""
    train, test = Counter(values[: len(data.train)]), Counter(values[len(data.train) :])
    common = [value for value, _ in (train + test).most_common()]
    shown = [[value, f"{train[value]:,}", f"{test[value]:,}"] for value in common[:VALUES_SHOWN]]
    if rest := common[VALUES_SHOWN:]:
        sums = (sum(side[value] for value in rest) for side in (train, test))
        shown.append([f"{len(rest)} others", *(f"{count:,}" for count in sums)])
    return shown


def _pairs(known: Survey) -> list[tuple[str, list[dict[str, str | Markup]]]]:
    """The pairs of each side, those most alike."""
    galleries = []
    for side in SIDES:
        chosen = known.pairs[known.pairs["side"] == side]
        exact = int(chosen["exact"].sum())
        shown = f"; the first {PAIRS_SHOWN}" if len(chosen) > PAIRS_SHOWN else ""
        title = f"{side.capitalize()}: {exact:,} identical, {len(chosen) - exact:,} nearly{shown}"
        if len(chosen):
            galleries.append((title, _pair_gallery(known.data, chosen)))
    return galleries


def _pair_gallery(data: Readable, pairs: pd.DataFrame) -> list[dict[str, str | Markup]]:
    shown = pairs.head(PAIRS_SHOWN)
    notes = ["identical" if pair.exact else f"similarity {pair.likeness:.2f}" for pair in shown.itertuples()]
    return sheets.pairs(data, zip(shown["first"], shown["second"], strict=True), notes)


def _extremes(known: Survey) -> list[tuple[str, list[dict[str, str | Markup]]]]:
    """The darkest, brightest and least sharp images."""
    galleries = []
    kinds = (("Darkest", "brightness", 1), ("Brightest", "brightness", -1), ("Least sharp", "sharpness", 1))
    for title, column, sign in kinds:
        rows = (sign * known.looks[column]).nsmallest(SHOWN).index.tolist()
        is_far = (sign * known.looks[f"{column}_z"] < -OUTLYING).tolist()
        notes = [f"{column} {known.looks[column][row]:.0f}{' (outlier)' if is_far[row] else ''}" for row in rows]
        galleries.append((f"{title} ({sum(is_far)} outliers)", sheets.gallery(known.data, rows, notes)))
    return galleries


def _shifted(known: Survey) -> list[tuple[str, list[dict[str, str | Markup]]]]:
    """The images of each side that are taken for test images most surely, where the sides differ."""
    if not known.shift or known.shift.auc <= SLIGHT:
        return []
    by_likeness = pd.Series(known.shift.likeness, known.shift.rows).sort_values(ascending=False)
    galleries = []
    for title, in_test in (("Training images most like test", False), ("Test images least like training", True)):
        chosen = by_likeness[[known.data.is_test(row) == in_test for row in by_likeness.index]].head(SHOWN)
        notes = [f"test-like {chance:.2f}" for chance in chosen]
        galleries.append((title, sheets.gallery(known.data, chosen.index.tolist(), notes)))
    return galleries
