"""The model card of an exported fold: what it predicts, how well, the data it was trained on, and how to use it."""

from collections.abc import Mapping
from typing import Any

from scenes.competition.metric import metric_named
from scenes.competition.scores import with_error
from scenes.competition.task import Number, Task
from scenes.config import Config
from scenes.inference.models import run_task
from scenes.model.backbone import timm
from scenes.runs import FULL, Run, fold_name, read_json

CONFUSED = 5  # how many confused pairs of classes to name


def model_card(run: Run, config: Config, fold: int) -> str:
    """Writes the text of README.md in a fold's folder, in the Hugging Face Hub's format.

    Args:
        run: The fold's run; if no fold is scored yet, the card says so.
        config: The run's config.
        fold: A trained fold.

    Returns:
        Markdown with a YAML header.
    """
    task = run_task(run, config, [fold])
    metrics = read_json(run.metrics_file, "metric", "per_fold") if run.metrics_file.exists() else {}
    licence = _licence(config)
    tags = "tags: [image-classification, timm]\npipeline_tag: image-classification\nlibrary_name: timm\n"
    parts = [
        f"---\n{tags}" + (f"license: {licence}\n" if licence else "") + "---",
        f"# {run.name}, {fold_name(fold)}",
        _summary(config, task),
        "## Data",
        *_data(config, fold, task, metrics),
        "## Scores",
        *_scores(config, fold, task, metrics),
        "## Intended use and limits",
        *_limits(config, task, metrics),
        "## How to load it",
        _usage(task, metrics),
        "## Licence",
        _licence_text(config, licence),
    ]
    return "\n\n".join(parts) + "\n"


def _summary(config: Config, task: Task) -> str:
    what = {
        "classes": f"exactly one of {task.outputs} classes",
        "labels": f"any of {task.outputs} labels",
        "number": "a number",
    }[task.kind]
    return (
        f"`{config.model.name}` at {config.predict_size} × {config.predict_size} px, trained for an image "
        f"competition. It predicts {what}; its outputs are logits, in the order of `label_names` in config.json."
    )


def _data(config: Config, fold: int, task: Task, metrics: Mapping[str, Any]) -> list[str]:
    used = "all training images" if fold == FULL else f"{config.data.folds - 1} of {config.data.folds} folds"
    counted = f" {metrics['n']:,} training images have held-out predictions." if metrics else ""
    parts = [f"Trained on {used} of the competition's labelled images.{counted}"]
    if task.kind == "number":
        parts.append(f"The number is `{_cell(task.names[0])}`.")
        return parts
    shown = ["precision", "recall", "f1"]
    key, what = ("per_class", "class") if task.kind == "classes" else ("per_label", "label")
    if task.kind == "labels":
        shown = ["auc", *shown]
    lines = [
        f"| {what} | in the data | images | {' | '.join(shown)} |",
        f"|---|---|---|{'---|' * len(shown)}",
    ]
    for name, column in zip(task.names, task.columns, strict=True):
        scores = metrics.get(key, {}).get(column, {})
        cells = ["" if scores.get(each) is None else f"{scores[each]:.3f}" for each in shown]
        lines.append(f"| {_cell(name)} | {_cell(column)} | {scores.get('support', '')} | {' | '.join(cells)} |")
    parts.append("\n".join(lines))
    return parts


