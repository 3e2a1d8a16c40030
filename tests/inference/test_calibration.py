"""A temperature makes probabilities as confident as they are right, and changes no decision."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scenes.inference.calibration import FITS, Calibration, calibration_error, fit_classes, fit_each_label, fit_labels


def classes(count: int, seed: int, power: float, outputs: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Exact probabilities raised to a power and normalised, and targets drawn from the exact ones."""
    random = np.random.default_rng(seed)
    exact = random.dirichlet(np.full(outputs, 0.5), count)
    targets = (exact.cumsum(1) > random.random((count, 1))).argmax(1)
    raised = np.maximum(exact, 1e-12) ** power
    return (raised / raised.sum(1, keepdims=True)).astype(np.float32), targets


def labels(count: int, seed: int, powers: list[float]) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    logits = 2 * random.normal(size=(count, len(powers)))
    targets = (random.random(logits.shape) < 1 / (1 + np.exp(-logits))).astype(np.float32)
    return (1 / (1 + np.exp(-logits * powers))).astype(np.float32), targets


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_classes_too_sure_or_unsure(power: float) -> None:
    predictions, targets = classes(20_000, 0, power)
    found = fit_classes(predictions, targets)
    assert found.temperatures[0] == pytest.approx(power, rel=0.05)
    fresh, fresh_targets = classes(20_000, 1, power)
    assert calibration_error(found.apply(fresh), fresh_targets) < 0.02


def test_the_same_for_labels_together_and_each() -> None:
    predictions, targets = labels(20_000, 0, [0.5, 0.5, 0.5])
    assert fit_labels(predictions, targets).temperatures == [pytest.approx(0.5, rel=0.05)]
    predictions, targets = labels(20_000, 1, [0.5, 1.0, 2.0])
    found = fit_each_label(predictions, targets)
    assert found.temperatures == [pytest.approx(power, rel=0.05) for power in (0.5, 1.0, 2.0)]
    assert calibration_error(found.apply(predictions), targets) < 0.01


def test_a_label_with_few_rows_shares_its_temperature() -> None:
    predictions, targets = labels(2000, 0, [0.5, 3.0])
    targets[:, 1] = 0
    targets[:3, 1] = 1
    found = fit_each_label(predictions, targets)
    assert found.temperatures[1] == fit_labels(predictions, targets).temperatures[0]


def test_where_all_rows_are_right_a_wrong_one_is_still_reckoned_with() -> None:
    for rows in (60, 600):
        sure = np.tile(np.array([[0.9, 0.1]], np.float32), (rows, 1))
        surer = fit_classes(sure, np.zeros(rows, int)).apply(sure)
        assert 1 / (rows + 2) < surer[0, 1] < 1 / rows
        chances = np.tile(np.array([[0.9, 0.8]], np.float32), (rows, 1))
        chances[::2, 0] = 0.1
        flags = (chances >= 0.5).astype(np.float32)
        flags[: rows // 5, 1] = 0
        easy = fit_each_label(chances, flags).apply(chances)[1, 0]
        assert 1 / (rows + 2) < 1 - easy < 1 / rows


@given(st.integers(2, 6), st.floats(0.05, 20), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_no_decision_changes(outputs: int, temperature: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    coarse = random.integers(1, 4, (200, outputs)).astype(np.float32)  # ties
    coarse[100:] += random.uniform(-1e-7, 1e-7, (100, outputs)).astype(np.float32)  # and near-ties
    coarse[:10] **= 40
    predictions = coarse / coarse.sum(1, keepdims=True)
    scaled = Calibration("classes", [temperature]).apply(predictions)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(scaled.argmax(1), predictions.argmax(1))
    np.testing.assert_allclose(scaled.sum(1), 1, atol=1e-5)
    near_half = np.float32(0.5) + random.uniform(-1e-7, 1e-7, (200, outputs)).astype(np.float32)
    scaled = Calibration("labels", [temperature]).apply(near_half)
    np.testing.assert_array_equal(scaled >= 0.5, near_half >= 0.5)
    assert ((scaled >= 0) & (scaled <= 1)).all()


def test_certain_and_wrong_stays_finite() -> None:
    predictions, targets = np.array([[1, 0], [1, 0], [0, 1]], np.float32), np.array([0, 1, 1])
    found = fit_classes(predictions, targets)
    assert np.isfinite(found.apply(predictions)).all()
    ones, both = np.array([[1.0], [1.0], [0.0]], np.float32), np.array([[1.0], [0.0], [0.0]])
    assert np.isfinite(fit_labels(ones, both).apply(ones)).all()


def test_numbers_and_no_temperature_leave_predictions_as_they_are() -> None:
    assert FITS["number"] == []
    predictions = np.array([[3.5]], np.float32)
    assert Calibration("number").apply(predictions) is predictions


def test_it_survives_json() -> None:
    found = Calibration("labels", [0.5, 2.0])
    values = json.loads(json.dumps(found.to_dict() | {"ece_before": 0.1}))
    assert Calibration.from_dict(values) == found


def test_the_calibration_error_by_hand() -> None:
    predictions = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]], np.float32)
    # two rows with confidence 0.9, one right: 0.4 off; one with 0.6, wrong: 0.6 off
    assert calibration_error(predictions, np.array([0, 1, 0])) == pytest.approx((2 * 0.4 + 0.6) / 3, abs=1e-6)
    assert calibration_error(np.array([[1.0], [0.0]], np.float32), np.array([[1.0], [0.0]])) == 0
