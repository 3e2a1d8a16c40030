"""infer.py end to end on a tiny trained run: the submission's rows, order, labels, views and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import infer
from scenes.console import UserError
from scenes.inference.models import chosen_ensemble
from scenes.inference.views import views_of
from scenes.runs import Run
from tiny import fit


def read(path: str) -> pd.DataFrame:
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def spoil_head(path: str) -> None:
    """Makes all predictions of a fold NaN."""
    with safe_open(path, "pt") as saved:
        metadata = saved.metadata()
    state = load_file(path)
    state["head.1.bias"][:] = float("nan")
    save_file(state, path, metadata)


def test_the_submission_has_each_test_row_in_order_with_a_known_label(finished: Path) -> None:
    infer.main([])
    submission, test = read("submissions/tiny.csv"), read("input/test.csv")
    assert list(submission) == ["image_name", "label"]
    assert submission["image_name"].tolist() == test["image_name"].tolist()
    assert set(submission["label"]) <= set("012345")
    probabilities = pd.read_csv("submissions/tiny_probabilities.csv")
    assert probabilities["image_name"].tolist() == test["image_name"].tolist()
    assert probabilities[list("012345")].to_numpy().argmax(1).astype(str).tolist() == submission["label"].tolist()


def test_folds_are_averaged(finished: Path) -> None:
    for folds in ("0", "1", "0-1"):
        infer.main(["--folds", folds, "--out", f"out{folds}.csv"])
    zero, one, both = (pd.read_csv(f"out{f}_probabilities.csv").iloc[:, 1:].to_numpy() for f in ("0", "1", "0-1"))
    np.testing.assert_allclose(both, (zero + one) / 2, atol=1e-6)
    assert np.abs(zero - one).max() > 1e-3


def test_another_order_of_test_rows_gives_the_same_predictions_in_that_order(finished: Path) -> None:
    infer.main(["--out", "a.csv"])
    test = read("input/test.csv").iloc[::-1].head(7)
    test.to_csv("input/test.csv", index=False)
    Path("input/sample_submission.csv").unlink()
    infer.main(["--out", "b.csv"])
    first, second = read("a.csv").set_index("image_name"), read("b.csv").set_index("image_name")
    assert second.index.tolist() == test["image_name"].tolist()
    assert second["label"].tolist() == first.loc[second.index, "label"].tolist()


@pytest.mark.parametrize(
    "settings",
    [
        ["image_size=48", "infer.image_size=24"],  # how much of an image is kept depends on the larger size
        ["augment=none", "train.trainable_stages=0", "train.linear_probe=false"],  # held out: predicted from features
    ],
)
def test_an_image_is_predicted_as_it_was_when_held_out(settings: list[str], workspace: Path) -> None:
    fit("--folds=0", *settings, "train.epochs=1", "infer.tta=hflip")
    held = pd.read_csv("runs/tiny/oof.csv", dtype={"image_name": str})
    held[["image_name"]].to_csv("input/test.csv", index=False)
    Path("input/sample_submission.csv").unlink()
    infer.main([])
    found = pd.read_csv("submissions/tiny_probabilities.csv", dtype={"image_name": str})
    assert found["image_name"].tolist() == held["image_name"].tolist()
    np.testing.assert_allclose(found[list("012345")], held[list("012345")], atol=1e-6)


def test_a_run_keeps_the_views_that_it_was_scored_under(finished: Path) -> None:
    run = Run(Path("runs/tiny"))
    run.metrics_file.write_text(run.metrics_file.read_text().replace('"kept": false', '"kept": true'))
    larger = run.load_config(["infer.image_size=40"])
    assert [view.name for view in views_of(larger)] == ["plain", "hflip at 32 px"]
    assert [view.name for view in chosen_ensemble(run, larger).views] == ["plain", "hflip"]
    run.metrics_file.write_text(run.metrics_file.read_text().replace('"hflip"', '"hflip at 24 px"'))
    assert [view.name for view in chosen_ensemble(run, run.load_config()).views] == ["plain", "hflip"]
    other = run.load_config(["infer.image_size=40", "infer.tta=none"])
    assert [view.name for view in chosen_ensemble(run, other).views] == ["plain"]


@pytest.mark.parametrize("views", ["multiscale", "five_crop"])
def test_views_change_the_probabilities_and_keep_them_probabilities(views: str, finished: Path) -> None:
    infer.main(["--tta", "none", "--out", "plain.csv"])
    infer.main(["--tta", views, "--out", "other.csv"])
    plain, other = (pd.read_csv(f"{n}_probabilities.csv").iloc[:, 1:].to_numpy() for n in ("plain", "other"))
    assert np.abs(plain - other).max() > 1e-5
    np.testing.assert_allclose(other.sum(1), 1, atol=1e-5)


def test_views_of_a_size_that_the_network_does_not_take_are_refused(workspace: Path) -> None:
    fit("--folds=0", "model.name=test_vit", "train.epochs=1")
    with pytest.raises(UserError, match=r"infer: test_vit does not accept \d+ px"):
        infer.main(["--tta", "multiscale"])


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_view_the_run_dropped_is_not_used(is_kept: bool, finished: Path) -> None:
    metrics = json.loads(Path("runs/tiny/metrics.json").read_text())
    metrics["views"]["hflip"]["kept"] = is_kept
    Path("runs/tiny/metrics.json").write_text(json.dumps(metrics))
    infer.main(["--out", "asked.csv"])
    infer.main(["--tta", "none", "--out", "plain.csv"])
    assert (read("asked_probabilities.csv").equals(read("plain_probabilities.csv"))) != is_kept


def test_an_untrained_fold_is_refused_and_the_trained_ones_are_listed(finished: Path) -> None:
    shutil.rmtree("runs/tiny/fold1")
    with pytest.raises(UserError, match="fold1 not trained; trained: fold0"):
        infer.main(["--folds", "0-1"])


def test_without_a_run_it_says_which_it_takes(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    infer.main([])
    assert "runs/tiny" in capsys.readouterr().out.splitlines()[0]
    shutil.rmtree("runs")
    with pytest.raises(UserError, match="no finished run"):
        infer.main([])


def test_an_older_submission_of_other_content_is_kept(finished: Path) -> None:
    Path("submissions").mkdir()
    Path("submissions/tiny.csv").write_text("mine\n")
    infer.main([])
    infer.main([])
    assert Path("submissions/tiny.1.csv").read_text() == "mine\n"
    assert not Path("submissions/tiny.2.csv").exists()


def test_a_broken_test_image_is_refused_and_nothing_is_written(finished: Path) -> None:
    name = read("input/test.csv")["image_name"][2]
    path = Path("input/SceneImages", name)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(UserError, match=f"line 4 \\('{name}'\\)"):
        infer.main([])
    assert not list(Path().glob("submissions/*"))


def test_a_prediction_that_is_not_finite_is_refused_and_nothing_is_written(finished: Path) -> None:
    spoil_head("runs/tiny/fold1/weights.safetensors")
    first = read("input/test.csv")["image_name"][0]
    with pytest.raises(UserError, match=rf"{first}.*fold1.*plain"):
        infer.main([])
    assert not list(Path().glob("submissions/*"))
