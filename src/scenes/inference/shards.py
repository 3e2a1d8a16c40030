"""Inference at scale: a list of images dealt to shards, each written in parts that are whole or not there; merging."""

import hashlib
import os
import re
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from scenes.config import Config
from scenes.console import Meter, UserError, print_table, say
from scenes.data.folds import fold_name
from scenes.files import check_folder, keep_different, make_folder, only_process, write_atomic
from scenes.inference.files import Result, predict_batches, shown, walk_images, written
from scenes.inference.models import ChosenEnsemble, chosen_ensemble, load_folds
from scenes.model.backbone import Classifier
from scenes.model.device import choose_device, choose_precision
from scenes.runs import Run, read_json, write_json

PART_ROWS = 16_384  # what a kill can cost, and what is in memory of the results; 16 MiB for 250 classes
TEXT_START = 2**16
MANY = 1000  # so many images in a part and none readable: rather a disk that is not there than damaged files
LISTED_NOTE = 1_000_000
SHOWN = 10

MANIFEST, LIST, DONE, MERGED = "manifest.json", "images.txt", "done.json", "predictions.parquet"
PROBABILITY = "p_"  # in front of a class: no class is called what another column is


class Shard(NamedTuple):
    """One of so many shares of the images, numbered from 1."""

    number: int
    of: int

    @property
    def name(self) -> str:
        """Its folder's name."""
        return f"shard-{self.number:05d}-of-{self.of:05d}"

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


class Listing(NamedTuple):
    """A text file with an image's path a line, and the folder that these paths are relative to."""

    file: Path
    base: Path


class Done(NamedTuple):
    """A finished shard.

    Attributes:
        start: Where in the list its lines begin, in bytes.
        end: Where they end.
        rows: How many images there are.
        unreadable: How many of them could not be read.
        digest: Of their paths, in order.
    """

    start: int
    end: int
    rows: int
    unreadable: int
    digest: str


