"""Measures what mending suspected labels is worth: python benchmarks/relabel.py configs/NAME.yaml [--set KEY=VALUE …].

Three arms are trained on the same folds with the same seeds and differ in their training rows' suspects alone: *keep*
them, *drop* them, or *relabel* them as the most probable class.

The suspects are found by nested cross-validation. For each pair of folds (j, k) a model is trained on all other folds;
it says what it thinks of j's rows for the arms that are scored on k, and of k's rows for those scored on j. So no model
that saw a label of fold k has a say in the training labels of the arms that are scored on k: relabel.py's own suspects,
of plain out-of-fold predictions, come from models that did, and would leak. This takes K(K - 1) / 2 trainings beside
the arms' 3 K.

Scores are of the held-out rows, each by the label it has in the CSV, twice: of all rows, which is what a test set with
the same noise would show; and without suspects, the rows whose own label the pair models doubt. The second is no fair
judge: it leaves out, for all arms alike, the rows that models like theirs get wrong, so it flatters every arm, and in
log loss the more confident ones, which drop and relabel are, the most. It shows what happens where the labels are not
in question; whether mending pays is said by the score on all rows.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from hashlib import blake2b
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
from results import write_section  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from scipy.special import softmax  # noqa: E402

from scenes.competition.metric import log_losses, standard_error  # noqa: E402
from scenes.competition.rows import Labels  # noqa: E402
from scenes.competition.scores import with_error  # noqa: E402
from scenes.competition.task import class_task  # noqa: E402
from scenes.config import Config  # noqa: E402
from scenes.config_file import dump, load_config  # noqa: E402
from scenes.console import say  # noqa: E402
from scenes.data.dataset import Dataset  # noqa: E402
from scenes.inference.views import PLAIN, views_of  # noqa: E402
from scenes.insight.label_errors import find_label_errors  # noqa: E402
from scenes.randomness import key  # noqa: E402
from scenes.runs import Run  # noqa: E402
from scenes.script import run  # noqa: E402
from scenes.training.job import Job, prepare  # noqa: E402
from scenes.training.loop import train_fold  # noqa: E402

ARMS = ("keep", "drop", "relabel")


@dataclasses.dataclass(frozen=True)
class Trial(Dataset):
    """Data whose one fold trains on and predicts exactly these rows."""

    train: np.ndarray = dataclasses.field(kw_only=True)
    held: np.ndarray = dataclasses.field(kw_only=True)

    def rows(self, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """The given rows, whatever the fold."""
        return self.train, self.held


def main(argv: Sequence[str] | None = None) -> None:
    """Trains, prints the scores and writes them into RESULTS.md."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    command = " ".join(["python benchmarks/relabel.py", str(arguments.config), *(["--set"] if arguments.set else [])])
    text = measure(config, " ".join([command, *arguments.set]))
    write_section(f"relabel {config.name}", f"Mending labels: {config.name}", text)


def measure(config: Config, command: str) -> str:
    """Trains all models and returns the section as Markdown."""
    folds = config.data.folds
    job = prepare(config, range(folds))
    digest = blake2b(f"{dump(config)}{job.data.fold_table().to_csv()}".encode(), digest_size=8).hexdigest()
    place = config.data.cache / f"relabel-{digest}"  # what is trained already is not trained again
    opinions = pair_opinions(job, place, folds)
    suspected = {fold: suspects(job, opinions[fold], job.data.fold_of != fold) for fold in range(folds)}
    classes = len(job.data.labels.classes)
    scored = {arm: np.zeros((len(job.data.table), classes), np.float32) for arm in ARMS}
    for fold in range(folds):
        doubted, better = suspected[fold]
        rows, held = job.data.rows(fold)
        say(f"fold {fold}: {len(doubted)} suspects among {len(rows)} training rows")
        changed = job.data.labels.targets.copy()
        changed[doubted] = better
        for arm in ARMS:
            train = np.setdiff1d(rows, doubted) if arm == "drop" else rows
            targets = changed if arm == "relabel" else job.data.labels.targets
            scored[arm][held] = predict(job, Run(place / f"{arm}{fold}"), fold, train, held, targets)
    mean = (
        np.mean([opinions[fold] for fold in range(folds)], axis=0) * folds / (folds - 1)
    )  # of those that did not see it
    clean = np.setdiff1d(np.arange(len(job.data.table)), suspects(job, mean, np.ones(len(job.data.table), bool))[0])
    count = len(job.data.table)
    counts = [len(doubted) for doubted, _ in suspected.values()]
    about = (
        f"`{command}`: {count} rows, {folds} folds; {np.mean(counts):.0f} suspects in a fold's training rows "
        f"({min(counts)} to {max(counts)}), {count - len(clean)} among the scored rows."
    )
    header = ["| scored on | arm | accuracy | − keep | log loss | − keep |", "|---|---|---|---|---|---|"]
    lines = [
        line(name, arm, scored, job.data.labels.targets, rows)
        for name, rows in (
            (f"all {len(job.data.table)}", np.arange(len(job.data.table))),
            (f"{len(clean)} unsuspected", clean),
        )
        for arm in ARMS
    ]
    return "\n".join([about, "", *header, *lines])