def _scores(config: Config, fold: int, task: Task, metrics: Mapping[str, Any]) -> list[str]:
    if not metrics:
        return ["Not measured: this run has no held-out predictions."]
    name, own = metrics["metric"]["name"], metrics["per_fold"].get(str(fold))
    better = "higher" if metric_named(name, task).larger_is_better else "lower"
    cv = with_error(metrics["metric"]["value"], metrics["metric"]["se"])
    parts = [
        f"Cross-validation, {len(metrics['folds'])} of {metrics['of']} folds: **{name} {cv}** (standard error; "
        f"n = {metrics['n']:,}; {better} is better). Views: {', '.join(metrics['views'])}."
    ]
    if own:
        parts.append(f"This fold alone: {name} {with_error(own['value'], own['se'])} (n = {own['n']:,}).")
    if metrics["optimistic"]:
        parts.append(f"The scores are optimistic: {metrics['optimistic']}.")
    calibration = metrics["calibration"]
    if calibration.get("temperatures"):
        parts.append(
            "Calibration: a temperature, fitted to the held-out predictions of all folds and scored nested, changes "
            f"the log loss from {calibration['log_loss_before']:.4f} to {calibration['log_loss_after']:.4f} and the "
            f"calibration error from {calibration['ece_before']:.4f} to {calibration['ece_after']:.4f}. "
            "The code below divides by it."
        )
    elif task.kind != "number":
        parts.append(
            f"Calibration: none; a temperature did not help. Log loss {calibration['log_loss_after']:.4f}, "
            f"calibration error {calibration['ece_after']:.4f}."
        )
    if metrics["decoding"]["rule"] != "plain":
        parts.append(
            f"The scores use thresholds chosen out of fold (`{metrics['decoding']['rule']}`), which are not included."
        )
    return parts


def _limits(config: Config, task: Task, metrics: Mapping[str, Any]) -> list[str]:
    parts = [
        "Made for images like those of the competition: same subject, camera and framing. It has not been tested on "
        "others, and it gives one of the answers above whatever it is shown. Check the scores of a class before you "
        "rely on it.",
        f"Images are resized to a square, not cropped. The symmetry it was trained for: `{config.symmetry}`.",
    ]
    names = dict(zip(task.columns, task.names, strict=True))
    pairs = [
        (count, f"{_cell(names[true])} mistaken for {_cell(names[guess])} ({count})")
        for true, row in metrics.get("confusion", {}).items()
        for guess, count in row.items()
        if guess != true
    ]
    if worst := sorted(pairs, key=lambda pair: -pair[0])[:CONFUSED]:
        parts.append(f"Most frequent mistakes on held-out images: {'; '.join(text for _, text in worst)}.")
    return parts


def activation(task: Task, metrics: Mapping[str, Any]) -> str:
    """A Python expression that turns ``model(images)``, which are logits, into calibrated predictions."""
    if isinstance(task, Number):
        return f"(model(images) * {task.deviation!r} + {task.mean!r}).clamp({task.low!r}, {task.high!r})"
    temperatures = metrics.get("calibration", {}).get("temperatures")
    divisor = str(temperatures[0]) if len(set(temperatures or [])) == 1 else f"torch.tensor({temperatures})"
    logits = f"(model(images) / {divisor})" if temperatures else "model(images)"
    return f"{logits}.softmax(-1)" if task.kind == "classes" else f"{logits}.sigmoid()"


def _usage(task: Task, metrics: Mapping[str, Any]) -> str:
    return (
        "```python\n"
        "import timm, torch\nfrom PIL import Image\n\n"
        'model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # "hf-hub:USER/NAME" once uploaded\n'
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
        'images = transform(Image.open("image.jpg").convert("RGB"))[None]\n'
        f"with torch.inference_mode():\n    predictions = {activation(task, metrics)}\n```\n\n"
        f"Needs timm 1.0.26 or newer (written with {timm.__version__}). "
        "Upload: `hf upload USER/NAME FOLDER`."
    )


def _licence(config: Config) -> str | None:
    """The licence that timm records for the pretrained weights, if any."""
    if config.model.weights not in ("hub", "local") or config.model.name == "simple_cnn":
        return None
    known = timm.get_pretrained_cfg(config.model.name)
    return known.license if known else None


def _licence_text(config: Config, licence: str | None) -> str:
    if config.model.weights == "none":
        start = "Trained from random weights."
    elif licence:
        start = f"timm records `{licence}` for the pretrained weights, `{config.model.name}`."
    else:
        start = f"The licence of the pretrained weights, `{config.model.name}`, is not known to timm: look it up."
    return (
        f"{start} The competition's rules say what you may do with a model trained on its images; read them before "
        "you publish this one, and correct `license` at the top of this file."
    )


def _cell(text: str) -> str:
    """Escapes text so that it neither ends a table cell nor is taken for HTML or code."""
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return escaped.replace("|", "\\|").replace("`", "'")
