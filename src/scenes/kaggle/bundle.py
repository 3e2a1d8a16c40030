"""What Kaggle gets of a run: a dataset with library, config and weights, and a kernel that uses it."""

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from scenes.competition.metric import accuracy
from scenes.config import Config, DataConfig, dump
from scenes.console import Problem, UserError, raise_problems, say
from scenes.data.dataset import reopen_dataset
from scenes.data.folds import FULL, fold_name
from scenes.environment import ROOT, describe
from scenes.files import keep_old, make_folder, write_atomic, write_text
from scenes.inference.models import chosen_views
from scenes.inference.predict import predict_as_configured
from scenes.kaggle.bootstrap import sha256
from scenes.kaggle.notebook import Cell, as_notebook, as_script, inference_cells, training_cells
from scenes.model.device import choose_device
from scenes.model.weights import find, load_classifier, read_metadata, read_state
from scenes.runs import Run, write_json

SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
OWNER = re.compile(r"[a-z0-9]+(?:[-_][a-z0-9]+)*")
SLUG_LENGTH = 50  # of datasets; kernels follow
NOT_ON_KAGGLE = ("ruamel.yaml",)  # pure Python, so a copy works there
TWO_T4 = "NvidiaTeslaT4"  # Kaggle's name of a machine with two of them


class Target:
    """Whose the dataset and the kernel are, what they are called and which competition they are for."""

    def __init__(self, owner: str, competition: str, name: str) -> None:
        """Makes the slugs.

        Raises:
            UserError: If `owner` or `competition` is not what Kaggle calls a slug.
        """
        if not OWNER.fullmatch(owner):
            raise UserError(f"--owner {owner!r}: not a Kaggle user name; it is the last part of your profile's address")
        if not SLUG.fullmatch(competition):
            raise UserError(f"--competition {competition!r}: not a competition's name, the last part of its address")
        self.owner, self.competition = owner, competition
        self.kernel, self.dataset = _slug(f"scenes {name}"), _slug(f"scenes {name} bundle")

    @property
    def dataset_id(self) -> str:
        """OWNER/SLUG."""
        return f"{self.owner}/{self.dataset}"

    @property
    def kernel_id(self) -> str:
        """OWNER/SLUG."""
        return f"{self.owner}/{self.kernel}"

    @property
    def dataset_metadata(self) -> dict[str, Any]:
        """What dataset-metadata.json holds; Kaggle wants exactly one licence."""
        return {"title": _title(self.dataset), "id": self.dataset_id, "licenses": [{"name": "other"}]}

    def kernel_metadata(self, code_file: str) -> dict[str, Any]:
        """What kernel-metadata.json holds; the title must resolve to the slug."""
        return {
            "id": self.kernel_id,
            "title": _title(self.kernel),
            "code_file": code_file,
            "language": "python",
            "kernel_type": "notebook" if code_file.endswith(".ipynb") else "script",
            "is_private": True,
            "enable_gpu": True,
            "enable_tpu": False,
            "enable_internet": False,
            "machine_shape": TWO_T4,
            "dataset_sources": [self.dataset_id],
            "competition_sources": [self.competition],
            "kernel_sources": [],
            "model_sources": [],
        }


def _slug(text: str) -> str:
    """Letters, digits and single hyphens; what is cut off, and letters lost, leave a mark, so that it stays unique."""
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if len(slug) > SLUG_LENGTH or not text.isascii():
        slug = f"{slug[: SLUG_LENGTH - 7].rstrip('-')}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    return slug


def _title(slug: str) -> str:
    return slug.replace("-", " ").capitalize()


def build(
    run: Run, config: Config, folds: Sequence[int], target: Target, half: bool, script: bool, budget: float
) -> Path:
    """Makes the dataset and the kernel that predict with a run's folds, in the run's folder `kaggle`.

    Args:
        run: A run with these folds trained.
        config: Its config, perhaps with other data paths or views.
        folds: Which.
        target: Where on Kaggle.
        half: Keep the weights in half precision, and measure what that does to the held-out rows.
        script: Make a script in place of a notebook.
        budget: The kernel's, in minutes.

    Returns:
        The folder.

    Raises:
        UserError: If something the kernel needs is missing or lies outside the data folder.
    """
    _check_paths(config.data)
    out = run.folder / "kaggle"
    with _Build(out) as new:
        kept = Run(new.dataset / "runs" / run.name)
        write_text(kept.config_file, dump(_portable(config)))
        for file in sorted(run.folder.glob("*.json")):
            _copy(file, kept.folder / file.name)
        for fold in folds:
            files = {run.weights_file(fold), run.fold_oof_file(fold)}  # infer.py asks for the second
            for file in sorted(file for file in files if file.exists()):
                _copy(file, kept.fold_folder(fold) / file.name)
        measured = None
        if half:
            for fold in folds:
                _halve(run.weights_file(fold), kept.weights_file(fold))
            measured = _measure_half(run, kept, config, folds)
        manifest = _manifest("infer", run.name, folds, target, half=measured if half else None)
        metrics = json.loads(run.metrics_file.read_text()) if run.metrics_file.exists() else None
        digest = new.finish_dataset(manifest, target)
        views = ", ".join(view.name for view in chosen_views(run, config))
        cells = inference_cells(config, manifest, metrics, views, target.dataset_id, digest, budget)
        new.finish_kernel(cells, target, script)
    return out


