"""Finds and checks the bundle. Copied into each notebook, where only the standard library can be imported so far."""

import hashlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path


def attach(dataset: str, digest: str) -> Path:
    """Finds the bundle wherever it is mounted, checks all its files and makes its library importable.

    Args:
        dataset: OWNER/SLUG, for messages.
        digest: SHA-256 of the manifest this notebook was built with.

    Returns:
        The bundle's folder.

    Raises:
        RuntimeError: If it is not attached, a different version, or damaged.
    """
    root = Path(os.environ.get("SCENES_KAGGLE_INPUT", "/kaggle/input"))
    bundle = unpacked(find(root, dataset, digest))
    parts = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))["parts"]
    wrong = [part for part, expected in parts.items() if sha256(bundle / part) != expected]
    if wrong:
        raise RuntimeError(
            f"{bundle}: {len(wrong)} of {len(parts)} files are missing or damaged "
            f"({', '.join(wrong[:5])}): upload the dataset again, python src/kernel.py push"
        )
    sys.dont_write_bytecode = True  # the input is read-only
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # for child processes
    sys.path.insert(0, str(bundle / "src"))
    print(f"{bundle}: {len(parts)} files, all match the manifest")
    return bundle


def find(root: Path, dataset: str, digest: str) -> Path:
    """Finds the folder or archive, anywhere below `root`, that holds the manifest with this SHA-256."""
    folders = [Path(folder) for folder, _, names in os.walk(root) if "manifest.json" in names]
    for folder in folders:
        if sha256(folder / "manifest.json") == digest:
            return folder
    for archive in filter(zipfile.is_zipfile, sorted(root.rglob("*.zip"))):
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
            if "manifest.json" in names and hashlib.sha256(opened.read("manifest.json")).hexdigest() == digest:
                return archive
    found = f"; other manifests: {', '.join(map(str, folders))}" if folders else ""
    raise RuntimeError(
        f"the dataset {dataset} this notebook was built with is not below {root}{found}: attach it, or its newest "
        "version, with Add Input"
    )


def unpacked(place: Path) -> Path:
    """Unpacks the folders that `datasets create -r zip` archived, where Kaggle left them packed."""
    archives = [place] if place.suffix == ".zip" else sorted(place.glob("*.zip"))
    if not archives:
        return place
    folder = Path(tempfile.mkdtemp(prefix="scenes-bundle-"))
    for archive in archives:
        with zipfile.ZipFile(archive) as opened:
            opened.extractall(folder if archive == place else folder / archive.stem)
    if place.is_dir():
        for item in place.iterdir():
            if item not in archives:
                (folder / item.name).symlink_to(item)
    return unpacked(folder) if archives == [place] else folder


def sha256(file: Path) -> str:
    """Returns a file's SHA-256 in hexadecimal, or an empty string if there is no such file."""
    if not file.is_file():
        return ""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
