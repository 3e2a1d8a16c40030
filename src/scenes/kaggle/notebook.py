"""Writes the kernel's code: what it does, the scores, attaching the bundle, one call, the result."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from scenes.config import Config
from scenes.inference.evaluate import score_table
from scenes.runs import fold_name

BOOTSTRAP = Path(__file__).with_name("bootstrap.py")


class Cell(NamedTuple):
    """A markdown or code cell. A `shown` cell displays a value, so a script leaves it out."""

    kind: str
    text: str
    shown: bool = False


def inference_cells(
    config: Config,
    manifest: dict[str, Any],
    metrics: dict[str, Any] | None,
    views: str,
    dataset: str,
    digest: str,
    budget: float,
) -> list[Cell]:
    """Makes the cells of a notebook that predicts.

    Args:
        config: The run's config.
        manifest: The bundle's.
        metrics: The run's metrics.json, if there is one.
        views: The names of the views it predicts with.
        dataset: OWNER/SLUG of the bundle.
        digest: SHA-256 of the manifest.
        budget: The time budget in minutes.
    """
    return [
        Cell("markdown", _title(f"Predicts with the views {views} and", config, manifest, dataset)),
        *([Cell("markdown", _scores(manifest, metrics))] if metrics else []),
        *_attach(dataset, digest),
        Cell(
            "markdown",
            "## Prediction\n\nEach GPU predicts one fold after another. After the first fold `submission.csv` is "
            "complete; each further fold makes it the mean of all so far. A fold that would not finish within "
            f"{budget:g} minutes is not started.",
        ),
        Cell("code", f"from scenes.kaggle import kernel\n\ndone = kernel.infer(bundle, budget_minutes={budget:g})"),
        Cell("markdown", "## Some predictions", shown=True),
        Cell("code", "done.examples()", shown=True),
        Cell("markdown", "## The submission"),
        Cell("code", "print(done.submission.head(10).to_string(index=False))"),
    ]


def training_cells(config: Config, manifest: dict[str, Any], dataset: str, digest: str, budget: float) -> list[Cell]:
    """Makes the cells of a notebook that trains; arguments as `inference_cells`'."""
    return [
        Cell("markdown", _title("Trains", config, manifest, dataset)),
        *_attach(dataset, digest),
        Cell(
            "markdown",
            f"## Training\n\nEach GPU trains one fold after another; after {budget:g} minutes the state is saved. "
            "Run it again with its own output attached to continue from there.",
        ),
        Cell("code", f"from scenes.kaggle import kernel\n\nkernel.train(bundle, budget_minutes={budget:g})"),
    ]


def as_notebook(cells: list[Cell]) -> str:
    """Formats cells as a notebook of format 4.5; the same cells give the same bytes."""
    content = {
        "cells": [
            {"cell_type": cell.kind, "id": f"cell-{number}", "metadata": {}, "source": cell.text.splitlines(True)}
            | ({"execution_count": None, "outputs": []} if cell.kind == "code" else {})
            for number, cell in enumerate(cells)
        ],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def as_script(cells: list[Cell]) -> str:
    """Formats cells as a Python script."""
    parts = []
    for cell in cells:
        if cell.kind == "code" and not cell.shown:
            parts.append(cell.text)
        elif not cell.shown:
            parts.append("\n".join(f"# {line}".rstrip() for line in cell.text.splitlines()))
    return "\n\n".join(parts) + "\n"


def _title(what: str, config: Config, manifest: dict[str, Any], dataset: str) -> str:
    folds = ", ".join(fold_name(fold) for fold in manifest["folds"])
    precision = " Its weights are stored in half precision." if manifest["half"] else ""
    return (
        f"# {manifest['name']}\n\n"
        f"{what} `{config.model.name}`, {folds}, for the competition "
        f"[{manifest['competition']}](https://www.kaggle.com/competitions/{manifest['competition']}), without "
        f"network access: library, config and weights come from the dataset "
        f"[{dataset}](https://www.kaggle.com/datasets/{dataset}).{precision}"
    )


def _scores(manifest: dict[str, Any], metrics: dict[str, Any]) -> str:
    """Lists the scores of the folds that are used, and of all held-out rows together."""
    columns, cells = score_table(metrics)
    names = {str(fold): fold_name(fold) for fold in manifest["folds"]} | {"all": f"all {len(metrics['folds'])} folds"}
    table = [["out of fold", *columns], ["---"] * (1 + len(columns))]
    table += [[name, *cells[part]] for part, name in names.items() if part in cells]
    lines = [f"| {' | '.join(row)} |" for row in table]
    notes = [f"\nOptimistic: {metrics['optimistic']}."] if metrics["optimistic"] else []
    if half := manifest["half"]:
        notes.append(f"\nHalf precision: {half['metric']} {half['half']:.4f} instead of {half['full']:.4f}.")
    return "\n".join(["## Cross-validation\n", *lines, *notes])


def _attach(dataset: str, digest: str) -> list[Cell]:
    explains = "## The bundle\n\nIt is found wherever it is mounted, and all files are checked against their SHA-256."
    code = BOOTSTRAP.read_text(encoding="utf-8").rstrip()
    return [
        Cell("markdown", explains),
        Cell("code", f'{code}\n\n\nbundle = attach("{dataset}", "{digest}")'),
    ]
