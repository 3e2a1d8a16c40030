"""Writes a review sheet of likely label errors and turns the decisions in it into a config."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from scenes import plain_yaml
from scenes.competition.rows import read_train
from scenes.config import Config
from scenes.config_file import validate
from scenes.console import Problem, UserError, raise_problems, say
from scenes.files import check_file, write_result
from scenes.insight import gallery, label_errors, page
from scenes.insight.results import read_held_out, read_metrics
from scenes.runs import Run

COLUMNS = ["image_name", "label", "suggested", "probability", "quality", "decision"]
DECISIONS = ("keep", "drop")
SHOWN = 500  # images on the page; the sheet lists all rows


def sheet_file(run: Run) -> Path:
    """The path of a run's review sheet."""
    return run.folder / "review.csv"


def write_sheet(run: Run, config: Config, accept: bool = False) -> Path:
    """Writes review.csv, and review.html with the images: rows whose label contradicts the held-out prediction.

    Args:
        run: A run with a scored fold.
        config: The run's config.
        accept: Use the suggestion as the decision in every row.

    Returns:
        The sheet's path.

    Raises:
        UserError: If no fold is scored yet, the run does not predict classes, or cleanlab is missing.
    """
    metrics = read_metrics(run)
    if metrics is None:
        raise UserError(f"{run.folder} has no scored fold; train one other than --folds full")
    _check_task(run, metrics)
    if not label_errors.is_available():
        raise UserError(f"relabel.py needs {label_errors.PACKAGE}: pip install {label_errors.PACKAGE}")
    path = sheet_file(run)
    check_file(path)
    held = read_held_out(run, config, metrics)
    task = held.task
    rows, sheet = label_errors.find_label_errors(task, held.names, held.targets, held.predictions)
    _check_words([*task.columns, *task.names])
    sheet["decision"] = sheet["suggested"] if accept else ""
    write_result(path, sheet[COLUMNS].to_csv(index=False, lineterminator="\n"))
    images = gallery.read_images(config, sheet["image_name"][:SHOWN])
    shown = [row for row in rows[:SHOWN] if held.names[row] in images]
    page.render(
        "review.html",
        path.with_suffix(".html"),
        name=run.name,
        sheet=path.name,
        command=f"python src/relabel.py {shlex.quote(str(run.folder))} --apply",
        counts={"suspects": len(sheet), "of": len(held.names), "shown": len(shown)},
        names=list(zip(task.columns, task.names, strict=True)) if task.columns != task.names else [],
        images=gallery.held_out(held, shown, images, {}),
        columns=COLUMNS[:-1],
        rows=sheet[COLUMNS[:-1]].to_numpy().tolist(),
    )
    return path


def apply_sheet(run: Run, config: Config, out: Path | None = None) -> Path:
    """Turns a filled-in review.csv into a config: the run's, except data.drop, data.relabel and selected_on.

    Decisions in the run's own config are kept unless the sheet has a new one for the same image.

    Args:
        run: The run.
        config: The run's config.
        out: The config to write; by default ``configs/NAME_relabelled.yaml``.

    Returns:
        The config's path.

    Raises:
        UserError: With a list of everything wrong with the sheet; or if no decision changes a row.
    """
    _check_task(run, read_metrics(run))
    out = out or Path("configs") / f"{run.name}_relabelled.yaml"
    check_file(out)
    sheet = _read_sheet(run, config)
    drop = dict.fromkeys(config.data.drop)
    relabel = dict(config.data.relabel)
    changed = 0
    for name, label, decision in sheet[["image_name", "label", "decision"]].itertuples(index=False):
        if decision in ("", "keep", label):
            continue
        changed += 1
        drop.pop(name, None)
        relabel.pop(name, None)
        if decision == "drop":
            drop[name] = None
        else:
            relabel[name] = decision
    if not changed:
        raise UserError(
            f"{sheet_file(run)}: no decision changes a row; write keep, drop or a label into the column `decision`, or "
            "accept all suggestions with --accept-all"
        )
    values: dict[str, Any] = config.model_dump(mode="json")  # everything, because competition.yaml overrides defaults
    values.pop("name")
    values["train"].pop("time_budget_minutes")  # belongs to one command, not to the experiment
    values["data"] |= {"drop": list(drop), "relabel": relabel}
    values["selected_on"] = list(dict.fromkeys([*config.selected_on, str(run.folder)]))
    validate(values | {"name": out.stem}, str(out))
    text = f"# {run.name} with the decisions of {sheet_file(run)}, written by relabel.py.\n{plain_yaml.dump(values)}"
    write_result(out, text)
    say(f"wrote {out}: {len(drop)} images dropped, {len(relabel)} relabelled")
    return out


def _check_task(run: Run, metrics: dict[str, Any] | None) -> None:
    """Refuses runs that do not predict classes, because data.relabel works only for classes."""
    if metrics and metrics["task"]["kind"] != "classes":
        raise UserError(f"{run.folder}: only class labels can be reviewed; data.drop leaves rows out")


def _check_words(classes: Sequence[str]) -> None:
    """Refuses classes whose names are also decisions."""
    if found := [word for word in DECISIONS if word in classes]:
        raise UserError(
            f"a class is called {found[0]!r}, like a decision; set data.drop and data.relabel in a config by hand"
        )


def _read_sheet(run: Run, config: Config) -> pd.DataFrame:
    """Reads review.csv as text.

    Raises:
        UserError: If it is missing or unreadable, lacks a column, or has an invalid decision.
    """
    path = sheet_file(run)
    if not path.exists():
        raise UserError(f"no {path}: write it first with python src/relabel.py {run.folder}")
    try:
        sheet = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
    except ValueError as error:  # pandas raises its subclasses, also for text that is not UTF-8
        raise UserError(f"{path}: not readable as a CSV ({error}); save it as comma-separated UTF-8") from None
    if missing := [name for name in ("image_name", "label", "decision") if name not in sheet.columns]:
        raise UserError(f"{path}: no column {', '.join(missing)}; it has {', '.join(sheet.columns)}")
    sheet["decision"] = sheet["decision"].str.strip()
    table, targets, _ = read_train(config)
    assert targets.task is not None
    task = targets.task
    _check_words([*task.columns, *task.names])
    names, by_name = set(table.names), dict(zip(task.names, task.columns, strict=True))
    by_name |= {f"{label}.0": label for label in task.columns}  # a spreadsheet may turn 3 into 3.0
    sheet["decision"] = [
        decision if decision in task.columns else by_name.get(decision, decision) for decision in sheet["decision"]
    ]
    known = {"", *DECISIONS, *task.columns}
    repeated = sheet["image_name"].duplicated()
    problems = []
    for row, (name, decision) in enumerate(zip(sheet["image_name"], sheet["decision"], strict=True)):
        where = f"{path}, row {row + 1} ({name})"
        if name not in names:
            problems.append(Problem(where, f"not an image of {table.file}", "delete the row"))
        if repeated[row]:
            problems.append(Problem(where, "duplicate row", "keep one of them"))
        if decision not in known:
            labels_text = ", ".join(task.columns[:20])
            problems.append(Problem(where, f"decision {decision!r}", f"keep, drop, or one of {labels_text}"))
    raise_problems(problems, "The review sheet cannot be used")
    return sheet
