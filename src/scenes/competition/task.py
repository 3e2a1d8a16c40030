"""What is to be predicted: one of several classes, any of several labels, or a number."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scenes.competition import linear_head
from scenes.competition.linear_head import LinearHead

NUMBER_STRATA = 10  # as fine as folds of a few hundred rows can balance


class Task(ABC):
    """What a network learns and what its outputs mean.

    Targets have one form per task (see each class); losses, mixing and soft targets work on their `as_outputs`; and
    predictions, wherever they are stored, averaged or scored, are float32 of shape (n, outputs).

    Attributes:
        kind: ``classes``, ``labels`` or ``number``; the config's ``task``.
        columns: What each output is, in the data's spelling.
        names: Their display names.
    """

    kind: ClassVar[str]
    columns: list[str]
    names: list[str]

    @property
    def outputs(self) -> int:
        """The number of the network's outputs."""
        return len(self.columns)

    @abstractmethod
    def strata(self, targets: np.ndarray) -> np.ndarray:
        """What to balance between folds: int64, shape (n,), or 0/1 of shape (n, labels)."""

    @abstractmethod
    def as_outputs(self, targets: np.ndarray) -> np.ndarray:
        """The outputs to train the network towards: float32, shape (n, outputs)."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """Each row's loss, to be minimised.

        Args:
            logits: Shape (n, outputs).
            targets: As `as_outputs` gives them, float32, shape (n, outputs).
            smoothing: Label smoothing, in 0 … 1; numbers have none.
            weights: The outputs' weights, shape (outputs,).

        Returns:
            float32, shape (n,).
        """

    @abstractmethod
    def activate(self, logits: Tensor) -> Tensor:
        """Turns logits of shape (n, outputs) into predictions, float32 of the same shape."""

    @abstractmethod
    def fit_head(self, features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
        """Fits a linear model to features, float32, shape (n, f)."""

    @abstractmethod
    def as_texts(self, targets: np.ndarray) -> list[str]:
        """The targets as the cells of a CSV, n texts; `from_texts` reads them back."""

    @abstractmethod
    def from_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Reads what `as_texts` wrote.

        Raises:
            ValueError: If a text does not fit this task.
        """

    def prior(self, targets: np.ndarray) -> np.ndarray:
        """The prediction for a row about which nothing is known: float32, shape (outputs,)."""
        return self.as_outputs(targets).mean(0)

    def to_dict(self) -> dict[str, Any]:
        """Plain values from which `task_from_dict` restores the task."""
        return {"kind": self.kind, **asdict(self)}  # type: ignore[call-overload]


