"""The form of a submission follows from metric, task and sample; each form is written as Kaggle reads it."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scenes.competition.decoding import Decoding
from scenes.competition.rows import Table
from scenes.competition.submission import check_submission_form, plan_submission
from scenes.competition.task import Labels, Number, Task, class_task
from scenes.config import Config, DataConfig
from scenes.console import UserError

IDS = ["b", "a", "007"]
THREE = class_task(["cat", "dog", "sea, calm"])
TWO = class_task(["0", "1"])
LABELS = Labels(["rust", "scab", "healthy"], ["Rust", "Scab", "Healthy"])
NUMBER = Number.of("age", np.array([1.0, 50.0, 100.0], np.float32))
OF_THREE = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3]], np.float32)


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("input").mkdir()


def config(metric: str | None = None, submission: Any = None, **data: Any) -> Config:
    return Config(name="t", metric=metric, submission=submission, data=DataConfig(**data))


def sample(header: Sequence[str], ids: Sequence[str] = IDS, name: str = "sample_submission.csv") -> None:
    with Path("input", name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *([one, *["0"] * (len(header) - 1)] for one in ids)])


def table(ids: Sequence[str] = IDS) -> Table:
    return Table(Path("input/test.csv"), list(ids), [Path(one) for one in ids], pd.DataFrame({"id": list(ids)}))


def written(
    task: Task,
    predictions: np.ndarray,
    config: Config,
    decoding: Decoding | None = None,
    ids: Sequence[str] = IDS,
) -> list[list[str]]:
    """Returns the submission's cells as read back from its text."""
    form, problems = plan_submission(config, task, table(ids))
    assert form
    assert not problems
    text = form.write(ids, predictions, decoding or Decoding()).to_csv(index=False, lineterminator="\n")
    return list(csv.reader(io.StringIO(text, newline=""), strict=True))


def test_without_a_sample_a_label_for_each_test_row() -> None:
    rows = written(THREE, OF_THREE, config(id_column="image", label_column="kind"))
    assert rows == [["image", "kind"], ["b", "cat"], ["a", "sea, calm"], ["007", "dog"]]


def test_the_sample_gives_header_rows_and_their_order() -> None:
    sample(["Id", "Category"], ["007", "b", "a"])
    rows = written(THREE, OF_THREE, config())
    assert rows == [["Id", "Category"], ["007", "dog"], ["b", "cat"], ["a", "sea, calm"]]


def test_a_column_for_each_class_in_the_samples_order_and_sums_of_one() -> None:
    sample(["id", "sea, calm", "cat", "dog"])
    random = np.random.default_rng(0)
    predictions = random.dirichlet(np.ones(3), 3).astype(np.float32) * np.float32(0.99999)
    rows = written(THREE, predictions, config("log_loss"))
    assert rows[0] == ["id", "sea, calm", "cat", "dog"]
    values = np.array([[float(cell) for cell in row[1:]] for row in rows[1:]])
    np.testing.assert_allclose(values, predictions[:, [2, 0, 1]], rtol=1e-4)
    np.testing.assert_allclose(values.sum(1), 1, atol=1e-6)


def test_many_classes_sum_to_one_in_the_text() -> None:
    task = class_task([f"breed {number}" for number in range(120)])
    sample(["id", *task.columns])
    predictions = np.random.default_rng(0).dirichlet(np.full(120, 0.05), 3).astype(np.float32)
    values = np.array([[float(cell) for cell in row[1:]] for row in written(task, predictions, config("log_loss"))[1:]])
    assert np.abs(values.sum(1) - 1).max() < 1e-6
    assert ((values >= 0) & (values <= 1)).all()


def test_without_a_sample_a_column_for_each_class_where_probabilities_are_scored() -> None:
    assert written(THREE, OF_THREE, config("log_loss"))[0] == ["image_name", *THREE.columns]
    assert written(LABELS, OF_THREE, config("roc_auc"))[0] == ["image_name", *LABELS.columns]


def test_columns_may_have_the_names_for_people() -> None:
    task = class_task(["0", "1", "2"], ["cat", "dog", "sea"])
    sample(["id", "sea", "cat", "dog"])
    rows = written(task, OF_THREE, config("log_loss"))
    assert float(rows[1][2]) == pytest.approx(0.7)


