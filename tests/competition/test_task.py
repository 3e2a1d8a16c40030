import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional

from scenes.competition import linear_head
from scenes.competition.task import Classes, Labels, Number, Task, class_task, predictions_of, task_from_dict

CLASSES = class_task(["a", "b", "c"])
LABELS = Labels(["x", "y"], ["x", "y"])
NUMBER = Number.of("age", np.array([2.0, 4.0, 9.0], np.float32))
RNG = np.random.default_rng(0)


def _targets(task: Task, rows: int) -> np.ndarray:
    if isinstance(task, Classes):
        return np.arange(rows) % 3
    if isinstance(task, Labels):
        return RNG.integers(0, 2, (rows, 2)).astype(np.float32)
    return RNG.uniform(2, 9, rows).astype(np.float32)


@pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBER], ids=lambda task: task.kind)
def test_a_task_survives_being_written_as_plain_values(task: Task) -> None:
    assert task_from_dict(task.to_dict()) == task


@pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBER], ids=lambda task: task.kind)
def test_the_loss_falls_towards_the_targets_and_predictions_meet_them(task: Task) -> None:
    targets = _targets(task, 12)
    outputs = torch.from_numpy(task.as_outputs(targets))
    logits = torch.zeros(12, task.outputs, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.3)
    first = task.loss(logits, outputs).detach()
    assert first.shape == (12,)
    for _ in range(300):
        optimizer.zero_grad()
        task.loss(logits, outputs).sum().backward()
        optimizer.step()
    assert task.loss(logits, outputs).sum() < 0.05 * first.sum()
    predicted = task.activate(logits.detach()).numpy()
    wanted = targets[:, None] if isinstance(task, Number) else task.as_outputs(targets)
    assert np.abs(predicted - wanted).max() < 0.1


def test_cross_entropy_is_the_same_for_positions_and_probabilities() -> None:
    logits, targets = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), np.arange(9) % 3
    weights = torch.tensor([1.0, 2.0, 0.5])
    expected = functional.cross_entropy(
        logits, torch.from_numpy(targets), weights, reduction="none", label_smoothing=0.1
    )
    found = CLASSES.loss(logits, torch.from_numpy(CLASSES.as_outputs(targets)), 0.1, weights)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["bf16", "fp16"])
def test_predictions_are_made_in_full_precision(kind: str) -> None:
    half = torch.tensor([[8.0, 8.0, 0.0]]).to({"bf16": torch.bfloat16, "fp16": torch.float16}[kind])
    assert CLASSES.activate(half).dtype == torch.float32
    assert abs(float(CLASSES.activate(half).sum()) - 1) < 1e-6


@pytest.mark.parametrize("task", [CLASSES, LABELS, NUMBER], ids=lambda task: task.kind)
def test_a_linear_head_finds_what_features_say(task: Task) -> None:
    targets = _targets(task, 200)
    wanted = targets[:, None] if isinstance(task, Number) else task.as_outputs(targets)
    features = (wanted @ RNG.normal(size=(wanted.shape[1], 20)) + 0.05 * RNG.normal(size=(200, 20))).astype(np.float32)
    head = task.fit_head(features, targets, 0)
    assert head.weights.shape == (task.outputs, 20) and head.weights.dtype == np.float32
    predicted = predictions_of(task, head.logits(features))
    if isinstance(task, Number):
        assert np.abs(predicted - wanted).mean() < 0.3 * np.abs(wanted - wanted.mean()).mean()
    else:
        assert ((predicted > 0.5) == (wanted > 0.5)).mean() > 0.97


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_is_the_logistic_regression_of_scikit_learn(classes: int) -> None:
    targets = RNG.integers(0, classes, 300)
    features = (np.eye(classes)[targets] @ RNG.normal(size=(classes, 30)) + 2 * RNG.normal(size=(300, 30))) * 5 + 7
    head = linear_head.fit_classes(features.astype(np.float32), targets, classes, 0)
    strength = float(head.chosen.removeprefix("C = "))
    reference = make_pipeline(StandardScaler(), LogisticRegression(C=strength, tol=1e-8)).fit(features, targets)
    expected = reference.predict_proba(features)
    found = predictions_of(class_task(["a", "b", "c"][:classes]), head.logits(features))
    assert found == pytest.approx(expected, abs=2e-3)


