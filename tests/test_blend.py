"""blend.py end to end: what it prints, what it writes, what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import blend
import infer
from scenes.console import UserError
from scenes.inference.blend import evaluate_blend, read_members
from scenes.runs import Run


@pytest.fixture
def two_runs(finished: Path) -> Path:
    """Adds to runs/tiny a runs/other with the same folds, other weights and other predictions."""
    shutil.copytree("runs/tiny", "runs/other")
    config = Path("runs/other/config.yaml")
    config.write_text(config.read_text().replace("name: tiny", "name: other", 1))
    for file in Path("runs/other").glob("fold*/weights.safetensors"):
        with safe_open(file, "pt") as saved:
            metadata = saved.metadata()
        weights = load_file(file)
        generator = torch.Generator().manual_seed(0)
        head = [name for name in weights if name.startswith("head.") and name.endswith("weight")]
        for name in head:
            weights[name] = weights[name] + torch.randn(weights[name].shape, generator=generator)
        save_file(weights, file, metadata)
    oof = pd.read_csv("runs/other/oof.csv", dtype={"label": str})
    noise = np.random.default_rng(0).dirichlet(np.ones(6), len(oof))
    oof.iloc[:, 3:] = 0.99 * oof.iloc[:, 3:] + 0.01 * noise  # nearly as good as the first
    oof.to_csv("runs/other/oof.csv", index=False)
    return finished


def change_oof(name: str, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    path = Path(f"runs/{name}/oof.csv")
    change(pd.read_csv(path, dtype={"label": str})).to_csv(path, index=False)


def probabilities(path: str) -> np.ndarray:
    return pd.read_csv(path).iloc[:, 1:].to_numpy()


def test_the_submission_is_the_mean_of_the_members(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blend.main(["runs/tiny", "runs/other"])
    printed = capsys.readouterr().out
    for run in ("tiny", "other"):
        infer.main(["--run", f"runs/{run}"])
    mean = (
        probabilities("submissions/tiny_probabilities.csv") + probabilities("submissions/other_probabilities.csv")
    ) / 2
    np.testing.assert_allclose(probabilities("submissions/blend_probabilities.csv"), mean, atol=1e-6)
    submission = pd.read_csv("submissions/blend.csv", dtype=str)
    assert submission["image_name"].tolist() == pd.read_csv("input/test.csv", dtype=str)["image_name"].tolist()
    assert submission["label"].tolist() == [str(best) for best in mean.argmax(1)]
    for word in ("plain mean", "same class", "at least one member is right", "plain mean is taken"):
        assert word in printed


def test_class_shares_are_asked_for_where_an_image_lacks_only(two_runs: Path) -> None:
    for file in Path("runs/other").glob("fold*/weights.safetensors"):  # from before the shares were saved
        with safe_open(file, "pt") as saved:
            metadata = json.loads(saved.metadata()["scenes"])
        del metadata["prior"]
        save_file(load_file(file), file, {"scenes": json.dumps(metadata)})
    blend.main(["runs/tiny", "runs/other"])
    with pytest.raises(UserError, match="is a folder"):
        blend.main(["runs/tiny", "runs/other", "--out", "submissions"])


def wrong_at(is_wrong: Callable[[np.ndarray], np.ndarray]) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Makes predictions certain of the true class, or of the next one in rows where `is_wrong(row)` is true."""

    def change(oof: pd.DataFrame) -> pd.DataFrame:
        truth = oof["label"].astype(int).to_numpy()
        chosen = np.where(is_wrong(np.arange(len(oof))), (truth + 1) % 6, truth)
        oof.iloc[:, 3:] = 0.94 * np.eye(6)[chosen] + 0.01
        return oof

    return change


def test_weights_are_taken_where_they_win(two_runs: Path) -> None:
    change_oof("tiny", wrong_at(lambda row: row % 3 > 0))
    change_oof("other", wrong_at(lambda row: row % 12 == 0))
    members = read_members([Run(Path("runs/tiny")), Run(Path("runs/other"))])
    assert evaluate_blend(members).weights[1] > 0.75