@pytest.mark.parametrize("metric", ["roc_auc", "log_loss"])
def test_of_two_classes_the_probability_of_the_positive_one(metric: str) -> None:
    sample(["id", "has_cactus"])
    predictions = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]], np.float32)
    assert [row[1] for row in written(TWO, predictions, config(metric))[1:]] == ["0.75", "0.5", "0.0"]
    cats = class_task(["cat", "dog"])
    assert [row[1] for row in written(cats, predictions, config(metric))[1:]] == ["0.75", "0.5", "0.0"]
    sample(["id", "cat"])
    assert [row[1] for row in written(cats, predictions, config(metric))[1:]] == ["0.25", "0.5", "1.0"]


def test_the_best_labels_best_first() -> None:
    task = class_task([str(number) for number in range(7)])
    predictions = np.array([[0, 0.1, 0.5, 0.1, 0.15, 0.05, 0.1]], np.float32)
    rows = written(task, predictions, config("map@5"), ids=["x"])
    assert rows[1] == ["x", "2 4 1 3 6"]  # ties in the order of the classes
    assert written(THREE, OF_THREE[:1], config("map@5"), ids=["x"])[1][1].startswith("cat dog")


def test_a_set_of_labels_with_the_separator_of_the_training_rows() -> None:
    sample(["image", "labels"])
    predictions = np.array([[0.9, 0.6, 0.1], [0.1, 0.2, 0.3], [0.1, 0.8, 0.2]], np.float32)
    settings = config("labels_f1_micro", label_column="labels", label_separator="|")
    cells = [row[1] for row in written(LABELS, predictions, settings)[1:]]
    assert cells == ["rust|scab", "healthy", "scab"]  # never empty
    decoding = Decoding("labels", [0.95, 0.5, 0.15])
    assert written(LABELS, predictions, settings, decoding)[1][1] == "scab"


def test_some_labels_in_columns_are_enough() -> None:
    sample(["id", "healthy", "rust"])
    rows = written(LABELS, OF_THREE, config("roc_auc"))
    assert [float(cell) for cell in rows[2][1:]] == pytest.approx([0.6, 0.1])


def test_labels_scored_by_f1_are_0_or_1_in_their_columns() -> None:
    sample(["id", *LABELS.columns])
    assert [row[1:] for row in written(LABELS, OF_THREE, config("labels_f1_macro"))[1:3]] == [
        ["1", "0", "0"],
        ["0", "0", "1"],
    ]


def test_grades_are_decoded() -> None:
    task = class_task(["0", "1", "2"])
    decoding = Decoding("grades", [0.3, 1.6])
    cells = [row[1] for row in written(task, OF_THREE, config("quadratic_kappa"), decoding)[1:]]
    assert cells == ["1", "1", "1"]  # expected 0.4, 1.5 and 1.1
    numbers = np.array([[2.4], [0.2], [140.0]], np.float32)
    assert [row[1] for row in written(NUMBER, numbers, config("quadratic_kappa"))[1:]] == ["2", "1", "100"]


def test_a_number_stays_in_the_range_of_the_training_rows() -> None:
    sample(["Id", "Pawpularity"])
    numbers = np.array([[-3.0], [37.25], [101.0]], np.float32)
    assert [row[1] for row in written(NUMBER, numbers, config())[1:]] == ["1.0", "37.25", "100.0"]


def test_several_images_of_an_id_are_averaged() -> None:
    sample(["id", "has_cactus"], ["y", "x"])
    predictions = np.array([[0.0, 1.0], [0.5, 0.5], [0.75, 0.25]], np.float32)
    rows = written(TWO, predictions, config("roc_auc"), ids=["x", "y", "x"])
    assert rows[1:] == [["y", "0.5"], ["x", "0.625"]]


def test_ids_keep_every_byte() -> None:
    ids = ["007", " 7", "1e3", "nan", "é", "e\u0301", 'a"b', "a,b", "1.0"]
    sample(["id", "x"], ids)
    predictions = np.tile(OF_THREE[:1], (len(ids), 1))
    assert [row[0] for row in written(THREE, predictions, config(), ids=ids)[1:]] == ids


