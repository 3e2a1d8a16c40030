"""Ranks backbones by their linear probes, on the competition's folds and metric."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from scenes.competition.metric import Metric, competition_metric
from scenes.competition.scores import with_error
from scenes.competition.task import predictions_of
from scenes.config import Config
from scenes.config_file import load_config
from scenes.console import UserError, print_table, say
from scenes.data.dataset import Dataset, read_dataset
from scenes.model.device import choose_device
from scenes.model.pretrained import pretrained_state
from scenes.randomness import key
from scenes.training.job import Job


class Probed(NamedTuple):
    """The score of a backbone's linear probe on rows it did not see.

    Attributes:
        name: The timm model.
        value: The competition's metric.
        error: Its standard error.
        seconds: The time for the features and all folds; less if the features were cached.
    """

    name: str
    value: float
    error: float
    seconds: float


def scan(config: Config, names: Sequence[str]) -> list[Probed]:
    """Fits the linear probe of each backbone whose weights are available, and prints the results, best first.

    Args:
        config: The experiment, which gives the data, the image size and `model.weights`.
        names: timm models.

    Raises:
        UserError: If the data cannot be used, or no backbone's weights are available.
    """
    data, device = read_dataset(config), choose_device()
    metric = competition_metric(config, data.task)
    done, missing = [], []
    for name in names:
        try:
            done.append(_probe(_with_model(config, name), data, device, metric))
        except UserError as error:
            missing.append((name, str(error).splitlines()[0]))
            continue
        say(f"{name}: {metric.name} {with_error(done[-1].value, done[-1].error)}, {done[-1].seconds:.0f} s")
    for name, reason in missing:
        say(f"left out: {name}: {reason}")
    if not done:
        raise UserError("no backbone could be probed; put NAME.safetensors into input/weights/ or name other models")
    done.sort(key=lambda probed: probed.value, reverse=metric.larger_is_better)
    rows = [(each.name, with_error(each.value, each.error), f"{each.seconds:.0f}") for each in done]
    print_table(["linear probe", f"{metric.name} ± s.e.", "seconds"], rows)
    say(f"next: {_next_command(done[0].name)}")
    return done


def shipped_backbones() -> list[str]:
    """The backbones of the shipped configs."""
    names = [load_config(file).model.name for file in sorted(Path("configs").glob("*.yaml"))]
    return [name for name in dict.fromkeys(names) if name != "simple_cnn"]


def _with_model(config: Config, name: str) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"name": name})})


def _probe(config: Config, data: Dataset, device: torch.device, metric: Metric) -> Probed:
    """Fits one linear model per fold and scores all held-out rows."""
    start = time.monotonic()
    features = Job(config, data, pretrained_state(config), device).features
    predictions = np.zeros((len(data.table), data.task.outputs), np.float32)
    for fold in range(config.data.folds):
        rows, held = data.rows(fold)
        head = data.task.fit_head(features[rows], data.targets[rows], key("probe", config.seed, fold))
        predictions[held] = predictions_of(data.task, head.logits(features[held]))
    scored = data.fold_of >= 0
    value, error = metric.score(predictions[scored], data.targets[scored])
    return Probed(config.model.name, value, error, time.monotonic() - start)


def _next_command(name: str) -> str:
    """The command for a shipped config that fine-tunes the backbone, or for the closest substitute."""
    for file in sorted(Path("configs").glob("*.yaml")):
        config = load_config(file)
        if config.model.name == name and config.train.epochs:
            return f"bash train.sh {file}"
    plain = "infer.image_size=null 'near={}' 'far={}'"  # its own values suit small networks
    own = f"model.name={name} name={name.partition('.')[0]}"
    return f"bash train.sh configs/effnet_lite0.yaml --set {own} {plain}"
