"""Predicts very many images with Ray Data: names → actors that hold the networks → parquet files."""

import hashlib
import logging
import os
import time
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from scenes.competition.find import image_files
from scenes.competition.task import Task
from scenes.config import Config
from scenes.console import Meter, UserError, say
from scenes.files import check_folder, only_process, write_atomic
from scenes.inference.files import predict_batches, written
from scenes.inference.models import chosen_ensemble, load_folds
from scenes.model.device import choose_device, choose_precision
from scenes.ray_cluster import connect
from scenes.runs import Run, fold_name, read_json, write_json

PART_ROWS, PART_SECONDS = 16_384, 60.0  # a part is written after this many rows or seconds, the most a kill can cost
BLOCK_ROWS = 1024  # rows that an actor gets at a time
OBJECT_STORE_BYTES = 2**28  # only names and probabilities go through it
MANY = 1000  # if this many images in a row fail, the disk is more likely missing than the images damaged
MADE_BY = "_made_by.json"  # readers of parquet folders skip names that start with an underscore
OUTPUT = "p_"  # the prefix of class columns, so that none has the name of another column


def predict_at_scale(
    run: Run, config: Config, folds: Sequence[int], images: Path, out: Path, address: str | None = None
) -> None:
    """Predicts each image once and writes ``part-NNNNN.parquet`` files; images in `out` already are skipped.

    An image that cannot be read, or whose prediction is not finite, becomes a row with an error and null probabilities.

    Args:
        run: A run with these folds trained.
        config: The run's config, possibly with other views.
        folds: Which models to use.
        images: A folder, or a text file with one path per line, absolute or relative to the file's folder.
        out: The folder for the parquet files.
        address: A Ray cluster that shares storage with this machine; by default Ray runs on this machine.

    Raises:
        UserError: If the images, the weights or the content of `out` cannot be used, or Ray does not answer.
    """
    check_folder(out)
    names = list(dict.fromkeys(read_names(images)))  # an image listed twice is predicted once
    if not names:
        raise UserError(f"{images}: contains no images")
    load_folds(run, config, folds, torch.device("cpu"))  # if this fails, let it fail here rather than in an actor
    with only_process(out, "predicting into it"):
        pin(out / MADE_BY, run, config, folds)
        done = {path for file in out.glob("part-*.parquet") for path in read_paths(file)}
        todo = [name for name in names if written(name) not in done]
        say(f"{len(names)} images, {len(names) - len(todo)} of them in {out} already")
        if todo:
            base = images if images.is_dir() else images.parent
            arguments = Run(run.folder.resolve()), config, folds, base.resolve()
            write_parts(predicted_blocks(arguments, todo, address), out, len(todo))
    errors = [pq.read_table(file, columns=["error"])["error"] for file in out.glob("part-*.parquet")]
    count, failed = sum(map(len, errors)), sum(len(column) - column.null_count for column in errors)
    say(f"{out}: {count} images in {len(errors)} parquet files{f', {failed} of them with an error' if failed else ''}")
    if failed == count:
        first = next(text.as_py() for column in errors for text in column)
        raise UserError(f"{images}: none of the {count} images could be predicted; first error: {first}")


def read_names(images: Path) -> Iterator[str]:
    """Lists a folder's images, relative to it, or the non-blank lines of a text file.

    Raises:
        UserError: If there is no such folder or file, or it is not a text file.
    """
    if os.path.isdir(images):  # noqa: PTH112 - False where pathlib raises, e.g. for a name that is too long
        yield from image_files(images)
        return
    if not os.path.isfile(images):  # noqa: PTH113 - as above
        raise UserError(f"{images}: no such folder or list of images")
    with images.open("rb") as file:
        for number, line in enumerate(file, 1):
            name = (line if number > 1 else line.removeprefix(BOM_UTF8)).rstrip(b"\r\n")
            if b"\0" in name:
                raise UserError(
                    f"{images}, line {number}: not a text file with one path per line; for single images use predict.py"
                )
            if name.strip():
                yield os.fsdecode(name)


def pin(file: Path, run: Run, config: Config, folds: Sequence[int]) -> None:
    """Records what determines the predictions, or compares it with what the folder was started with.

    Raises:
        UserError: If that differs; the message lists the differences.
    """
    chosen = chosen_ensemble(run, config)
    weights = {fold_name(fold): hashlib.sha256(run.weights_file(fold).read_bytes()).hexdigest() for fold in folds}
    content: dict[str, Any] = {
        "run": run.name,
        "weights": weights,
        "views": [view.name for view in chosen.views],
        "calibration": chosen.calibration.to_dict(),
        "image_size": config.predict_size,
        "precision": choose_precision(config.infer.precision, choose_device()),
    }
    if not file.exists():
        write_json(file, content)
        return
    begun = read_json(file, *content)
    if changed := [key for key in content if content[key] != begun[key]]:
        lines = "".join(f"\n  {key}: {begun[key]!r} → {content[key]!r}" for key in changed)
        raise UserError(f"{file.parent} was started with something else:{lines}\n  → use another folder: --out NEW")