@dataclass(frozen=True)
class Classes(Task):
    """Exactly one of several classes. Targets are int64, shape (n,): positions in `columns`."""

    columns: list[str]
    names: list[str]
    kind: ClassVar[str] = "classes"

    def strata(self, targets: np.ndarray) -> np.ndarray:  # noqa: D102
        return targets

    def as_outputs(self, targets: np.ndarray) -> np.ndarray:  # noqa: D102
        outputs = np.zeros((len(targets), self.outputs), np.float32)
        outputs[np.arange(len(targets)), targets] = 1
        return outputs

    def prior(self, targets: np.ndarray) -> np.ndarray:
        """The classes' shares."""
        return (np.bincount(targets, minlength=self.outputs) / len(targets)).astype(np.float32)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """Cross entropy."""
        return functional.cross_entropy(logits.float(), targets, weights, reduction="none", label_smoothing=smoothing)

    def activate(self, logits: Tensor) -> Tensor:
        """Class probabilities, which sum to 1."""
        return logits.float().softmax(-1)

    def fit_head(self, features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
        """Multinomial logistic regression."""
        return linear_head.fit_classes(features, targets, self.outputs, seed)

    def as_texts(self, targets: np.ndarray) -> list[str]:
        """The classes."""
        return [self.columns[target] for target in targets]

    def from_texts(self, texts: Sequence[str]) -> np.ndarray:  # noqa: D102
        place = {label: at for at, label in enumerate(self.columns)}
        if strange := set(texts) - set(place):
            raise ValueError(f"unknown class {min(strange)!r}")
        return np.array([place[text] for text in texts], np.int64)


@dataclass(frozen=True)
class Labels(Task):
    """Any number of independent labels. Targets are float32, shape (n, labels), of 0 and 1."""

    columns: list[str]
    names: list[str]
    kind: ClassVar[str] = "labels"

    def strata(self, targets: np.ndarray) -> np.ndarray:  # noqa: D102
        return targets.astype(np.int64)

    def as_outputs(self, targets: np.ndarray) -> np.ndarray:  # noqa: D102
        return targets.astype(np.float32)

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """Binary cross entropy, the mean over the labels."""
        smoothed = targets * (1 - smoothing) + smoothing / 2
        losses = functional.binary_cross_entropy_with_logits(logits.float(), smoothed, weights, reduction="none")
        return losses.mean(-1)

    def activate(self, logits: Tensor) -> Tensor:
        """The probability of each label."""
        return logits.float().sigmoid()

    def fit_head(self, features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
        """A logistic regression for each label."""
        return linear_head.fit_labels(features, targets, seed)

    def as_texts(self, targets: np.ndarray) -> list[str]:
        """JSON lists, because a label can hold any separator."""
        chosen = ([self.columns[at] for at in np.flatnonzero(row >= 0.5)] for row in targets)
        return [json.dumps(labels, ensure_ascii=False) for labels in chosen]

    def from_texts(self, texts: Sequence[str]) -> np.ndarray:  # noqa: D102
        place = {label: at for at, label in enumerate(self.columns)}
        targets = np.zeros((len(texts), self.outputs), np.float32)
        for row, text in enumerate(texts):
            labels = json.loads(text)
            if not isinstance(labels, list) or not set(labels) <= set(place):
                raise ValueError(f"not a list of labels: {text[:80]!r}")
            targets[row, [place[label] for label in labels]] = 1
        return targets


@dataclass(frozen=True)
class Number(Task):
    """One number. Targets are float32, shape (n,), in the data's own units.

    Attributes:
        mean: Of the training targets; the network learns ``(target - mean) / deviation``.
        deviation: Their standard deviation.
        low: The smallest training target.
        high: The largest one.
    """

    columns: list[str]
    names: list[str]
    mean: float
    deviation: float
    low: float
    high: float
    kind: ClassVar[str] = "number"

    @classmethod
    def of(cls, column: str, targets: np.ndarray) -> "Number":
        """The task of predicting a column with these training targets."""
        low, high = float(targets.min()), float(targets.max())
        return cls([column], [column], float(targets.mean()), float(targets.std()) or 1.0, low, high)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Bins with about as many rows each; equal numbers share a bin."""
        edges = np.quantile(targets, np.linspace(0, 1, NUMBER_STRATA + 1)[1:-1])
        return np.searchsorted(np.unique(edges), targets, side="right").astype(np.int64)

    def as_outputs(self, targets: np.ndarray) -> np.ndarray:
        """The scaled number."""
        return ((targets - self.mean) / self.deviation).astype(np.float32)[:, None]

    def loss(self, logits: Tensor, targets: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
        """The squared error in units of the training targets' variance."""
        return (logits.float() - targets).square().mean(-1)

    def activate(self, logits: Tensor) -> Tensor:
        """The number in the data's own units, within the range of the training targets."""
        numbers = logits.float() * self.deviation + self.mean
        # Infinite ones are left, to be rejected later.
        return torch.where(numbers.isinf(), numbers, numbers.clamp(self.low, self.high))

    def fit_head(self, features: np.ndarray, targets: np.ndarray, seed: int) -> LinearHead:
        """Ridge regression."""
        return linear_head.fit_number(features, self.as_outputs(targets), seed)

    def as_texts(self, targets: np.ndarray) -> list[str]:
        """The shortest texts that read back as these float32."""
        return [str(target) for target in targets.astype(np.float32)]

    def from_texts(self, texts: Sequence[str]) -> np.ndarray:  # noqa: D102
        return np.array([float(text) for text in texts], np.float32)

    def prior(self, targets: np.ndarray) -> np.ndarray:
        """The mean of these targets."""
        return np.array([targets.mean()], np.float32)


KINDS: dict[str, type[Task]] = {task.kind: task for task in (Classes, Labels, Number)}


def task_from_dict(values: dict[str, Any]) -> Task:
    """Restores the task from what `Task.to_dict` returned."""
    return KINDS[values["kind"]](**{name: value for name, value in values.items() if name != "kind"})


def class_task(labels: Sequence[str], names: Sequence[str] | None = None) -> Classes:
    """The task of telling these classes apart."""
    return Classes(list(labels), list(names or labels))


def predictions_of(task: Task, logits: np.ndarray) -> np.ndarray:
    """`Task.activate` for arrays: float32, shape (n, outputs)."""
    return task.activate(torch.from_numpy(np.asarray(logits, np.float32))).numpy()