def test_a_submission_may_have_other_texts_for_the_labels() -> None:
    sample(["id", "label"])
    texts = {"cat": "0", "dog": "1", "sea, calm": "2"}
    assert [row[1] for row in written(THREE, OF_THREE, config(submission_labels=texts))] == ["label", "0", "2", "1"]
    rows = written(THREE, OF_THREE, config("map@5", submission_labels=texts))
    assert rows[1] == ["b", "0 1 2"]
    sample(["id", "2", "0", "1"])
    rows = written(THREE, OF_THREE, config("log_loss", submission_labels=texts))
    assert [float(cell) for cell in rows[1][1:]] == pytest.approx([0.1, 0.7, 0.2])
    _, problems = plan_submission(config(submission_labels={"bird": "3"}), THREE, table())
    assert "bird" in problems[0].what


def test_a_sample_without_any_of_the_labels_is_doubted_before_training(capsys: pytest.CaptureFixture[str]) -> None:
    sample(["id", "label"])  # zeros
    assert not check_submission_form(config(), THREE, table())
    assert "'cat'" in (said := capsys.readouterr().out)
    assert "'0'" in said
    check_submission_form(config(), TWO, table())
    check_submission_form(config(submission_labels={"cat": "0"}), THREE, table())
    assert not capsys.readouterr().out


def test_the_id_need_not_be_the_samples_first_column() -> None:
    Path("input/sample_submission.csv").write_text("Category,Id\n" + "".join(f"cat,{one}\n" for one in IDS))
    rows = written(THREE, OF_THREE, config(id_column="Id"))
    assert rows == [["Category", "Id"], ["cat", "b"], ["sea, calm", "a"], ["dog", "007"]]


def test_a_column_that_has_the_samples_ids_is_named() -> None:
    sample(["id", "label"], ["1", "2", "3"])
    test = Table(Path("input/test.csv"), IDS, [], pd.DataFrame({"file": IDS, "case": ["1", "2", "3"]}))
    problems = check_submission_form(config(), THREE, test)
    assert all("data.id_column: case" in problem.remedy for problem in problems)


def test_the_form_can_be_given() -> None:
    sample(["id", "x"])
    assert written(TWO, OF_THREE[:, :2], config("accuracy", "probabilities"))[1][1] == "0.2"
    assert written(THREE, OF_THREE, config("log_loss", "labels"))[1][1] == "cat"


@pytest.mark.parametrize(
    ("task", "metric", "header", "ids", "facts"),
    [
        (THREE, "log_loss", ["id", "cat", "dog", "bird"], IDS, ["bird", "sea, calm"]),
        (THREE, "log_loss", ["id", "cat", "dog"], IDS, ["sea, calm"]),
        (THREE, "log_loss", ["id", "target"], IDS, ["log_loss", "target"]),
        (LABELS, "roc_auc", ["id", "rust", "mould"], IDS, ["mould"]),
        (LABELS, "roc_auc", ["id", "labels"], IDS, ["roc_auc", "labels"]),
        (NUMBER, "rmse", ["id", "age", "other"], IDS, ["other"]),
        (THREE, "accuracy", ["id"], IDS, ["one column"]),
        (THREE, "accuracy", ["id", "x"], ["b", "a"], ["007"]),
        (THREE, "accuracy", ["id", "x"], [*IDS, "new"], ["new"]),
        (THREE, "accuracy", ["id", "x"], [*IDS, "b"], ["'b'"]),
    ],
)
def test_a_sample_that_does_not_fit_is_found(
    task: Task, metric: str, header: list[str], ids: list[str], facts: list[str]
) -> None:
    sample(header, ids)
    problems = check_submission_form(config(metric), task, table())
    assert problems
    assert all("sample_submission.csv" in problem.where and problem.remedy for problem in problems)
    for fact in facts:
        assert any(fact in problem.what for problem in problems)


def test_a_sample_that_is_no_table_or_a_metric_that_does_not_fit_is_refused() -> None:
    Path("input/sample_submission.csv").write_bytes(b"\xff\xfe\x00,b\n")
    with pytest.raises(UserError, match="sample_submission"):
        check_submission_form(config(), THREE, table())
    Path("input/sample_submission.csv").unlink()
    with pytest.raises(UserError, match="rmse"):
        check_submission_form(config("rmse"), THREE, table())


@pytest.mark.parametrize(
    ("task", "metric", "fact"),
    [(TWO, "roc_auc", "probability of '1'"), (THREE, "map@2", "2 most probable"), (NUMBER, None, "number")],
)
def test_what_will_be_written_is_said(task: Task, metric: str | None, fact: str) -> None:
    sample(["id", "x"])
    form, _ = plan_submission(config(metric), task, table())
    assert fact in str(form)
    assert str(form).startswith("id,x")
