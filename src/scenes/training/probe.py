"""The linear probe: a fold's head starts as a linear model on the frozen body's features."""

from typing import Any

import torch

from scenes.competition.task import predictions_of
from scenes.console import say
from scenes.model.backbone import Classifier
from scenes.randomness import key
from scenes.training.job import Fold
from scenes.training.validate import in_words, scores


def start_head_as_probe(fold: Fold, model: Classifier) -> list[dict[str, Any]]:
    """Replaces the random head with a linear model (LP-FT, Kumar et al. 2022, arXiv:2202.10054).

    Returns:
        The start of the fold's history: the probe's scores on the held-out rows, if there are any.
    """
    data, features = fold.job.data, fold.job.features
    rows, seed = data.rows(fold.number)[0], key("probe", fold.job.config.seed, fold.number)
    head = fold.processes.from_main(lambda: data.task.fit_head(features[rows], data.targets[rows], seed))
    with torch.no_grad():
        model.head[-1].weight.copy_(torch.from_numpy(head.weights))
        model.head[-1].bias.copy_(torch.from_numpy(head.biases))
    if not len(fold.held_rows):
        return []
    predictions = predictions_of(data.task, head.logits(features[fold.held_rows]))
    row = {"epoch": 0, "steps": 0, "accumulate": 0, "lr": 0.0, "train_loss": None, **scores(fold, predictions)}
    say(f"  {fold.name} linear probe ({head.chosen}){in_words(row)}")
    return [row]
