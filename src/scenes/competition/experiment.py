"""Loads an experiment's config on top of its competition's description, from competition.yaml or inferred."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scenes.competition import description
from scenes.config import Config, DataConfig
from scenes.config_file import read_values, validate
from scenes.console import UserError, say


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config: defaults < competition.yaml of data.root < the experiment's file < ``--set``.

    If a folder has no competition.yaml and is not laid out as the config says, the description is inferred from the
    files and printed.

    Args:
        path: The experiment's YAML file.
        overrides: ``key=value`` strings, the value in YAML.

    Raises:
        UserError: If a key is unknown or a value invalid; lists every mistake.
    """
    values, places = read_values(path, overrides)
    data = values.get("data")
    given: Mapping[str, Any] = data if isinstance(data, dict) else {}
    root = Path(os.path.expanduser(str(given.get("root", DataConfig().root))))  # noqa: PTH111 - never raises
    below, below_places = description.read(root)
    if not below and not given.get("sample") and not _is_as_configured(root, given):
        below = _inferred(root)
    if below:
        values, places = description.merge(below, values), below_places | places
    return validate(values, str(path), places)


def _is_as_configured(root: Path, given: Mapping[str, Any]) -> bool:
    """Whether the training rows and images are where the config says, judging by the header."""
    from scenes.competition.csv_file import read_cells

    def setting(key: str) -> str:
        return str(given.get(key, DataConfig.model_fields[key].default))

    source = setting("train_csv")
    if not root.is_dir() or not source.endswith(".csv"):
        return True
    if not (root / source).is_file() or not (root / setting("image_dir")).is_dir():
        return False
    try:
        header = (read_cells(root / source, 1)[1] or [[]])[0]
    except UserError:
        return True
    columns = given.get("label_columns")
    labels = map(str, columns) if isinstance(columns, list) and columns else [setting("label_column")]
    return {setting("image_column"), *labels} <= set(header)


def _inferred(root: Path) -> dict[str, Any]:
    """The description inferred from the files, empty if they do not say enough."""
    from scenes.competition.detect import detect

    try:
        found = detect(root)
    except UserError:
        return {}
    say(f"{root}: no {description.FILE}; inferred from the files:")
    for concept, what, why in found.summary:
        say(f"  {concept}: {what} ({why})")
    say(f"  to keep or change that: python src/prepare.py detect {root}")
    return description.nested(found.lines)
