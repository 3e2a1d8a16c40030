"""Downloads a competition's files from Kaggle, unpacks them and moves them into place as a whole."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from scenes import kaggle_cli
from scenes.competition.folders import check_out
from scenes.competition.path_pattern import natural
from scenes.competition.table import some
from scenes.console import UserError
from scenes.files import unzip


def download(slug: str, out: Path) -> list[Path]:
    """Downloads a competition's files with the kaggle command and unpacks them.

    Everything happens in a hidden folder in `out`, from which complete files are moved into place at the end. An
    interrupted download stays there, and the next call resumes it.

    Args:
        slug: The last part of the competition's address.
        out: The competition's folder, created if missing.

    Returns:
        The files and folders added to `out`.

    Raises:
        UserError: If the download fails, the archive is unsafe or a file already exists; `out` is then unchanged.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", slug):
        raise UserError(
            f"--competition {slug!r}: not a competition's name; it is the last part of the competition's address, "
            "https://www.kaggle.com/competitions/NAME"
        )
    check_out(out)
    kaggle_cli.command()  # fails before a folder is created
    hidden = out / f".download-{slug}"
    hidden.mkdir(parents=True, exist_ok=True)
    rules = f"https://www.kaggle.com/competitions/{slug}/rules"
    remedies = {
        "forbidden": f"Kaggle denies access to {slug}: join the competition and accept its rules at {rules}, with the "
        "account that your token belongs to",
        "missing": f"Kaggle has no competition {slug}: the name is the last part of its address",
    }
    try:
        kaggle_cli.call(["competitions", "download", "-c", slug, "-p", str(hidden)], remedies)
        archives = sorted(hidden.glob("*.zip"))
        if len(archives) != 1:
            raise UserError(f"{hidden}: expected one zip archive from kaggle; look into the folder and unpack by hand")
        return _unpack(archives[0], hidden, out)
    finally:
        if hidden.is_dir() and not any(hidden.iterdir()):
            hidden.rmdir()


def _unpack(archive: Path, hidden: Path, out: Path) -> list[Path]:
    """Unpacks out of sight, then moves all into place and removes the archive."""
    unpacked = hidden / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)  # from a run that was killed
    try:
        try:
            unzip(archive, unpacked)
        except UserError:
            shutil.rmtree(hidden)  # damaged or unsafe: useless to the next call
            raise
        moves = list(_moves(unpacked, out))
        if existing := [str(place.relative_to(out)) for _, place in moves if os.path.lexists(place)]:
            raise UserError(
                f"{len(existing)} of the competition's files already exist in {out} and are not overwritten: "
                f"{some(existing)}; move them away and run the same command again (the download is kept in {hidden}), "
                f"or choose another --out"
            )
        _move(moves)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    shutil.rmtree(hidden)
    return [place for _, place in moves]


def _moves(source: Path, target: Path) -> Iterator[tuple[Path, Path]]:
    """The fewest renames that bring all of `source` into `target`, merging folders."""
    for item in sorted(source.iterdir(), key=lambda path: natural(path.name)):
        place = target / item.name
        if item.is_dir() and place.is_dir() and not place.is_symlink():  # a link leads to someone else's folder
            yield from _moves(item, place)
        else:
            yield item, place


def _move(moves: Sequence[tuple[Path, Path]]) -> None:
    """Renames all or, if anything fails, none."""
    try:
        for item, place in moves:
            item.rename(place)
    except BaseException:
        for item, place in moves:
            if not item.exists():
                place.rename(item)
        raise
