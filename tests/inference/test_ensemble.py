"""Views and weights are chosen on out-of-fold rows; what a choice scores is measured on rows it did not see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenes.competition.metric import log_losses
from scenes.inference.ensemble import (
    agreement,
    equal_weights,
    hill_climbing_weights,
    nested_mean,
    oracle_accuracy,
    view_weights,
    weighted_mean,
)

CLASSES = 3


def member(targets: np.ndarray, skill: float, seed: int) -> np.ndarray:
    """Probabilities that favour the truth by `skill` logits, with noise of one logit."""
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
    mean = nested_mean(hill_climbing_weights, members, targets, fold_of)
    for fold in range(4):
        changed = targets.copy()
        changed[fold_of == fold] = (changed[fold_of == fold] + 1) % CLASSES
        again = nested_mean(hill_climbing_weights, members, changed, fold_of)
        np.testing.assert_array_equal(again[fold_of == fold], mean[fold_of == fold])
        assert not np.array_equal(again, mean)


def test_a_choice_between_equals_looks_worse_nested_than_it_did_where_it_was_made() -> None:
    """Twelve members that know nothing: chosen on 60 rows the best seem good, nested they are not."""
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
    np.testing.assert_array_equal(agreement(members), [[1, 0.5], [0.5, 1]])
    assert oracle_accuracy(members, targets) == 0.75
