"""Metrics against scikit-learn, their standard errors against a bootstrap."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from scenes.competition.metric import DEFAULT, METRICS, metric_named
from scenes.competition.task import KINDS, Labels, Number, Task, class_task
from scenes.console import UserError

LABELS = Labels(["x", "y", "z"], ["x", "y", "z"])
NUMBER = Number.of("age", np.array([0.0, 10.0], np.float32))
TASKS: dict[str, Task] = {"labels": LABELS, "number": NUMBER}


def draw(task: Task, rows: int, seed: int, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Predictions that are better than chance; coarse ones have many ties."""
    generator = np.random.default_rng(seed)
    if isinstance(task, Number):
        targets = generator.integers(0, 6, rows).astype(np.float32)
        predictions = targets[:, None] + generator.normal(size=(rows, 1)).astype(np.float32)
        return (predictions.round() if coarse else predictions), targets
    if isinstance(task, Labels):
        actual = (generator.random((rows, task.outputs)) < 0.4).astype(np.float32)
    else:
        numbers = generator.integers(0, task.outputs, rows)
        actual = task.as_outputs(numbers)
    scores = (actual + generator.normal(size=actual.shape)).astype(np.float32)
    scores = scores.round() if coarse else scores
    if isinstance(task, Labels):
        return 1 / (1 + np.exp(-scores)), actual
    exponents = np.exp(scores)
    return exponents / exponents.sum(1, keepdims=True), numbers


def one_hot(targets: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes)[targets]


def auc(predictions: np.ndarray, targets: np.ndarray) -> float:
    actual = targets if targets.ndim == 2 else one_hot(targets, predictions.shape[1])
    if targets.ndim == 1 and predictions.shape[1] == 2:
        return float(sklearn.roc_auc_score(targets, predictions[:, 1]))
    return float(np.mean([sklearn.roc_auc_score(a, p) for a, p in zip(actual.T, predictions.T, strict=True)]))


def log_loss(predictions: np.ndarray, targets: np.ndarray) -> float:
    if targets.ndim == 2:
        return float(np.mean([sklearn.log_loss(a, p) for a, p in zip(targets.T, predictions.T, strict=True)]))
    return float(sklearn.log_loss(targets, predictions.astype(np.float64), labels=range(predictions.shape[1])))


def mean_precision(predictions: np.ndarray, targets: np.ndarray) -> float:
    ranked = np.argsort(-predictions, axis=1, kind="stable")[:, :3]
    return float(((ranked == targets[:, None]) / np.arange(1, 1 + ranked.shape[1])).sum(1).mean())


def kappa(true: np.ndarray, given: np.ndarray) -> float:
    grades = range(min(true.min(), given.min()), max(true.max(), given.max()) + 1)
    return float(sklearn.cohen_kappa_score(true, given, labels=list(grades), weights="quadratic"))


Reference = Callable[[np.ndarray, np.ndarray], Any]
CLASS_REFERENCES: dict[str, Reference] = {
    "accuracy": lambda p, t: sklearn.accuracy_score(t, p.argmax(1)),
    "balanced_accuracy": lambda p, t: sklearn.balanced_accuracy_score(t, p.argmax(1)),
    "f1_macro": lambda p, t: sklearn.f1_score(t, p.argmax(1), average="macro"),
    "f1_micro": lambda p, t: sklearn.f1_score(t, p.argmax(1), average="micro"),
    "log_loss": log_loss,
    "roc_auc": auc,
    "quadratic_kappa": lambda p, t: kappa(t, p.argmax(1)),
    "map@3": mean_precision,
    "top_2": lambda p, t: float((np.argsort(-p, 1, "stable")[:, :2] == t[:, None]).any(1).mean()),
}
LABEL_REFERENCES: dict[str, Reference] = {
    "accuracy": lambda p, t: sklearn.accuracy_score(t >= 0.5, p >= 0.5),
    "log_loss": log_loss,
    "roc_auc": auc,
    "labels_f1_micro": lambda p, t: sklearn.f1_score(t >= 0.5, p >= 0.5, average="micro", zero_division=0),
    "labels_f1_samples": lambda p, t: sklearn.f1_score(t >= 0.5, p >= 0.5, average="samples", zero_division=0),
    "labels_f2_samples": lambda p, t: sklearn.fbeta_score(
        t >= 0.5, p >= 0.5, beta=2, average="samples", zero_division=0
    ),
    "labels_f1_macro": lambda p, t: sklearn.f1_score(t >= 0.5, p >= 0.5, average="macro", zero_division=0),
}
NUMBER_REFERENCES: dict[str, Reference] = {
    "rmse": lambda p, t: sklearn.root_mean_squared_error(t, p[:, 0]),
    "mae": lambda p, t: sklearn.mean_absolute_error(t, p[:, 0]),
    "quadratic_kappa": lambda p, t: kappa(np.rint(t).astype(int), np.rint(p[:, 0]).astype(int)),
}
CASES = [
    *((class_task("abcd"), name, reference) for name, reference in CLASS_REFERENCES.items()),
    *((class_task("ab"), name, CLASS_REFERENCES[name]) for name in ("roc_auc", "f1_macro", "log_loss")),
    *((LABELS, name, reference) for name, reference in LABEL_REFERENCES.items()),
    *((NUMBER, name, reference) for name, reference in NUMBER_REFERENCES.items()),
]
every_case = pytest.mark.parametrize(
    ("task", "name", "reference"), CASES, ids=[f"{task.kind}{task.outputs}-{name}" for task, name, _ in CASES]
)


