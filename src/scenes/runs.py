"""The run folder: its files, its folds, and when a run may be resumed."""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from scenes.config import Config
from scenes.config_file import differences, dump, read_values, validate
from scenes.console import UserError, say
from scenes.files import only_process, write_text

RUNS = Path("runs")
FULL = -1  # the fold that trains on every row, for the final submission


def fold_name(fold: int) -> str:
    """The fold's folder in a run: fold0, fold1, … or full."""
    return "full" if fold == FULL else f"fold{fold}"


def folds_text(folds: Sequence[int]) -> str:
    """Formats folds as `parse_folds` reads them."""
    return "full" if FULL in folds else ",".join(map(str, folds))


def parse_folds(text: str, folds: int) -> list[int]:
    """Reads ``0``, ``0-4``, ``0,2,4`` or ``full``.

    Returns:
        Fold numbers in ascending order without repeats, or ``[FULL]``.

    Raises:
        UserError: If it is none of these, or a fold is not in 0 … folds - 1.
    """
    if text == "full":
        return [FULL]
    chosen: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise UserError(f"--folds takes 0, 0-4, 0,2,4 or full; got {text!r}")
        if last >= folds:
            raise UserError(f"--folds {text}: there are {folds} folds, 0 to {folds - 1} (data.folds)")
        chosen.update(range(first, last + 1))
    return sorted(chosen)


class Run:
    """One training run's folder, ``runs/NAME``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.resolve().name

    @property
    def config_file(self) -> Path:
        """The resolved config."""
        return self.folder / "config.yaml"

    @property
    def folds_file(self) -> Path:
        """Each training row's group and fold."""
        return self.folder / "folds.csv"

    @property
    def precision_file(self) -> Path:
        """The precision of training and prediction, and where crops are made, as chosen when the run began."""
        return self.folder / "precision.json"

    @property
    def oof_file(self) -> Path:
        """Out-of-fold probabilities of all finished folds."""
        return self.folder / "oof.csv"

    @property
    def metrics_file(self) -> Path:
        """The scores; written when all requested folds are finished."""
        return self.folder / "metrics.json"

    def fold_folder(self, fold: int) -> Path:
        """Where a fold's files are."""
        return self.folder / fold_name(fold)

    def weights_file(self, fold: int) -> Path:
        """A fold's final weights."""
        return self.fold_folder(fold) / "weights.safetensors"

    def fold_oof_file(self, fold: int) -> Path:
        """A fold's held-out probabilities by view; the last file a fold writes."""
        return self.fold_folder(fold) / "oof.safetensors"

    def time_file(self, fold: int) -> Path:
        """How long a fold took."""
        return self.fold_folder(fold) / "time.json"

    def lock(self, fold: int) -> AbstractContextManager[None]:
        """Locks a fold against other processes.

        Raises:
            UserError: If another process is working on the fold.
        """
        return only_process(self.fold_folder(fold), "training this fold")

    def is_finished(self, fold: int) -> bool:
        """Whether a fold is done."""
        return self.weights_file(fold).exists() and (fold == FULL or self.fold_oof_file(fold).exists())

    def finished_folds(self, folds: int) -> list[int]:
        """Lists the finished cross-validation folds."""
        return [fold for fold in range(folds) if self.is_finished(fold)]

    def load_config(self, overrides: list[str] | None = None) -> Config:
        """Reads the resolved config.

        Raises:
            UserError: If this is not a run's folder, or an override is invalid.
        """
        if not self.config_file.exists():
            raise UserError(f"{self.folder}: not a run (it has no config.yaml); available: {_listed(RUNS)}")
        values, places = read_values(self.config_file, overrides or [])
        if isinstance(train := values.get("train"), dict):
            for former in ("ema_decay", "sizes"):  # settings of earlier versions that only training needed
                train.pop(former, None)
        return validate(values, str(self.config_file), places)

    def chosen_folds(self, text: str | None, folds: int) -> list[int]:
        """Resolves ``--folds`` for inference; by default all finished folds, else the full model.

        Raises:
            UserError: If a fold is not trained; lists those that are.
        """
        trained = self.finished_folds(folds)
        available = trained or ([FULL] if self.is_finished(FULL) else [])
        chosen = parse_folds(text, folds) if text else available
        if missing := [fold_name(fold) for fold in chosen if not self.is_finished(fold)]:
            raise UserError(f"{self.folder}: {', '.join(missing)} not trained; trained: {self._trained(folds)}")
        if not chosen:
            raise UserError(f"{self.folder}: no fold is trained yet; give train.py's command again to resume")
        return chosen

    def _trained(self, folds: int) -> str:
        names = [fold_name(fold) for fold in (*range(folds), FULL) if self.is_finished(fold)]
        return ", ".join(names) or "none"


def begin(config: Config) -> Run:
    """Creates the run's folder, or resumes the run if its config is the same.

    Raises:
        UserError: If the run began with a different config; shows the differences and the ways out.
    """
    run = Run(RUNS / config.name)
    if run.config_file.exists() and (changed := differences(run.load_config(), config)):
        lines = "".join(f"\n  {key}: {old!r} → {new!r}" for key, old, new in changed)
        raise UserError(
            f"{run.folder} began with a different config:{lines}\n"
            f"  → restore these values to resume it; or name this run differently: --set name=NEW; "
            f"or delete {run.folder}"
        )
    _compare_soft_targets(run, config)
    write_text(run.config_file, dump(config))
    return run


def _compare_soft_targets(run: Run, config: Config) -> None:
    """Records the hash of the soft targets when a run begins; rejects changed ones later."""
    if not config.data.soft_targets:
        return
    file = config.data.root / config.data.soft_targets
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    record = run.folder / "soft_targets.sha256"
    if not record.exists():
        write_text(record, f"{digest}\n")
    elif record.read_text().strip() != digest:
        raise UserError(
            f"{file} (data.soft_targets) has changed since {run.folder} began\n"
            f"  → restore the file; or name this run differently: --set name=NEW; or delete {run.folder}"
        )


def chosen_run(folder: Path | None) -> Run:
    """The run in a folder; without one the run that finished last, which is printed.

    Raises:
        UserError: If no run has finished.
    """
    if folder:
        return Run(folder)
    run = newest()
    say(f"the run that finished last: {run.folder}")
    return run


def newest() -> Run:
    """Finds the run that finished last.

    Raises:
        UserError: If there is none.
    """
    last_files = [*RUNS.glob("*/metrics.json"), *RUNS.glob(f"*/{fold_name(FULL)}/weights.safetensors")]
    if not last_files:
        raise UserError(f"no finished run in {RUNS}/: train one first, e.g. bash train.sh configs/quickstart.yaml")
    newest_file = max(last_files, key=lambda file: file.stat().st_mtime_ns)
    return Run(RUNS / newest_file.relative_to(RUNS).parts[0])


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically, readable and stable."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Reads a run's file that `write_json` wrote.

    Args:
        path: The file.
        *keys: The keys it must have.

    Raises:
        UserError: If it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # ValueError: not JSON, or not UTF-8
        content = None
    if not isinstance(content, dict) or not set(keys) <= set(content):
        raise UserError(f"{path}: damaged; delete it and run the command that wrote it again")
    return content


def _listed(folder: Path) -> str:
    names = sorted(file.parent.name for file in folder.glob("*/config.yaml"))
    return ", ".join(f"{folder}/{name}" for name in names) or "none"