def test_a_blend_that_is_worse_than_a_member_says_so(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_oof("tiny", wrong_at(lambda row: row % 12 == 0))
    change_oof("other", wrong_at(lambda row: row % 12 != 0))
    members = read_members([Run(Path("runs/tiny")), Run(Path("runs/other"))])
    one_fold = replace(members, fold_of=np.zeros_like(members.fold_of))  # no rows left to choose weights on
    evaluate_blend(one_fold)
    assert "no gain: tiny alone" in capsys.readouterr().out


def test_a_blend_is_as_optimistic_as_its_members(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("runs/other/metrics.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"optimistic": "a sweep chose its settings"}))
    evaluate_blend(read_members([Run(Path("runs/tiny")), Run(Path("runs/other"))]))
    assert "other are: a sweep chose" in capsys.readouterr().out


def test_members_are_scored_by_what_they_decide(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tiny", "other"):
        change_oof(name, towards_the_middle)
    members = read_members([Run(Path("runs/tiny")), Run(Path("runs/other"))], ["metric=quadratic_kappa"])
    evaluate_blend(members)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    scores = {line[0]: line[line.index("±") - 1] for line in lines if "±" in line and line[0] in ("tiny", "plain")}
    assert scores["tiny"] == scores["plain"]  # because both members are equal


def towards_the_middle(oof: pd.DataFrame) -> pd.DataFrame:
    """Makes the middle grades most probable, so that kappa needs thresholds."""
    truth = oof["label"].astype(int).to_numpy()
    oof.iloc[:, 3:] = 0.2 * np.eye(6)[truth] + np.array([0.02, 0.02, 0.36, 0.36, 0.02, 0.02])
    return oof


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda oof: oof.assign(fold=1 - oof["fold"]), r"different folds \(.*data\.fold_seed"),
        (lambda oof: oof.assign(label=oof["label"].replace("0", "1")), "different labels"),
        (lambda oof: oof.iloc[1:], r"different rows \(96 and 95; first difference"),
        (lambda oof: oof.rename(columns={"5": "sky"}), "classes differ"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame],
    says: str,
    two_runs: Path,
) -> None:
    change_oof("other", change)
    with pytest.raises(UserError, match=says):
        blend.main(["runs/tiny", "runs/other"])
    assert not Path("submissions").exists()


def test_runs_with_different_metrics_need_to_be_told_which(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path("runs/other/config.yaml")
    config.write_text(config.read_text().replace("metric: null", "metric: log_loss"))
    with pytest.raises(UserError, match=r"runs/tiny is scored by accuracy, runs/other by log_loss"):
        blend.main(["runs/tiny", "runs/other"])
    blend.main(["runs/tiny", "runs/other", "--set", "metric=accuracy"])
    assert "accuracy" in capsys.readouterr().out


def test_one_run_is_no_blend(two_runs: Path) -> None:
    for runs in (["runs/tiny"], ["runs/tiny", "runs/tiny"]):
        with pytest.raises(UserError, match="at least two runs"):
            blend.main(runs)


def test_a_run_without_predictions_is_refused(two_runs: Path) -> None:
    Path("runs/other/oof.csv").unlink()
    with pytest.raises(UserError, match=r"runs/other/oof\.csv: missing"):
        blend.main(["runs/tiny", "runs/other"])


def test_without_test_rows_only_the_scores_are_shown(two_runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("input/test.csv").unlink()
    Path("input/sample_submission.csv").unlink()
    blend.main(["runs/tiny", "runs/other"])
    assert "nothing to predict" in capsys.readouterr().out


def test_the_data_may_have_moved(two_runs: Path) -> None:
    blend.main(["runs/tiny", "runs/other", "--out", "here.csv"])
    Path("input").rename("elsewhere")
    blend.main(["runs/tiny", "runs/other", "--out", "there.csv", "--set", "data.root=elsewhere"])
    assert Path("there.csv").read_bytes() == Path("here.csv").read_bytes()
