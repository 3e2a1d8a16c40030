"""Builds what goes to Kaggle: a dataset with library, config and weights, and a kernel that uses it."""

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from scenes.competition.path_pattern import needed_files
from scenes.competition.rows import read_test, read_train, test_source
from scenes.competition.submission import check_submission_form
from scenes.competition.task import Task
from scenes.config import Config, DataConfig
from scenes.config_file import dump, portable
from scenes.console import Problem, raise_problems, say
from scenes.environment import ROOT, describe
from scenes.files import keep_old, make_folder, write_text
from scenes.inference.models import chosen_ensemble, run_task
from scenes.kaggle.bootstrap import sha256
from scenes.kaggle.half import halve, measure_half
from scenes.kaggle.notebook import Cell, as_notebook, as_script, inference_cells, training_cells
from scenes.kaggle.target import Target
from scenes.model.pretrained import find
from scenes.runs import Run, read_json, write_json

NOT_ON_KAGGLE = ("ruamel.yaml", "iterative-stratification")  # pure Python, so a copy works there


def build(
    run: Run, config: Config, folds: Sequence[int], target: Target, half: bool, script: bool, budget: float
) -> Path:
    """Builds a dataset and a kernel that predict with a run's folds, in the run's `kaggle` folder.

    Args:
        run: A run with these folds trained.
        config: Its config, perhaps with different data paths or views.
        folds: The folds to predict with.
        target: The names on Kaggle.
        half: Store the weights in half precision, and measure the effect on the held-out rows.
        script: Build a script instead of a notebook.
        budget: The kernel's time budget in minutes.

    Returns:
        The folder.

    Raises:
        UserError: If something the kernel needs is missing or outside the data folder.
    """
    _check_paths(config.data)
    _check_submission(config, run_task(run, config, folds))
    out = run.folder / "kaggle"
    with _Build(out) as new:
        kept = _copy_run(run, config, folds, new.dataset)
        measured = None
        if half:
            for fold in folds:
                halve(run.weights_file(fold), kept.weights_file(fold))
            measured = measure_half(run, kept, config, folds)
        manifest = _manifest("infer", run.name, folds, target, measured)
        digest = new.finish_dataset(manifest, target)
        metrics = read_json(run.metrics_file) if run.metrics_file.exists() else None
        views = ", ".join(view.name for view in chosen_ensemble(run, config).views)
        cells = inference_cells(config, manifest, metrics, views, target.dataset_id, digest, budget)
        new.finish_kernel(cells, target, script)
    return out


def build_training(
    config: Config, folds: Sequence[int], target: Target, out: Path, script: bool, budget: float
) -> Path:
    """Builds a dataset and a kernel that train an experiment; arguments and errors as for `build`.

    The pretrained weights are part of the dataset, because a kernel has no network.
    """
    _check_paths(config.data)
    _check_lists(config.data)
    data = config.data
    if all((data.root / file).exists() for file in needed_files(data.train_csv, data.image_dir)):
        _, targets, problems = read_train(config)
        raise_problems(problems)
        assert targets.task is not None
        _check_submission(config, targets.task)
    with _Build(out) as new:
        if config.model.weights != "none":
            # Instead of asking the hub, local copies are used.
            here = config if config.model.weights != "hub" else _with_weights(config, "local")
            weights = find(here)
            assert weights is not None
            _copy(weights, new.dataset / "weights" / f"{config.model.name}{weights.suffix}")
            if config.model.weights != "hub":
                config = _with_weights(config, "local")  # a local path does not exist on Kaggle
        write_text(new.dataset / "config.yaml", dump(_bundled(config)))
        manifest = _manifest("train", config.name, folds, target, None)
        digest = new.finish_dataset(manifest, target)
        new.finish_kernel(training_cells(config, manifest, target.dataset_id, digest, budget), target, script)
    return out


def _check_submission(config: Config, task: Task) -> None:
    """Rejects a kernel whose submission would fail, if the test rows are available."""
    if test_source(config.data):
        test, problems = read_test(config.data, may_lack_images=True)
        raise_problems(problems + check_submission_form(config, task, test))


def _with_weights(config: Config, weights: str) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": weights})})


def _copy_run(run: Run, config: Config, folds: Sequence[int], dataset: Path) -> Run:
    """Copies what infer.py needs from a run into the dataset; returns the copy."""
    kept = Run(dataset / "runs" / run.name)
    write_text(kept.config_file, dump(_bundled(config)))
    for file in sorted(run.folder.glob("*.json")):
        _copy(file, kept.folder / file.name)
    for fold in folds:
        for file in filter(Path.exists, (run.weights_file(fold), run.fold_oof_file(fold))):
            _copy(file, kept.fold_folder(fold) / file.name)
    return kept


