"""The report of a run: one page that shows how good the model is, where it fails, and what made it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scenes.config import Config
from scenes.console import UserError, say
from scenes.data.folds import FULL
from scenes.files import check_file, write_text
from scenes.insight import figures, page, pictures, saliency, sections, suspects
from scenes.insight.results import HeldOut, read_held_out, read_histories, read_metrics
from scenes.runs import Run

EACH = 12  # images of a kind that are shown with Grad-CAM
SUSPECTS = 24  # likely label errors that are shown; the table holds all
NAME = "report.html"


def try_write(run: Run) -> None:
    """Writes a finished run's report; what goes wrong becomes a line on the terminal and never ends the run."""
    try:
        say(f"report: {write(run)}")
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        say(f"no report: {type(error).__name__}: {reason}")
        say(f"  to try again: python src/report.py {shlex.quote(str(run.folder))}")


def write(run: Run, path: Path | None = None, overrides: Sequence[str] = ()) -> Path:
    """Writes a run's report, and label_errors.csv beside its other files.

    Args:
        run: A run with a trained fold.
        path: The page; by default report.html in the run's folder.
        overrides: Other settings than the run's, e.g. ``data.root=DIR`` where the images are now.

    Raises:
        UserError: If this is not a run, or nothing is trained yet.
    """
    config = run.load_config(list(overrides))
    if not run.finished_folds(config.data.folds) and not run.is_finished(FULL):
        raise UserError(f"{run.folder}: no fold is trained yet; give train.py's command again to go on")
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
        content |= sections.scores(held, metrics) | sections.confusion(held) | sections.calibration(held)
        content["views"] = sections.views(held, metrics)
        content |= _pictures(run, config, held)
    page.render("report.html", path, **content)
    return path


def _pictures(run: Run, config: Config, held: HeldOut) -> dict[str, Any]:
    """The images worth a look: confident mistakes, uncertain ones, likely label errors."""
    sureness = held.probabilities.max(1)
    wrong = np.flatnonzero(held.hits == 0)
    mistakes = wrong[np.argsort(-sureness[wrong], kind="stable")][:EACH].tolist()
    uncertain = np.argsort(sureness, kind="stable")[:EACH].tolist()
    doubted, total = _label_errors(run, held)
    rows = [*mistakes, *uncertain, *doubted]
    images = pictures.read(config, (held.names[row] for row in rows))
    explained = list(dict.fromkeys([*mistakes, *uncertain]))
    maps, about_maps = saliency.explain(run, config, held, explained, images)
    return {
        "images_found": bool(images),
        "data_root": config.data.root,
        "about_maps": about_maps,
        "explained": bool(maps),
        "mistakes": pictures.gallery(held, mistakes, images, maps),
        "uncertain": pictures.gallery(held, uncertain, images, maps),
        "suspects": pictures.gallery(held, doubted, images, {}),
        "suspect_count": total,
    }


def _label_errors(run: Run, held: HeldOut) -> tuple[list[int], int | None]:
    """Writes label_errors.csv; returns the rows to show and how many there are, None without cleanlab."""
    if not suspects.is_available():
        return [], None
    rows, table = suspects.label_errors(held)
    write_text(run.folder / "label_errors.csv", table.to_csv(index=False, lineterminator="\n"))
    return rows[:SUSPECTS].tolist(), len(rows)
