"""The report of a run: one page on how good the model is, where it fails and how it was trained."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scenes.config import Config
from scenes.console import UserError, say
from scenes.files import check_file, write_text
from scenes.insight import errors, figures, gallery, label_errors, page, saliency, sections
from scenes.insight.results import HeldOut, read_held_out, read_histories, read_metrics
from scenes.runs import FULL, Run

SHOWN = 12  # mistakes, and uncertain images, to show with Grad-CAM
SUSPECTS = 24  # likely label errors to show; label_errors.csv lists all
NAME = "report.html"
ERRORS = {"classes": errors.of_classes, "labels": errors.of_labels, "number": errors.of_numbers}


def try_write(run: Run) -> None:
    """Writes a finished run's report; errors are printed and never end the run."""
    try:
        say(f"report: {write(run)}")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        say(f"no report: {type(error).__name__}: {reason}")
        say(f"  retry with: python src/report.py {shlex.quote(str(run.folder))}")


def write(run: Run, path: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Writes a run's report, and label_errors.csv into the run's folder.

    Args:
        run: A run with a trained fold.
        path: The page; by default report.html in the run's folder.
        overrides: Settings that replace the run's, e.g. ``data.root=DIR`` if the images have moved.

    Raises:
        UserError: If this is not a run, or no fold is trained yet.
    """
    config = run.load_config(list(overrides))
    if not run.finished_folds(config.data.folds) and not run.is_finished(FULL):
        raise UserError(f"{run.folder}: no fold is trained yet; run the train.py command again")
    path = path or run.folder / NAME
    check_file(path)
    metrics = read_metrics(run)
    content: dict[str, Any] = {
        "name": run.name,
        "model": f"{config.model.name}, {config.predict_size} px",
        "scored": metrics is not None,
        "curves": figures.curves(read_histories(run, config.data.folds)),
        **sections.times(run, config),
        **sections.settings(config),
        "environment": sections.environment(run),
    }
    if metrics:
        held = read_held_out(run, config, metrics)
        content |= {"kind": held.task.kind, "views": sections.views(held, metrics)}
        content |= sections.scores(held, metrics) | ERRORS[held.task.kind](held)
        if held.task.kind != "number":
            content |= sections.calibration(held, metrics)
        content |= _images(run, config, held)
    page.render("report.html", path, **content)
    return path


def _images(run: Run, config: Config, held: HeldOut) -> dict[str, Any]:
    """The images worth looking at: the worst mistakes, uncertain predictions, likely label errors."""
    mistakes, uncertain, outputs = _worst(held)
    suspects, total = _label_errors(run, held)
    rows = [*mistakes, *uncertain, *suspects]
    images = gallery.read_images(config, (held.names[row] for row in rows))
    explained = list(dict.fromkeys([*mistakes, *uncertain]))
    maps, about_maps = saliency.explain(run, config, held, explained, outputs, images)
    return {
        "images_found": bool(images),
        "data_root": config.data.root,
        "about_maps": about_maps,
        "explained": bool(maps),
        "mistakes": gallery.held_out(held, mistakes, images, maps),
        "uncertain": gallery.held_out(held, uncertain, images, maps),
        "suspects": gallery.held_out(held, suspects, images, {}),
        "suspect_count": total,
    }


def _worst(held: HeldOut) -> tuple[list[int], list[int], np.ndarray]:
    """The rows with the worst mistakes and with the least certain predictions, and each row's output to explain."""
    predictions, kind = held.predictions, held.task.kind
    if kind == "number":
        return np.argsort(-held.losses, kind="stable")[:SHOWN].tolist(), [], np.zeros(len(held.names), np.int64)
    if kind == "classes":
        confidence, badness, outputs = predictions.max(1), predictions.max(1), held.decided
    else:
        confidence, badness, outputs = np.abs(predictions - 0.5).min(1), held.losses, held.gaps.argmax(1)
    wrong = np.flatnonzero(~held.is_right)
    mistakes = wrong[np.argsort(-badness[wrong], kind="stable")][:SHOWN]
    return mistakes.tolist(), np.argsort(confidence, kind="stable")[:SHOWN].tolist(), outputs


def _label_errors(run: Run, held: HeldOut) -> tuple[list[int], int | None]:
    """Writes label_errors.csv; returns the rows to show and how many were found, None without cleanlab."""
    if held.task.kind == "number" or not label_errors.is_available():
        return [], None
    rows, table = label_errors.find_label_errors(held.task, held.names, held.targets, held.predictions)
    write_text(run.folder / "label_errors.csv", table.to_csv(index=False, lineterminator="\n"))
    return rows[:SUSPECTS].tolist(), len(rows)