@every_case
@settings(max_examples=12, deadline=None, derandomize=True)
@given(rows=st.integers(2, 60), seed=st.integers(0, 10_000), coarse=st.booleans())
def test_values_are_scikit_learns(
    task: Task, name: str, reference: Reference, rows: int, seed: int, coarse: bool
) -> None:
    predictions, targets = draw(task, rows, seed, coarse)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            expected = reference(predictions, targets)
        except ValueError:  # AUC and log loss are undefined for a column with one value
            return
    if np.isnan(expected):
        return
    value, error = metric_named(name, task).score(predictions, targets)
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert np.isfinite(error)


@every_case
def test_standard_errors_are_those_of_a_bootstrap(task: Task, name: str, reference: Reference) -> None:
    predictions, targets = draw(task, 600, 1)
    other, _ = draw(task, 600, 2)
    other = (predictions + other) / 2
    metric, generator = metric_named(name, task), np.random.default_rng(0)
    values, gains = [], []
    for _ in range(300):
        rows = generator.integers(0, 600, 600)
        values.append(metric.score(predictions[rows], targets[rows])[0])
        gains.append(metric.gain(predictions[rows], other[rows], targets[rows])[0])
    assert metric.score(predictions, targets)[1] == pytest.approx(np.std(values), rel=0.2, abs=1e-9)
    assert metric.gain(predictions, other, targets)[1] == pytest.approx(np.std(gains), rel=0.2, abs=1e-9)


@every_case
def test_the_direction_is_that_of_knowing_more(task: Task, name: str, reference: Reference) -> None:
    predictions, targets = draw(task, 300, 3)
    perfect = targets[:, None] if isinstance(task, Number) else task.as_outputs(targets)
    metric = metric_named(name, task)
    assert metric.gain(predictions, perfect, targets)[0] > 0
    assert metric.gain(perfect, predictions, targets)[0] < 0
    assert metric.is_better(metric.score(perfect, targets)[0], metric.score(predictions, targets)[0])


@pytest.mark.parametrize("name", ["roc_auc", "f1_macro", "balanced_accuracy", "quadratic_kappa", "log_loss", "map@5"])
def test_rows_of_one_class_have_a_score(name: str) -> None:
    task = class_task("abc")
    value, error = metric_named(name, task).score(np.full((4, 3), 1 / 3, np.float32), np.zeros(4, np.int64))
    assert np.isfinite(value) and np.isfinite(error)


def test_a_label_without_rows_leaves_the_others_their_auc() -> None:
    targets = np.array([[0, 1, 0], [0, 0, 1], [0, 1, 1], [0, 0, 0]], np.float32)
    predictions = np.stack([np.linspace(0, 1, 4), targets[:, 1], targets[:, 2]], 1).astype(np.float32)
    assert metric_named("roc_auc", LABELS).score(predictions, targets)[0] == 1


def test_a_misspelt_metric_gets_the_nearest_name() -> None:
    with pytest.raises(UserError, match="roc_auc"):
        metric_named("roc_acu", LABELS)


@pytest.mark.parametrize("name", ["map@0", "top_", "map@k", "map@-1", "", "rmse5"])
def test_what_is_no_metric_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="metric"):
        metric_named(name, class_task("ab"))


def test_a_metric_of_another_task_is_refused_with_those_that_fit() -> None:
    with pytest.raises(UserError, match=r"rmse.*labels.*labels_f1_micro"):
        metric_named("rmse", LABELS)


@pytest.mark.parametrize("labels", [["0", "1", "2"], ["grade_9", "grade_10"], ["A", "B", "C"]])
def test_grades_have_a_kappa(labels: list[str]) -> None:
    assert metric_named("quadratic_kappa", class_task(labels)).name == "quadratic_kappa"


@pytest.mark.parametrize("labels", [["Mild", "No", "Severe"], ["0", "1", "4"], ["A", "C"], ["0", "1", "none"]])
def test_classes_that_are_no_grades_have_none(labels: list[str]) -> None:
    with pytest.raises(UserError, match=r"quadratic_kappa needs grades.*task: number"):
        metric_named("quadratic_kappa", class_task(labels))


def test_every_task_has_a_default_that_fits() -> None:
    tasks: dict[str, Task] = {"classes": class_task("ab"), **TASKS}
    assert set(DEFAULT) == set(KINDS) == set(tasks)
    for kind, task in tasks.items():
        assert metric_named(DEFAULT[kind], task).name in METRICS