class _Build:
    """Builds both folders in a temporary one and moves them into place when they are complete."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> "_Build":
        make_folder(self.out)
        for left_over in self.out.glob(".build-*"):
            shutil.rmtree(left_over)  # from a killed process
        self._scratch = tempfile.TemporaryDirectory(prefix=".build-", dir=self.out)
        self.dataset, self.kernel = (Path(self._scratch.name) / name for name in ("dataset", "kernel"))
        for path in sorted(_sources()):
            _copy(ROOT / path, self.dataset / path)
        for name in NOT_ON_KAGGLE:
            _copy_package(name, self.dataset / "src")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._place()
        finally:
            self._scratch.cleanup()

    def finish_dataset(self, manifest: dict[str, Any], target: Target) -> str:
        """Writes the manifest of all files and the metadata; returns the manifest's SHA-256."""
        manifest["parts"] = _hashes(self.dataset)
        write_json(self.dataset / "manifest.json", manifest)
        write_json(self.dataset / "dataset-metadata.json", target.dataset_metadata)
        return sha256(self.dataset / "manifest.json")

    def finish_kernel(self, cells: list[Cell], target: Target, script: bool) -> None:
        """Writes the code and the metadata."""
        name = "script.py" if script else "notebook.ipynb"
        write_text(self.kernel / name, as_script(cells) if script else as_notebook(cells))
        write_json(self.kernel / "kernel-metadata.json", target.kernel_metadata(name))

    def _place(self) -> None:
        """Moves both folders into place; a folder edited since it was built is kept under a number."""
        record = self.out / "built.json"
        built = read_json(record) if record.exists() else {}
        for new in (self.dataset, self.kernel):
            old = self.out / new.name
            if old.exists():
                there = _hashes(old)
                if there in (built.get(new.name), _hashes(new)):
                    shutil.rmtree(old)
                else:
                    say(f"{old} was changed since it was built; it is now {keep_old(old)}")
            hashes = _hashes(new)
            new.rename(old)
            built[new.name] = hashes
        about = describe()
        made_with = {key: about[key] for key in ("python", "packages", "commit", "dirty")}
        write_json(record, built | {"made_with": made_with})


def _sources() -> list[Path]:
    """The library, its scripts, and pyproject.toml with the supported versions."""
    files = [path.relative_to(ROOT) for path in (ROOT / "src").rglob("*") if path.is_file()]
    hidden = [path for path in files if any(part.startswith((".", "__pycache__")) for part in path.parts)]
    return [Path("pyproject.toml"), *(path for path in files if path not in hidden)]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _copy_package(name: str, folder: Path) -> None:
    """Copies an installed pure-Python package with its licence and metadata."""
    for file in distribution(name).files or []:
        is_about_install = file.suffix == ".pyc" or file.name in ("RECORD", "INSTALLER", "REQUESTED")
        if file.parts[0] not in ("..", "tests") and not is_about_install:
            _copy(Path(str(file.locate())), folder / file)


def _hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _manifest(
    kind: str, name: str, folds: Sequence[int], target: Target, half: dict[str, Any] | None
) -> dict[str, Any]:
    """What the kernel needs to know; nothing else, since the manifest's hash decides whether the dataset is new."""
    return {
        "format": 1,
        "kind": kind,
        "name": name,
        "folds": list(folds),
        "competition": target.competition,
        "half": half,
    }


def _check_paths(data: DataConfig) -> None:
    """Rejects paths that cannot exist on Kaggle."""
    keys = ("train_csv", "test_csv", "sample_submission", "image_dir", "test_image_dir")
    paths = {f"data.{key}": getattr(data, key) for key in keys if getattr(data, key)}
    raise_problems(
        [
            Problem(key, f"{path} is not below the data folder", f"--set {key}=PATH as it is on Kaggle")
            for key, path in paths.items()
            if path.is_absolute() or ".." in path.parts
        ],
        "The kernel would not find its data",
    )


def _check_lists(data: DataConfig) -> None:
    """Rejects the user's own files that training reads but a kernel does not have."""
    remedy = "a kernel does not include it: leave it out, or train here and build from the run"
    keys = [key for key in ("near_duplicates", "soft_targets") if getattr(data, key)]
    problems = [Problem(f"data.{key}", f"names {getattr(data, key)}", remedy) for key in keys]
    raise_problems(problems, "The kernel would not find its data")


def _bundled(config: Config) -> Config:
    """The config for the kernel, which names the file that has the test rows."""
    named = config.data.model_copy(update={"test_csv": test_source(config.data) or config.data.test_csv})
    return portable(config.model_copy(update={"data": named}))
