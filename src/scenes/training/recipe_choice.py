"""Chooses one of a config's two recipes: for images near to what the pretrained weights know, or far from it.

A linear probe decides: where it already explains most of the labels, large steps would only spoil the body. With very
few images they would do so too.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np

from scenes.competition.linear_head import why_too_large
from scenes.competition.metric import metric_named
from scenes.competition.task import predictions_of
from scenes.config import Config
from scenes.config_file import with_recipe
from scenes.console import say
from scenes.data.dataset import Dataset
from scenes.inference.calibration import FITS
from scenes.randomness import key
from scenes.runs import RUNS, Run

FEW = 200  # training rows: accuracy of `near` and `far` is 0.52 and 0.42 with 96 seedlings, 0.62 and 0.63 with 192
NEAR = 0.83  # explained share; EfficientNet-Lite0 and -Lite2 both have 0.85 on scenes, 0.75 and 0.81 on seedlings


def with_kept_recipe(config: Config) -> Config:
    """Applies the configured recipe, or that of the run to resume; without either, the config keeps both."""
    if not (config.near or config.far):
        return config
    run, recipe = Run(RUNS / config.name), config.recipe
    if recipe == "auto" and run.config_file.exists():
        recipe = run.load_config().recipe
    return config if recipe == "auto" else _apply(config, recipe, "as set, or as the run began")


def choose_recipe(config: Config, data: Dataset, features: Callable[[], np.ndarray] | None) -> Config:
    """Applies the recipe that suits the images, if the config still has both.

    With few rows that is `near`, with very many rows and classes `far`; otherwise the share of the log loss (for
    numbers, the variance) that a linear probe explains decides (McFadden 1974, Frontiers in Econometrics). It is
    measured on one fold's held-out rows and used for all folds.

    Args:
        config: The experiment.
        data: Its rows.
        features: Returns the pretrained body's features of all rows, float32, shape (n, f); None without such a body.
    """
    if not (config.near or config.far):
        return config
    return _apply(config, *_choose(config, data, features))


def _apply(config: Config, recipe: str, why: str) -> Config:
    """Replaces a config's two recipes with one of them, and prints which."""
    say(f"recipe: {recipe} ({why})")
    return with_recipe(config, recipe)


def _choose(
    config: Config, data: Dataset, features: Callable[[], np.ndarray] | None
) -> tuple[Literal["near", "far"], str]:
    """Chooses the recipe; returns it with the reason."""
    rows = max(len(data.rows(fold)[0]) for fold in range(config.data.folds))
    if features and rows < FEW:
        return "near", f"{rows} rows to train on; `far` needs at least {FEW}"
    if features and (why := why_too_large(rows, data.task.outputs)):
        return "far", why
    share = _explained(config, data, features()) if features else None
    if share is None:
        return "far", "no linear probe on pretrained weights is possible"
    why = f"a linear probe explains {share:.3f} of the labels; `near` needs at least {NEAR}"
    return "near" if share >= NEAR else "far", why


def _explained(config: Config, data: Dataset, features: np.ndarray) -> float | None:
    """The share of the held-out loss of constant predictions that a linear probe removes, on one fold.

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
    for fit in FITS[task.kind][:1]:  # with few rows, strong regularisation makes the probe underconfident
        predictions = fit(predictions, data.targets[held]).apply(predictions)
    constant = task.prior(data.targets[fitted])[None].repeat(len(held), 0)
    return 1 - loss(predictions) / loss(constant)