def pair_opinions(job: Job, place: Path, folds: int) -> dict[int, np.ndarray]:
    """For each fold k the probabilities of all other folds' rows by models that saw neither them nor fold k.

    Returns:
        Per fold float32, shape (n, classes); rows of the fold itself are 0.
    """
    shape = (len(job.data.table), len(job.data.labels.classes))
    opinions = {fold: np.zeros(shape, np.float32) for fold in range(folds)}
    for first, second in combinations(range(folds), 2):
        in_first, in_second = job.data.fold_of == first, job.data.fold_of == second
        held = np.flatnonzero(in_first | in_second)
        train = np.flatnonzero(~(in_first | in_second))
        probabilities = predict(job, Run(place / f"pair{first}-{second}"), first, train, held, job.data.labels.targets)
        opinions[second][in_first] = probabilities[in_first[held]]
        opinions[first][in_second] = probabilities[in_second[held]]
    return opinions


def predict(job: Job, run: Run, fold: int, train: np.ndarray, held: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Trains on rows and targets; float32, shape (held rows, classes): the held rows' mean over the views."""
    if job.starts_with_probe and not job.config.train.epochs and views_of(job.config) == [PLAIN]:
        # What train_fold does for such a config, but without running the frozen body on each held row again.
        say(f"{run.name}: a probe of {len(train)} rows")
        seed = key("probe", job.config.seed, fold)
        head = job.data.task.fit_head(job.features[train], targets[train], seed)
        return softmax(head.logits(job.features[held]), -1)
    if not run.is_finished(fold):
        say(f"{run.name}: {len(train)} rows to train on, {len(held)} held out")
        shared = {field.name: getattr(job.data, field.name) for field in dataclasses.fields(Dataset)}
        labels = Labels(targets, job.data.labels.classes, job.data.labels.class_names)
        data = Trial(**shared | {"labels": labels}, train=train, held=held)
        train_fold(dataclasses.replace(job, data=data), run, fold)
    return load_file(run.fold_oof_file(fold))["probabilities"].mean(0)


def suspects(job: Job, opinion: np.ndarray, asked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows among those asked about whose label is doubted, and the most probable class of each."""
    rows = np.flatnonzero(asked)
    labels = job.data.labels
    task, names = class_task(labels.classes), [job.data.table.names[row] for row in rows]
    found = rows[find_label_errors(task, names, labels.targets[rows], opinion[rows])[0]]
    return found, opinion[found].argmax(1)


def line(name: str, arm: str, scored: dict[str, np.ndarray], targets: np.ndarray, rows: np.ndarray) -> str:
    """One arm's line: accuracy and log loss on some rows, each with the paired difference to keep."""
    hits = {a: (p[rows].argmax(1) == targets[rows]).astype(float) for a, p in scored.items()}
    losses = {a: log_losses(p[rows], targets[rows]) for a, p in scored.items()}
    cells = []
    for values in (hits, losses):
        difference = values[arm] - values["keep"]
        cells.append(with_error(float(values[arm].mean()), standard_error(values[arm])))
        cells.append("" if arm == "keep" else f"{difference.mean():+.4f} ± {standard_error(difference):.4f}")
    return f"| {name} | {arm} | {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main)
