"""Which of a config's two recipes is used: that for images near to what the pretrained weights know, or far from it.

A linear probe tells: where it explains most of what the labels differ in, large steps would only spoil the body. With
very few images they would too.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from scenes.competition.linear_head import takes_hours
from scenes.competition.metric import metric_named
from scenes.competition.task import predictions_of
from scenes.config import Config
from scenes.config_file import with_recipe
from scenes.console import say
from scenes.data.dataset import Dataset
from scenes.inference.calibration import FITS
from scenes.randomness import key
from scenes.runs import RUNS, Run

FEW = 200  # training rows: `near` and `far` predict 0.52 and 0.42 right with 96 seedlings, 0.62 and 0.63 with 192
NEAR = 0.83  # the share that is explained: of EfficientNet-Lite0 and -Lite2 0.85 on scenes, 0.75 and 0.81 on seedlings


def with_kept_recipe(config: Config) -> Config:
    """Applies the recipe that is set, or that of the run to resume; without either a config keeps both."""
    if not (config.near or config.far):
        return config
    run, recipe = Run(RUNS / config.name), config.recipe
    if recipe == "auto" and run.config_file.exists():
        recipe = run.load_config().recipe
    return config if recipe == "auto" else _apply(config, recipe, "as set, or as the run began")


def choose_recipe(config: Config, data: Dataset, features: Callable[[], np.ndarray] | None) -> Config:
    """Applies the recipe that suits the images, if the config still has both.

    With few rows it is near, with very many rows and classes far; otherwise it follows from the share of the log loss
    (of numbers: the variance) that a linear probe explains (McFadden 1974, Frontiers in Econometrics). It is measured
    on one fold's held-out rows, and holds for all folds.

    Args:
        config: The experiment.
        data: Its rows.
        features: Gives the pretrained body's features of all rows, float32, shape (n, f); None without such a body.
    """
    if not (config.near or config.far):
        return config
    return _apply(config, *_choose(config, data, features))


def _apply(config: Config, recipe: str, why: str) -> Config:
    """The config with a recipe in place of both; says which."""
    say(f"recipe: {recipe} ({why})")
    return with_recipe(config, recipe)


def _choose(
    config: Config, data: Dataset, features: Callable[[], np.ndarray] | None
) -> tuple[Literal["near", "far"], str]:
    """The recipe and the reason."""
    rows = max(len(data.rows(fold)[0]) for fold in range(config.data.folds))
    if features and rows < FEW:
        return "near", f"{rows} rows to train on; images count as far only from {FEW} on"
    if features and takes_hours(rows, data.task.outputs):
        return "far", f"a linear probe of {rows} rows and {data.task.outputs} outputs would take hours"
    share = _explained(config, data, features()) if features else None
    if share is None:
        return "far", "no linear probe of pretrained weights can tell"
    why = f"a linear probe explains {share:.3f} of the labels; images count as near from {NEAR} on"
    return "near" if share >= NEAR else "far", why


def _explained(config: Config, data: Dataset, features: np.ndarray) -> float | None:
    """The share of a fold's held-out loss that a linear probe takes away from that of constant predictions.

    None if no fold holds out a row.
    """
    task = data.task
    fitted, held = next((rows for rows in map(data.rows, range(config.data.folds)) if len(rows[1])), (None, None))
    if fitted is None or held is None:
        return None
    head = task.fit_head(features[fitted], data.targets[fitted], key("recipe", config.seed))
    metric = metric_named("rmse" if task.kind == "number" else "log_loss", task)

    def loss(predictions: np.ndarray) -> float:
        return metric.score(predictions, data.targets[held])[0] ** (2 if task.kind == "number" else 1)

    predictions = predictions_of(task, head.logits(features[held]))
    for fit in FITS[task.kind][:1]:  # a probe of few rows is regularised so much that it is unsure of what it knows
        predictions = fit(predictions, data.targets[held]).apply(predictions)
    constant = task.prior(data.targets[fitted])[None].repeat(len(held), 0)
    return 1 - loss(predictions) / loss(constant)
