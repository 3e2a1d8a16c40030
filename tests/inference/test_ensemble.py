"""Views, weights, calibration and decoding are chosen on out-of-fold rows and scored on other rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenes.competition.metric import Metric, log_losses, metric_named
from scenes.competition.task import Labels, Number, class_task
from scenes.inference.ensemble import (
    Weigh,
    agreement,
    equal_weights,
    fit_ensemble,
    hill_climbing_weights,
    oracle_accuracy,
    selection_metric,
    weighted_mean,
)
from scenes.inference.ensemble import view_weights as view_weights_by

CLASSES = 3
TASK = class_task(["a", "b", "c"])
ACCURACY = metric_named("accuracy", TASK)
view_weights = view_weights_by(metric_named("log_loss", TASK))


def nested_mean(weigh: Weigh, members: np.ndarray, targets: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    return fit_ensemble(weigh, members, targets, fold_of, TASK, ACCURACY).uncalibrated


def member(targets: np.ndarray, skill: float, seed: int) -> np.ndarray:
    """Probabilities that favour the truth by `skill` logits, with one logit of noise."""
    logits = np.random.default_rng(seed).normal(size=(len(targets), CLASSES))
    logits[np.arange(len(targets)), targets] += skill
    odds = np.exp(logits)
    return (odds / odds.sum(1, keepdims=True)).astype(np.float32)


@pytest.fixture
def targets() -> np.ndarray:
    return np.random.default_rng(0).integers(0, CLASSES, 600)


def test_a_view_that_helps_or_does_nothing_stays(targets: np.ndarray) -> None:
    plain, other = member(targets, 2, 1), member(targets, 2, 2)
    assert view_weights(np.stack([plain, other]), targets).tolist() == [0.5, 0.5]
    assert view_weights(np.stack([plain, plain]), targets).tolist() == [0.5, 0.5]


def test_a_view_that_hurts_is_dropped_and_the_first_never(targets: np.ndarray) -> None:
    good, bad = member(targets, 3, 1), member(targets, -3, 2)
    assert view_weights(np.stack([good, bad, good]), targets).tolist() == [0.5, 0.0, 0.5]
    assert view_weights(np.stack([bad, good]), targets)[0] > 0


def test_hill_climbing_prefers_the_better_member_and_never_loses_on_the_rows_it_sees(targets: np.ndarray) -> None:
    members = np.stack([member(targets, 3, 1), member(targets, 0.2, 2), member(targets, 2.8, 3)])
    weights = hill_climbing_weights(members, targets)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > weights[2] > weights[1]
    plain = log_losses(members.mean(0), targets).mean()
    assert log_losses(weighted_mean(members, weights), targets).mean() < plain


@given(st.integers(2, 5), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_weighted_means_are_probabilities(count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    targets = random.integers(0, CLASSES, 40)
    members = np.stack([member(targets, random.uniform(-2, 3), seed + i) for i in range(count)])
    for choose in (view_weights, equal_weights, hill_climbing_weights):
        weights = choose(members, targets)
        assert (weights >= 0).all()
        mean = weighted_mean(members, weights)
        assert mean.dtype == np.float32
        np.testing.assert_allclose(mean.sum(1), 1, rtol=1e-5)


def test_nested_choices_never_see_the_rows_they_are_scored_on(targets: np.ndarray) -> None:
    fold_of = np.arange(len(targets)) % 4
    members = np.stack([member(targets, 2, 1), member(targets, 1, 2)])
    members = members**8 / (members**8).sum(2, keepdims=True)  # so confident that calibration applies in any case
    metric = metric_named("balanced_accuracy", TASK)
    fitted = fit_ensemble(hill_climbing_weights, members, targets, fold_of, TASK, metric)
    assert fitted.ensemble.calibration.temperatures
    for fold in range(4):
        changed, at = targets.copy(), np.flatnonzero(fold_of == fold)[:5]
        changed[at] = (changed[at] + 1) % CLASSES
        again = fit_ensemble(hill_climbing_weights, members, changed, fold_of, TASK, metric)
        for before, after in ((fitted.predictions, again.predictions), (fitted.uncalibrated, again.uncalibrated)):
            np.testing.assert_array_equal(after[fold_of == fold], before[fold_of == fold])
        assert not np.array_equal(again.predictions, fitted.predictions)


def test_a_choice_between_equals_looks_worse_nested_than_it_did_where_it_was_made() -> None:
    """Twelve members at chance: chosen on 60 rows the best look good; scored nested they do not."""
    targets = np.random.default_rng(5).integers(0, CLASSES, 60)
    members = np.stack([member(targets, 0, seed) for seed in range(12)])
    chosen = weighted_mean(members, hill_climbing_weights(members, targets))
    nested = nested_mean(hill_climbing_weights, members, targets, np.arange(60) % 5)
    plain = log_losses(members.mean(0), targets).mean()
    assert log_losses(chosen, targets).mean() < plain < log_losses(nested, targets).mean()


def test_with_one_fold_there_is_nothing_to_choose_on(targets: np.ndarray) -> None:
    members = np.stack([member(targets, 3, 1), member(targets, -3, 2)])
    mean = nested_mean(view_weights, members, targets, np.zeros(len(targets), int))
    np.testing.assert_allclose(mean, members.mean(0), rtol=1e-6)


def test_agreement_and_oracle() -> None:
    targets = np.array([0, 1, 2, 0])
    one, other = np.eye(CLASSES)[[0, 1, 0, 1]], np.eye(CLASSES)[[0, 2, 2, 1]]
    members = np.stack([one, other]).astype(np.float32)
    np.testing.assert_array_equal(agreement(members, TASK), [[1, 0.5], [0.5, 1]])
    labels = Labels(list("abc"), list("abc"))
    np.testing.assert_allclose(agreement(members, labels), [[1, 2 / 3], [2 / 3, 1]])
    numbers = np.array([[[1.0], [2.0], [3.0]], [[2.0], [4.0], [6.0]]], np.float32)
    np.testing.assert_allclose(agreement(numbers, Number.of("x", np.arange(3))), np.ones((2, 2)))
    assert oracle_accuracy(members, targets) == 0.75


def test_weights_of_labels_and_numbers_prefer_the_better_member() -> None:
    random = np.random.default_rng(0)
    labels = (random.random((400, 4)) < 0.4).astype(np.float32)
    sharp, dull = (1 / (1 + np.exp(-skill * (2 * labels - 1) - random.normal(size=labels.shape))) for skill in (3, 0.5))
    weights = hill_climbing_weights(np.stack([dull, sharp]).astype(np.float32), labels)
    assert weights[1] > 0.8
    numbers = random.normal(size=300).astype(np.float32)
    near, far = (numbers + spread * random.normal(size=300) for spread in (0.2, 2))
    weights = hill_climbing_weights(np.stack([near, far])[..., None].astype(np.float32), numbers)
    assert weights[0] > 0.9


@pytest.mark.parametrize(
    ("name", "by"),
    [("accuracy", "log_loss"), ("map@5", "log_loss"), ("roc_auc", "roc_auc"), ("log_loss", "log_loss")],
)
def test_choices_are_made_by_what_sees_every_row(name: str, by: str) -> None:
    assert selection_metric(metric_named(name, TASK), TASK).name == by


def test_weights_of_numbers_are_chosen_by_their_errors() -> None:
    task = Number.of("x", np.arange(5))
    assert selection_metric(metric_named("mae", task), task).name == "mae"
    assert selection_metric(metric_named("quadratic_kappa", task), task).name == "rmse"


def test_what_is_too_sure_is_calibrated_and_keeps_its_classes(targets: np.ndarray) -> None:
    exact = member(targets, 2, 1)
    surer = exact**3 / (exact**3).sum(1, keepdims=True)
    fitted = fit_ensemble(equal_weights, surer[None], targets, np.arange(600) % 5, TASK, ACCURACY)
    (temperature,) = fitted.ensemble.calibration.temperatures
    assert temperature > 1.5
    assert log_losses(fitted.predictions, targets).mean() < log_losses(fitted.uncalibrated, targets).mean()
    np.testing.assert_array_equal(fitted.predictions.argmax(1), surer.argmax(1))
    np.testing.assert_array_equal(fitted.decisions, fitted.predictions)


def test_decoding_is_taken_where_it_wins_nested_and_not_where_it_cannot(targets: np.ndarray) -> None:
    random = np.random.default_rng(1)
    grades = random.choice(4, 2000, p=[0.6, 0.25, 0.1, 0.05])
    logits = -0.5 * np.square(grades[:, None] + 1.5 * random.normal(size=(2000, 1)) - np.arange(4))
    odds = np.exp(logits)
    predictions = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    task = class_task(list("0123"))
    metric = metric_named("quadratic_kappa", task)
    fitted = fit_ensemble(equal_weights, predictions[None], grades, np.arange(2000) % 5, task, metric)
    assert fitted.ensemble.decoding.rule == "grades"
    plain, decoded = (metric.score(each, grades)[0] for each in (fitted.predictions, fitted.decisions))
    assert decoded > plain + 0.01
    balanced = metric_named("balanced_accuracy", TASK)
    alike = fit_ensemble(equal_weights, member(targets, 2, 1)[None], targets, np.arange(600) % 5, TASK, balanced)
    assert alike.ensemble.decoding.rule == "plain"


@pytest.mark.parametrize("metric", [ACCURACY, metric_named("f1_macro", TASK)])
def test_with_one_fold_nothing_is_calibrated_or_decoded(metric: Metric, targets: np.ndarray) -> None:
    surer = member(targets, 2, 1) ** 3
    surer /= surer.sum(1, keepdims=True)
    fitted = fit_ensemble(equal_weights, surer[None], targets, np.zeros(600, int), TASK, metric)
    assert not fitted.ensemble.calibration.temperatures
    np.testing.assert_allclose(fitted.decisions, surer, rtol=1e-6)


def test_with_one_fold_the_ensemble_is_what_was_scored(targets: np.ndarray) -> None:
    views = np.stack([member(targets, 3, 1), member(targets, -3, 2)])  # the second hurts
    fitted = fit_ensemble(view_weights, views, targets, np.zeros(600, int), TASK, ACCURACY)
    np.testing.assert_array_equal(fitted.ensemble.predict(views), fitted.predictions)
