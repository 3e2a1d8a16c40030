"""Rules that turn predictions into decisions: what they choose, and where they beat a plain argmax or 0.5."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, f1_score, fbeta_score

from scenes.competition.decoding import FITS, PLAIN, Decoding, expected_grades


def graded(count: int, grades: int, seed: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of ordered grades, higher ones rarer, that lean towards the neighbours of the truth."""
    random = np.random.default_rng(seed)
    shares = 0.5 ** np.arange(grades)
    targets = random.choice(grades, count, p=shares / shares.sum())
    seen = targets + noise * random.normal(size=count)
    logits = -np.square(seen[:, None] - np.arange(grades))
    odds = np.exp(logits)
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32), targets


def labelled(count: int, labels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of labels, each too low by its own factor of about two."""
    random = np.random.default_rng(seed)
    targets = (random.random((count, labels)) < 0.3).astype(np.float32)
    logits = 1.5 * (2 * targets - 1) + random.normal(size=(count, labels)) - random.uniform(0.5, 1.5, labels)
    return (1 / (1 + np.exp(-logits))).astype(np.float32), targets


def kappa(predictions: np.ndarray, targets: np.ndarray) -> float:
    chosen = predictions.argmax(1) if predictions.shape[1] > 1 else np.rint(predictions[:, 0])
    return cohen_kappa_score(targets, chosen.astype(int), weights="quadratic")


def test_the_plain_reading_is_the_predictions_themselves() -> None:
    predictions, _ = graded(20, 4, 0)
    assert PLAIN.apply(predictions) is predictions


def test_thresholds_for_grades_win_kappa_over_the_most_probable_class() -> None:
    predictions, targets = graded(3000, 5, 1, noise=1.5)
    rounding, fitted = (fit(predictions[:1500], targets[:1500]) for fit in FITS["quadratic_kappa"])
    plain = kappa(predictions[1500:], targets[1500:])
    assert kappa(rounding.apply(predictions[1500:]), targets[1500:]) > plain
    assert kappa(fitted.apply(predictions[1500:]), targets[1500:]) > plain
    inside = kappa(rounding.apply(predictions[:1500]), targets[:1500])
    assert kappa(fitted.apply(predictions[:1500]), targets[:1500]) >= inside
    assert fitted.values == sorted(fitted.values)


def test_numbers_are_graded_from_the_lowest_grade_on() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(3, 8, 500).astype(np.float32)
    predictions = (targets + 0.3 * random.normal(size=500) + 0.8).astype(np.float32)[:, None]  # all too high
    rounding, fitted = (fit(predictions, targets) for fit in FITS["quadratic_kappa"])
    decided = fitted.apply(predictions)
    assert decided.shape == (500, 1)
    assert set(decided.ravel()) <= {3.0, 4.0, 5.0, 6.0, 7.0}
    assert kappa(decided, targets) > kappa(rounding.apply(predictions), targets) + 0.05


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_thresholds_for_labels_win_f1_over_one_half(average: str) -> None:
    predictions, targets = labelled(4000, 6, 2)

    def score(decided: np.ndarray) -> float:
        return f1_score(targets[2000:] > 0.5, decided[2000:] > 0.5, average=average)

    one, each = (fit(predictions[:2000], targets[:2000]) for fit in FITS[f"labels_f1_{average}"])
    assert (len(one.values), len(each.values)) == (1, 6)
    assert score(predictions) + 0.02 < score(one.apply(predictions))
    assert score(one.apply(predictions)) < score(each.apply(predictions)) + 0.01


def test_where_recall_counts_more_labels_are_given_sooner() -> None:
    random = np.random.default_rng(5)
    chances = random.beta(1, 4, (4000, 5)).astype(np.float32)
    targets = (random.random(chances.shape) < chances).astype(np.float32)
    f1, f2 = (FITS[f"labels_f{beta}_samples"][0](chances[:2000], targets[:2000]) for beta in (1, 2))
    assert f2.values[0] < f1.values[0] < 0.5

    def score(decided: np.ndarray) -> float:
        return fbeta_score(targets[2000:] > 0.5, decided[2000:] >= 0.5, beta=2, average="samples", zero_division=0)

    assert score(f2.apply(chances)) > max(score(f1.apply(chances)), score(chances)) + 0.01


@given(st.integers(1, 4), st.integers(2, 30), st.integers(0, 10**6), st.sampled_from(["micro", "macro"]))
@settings(max_examples=50, deadline=None)
def test_a_threshold_a_label_is_at_least_as_good_as_one_for_all_where_fitted(
    labels: int, count: int, seed: int, average: str
) -> None:
    random = np.random.default_rng(seed)
    predictions = random.random((count, labels)).astype(np.float32)
    targets = (random.random((count, labels)) < random.random()).astype(np.float32)
    one, each = (fit(predictions, targets) for fit in FITS[f"labels_f1_{average}"])
    scores = [
        f1_score(targets > 0.5, rule.apply(predictions) > 0.5, average=average, zero_division=0.0)
        if labels > 1
        else f1_score(targets[:, 0] > 0.5, rule.apply(predictions)[:, 0] > 0.5, zero_division=0.0)
        for rule in (one, each)
    ]
    assert scores[1] >= scores[0] - 1e-9


@pytest.mark.parametrize("metric", ["f1_macro", "balanced_accuracy"])
def test_a_rare_class_is_chosen_more_often_where_classes_count_alike(metric: str) -> None:
    random = np.random.default_rng(3)
    targets = (random.random(6000) < 0.05).astype(np.int64)
    seen = 1.5 * targets + random.normal(size=6000)
    odds = 0.05 / 0.95 * np.exp(1.5 * seen - 1.5**2 / 2)  # exact, so the rare class rarely gets more than one half
    rare = odds / (1 + odds)
    predictions = np.stack([1 - rare, rare], 1).astype(np.float32)
    rule = FITS[metric][0](predictions[:3000], targets[:3000])
    score = balanced_accuracy_score if metric == "balanced_accuracy" else lambda a, b: f1_score(a, b, average="macro")
    decided = rule.apply(predictions)[3000:].argmax(1)
    assert score(targets[3000:], decided) > score(targets[3000:], predictions[3000:].argmax(1)) + 0.02


def test_rules_survive_json() -> None:
    predictions, targets = graded(200, 4, 4)
    for fit in FITS["quadratic_kappa"] + FITS["f1_macro"]:
        rule = fit(predictions, targets)
        again = Decoding.from_dict(json.loads(json.dumps(rule.to_dict())))
        np.testing.assert_array_equal(again.apply(predictions), rule.apply(predictions))


@pytest.mark.parametrize("metric", sorted(FITS))
def test_few_rows_and_absent_classes_break_nothing(metric: str) -> None:
    if metric.startswith("labels"):
        predictions, targets = np.full((3, 2), 0.5, np.float32), np.zeros((3, 2), np.float32)
    else:
        predictions, targets = np.full((3, 4), 0.25, np.float32), np.array([1, 1, 1])
    for fit in FITS[metric]:
        decided = fit(predictions, targets).apply(predictions)
        assert decided.shape == predictions.shape
        assert np.isin(decided, (0, 1)).all()


def test_the_expected_grade_of_probabilities_and_of_numbers() -> None:
    np.testing.assert_allclose(expected_grades(np.array([[0.5, 0.25, 0.25]], np.float32)), [0.75])
    np.testing.assert_allclose(expected_grades(np.array([[2.25]], np.float32)), [2.25])
