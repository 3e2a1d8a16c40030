"""A run's folder is resumed with the same config, refused with another, and never guessed."""

import os
from pathlib import Path

import pytest

from scenes.config import Config
from scenes.config_file import validate
from scenes.console import UserError
from scenes.runs import FULL, Run, begin, newest, write_json


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def config(**values: object) -> Config:
    return validate({"name": "exp", **values}, "test")


def finish(run: Run, *folds: int) -> Run:
    for fold in folds:
        run.fold_folder(fold).mkdir(parents=True)
        run.weights_file(fold).touch()
        if fold != FULL:
            run.fold_oof_file(fold).touch()
    return run


def test_a_run_begins_with_its_resolved_config() -> None:
    run = begin(config(seed=3, data={"class_names": ["no", "1e-3"]}))
    assert (run.folder, run.name) == (Path("runs/exp"), "exp")
    assert run.load_config() == config(seed=3, data={"class_names": ["no", "1e-3"]})


def test_a_run_resumes_with_the_same_config_and_with_what_changes_no_result() -> None:
    begin(config(data={"root": "here"}))
    again = config(data={"root": "there"}, loader={"workers": 3})
    assert begin(again).load_config() == again


def test_another_config_is_refused_with_the_difference_and_the_ways_out() -> None:
    old = begin(config(seed=1, train={"lr": 0.5}))
    before = old.config_file.read_bytes()
    with pytest.raises(UserError) as caught:
        begin(config(seed=2, train={"lr": 0.5, "epochs": 4}))
    message = str(caught.value)
    assert "runs/exp began with a different config" in message
    assert "seed: 1 → 2" in message
    assert "train.epochs: 3 → 4" in message
    assert "lr" not in message
    assert "--set name=NEW" in message
    assert "delete runs/exp" in message
    assert old.config_file.read_bytes() == before


def test_other_views_are_another_config() -> None:
    begin(config(infer={"tta": "hflip"}))
    with pytest.raises(UserError, match=r"infer\.tta"):
        begin(config(infer={"tta": "none"}))


def test_a_renamed_run_resumes_under_its_new_name() -> None:
    begin(config())
    Path("runs/exp").rename("runs/new")
    assert begin(config(name="new")).load_config().name == "new"


def test_runs_of_other_names_do_not_meet() -> None:
    begin(config(seed=1))
    begin(config(seed=2, name="two"))
    assert (Run(Path("runs/exp")).load_config().seed, Run(Path("runs/two")).load_config().seed) == (1, 2)


def test_overrides_of_a_run_are_read_like_any_other() -> None:
    run = begin(config(seed=1))
    assert run.load_config(["infer.tta=none"]).infer.tta == "none"
    with pytest.raises(UserError, match=r"did you mean 'infer\.tta'"):
        run.load_config(["infer.ttta=none"])


@pytest.mark.parametrize("folder", ["runs/none", "runs", "nowhere/at/all"])
def test_what_is_no_run_lists_those_that_are(folder: str) -> None:
    begin(config())
    begin(config(name="b"))
    with pytest.raises(UserError, match=r"not a run .*available: runs/b, runs/exp$"):
        Run(Path(folder)).load_config()


def test_without_any_run() -> None:
    with pytest.raises(UserError, match="available: none"):
        Run(Path("runs/x")).load_config()
    with pytest.raises(UserError, match=r"quickstart\.yaml"):
        newest()


def test_a_damaged_config_is_refused_by_name() -> None:
    run = begin(config())
    run.config_file.write_text("seed: [")
    with pytest.raises(UserError, match=r"runs/exp/config\.yaml, line 1: not valid YAML"):
        begin(config())


def test_a_fold_is_finished_when_its_last_file_is_there() -> None:
    run = begin(config())
    assert not run.is_finished(0)
    run.fold_folder(0).mkdir()
    run.weights_file(0).touch()
    assert not run.is_finished(0)
    run.fold_oof_file(0).touch()
    assert run.is_finished(0)
    assert run.finished_folds(5) == [0]


def test_the_full_model_holds_nothing_out() -> None:
    run = finish(begin(config()), FULL)
    assert run.is_finished(FULL)
    assert run.fold_folder(FULL) == Path("runs/exp/full")
    assert run.finished_folds(5) == []


def test_by_default_all_finished_folds_are_used_else_the_full_model() -> None:
    run = finish(begin(config()), FULL)
    assert run.chosen_folds(None, 5) == [FULL]
    finish(run, 3, 1)
    assert run.chosen_folds(None, 5) == [1, 3]
    assert run.chosen_folds("full", 5) == [FULL]
    assert run.chosen_folds("3", 5) == [3]


def test_a_fold_that_is_not_trained_is_named_with_those_that_are() -> None:
    run = finish(begin(config()), 0, 2, FULL)
    with pytest.raises(UserError, match="fold1, fold3 not trained; trained: fold0, fold2, full"):
        run.chosen_folds("0-3", 5)
    with pytest.raises(UserError, match="there are 5 folds"):
        run.chosen_folds("7", 5)


def test_two_processes_do_not_train_one_fold() -> None:
    run = begin(config())
    busy = pytest.raises(UserError, match=r"runs/exp/fold0: another process")
    with run.lock(0), run.lock(1), busy, Run(run.folder).lock(0):
        pass
    with run.lock(0):
        assert not run.is_finished(0)


def test_a_run_without_a_finished_fold() -> None:
    run = begin(config())
    with pytest.raises(UserError, match="no fold is trained yet"):
        run.chosen_folds(None, 5)
    with pytest.raises(UserError, match="full not trained; trained: none"):
        run.chosen_folds("full", 5)


def test_the_newest_run_is_the_one_that_finished_last() -> None:
    for age, name in enumerate(("b", "a", "c")):
        run = begin(config(name=name))
        if name != "c":  # not finished
            write_json(run.metrics_file, {})
            os.utime(run.metrics_file, (1000 - age, 1000 - age))
    assert newest().name == "b"


def test_json_is_readable() -> None:
    write_json(Path("x.json"), {"b": 0.5, "a": ["grün"]})
    assert Path("x.json").read_text() == '{\n  "b": 0.5,\n  "a": [\n    "grün"\n  ]\n}\n'


def test_the_newest_run_may_have_trained_on_every_row() -> None:
    for age, name in ((3, "old"), (1, "full"), (2, "between")):
        run = finish(begin(config(name=name)), FULL if name == "full" else 0)
        last = run.weights_file(FULL) if name == "full" else run.metrics_file
        last.touch()
        os.utime(last, (10**9 - age, 10**9 - age))
    assert newest().name == "full"


def test_a_run_of_a_former_version_is_read() -> None:
    run = begin(config(train={"lr": 0.5}))
    text = run.config_file.read_text()
    assert "train:\n" in text
    run.config_file.write_text(text.replace("train:\n", "train:\n  ema_decay: 0.9\n", 1))
    assert run.load_config() == config(train={"lr": 0.5})
