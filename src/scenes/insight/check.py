"""Examines a competition's data before training: prints a summary and writes a page with images."""

import os
import shlex
from collections import Counter
from pathlib import Path

import pandas as pd
from markupsafe import Markup

from scenes.config import Config
from scenes.config_file import recipes_of
from scenes.console import say
from scenes.data.augment import compose
from scenes.files import check_file, write_result
from scenes.insight import figures, gallery, page
from scenes.insight.duplicates import group_pairs
from scenes.insight.findings import SINGULAR, find
from scenes.insight.gallery import Shown
from scenes.insight.quality import OUTLYING
from scenes.insight.readable import Readable
from scenes.insight.shift import SLIGHT
from scenes.insight.survey import SIDES, Survey, survey

GROUPS = "near_duplicates.csv"
SHOWN = 12  # images in a gallery of extremes
PAIRS_SHOWN = 36
VALUES_SHOWN = 10
MAX_BARS = 40  # more classes get only the table and no figure
AUGMENTED = 6


def check(config: Config, out: Path) -> None:
    """Examines the data; bad rows are reported and the others are still examined.

    Args:
        config: The experiment.
        out: The page's file; an existing file that is not such a page is renamed. near_duplicates.csv is written beside
            it if there are near duplicates among the training images.

    Raises:
        UserError: If no training image can be read, or `out` cannot be a file.
    """
    check_file(out)
    for each in recipes_of(config):
        compose(each.augment, each.image_size, each.symmetry)  # find an invalid transform before the work, not after it
    if config.data.sample:
        from scenes.competition.sample import draw

        draw(config.data.root)
    found = survey(config)
    groups = _write_groups(found, out.with_name(GROUPS))
    below_root = os.path.relpath(groups.resolve(), config.data.root.resolve()) if groups else ""
    remedy = f"see {groups}; to keep each group in one fold: --set {shlex.quote(f'data.near_duplicates={below_root}')}"
    findings = find(found, remedy)
    data, pairs = found.data, found.pairs
    page.render(
        "check.html",
        out,
        name=config.name,
        findings=findings,
        no_embeddings=found.no_embeddings,
        unreadable=[[str(side.table.file), *row] for side in data.sides for row in side.unreadable],
        singular=SINGULAR[data.task.kind],
        classes=_classes(data),
        class_figure=_class_figure(data),
        files=[(column, _tally(data, found.looks[column])) for column in ("size", "mode", "format")],
        conflicts=_pair_gallery(data, pairs[pairs["conflict"]]),
        pairs=_pairs(found),
        extremes=_extremes(found),
        shift=found.shift,
        shifted=_shifted(found),
        augmentations=[
            (_augment_name(each), gallery.augmentations(data, each, AUGMENTED)) for each in recipes_of(config)
        ],
        contact_sheets=gallery.contact_sheets(data, config.seed),
    )
    for finding in findings:
        say(finding.what + (f"\n  → {finding.remedy}" if finding.remedy else ""))
    say(f"page with images: {out}")


def _augment_name(config: Config) -> str:
    """The name of a config's augmentation."""
    name = config.augment if isinstance(config.augment, str) else "custom"
    return name if config.recipe == "auto" else f"{name} (recipe {config.recipe})"


def _write_groups(found: Survey, path: Path) -> Path | None:
    """Writes the groups of near duplicates among the training images, if any; a different old file is renamed."""
    pairs = found.pairs[found.pairs["side"] == SIDES[0]]
    if pairs["exact"].all():  # training finds identical images on its own
        return None
    table = found.data.train.table
    groups = group_pairs(pairs, len(table))
    rows = pd.DataFrame({"image_name": table.names, "group": groups})[groups > 0]
    write_result(path, rows.to_csv(index=False, lineterminator="\n"))
    return path