def read_paths(file: Path) -> list[str]:
    """Reads which images a part contains.

    Raises:
        UserError: If the part is damaged.
    """
    try:
        return pq.read_table(file, columns=["path"])["path"].to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{file}: cannot be read ({reason}); delete it to predict its images again") from None


class Predictor:
    """A Ray actor that holds a run's networks."""

    def __init__(self, run: Run, config: Config, folds: Sequence[int], base: Path) -> None:
        self.config, self.base = config, base
        self.models = load_folds(run, config, folds, choose_device())
        self.chosen = chosen_ensemble(run, config)

    def __call__(self, names: pa.Table) -> pa.Table:
        """Predicts a block of names."""
        listed = [os.fsdecode(name) for name in names["name"].to_pylist()]
        batches = predict_batches(self.models, self.chosen, self.config, (self.base / name for name in listed))
        return make_table(listed, [result for batch in batches for _, result in batch], self.models[0].task)


def make_table(names: Sequence[str], results: Sequence[np.ndarray | str], task: Task) -> pa.Table:
    """Makes a row for each image: path, error and each of the task's outputs; for classes also label and confidence.

    Args:
        names: The paths as listed.
        results: Each image's predictions, float32, shape (outputs,), or the reason why there are none.
        task: What the outputs mean.
    """
    errors = [result if isinstance(result, str) else None for result in results]
    bad = np.array([error is not None for error in errors])
    none = np.zeros(task.outputs, np.float32)
    rows = np.stack([none if isinstance(result, str) else result for result in results])
    columns = {"path": pa.array(map(written, names), pa.string()), "error": pa.array(errors, pa.string())}
    if task.kind == "classes":
        labels = np.array(task.columns, object)[rows.argmax(1)]
        columns["label"] = pa.array(labels, pa.string(), mask=bad)
        columns["confidence"] = pa.array(rows.max(1), pa.float32(), mask=bad)
    return pa.table(
        columns | {f"{OUTPUT}{name}": pa.array(rows[:, at], mask=bad) for at, name in enumerate(task.columns)}
    )


def predicted_blocks(arguments: tuple[Any, ...], names: Sequence[str], address: str | None) -> Iterator[pa.Table]:
    """Predicts names with one actor per GPU, or per machine if there are no GPUs; blocks come in any order.

    Args:
        arguments: The arguments of `Predictor`.
        names: The paths as listed.
        address: The Ray cluster; None starts Ray on this machine.

    Raises:
        UserError: If Ray does not answer, or an actor fails.
    """
    machines = connect(address or "local", "--images", object_store_memory=OBJECT_STORE_BYTES)
    import ray
    from ray.data import ActorPoolStrategy, DataContext
    from ray.exceptions import RayError

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    DataContext.get_current().enable_progress_bars = False
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    cores = int(min(machine["CPU"] for machine in machines))
    actors = gpus or len(machines)
    size = max(1, min(BLOCK_ROWS, -(-len(names) // (4 * actors))))
    listed = pa.table({"name": pa.array(map(os.fsencode, names), pa.binary())})
    blocks = [listed.slice(start, size) for start in range(0, len(listed), size)]
    results = ray.data.from_arrow(blocks).map_batches(
        Predictor,
        fn_constructor_args=arguments,
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=actors),
        num_gpus=1 if gpus else 0,
        num_cpus=1 if gpus else cores,
    )
    try:
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise UserError(f"Ray gave up: {reason}; finished parts are kept, the same command resumes") from None


def write_parts(blocks: Iterable[pa.Table], out: Path, count: int) -> None:
    """Writes blocks of predictions to numbered files, each atomically; `count` is the total for the progress line.

    Raises:
        UserError: If a part has many images and all of them fail.
    """
    number = max((int(file.stem.removeprefix("part-")) for file in out.glob("part-*.parquet")), default=-1)
    meter = Meter(count, "predicting", "img")
    for table in joined(blocks, meter):
        if table["error"].null_count == 0 and len(table) >= MANY:
            path, error = table["path"][0], table["error"][0]
            raise UserError(f"{path}: {error}, and so on for {len(table) - 1} others; is this where the images are?")
        number += 1
        _write(out / f"part-{number:05d}.parquet", table)
    meter.close()


def joined(blocks: Iterable[pa.Table], meter: Meter) -> Iterator[pa.Table]:
    """Joins blocks into parts of `PART_ROWS` rows, or of what arrived within `PART_SECONDS`."""
    waiting: list[pa.Table] = []
    for block in blocks:
        if not waiting:
            since = time.monotonic()
        waiting.append(block)
        meter.advance(count=len(block))
        if sum(map(len, waiting)) >= PART_ROWS or time.monotonic() - since > PART_SECONDS:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _write(file: Path, table: pa.Table) -> None:
    write_atomic(file, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