def test_a_head_is_the_ridge_regression_of_scikit_learn() -> None:
    features = RNG.normal(size=(300, 30)) * 5 + 7
    targets = features @ RNG.normal(size=(30, 1)) + RNG.normal(size=(300, 1))
    head = linear_head.fit_number(features.astype(np.float32), targets.astype(np.float32), 0)
    reference = make_pipeline(StandardScaler(), Ridge(float(head.chosen.removeprefix("penalty = "))))
    expected = reference.fit(features, targets).predict(features)
    assert head.logits(features).ravel() == pytest.approx(expected.ravel(), abs=1e-2)


def test_a_class_without_rows_is_never_predicted() -> None:
    targets = np.arange(40) % 2
    features = (targets[:, None] + 0.1 * RNG.normal(size=(40, 4))).astype(np.float32)
    predicted = predictions_of(CLASSES, CLASSES.fit_head(features, targets, 0).logits(features))
    assert predicted[:, 2].max() < 1e-3
    assert (predicted.argmax(1) == targets).all()


def test_classes_of_one_row_do_not_stop_the_head() -> None:
    targets = np.array([0] * 20 + [1] * 20 + [2])
    features = RNG.normal(size=(41, 6)).astype(np.float32)
    assert np.isfinite(CLASSES.fit_head(features, targets, 0).weights).all()


def test_a_label_that_never_changes_keeps_its_share() -> None:
    targets = np.stack([np.ones(30), np.arange(30) % 2], 1).astype(np.float32)
    features = RNG.normal(size=(30, 6)).astype(np.float32)
    predicted = predictions_of(LABELS, LABELS.fit_head(features, targets, 0).logits(features))
    assert (predicted[:, 0] > 0.9).all()


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=60))
def test_number_strata_are_ordered_like_the_numbers(numbers: list[float]) -> None:
    targets = np.array(numbers, np.float32)
    strata = Number.of("n", targets).strata(targets)
    order = np.argsort(targets, kind="stable")
    assert (np.diff(strata[order]) >= 0).all()
    assert len(np.unique(strata)) <= 10


def test_a_number_is_never_predicted_beyond_the_training_range() -> None:
    assert predictions_of(NUMBER, np.array([[-50.0], [0.0], [50.0]])).ravel().tolist() == [2.0, 5.0, 9.0]


def test_a_number_that_never_changes_can_be_scaled() -> None:
    targets = np.full(5, 3.0, np.float32)
    assert (Number.of("n", targets).as_outputs(targets) == 0).all()


def test_the_prior_is_what_is_known_without_an_image() -> None:
    assert CLASSES.prior(np.array([0, 0, 1, 2])).tolist() == [0.5, 0.25, 0.25]
    assert LABELS.prior(np.array([[1, 0], [1, 1]], np.float32)).tolist() == [1.0, 0.5]
    assert NUMBER.prior(np.array([2.0, 4.0], np.float32)).tolist() == [3.0]


WORDS = st.text(min_size=1, max_size=8)


@given(st.lists(WORDS, min_size=2, max_size=5, unique=True), st.integers(0, 10**6))
@settings(max_examples=50, deadline=None)
def test_targets_survive_as_texts(words: list[str], seed: int) -> None:
    random = np.random.default_rng(seed)
    classes, labels = class_task(words), Labels(words, words)
    number = Number.of("age", np.array([1.0, 2.0], np.float32))
    for task, values in (
        (classes, random.integers(0, len(words), 20)),
        (labels, (random.random((20, len(words))) < 0.4).astype(np.float32)),
        (number, random.normal(size=20).astype(np.float32)),
    ):
        again = task.from_texts(task.as_texts(values))
        np.testing.assert_array_equal(again, values)
        assert again.dtype == values.dtype
    for task, text in ((classes, "not there, too long"), (labels, '["not there, too long"]'), (number, "x")):
        with pytest.raises(ValueError, match=r"not there|list of labels|x"):
            task.from_texts([text])