def _classes(data: Readable) -> list[list[object]]:
    labels = data.task.columns if data.task.kind != "number" else [""] * len(data.groups)
    named = zip(data.groups, labels, strict=True)
    return [[name, label, f"{len(rows):,}", f"{len(rows) / len(data.train):.1%}"] for (name, rows), label in named]


def _class_figure(data: Readable) -> Markup | str:
    if data.task.kind == "number":
        return figures.histogram(data.targets, "Training images", data.task.names[0])
    names, counts = [name for name, _ in data.groups], [len(rows) for _, rows in data.groups]
    if len(names) > MAX_BARS:
        return ""
    figure, axes = page.figure(height=0.8 + 0.22 * len(names), title=f"Training images by {SINGULAR[data.task.kind]}")
    axes.barh(names[::-1], counts[::-1])
    axes.grid(visible=False, axis="y")
    return page.svg(figure)


def _tally(data: Readable, values: pd.Series) -> list[list[object]]:
    """Counts each value in train and test; with many values, only the most frequent are listed."""
    train, test = Counter(values[: len(data.train)]), Counter(values[len(data.train) :])
    common = [value for value, _ in (train + test).most_common()]
    shown = [[value, f"{train[value]:,}", f"{test[value]:,}"] for value in common[:VALUES_SHOWN]]
    if rest := common[VALUES_SHOWN:]:
        sums = (sum(side[value] for value in rest) for side in (train, test))
        shown.append([f"{len(rest)} others", *(f"{count:,}" for count in sums)])
    return shown


def _pairs(found: Survey) -> list[tuple[str, list[Shown]]]:
    """The most similar pairs of each side."""
    galleries = []
    for side in SIDES:
        chosen = found.pairs[found.pairs["side"] == side]
        exact = int(chosen["exact"].sum())
        shown = f"; {PAIRS_SHOWN} are shown" if len(chosen) > PAIRS_SHOWN else ""
        title = f"{side.capitalize()}: {exact:,} identical, {len(chosen) - exact:,} nearly identical{shown}"
        if len(chosen):
            galleries.append((title, _pair_gallery(found.data, chosen)))
    return galleries


def _pair_gallery(data: Readable, pairs: pd.DataFrame) -> list[Shown]:
    shown = pairs.head(PAIRS_SHOWN)
    notes = ["identical" if pair.exact else f"similarity {pair.likeness:.2f}" for pair in shown.itertuples()]
    return gallery.pairs(data, zip(shown["first"], shown["second"], strict=True), notes)


def _extremes(found: Survey) -> list[tuple[str, list[Shown]]]:
    """The darkest, brightest and least sharp images."""
    galleries = []
    kinds = (("Darkest", "brightness", 1), ("Brightest", "brightness", -1), ("Least sharp", "sharpness", 1))
    for title, column, sign in kinds:
        rows = (sign * found.looks[column]).nsmallest(SHOWN).index.tolist()
        is_far = (sign * found.looks[f"{column}_z"] < -OUTLYING).tolist()
        notes = [f"{column} {found.looks[column][row]:.0f}{' (outlier)' if is_far[row] else ''}" for row in rows]
        galleries.append((f"{title} ({sum(is_far)} outliers)", gallery.rows(found.data, rows, notes)))
    return galleries


def _shifted(found: Survey) -> list[tuple[str, list[Shown]]]:
    """If train and test differ: the images of each that look most like test images."""
    if not found.shift or found.shift.auc <= SLIGHT:
        return []
    by_likeness = pd.Series(found.shift.likeness, found.shift.rows).sort_values(ascending=False)
    galleries = []
    for title, in_test in (
        ("Training images most like test images", False),
        ("Test images least like training images", True),
    ):
        chosen = by_likeness[[found.data.is_test(row) == in_test for row in by_likeness.index]].head(SHOWN)
        notes = [f"test-like {chance:.2f}" for chance in chosen]
        galleries.append((title, gallery.rows(found.data, chosen.index.tolist(), notes)))
    return galleries