def parse_shard(text: str) -> Shard:
    """Reads ``I/N``.

    Raises:
        UserError: If it is anything else, or I is not from 1 to N.
    """
    match = re.fullmatch("([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    if not 1 <= shard.number <= shard.of:
        raise UserError(f"--shard {text}: give I/N with I from 1 to N, e.g. 1/16, 2/16, … 16/16")
    return shard


def predict_shard(run: Run, config: Config, folds: Sequence[int], images: Path, shard: Shard, out: Path) -> None:
    """Predicts a shard of any number of images, each exactly once; goes on where an earlier process was stopped.

    Args:
        run: A run with these folds trained.
        config: The run's config, perhaps with other views.
        folds: Which models.
        images: A folder, or a text file with a path a line, relative to its own folder or absolute.
        shard: Which lines of the list: those that begin in its share of the file's bytes.
        out: The folder of all shards.

    Raises:
        UserError: If the images, the folds' weights or what is in `out` already cannot be used, or none of a part's
            many images can be read.
    """
    check_folder(out)
    check_images(images, out)
    chosen = chosen_ensemble(run, config)
    models, classes = load_folds(run, config, folds, choose_device())
    listing = open_listing(images, out)
    pin(out, describe(run, config, folds, chosen, images, listing, shard))
    with only_process(out / shard.name, "at this shard"):
        Work(listing, shard, out / shard.name, models, classes, chosen, config).finish()


def check_images(images: Path, out: Path) -> None:
    """Makes sure, before anything is written, that there is an image, or a list of some.

    Raises:
        UserError: If there is not.
    """
    if os.path.isdir(images):  # noqa: PTH112 - false where pathlib raises, e.g. for a name that is too long
        if not (out / LIST).exists() and next(walk_images(images), None) is None:
            raise UserError(f"{images}: no image in this folder or below it")
        return
    if not os.path.isfile(images):  # noqa: PTH113 - as above
        raise UserError(f"{images}: no such folder, and no such list of images")
    with images.open("rb") as file:
        start = file.read(TEXT_START)
    if b"\0" in start:
        raise UserError(f"{images}: not a UTF-8 text with an image's path a line; for single images use predict.py")
    if next(read_names(images, 0, images.stat().st_size), None) is None:
        raise UserError(f"{images}: lists no images")


def open_listing(images: Path, out: Path) -> Listing:
    """Takes a list as it is; of a folder makes one, once for all shards, so that all mean the same images by it."""
    if not images.is_dir():
        return Listing(images, images.parent)
    file = out / LIST
    make_folder(out)
    with FileLock(out / ".lock"):
        if not file.exists():
            say(f"listing the images below {images}")
            write_atomic(file, lambda temporary: _write_list(images, temporary))
    return Listing(file, images)


def _write_list(folder: Path, file: Path) -> None:
    count = 0
    with file.open("wb") as lines:
        for path in walk_images(folder):
            name = os.fsencode(path.relative_to(folder))
            if b"\n" in name or name.startswith(BOM_UTF8):  # which read_names takes for a text's
                raise UserError(
                    f"{shown(path)}: a name with a line break or byte-order mark cannot be listed; rename it"
                )
            lines.write(name + b"\n")
            count += 1
            if count % LISTED_NOTE == 0:
                say(f"  {count} images")


def span(file: Path, shard: Shard) -> tuple[int, int]:
    """The bytes of a list that are a shard's: the lines that begin in its share of the file, blank ones included."""
    size = file.stat().st_size
    with file.open("rb") as lines:

        def line_start(at: int) -> int:
            """Where the first line begins that does not begin before `at`."""
            if at == 0:
                return 0
            lines.seek(at - 1)
            lines.readline()
            return lines.tell()

        return line_start(size * (shard.number - 1) // shard.of), line_start(size * shard.number // shard.of)


def read_names(file: Path, start: int, end: int) -> Iterator[str]:
    """Reads the lines of a list from `start` to `end`, in bytes, but for blank ones."""
    with file.open("rb") as lines:
        lines.seek(start)
        while (at := lines.tell()) < end and (line := lines.readline()):
            name = (line if at else line.removeprefix(BOM_UTF8)).rstrip(b"\r\n")
            if name.strip():
                yield os.fsdecode(name)


def describe(
    run: Run, config: Config, folds: Sequence[int], chosen: ChosenEnsemble, images: Path, listing: Listing, shard: Shard
) -> dict[str, Any]:
    """All that decides what is in the shards: what must not change between them, or while one goes on."""
    weights = {}
    for fold in folds:
        with run.weights_file(fold).open("rb") as file:
            weights[fold_name(fold)] = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    size = listing.file.stat().st_size
    return {
        "run": run.name,
        "weights": weights,
        "views": [view.name for view in chosen.views],
        "calibration": chosen.calibration.to_dict(),
        "image_size": config.predict_size,
        "precision": choose_precision(config.infer.precision, choose_device()),
        "images": images.resolve().name,
        "list_bytes": size,
        "first_image": next(map(written, read_names(listing.file, 0, size)), ""),
        "shards": shard.of,
        "part_rows": PART_ROWS,
    }


def pin(out: Path, content: dict[str, Any]) -> None:
    """Writes the manifest, or compares it with the one that is there.

    Raises:
        UserError: If the folder was begun with anything else; shows the difference.
    """
    file = out / MANIFEST
    make_folder(out)
    with FileLock(out / ".lock"):
        if not file.exists():
            write_json(file, content)
            return
    begun = _read(file, *content)
    if changed := [key for key in content if content[key] != begun[key]]:
        lines = "".join(f"\n  {key}: {begun[key]!r} → {content[key]!r}" for key in changed)
        raise UserError(
            f"{out} was begun with something else:{lines}\n"
            f"  → restore these to go on with it; or give another folder: --out NEW; or delete {out}"
        )


def _read(file: Path, *keys: str) -> dict[str, Any]:
    try:
        return read_json(file, *keys)
    except UserError:
        raise UserError(f"{file}: damaged; delete it and give infer.py's command for this shard again") from None


class Work(NamedTuple):
    """What it takes to do one shard."""

    listing: Listing
    shard: Shard
    folder: Path
    models: Sequence[Classifier]
    classes: Sequence[str]
    chosen: ChosenEnsemble
    config: Config

    def finish(self) -> None:
        """Writes the parts that are not there, checks those that are, and says what is in them."""
        done_file = self.folder / DONE
        start, end = span(self.listing.file, self.shard)
        rows = sum(1 for _ in read_names(self.listing.file, start, end))
        sizes = [min(PART_ROWS, rows - first) for first in range(0, rows, PART_ROWS)]
        missing = [size for number, size in enumerate(sizes) if not part_file(self.folder, number).exists()]
        if done_file.exists() and not missing:
            say(f"{self.folder}: done already ({rows} images)")
            return
        say(f"{self.folder}: {rows} images in {len(sizes)} parts, {len(sizes) - len(missing)} of them there already")
        batch_size = self.config.infer.batch_size
        meter = Meter(sum(-(-size // batch_size) for size in missing), f"shard {self.shard}", "img", batch_size)
        digest, unreadable = Digest(), 0
        names = read_names(self.listing.file, start, end)
        try:
            for number, size in enumerate(sizes):
                part = list(islice(names, size))
                unreadable += self._part(part_file(self.folder, number), part, meter)
                digest.add(map(written, part))
        finally:
            meter.close()
        write_json(done_file, Done(start, end, rows, unreadable, digest.hex())._asdict())
        say(f"{self.folder}: done, {rows} images, {unreadable} of them unreadable")

    def _part(self, file: Path, names: Sequence[str], meter: Meter) -> int:
        """Makes sure that a part is there; returns how many of its images cannot be read."""
        if file.exists():
            return check_part(file, names)
        results: list[Result] = []
        paths = (self.listing.base / name for name in names)
        for batch in predict_batches(self.models, self.chosen, self.config, paths):
            results += batch
            meter.advance()
        bad = [result for _, result in results if isinstance(result, str)]
        if len(bad) == len(names) >= MANY:
            raise UserError(
                f"{shown(results[0][0])}: cannot be read ({bad[0]}), nor any of the {len(bad) - 1} images after it; "
                "is this where the images are? The parts before are kept"
            )
        table = make_table(names, [result for _, result in results], self.classes)
        write_atomic(file, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
        return len(bad)


class Digest:
    """A hash of paths in their order."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=16)

    def add(self, names: Iterable[str]) -> None:
        """Takes in the next ones."""
        self.hash.update("".join(f"{name}\0" for name in names).encode())

    def hex(self) -> str:
        """The hash, 32 hexadecimal digits."""
        return self.hash.hexdigest()


def part_file(folder: Path, number: int) -> Path:
    """A shard's part, numbered from 0."""
    return folder / f"part-{number:05d}.parquet"


def make_table(names: Sequence[str], results: Sequence[np.ndarray | str], classes: Sequence[str]) -> pa.Table:
    """A row an image: path, label, confidence, why it cannot be read, a probability a class.

    Args:
        names: The paths as they are listed.
        results: Of each the probabilities, float32, shape (classes,), or why there are none: these rows have nulls.
        classes: The labels.
    """
    bad = np.array([isinstance(result, str) for result in results])
    none = np.zeros(len(classes), np.float32)
    rows = np.stack([none if isinstance(result, str) else result for result in results])
    labels = [None if is_bad else classes[best] for is_bad, best in zip(bad, rows.argmax(1), strict=True)]
    errors = [str(result) if isinstance(result, str) else None for result in results]
    columns = {
        "path": pa.array(map(written, names), pa.string()),
        "label": pa.array(labels, pa.string()),
        "confidence": pa.array(rows.max(1), pa.float32(), mask=bad),
        "error": pa.array(errors, pa.string()),
    }
    return pa.table(
        columns | {f"{PROBABILITY}{name}": pa.array(rows[:, at], mask=bad) for at, name in enumerate(classes)}
    )


def check_part(file: Path, names: Sequence[str]) -> int:
    """Compares a part with the list; returns how many of its images cannot be read.

    Raises:
        UserError: If it is damaged, or of other images.
    """
    table = read_part(file, ["path", "error"])
    there, wanted = table["path"].to_pylist(), list(map(written, names))
    if there != wanted:
        differ = next(
            (pair for pair in zip(there, wanted, strict=False) if pair[0] != pair[1]), (len(there), len(wanted))
        )
        raise UserError(
            f"{file}: is of other images than are listed now (first difference: {differ[0]!r} → {differ[1]!r}); "
            "restore the list, or give another folder: --out NEW"
        )
    return len(table) - table["error"].null_count


def read_part(file: Path, columns: list[str] | None = None) -> pa.Table:
    """Reads a part.

    Raises:
        UserError: If it is missing or damaged.
    """
    try:
        return pq.ParquetFile(file).read(columns)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{file}: cannot be read ({reason}); delete it and give its shard's command again") from None


def merge(out: Path) -> Path:
    """Checks that all shards are there, whole and of one list, and makes one file of them, in the list's order.

    Args:
        out: The folder of all shards.

    Returns:
        The file.

    Raises:
        UserError: If a shard is missing or unfinished, or an image would be missing or there twice.
    """
    shards = read_shards(out)
    target = out / MERGED
    counts: Counter[str] = Counter()
    write_atomic(target, lambda temporary: _write_merged(temporary, target, shards, counts))
    rows, unreadable = (sum(getattr(done, key) for done in shards.values()) for key in ("rows", "unreadable"))
    print_table(
        ["class", "images", "share"],
        [(label, count, f"{count / (rows - unreadable):.4f}") for label, count in sorted(counts.items())],
    )
    say(f"wrote {target} ({rows} images of {len(shards)} shards, in the list's order)")
    if unreadable:
        say(f"{unreadable} of them could not be read: the rows whose `error` says why")
    return target


def read_shards(out: Path) -> dict[Path, Done]:
    """Reads what the shards say of themselves.

    Returns:
        By folder, in order; together they cover the list, each of its lines once.

    Raises:
        UserError: If they do not.
    """
    if not (out / MANIFEST).exists():
        raise UserError(f"{out}: holds no shards; make some with infer.py --images FOLDER --shard 1/2 --out {out}")
    manifest = _read(out / MANIFEST, "shards", "list_bytes")
    wanted = [Shard(number, manifest["shards"]) for number in range(1, manifest["shards"] + 1)]
    if strangers := sorted({folder.name for folder in out.glob("shard-*")} - {shard.name for shard in wanted}):
        raise UserError(f"{out}: {strangers[0]} is not one of its {len(wanted)} shards; move it away")
    if unfinished := [str(shard) for shard in wanted if not (out / shard.name / DONE).exists()]:
        listed = ", ".join(unfinished[:SHOWN]) + (", …" if len(unfinished) > SHOWN else "")
        raise UserError(
            f"{out}: {len(unfinished)} of {len(wanted)} shards are not done: {listed}; run infer.py for these"
        )
    shards: dict[Path, Done] = {}
    reached = 0
    for shard in wanted:
        folder = out / shard.name
        record = _read(folder / DONE, *Done._fields)
        done = Done(*(record[key] for key in Done._fields))
        is_next = done.start == reached and (shard.number < shard.of or done.end == manifest["list_bytes"])
        parts, there = -(-done.rows // manifest["part_rows"]), len(list(folder.glob("part-*")))
        if not is_next or there > parts:
            raise UserError(f"{folder}: not what belongs here; delete it and give infer.py --shard {shard} again")
        if there < parts:
            raise UserError(f"{folder}: {parts - there} of {parts} parts missing; give infer.py --shard {shard} again")
        shards[folder] = done
        reached = done.end
    return shards


def _write_merged(temporary: Path, target: Path, shards: dict[Path, Done], counts: Counter[str]) -> None:
    """Writes part after part, so that no more than one is in memory, and counts the labels."""
    writer = None
    try:
        for folder, done in shards.items():
            digest, rows = Digest(), 0
            for number in range(len(list(folder.glob("part-*")))):
                file = part_file(folder, number)
                table = read_part(file)
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                if table.schema != writer.schema:
                    raise UserError(f"{file}: has other columns than the parts before it")
                writer.write_table(table)
                digest.add(table["path"].to_pylist())
                rows += len(table)
                counts.update(label for label in table["label"].to_pylist() if label is not None)
            if (rows, digest.hex()) != (done.rows, done.digest):
                raise UserError(f"{folder}: its parts are not those it was done with; delete {DONE} there, do it again")
    finally:
        if writer:
            writer.close()
    keep_different(target, temporary)
