"""Scores against scikit-learn and against values computed by hand."""

import math

import numpy as np
import pytest
from sklearn import metrics as sklearn

from scenes.competition.metric import accuracy, log_losses, standard_error
from scenes.competition.scores import class_scores, with_error


def guesses(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, classes, count)
    logits = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[targets]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities.astype(np.float32), targets


@pytest.mark.parametrize("classes", [2, 3, 5, 6, 9])
def test_scores_are_scikit_learns(classes: int) -> None:
    probabilities, targets = guesses(200, classes)
    names = [f"class {number}" for number in range(classes)]
    scores = class_scores(probabilities, targets, names)
    predicted, exact = probabilities.argmax(1), probabilities.astype(np.float64)
    assert scores["n"] == 200
    assert scores["accuracy"] == pytest.approx(sklearn.accuracy_score(targets, predicted))
    assert scores["log_loss"] == pytest.approx(
        sklearn.log_loss(targets, exact / exact.sum(1, keepdims=True), labels=range(classes)), rel=1e-5
    )
    assert scores["macro_f1"] == pytest.approx(sklearn.f1_score(targets, predicted, average="macro"))
    assert scores["macro_precision"] == pytest.approx(sklearn.precision_score(targets, predicted, average="macro"))
    assert scores["macro_recall"] == pytest.approx(sklearn.recall_score(targets, predicted, average="macro"))
    matrix = [[scores["confusion"].get(truth, {}).get(guess, 0) for guess in names] for truth in names]
    assert matrix == sklearn.confusion_matrix(targets, predicted).tolist()
    for number, name in enumerate(names):
        own = scores["per_class"][name]
        assert own["recall"] == pytest.approx((predicted[targets == number] == number).mean())
        assert own["precision"] == pytest.approx((targets[predicted == number] == number).mean())
        assert own["support"] == (targets == number).sum()
    assert ("top_5_accuracy" in scores) == (classes > 5)
    if classes > 5:
        expected = sklearn.top_k_accuracy_score(targets, probabilities, k=5, labels=range(classes))
        assert scores["top_5_accuracy"] == pytest.approx(expected)


def test_by_hand() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1], [0.2, 0.3, 0.5]], np.float32)
    targets = np.array([0, 1, 1, 2])
    scores = class_scores(probabilities, targets, ["a", "b", "c"])
    assert scores["accuracy"] == 0.75
    # hits 1 1 0 1: variance 1/4 (with n - 1); the standard error of the mean of four is half its root
    assert scores["accuracy_se"] == pytest.approx(math.sqrt(0.25) / 2)
    losses = [-math.log(p) for p in (0.7, 0.8, 0.4, 0.5)]
    assert scores["log_loss"] == pytest.approx(sum(losses) / 4)
    mean = sum(losses) / 4
    assert scores["log_loss_se"] == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in losses) / 3 / 4))
    assert scores["confusion"] == {"a": {"a": 1}, "b": {"a": 1, "b": 1}, "c": {"c": 1}}  # true class first
    assert scores["per_class"]["a"] == {"precision": 0.5, "recall": 1.0, "f1": pytest.approx(2 / 3), "support": 1}
    assert scores["per_class"]["b"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}


def test_standard_error() -> None:
    assert standard_error(np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(math.sqrt(5 / 3) / 2)
    assert standard_error(np.array([3.0])) == 0.0
    hits = np.array([1.0] * 95 + [0.0] * 5)
    assert standard_error(hits) == pytest.approx(math.sqrt(0.95 * 0.05 / 99))


def test_certain_and_wrong_is_a_large_but_finite_loss() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    losses = log_losses(probabilities, np.array([1, 1]))
    assert losses.dtype == np.float64
    assert losses[1] == 0.0
    assert 80 < losses[0] < 100
    assert np.isfinite(class_scores(probabilities, np.array([1, 0]), ["a", "b"])["log_loss"])


def test_ties_in_the_top_five_are_broken_as_in_accuracy() -> None:
    generator = np.random.default_rng(0)
    coarse = generator.integers(1, 4, (300, 40)).astype(np.float32)  # each of three values occurs in many classes
    coarse /= coarse.sum(1, keepdims=True)
    targets = generator.integers(0, 40, 300)
    best = [sorted(range(40), key=lambda c, row=row: (-row[c], c))[:5] for row in coarse]
    scores = class_scores(coarse, targets, [str(number) for number in range(40)])
    assert scores["top_5_accuracy"] == pytest.approx(
        np.mean([t in five for t, five in zip(targets, best, strict=True)])
    )
    own = class_scores(coarse, coarse.argmax(1), [str(number) for number in range(40)])
    assert own["accuracy"] == own["top_5_accuracy"] == 1.0


def test_a_class_without_rows() -> None:
    probabilities, targets = guesses(60, 3)
    wider = np.concatenate([probabilities, np.zeros((60, 1), np.float32)], 1)
    scores = class_scores(wider, targets, ["a", "b", "c", "d"])
    assert scores["per_class"]["d"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert "d" not in scores["confusion"]
    assert not any("d" in row for row in scores["confusion"].values())
    assert scores["accuracy"] == class_scores(probabilities, targets, ["a", "b", "c"])["accuracy"]


def test_one_row() -> None:
    scores = class_scores(np.array([[0.9, 0.1]], np.float32), np.array([0]), ["a", "b"])
    assert (scores["n"], scores["accuracy"], scores["accuracy_se"], scores["log_loss_se"]) == (1, 1.0, 0.0, 0.0)


def test_accuracy_is_a_share_with_its_error() -> None:
    probabilities, targets = guesses(500, 4)
    share, error = accuracy(probabilities, targets)
    assert share == (probabilities.argmax(1) == targets).mean()
    assert error == pytest.approx(math.sqrt(share * (1 - share) / 499))


def test_metrics_are_plain_values() -> None:
    def kinds(value: object) -> set[type]:
        if isinstance(value, dict):
            return set().union(*(kinds(inner) for inner in value.values())) | {type(key) for key in value}
        if isinstance(value, list):
            return set().union(*(kinds(inner) for inner in value))
        return {type(value)}

    assert kinds(class_scores(*guesses(30, 6), [str(number) for number in range(6)])) == {int, float, str}


def test_percent() -> None:
    assert with_error(0.93124, 0.00361) == "0.9312 ± 0.0036"
    assert with_error(1.0) == "1.0000"