def build_training(
    config: Config, folds: Sequence[int], target: Target, out: Path, script: bool, budget: float
) -> Path:
    """Makes the dataset and the kernel that train an experiment; arguments and errors as `build`'s.

    A kernel has no network: the pretrained weights come along.
    """
    _check_paths(config.data)
    with _Build(out) as new:
        if config.model.weights != "none":
            local = "local" if config.model.weights == "hub" else config.model.weights
            weights = find(config.model_copy(update={"model": config.model.model_copy(update={"weights": local})}))
            assert weights is not None
            _copy(weights, new.dataset / "weights" / f"{config.model.name}{weights.suffix}")
            if config.model.weights not in ("hub", "local"):  # a file's path here is no path there
                model = config.model.model_copy(update={"weights": "local"})
                config = config.model_copy(update={"model": model})
        write_text(new.dataset / "config.yaml", dump(_portable(config)))
        manifest = _manifest("train", config.name, folds, target, half=None)
        digest = new.finish_dataset(manifest, target)
        new.finish_kernel(training_cells(config, manifest, target.dataset_id, digest, budget), target, script)
    return out


class _Build:
    """Both folders, made out of sight and put in place when whole."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def __enter__(self) -> "_Build":
        make_folder(self.out)
        for left_over in self.out.glob(".build-*"):
            shutil.rmtree(left_over)  # its process was killed
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
        """Renames both folders; one that a person changed since it was built is kept under a number."""
        record = self.out / "built.json"
        built = json.loads(record.read_text()) if record.exists() else {}
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
        write_json(record, built)


def _sources() -> list[Path]:
    """The library and its scripts, and the file that has the supported ranges."""
    files = [path.relative_to(ROOT) for path in (ROOT / "src").rglob("*") if path.is_file()]
    hidden = [path for path in files if any(part.startswith((".", "__pycache__")) for part in path.parts)]
    return [Path("pyproject.toml"), *(path for path in files if path not in hidden)]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _copy_package(name: str, folder: Path) -> None:
    """Copies an installed package of pure Python, with its licence and metadata."""
    for file in distribution(name).files or []:
        if file.parts[0] != ".." and file.suffix != ".pyc" and file.name not in ("RECORD", "INSTALLER", "REQUESTED"):
            _copy(Path(str(file.locate())), folder / file)


def _hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def _manifest(
    kind: str, name: str, folds: Sequence[int], target: Target, half: dict[str, Any] | None
) -> dict[str, Any]:
    about = describe()
    made_with = {key: about[key] for key in ("python", "packages", "commit", "dirty")}
    return {
        "format": 1,
        "kind": kind,
        "name": name,
        "folds": list(folds),
        "competition": target.competition,
        "half": half,
        "made_with": made_with,
    }


def _check_paths(data: DataConfig) -> None:
    """Finds the paths that would mean nothing on Kaggle."""
    keys = ("train_csv", "test_csv", "sample_submission", "image_dir", "test_image_dir")
    paths = {f"data.{key}": getattr(data, key) for key in keys if getattr(data, key)}
    raise_problems(
        [
            Problem(key, f"{path} is not below the competition's folder", f"--set {key}=PATH as it is on Kaggle")
            for key, path in paths.items()
            if path.is_absolute() or ".." in path.parts
        ],
        "The kernel would not find its data",
    )


def _portable(config: Config) -> Config:
    """The config without what is only true here: the kernel finds its data itself."""
    here = {"sample": False, "root": Path("input"), "cache": Path(".cache")}
    return config.model_copy(update={"data": config.data.model_copy(update=here)})


def _halve(source: Path, target: Path) -> None:
    """Writes a fold's weights in half precision, all but the vectors: they are few, and statistics may exceed fp16."""
    state = {
        name: tensor.half() if tensor.is_floating_point() and tensor.squeeze().ndim > 1 else tensor
        for name, tensor in read_state(source).items()
    }
    if broken := [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]:
        raise UserError(f"{source}: {broken[0]} is too large for half precision; build without --half")
    write_atomic(target, lambda temporary: save_file(state, temporary, read_metadata(source)))


def _measure_half(run: Run, halved: Run, config: Config, folds: Sequence[int]) -> dict[str, Any] | None:
    """Predicts the rows each fold held out with both precisions, and says what half precision costs.

    Raises:
        UserError: If the training data is not that of the run.
    """
    judged = [fold for fold in folds if fold != FULL]
    if not judged:
        say("half precision: its effect is not known, a model trained on every row holds none out")
        return None
    say(f"half precision: predicting the rows that {', '.join(map(fold_name, judged))} held out, with both")
    data, device = reopen_dataset(run, config), choose_device()
    rows, predicted = [], []
    for fold in judged:
        with safe_open(run.fold_oof_file(fold), "np") as saved:
            rows.append(saved.get_tensor("rows"))
        models = [load_classifier(place.weights_file(fold), config)[0].to(device) for place in (run, halved)]
        views = chosen_views(run, config)
        both = predict_as_configured(config, models, data.images, rows[-1], views, device, fold_name(fold))
        predicted.append(both.mean(1))
    full, half = np.concatenate(predicted, 1)
    targets = data.labels.targets[np.concatenate(rows)]
    (before, error), (after, _) = accuracy(full, targets), accuracy(half, targets)
    changed = int((full.argmax(1) != half.argmax(1)).sum())
    say(
        f"half precision: OOF accuracy {after:.4f} in place of {before:.4f} ± {error:.4f} ({after - before:+.4f}), "
        f"{changed} of {len(targets)} labels change"
    )
    return {"n": len(targets), "accuracy": before, "accuracy_half": after, "labels_changed": changed}
