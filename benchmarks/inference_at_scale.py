"""What a million images cost and what bounds it: python benchmarks/inference_at_scale.py [CONFIG] [--set KEY=VALUE …].

On a GPU: … configs/effnet_b3.yaml --images 200000 --set image_size=300 infer.batch_size=256

One network with random weights (time does not depend on what they are). First the stages by themselves: listing a
folder, decoding on one core, the transfer to a GPU if there is one, the network under one view, merging. Then
`infer.py --images` in processes of its own, on a list a quarter as long and on the whole: their difference has no
start-up in it. Their peak memory is to be the same, but for the rows of a part (16,384 images). The list names 512
drawn JPEGs over and over, so the disk is left out: docs/scale.md has its arithmetic.
Takes about 8 minutes on two cores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from results import hardware, in_turn, spread, write_section  # noqa: E402

from inference import draw_files  # noqa: E402
from scenes.competition.task import class_task  # noqa: E402
from scenes.config import Config, dump, load_config  # noqa: E402
from scenes.console import add_settings_option, run  # noqa: E402
from scenes.data.decode import decode  # noqa: E402
from scenes.data.folds import FULL  # noqa: E402
from scenes.data.images import kept_short_side  # noqa: E402
from scenes.files import write_text  # noqa: E402
from scenes.inference.files import walk_images  # noqa: E402
from scenes.inference.predict import PLAIN, VIEWS, predict_as_configured  # noqa: E402
from scenes.inference.shards import (  # noqa: E402
    DONE,
    MANIFEST,
    PART_ROWS,
    Digest,
    Done,
    Shard,
    make_table,
    merge,
    part_file,
)
from scenes.model.backbone import Classifier  # noqa: E402
from scenes.model.device import choose_device  # noqa: E402
from scenes.model.fusion import fuse_batch_norms  # noqa: E402
from scenes.model.weights import save_classifier  # noqa: E402
from scenes.runs import Run, write_json  # noqa: E402

CLASSES = "012345"
LARGE = 2000  # pixels
MERGED_PARTS = 8


class Command(NamedTuple):
    """What infer.py took: seconds and MiB at its peak, for the short list and for the long one."""

    seconds: tuple[float, float]
    peaks: tuple[float, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, default=ROOT / "configs/effnet_lite0.yaml")
    parser.add_argument("--images", type=int, default=8000, help="how long the longer list is")
    parser.add_argument("--drawn", type=int, default=512, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    add_settings_option(parser)
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, ["infer.image_size=null", "infer.tta=hflip", *arguments.set])
    with tempfile.TemporaryDirectory() as folder:
        text = measure(config, Path(folder), arguments.images, arguments.drawn, arguments.repeats)
    given = f" --set {' '.join(arguments.set)}" if arguments.set else ""
    about = f"`python benchmarks/inference_at_scale.py {os.path.relpath(arguments.config, ROOT)}{given}`: {hardware()}."
    write_section(f"inference at scale {config.name}", f"Inference at scale: {config.name}", f"{about}\n\n{text}")


def measure(config: Config, folder: Path, count: int, drawn: int, repeats: int) -> str:
    """Measures everything; returns the table."""
    small = draw_files(folder / "small", drawn, config.image_size)
    large = draw_files(folder / "large", max(2, drawn // 32), LARGE)
    device = choose_device()
    model = Classifier(config.model, config.predict_size, len(CLASSES)).eval()
    run_folder = make_run(config, model, folder)
    make_shard(folder / "merged")
    stages: dict[str, Callable[[], float]] = {
        "listing a folder": lambda: rate(len(small), lambda: list(walk_images(small[0].parent))),
        f"decoding {config.image_size} px JPEGs of {kilobytes(small)} kB, one core": lambda: decoding(config, small),
        f"decoding {LARGE} px JPEGs of {kilobytes(large)} kB, one core": lambda: decoding(config, large),
    }
    if device.type == "cuda":
        stages["transfer to the GPU"] = lambda: transfer(config, device)
    model.to(device, memory_format=torch.channels_last)
    model.body = fuse_batch_norms(model.body, config.predict_size)  # as infer.py has it
    stages["one network under one view"] = lambda: network(config, model, small, device)
    stages["`infer.py --merge`, one core"] = lambda: merging(folder / "merged")
    for stage in stages.values():
        stage()  # warms up
    lines = ["| | images a second | hours for a million |", "|---|---|---|"]
    lines += [line(name, rates) for name, rates in in_turn(repeats, stages).items()]
    found = [command(run_folder, small, folder / str(number), (count // 4, count)) for number in range(repeats)]
    rates = [(count - count // 4) / (ended.seconds[1] - ended.seconds[0]) for ended in found]
    lines.append(line(f"`infer.py --images`, one network, {len(VIEWS[config.infer.tta])} views", rates))
    start_up = [ended.seconds[0] - count // 4 / rate for ended, rate in zip(found, rates, strict=True)]
    peaks = [spread([ended.peaks[which] for ended in found], 0) for which in (0, 1)]
    memory = f"peak memory {peaks[0]} MiB with {count // 4} images, {peaks[1]} MiB with {count}"
    about = f"Median and range, n = {repeats}. The command's start-up: {spread(start_up)} s; its {memory}."
    return "\n".join([*lines, "", about])


def make_run(config: Config, model: Classifier, folder: Path) -> Run:
    """A run's folder with what infer.py needs."""
    made = Run(folder / config.name)
    write_text(made.config_file, dump(config))
    save_classifier(model, made.weights_file(FULL), class_task(CLASSES), config.name)
    return made


def make_shard(out: Path) -> None:
    """A finished shard of as many rows as `MERGED_PARTS` parts have."""
    rows, folder = MERGED_PARTS * PART_ROWS, out / Shard(1, 1).name
    probabilities = list(np.random.default_rng(0).dirichlet(np.ones(len(CLASSES)), PART_ROWS).astype(np.float32))
    folder.mkdir(parents=True)
    digest = Digest()
    for number in range(MERGED_PARTS):
        names = [f"a folder/{number * PART_ROWS + row:09d}.jpg" for row in range(PART_ROWS)]
        pq.write_table(make_table(names, probabilities, CLASSES), part_file(folder, number), compression="zstd")
        digest.add(names)
    write_json(folder / DONE, Done(0, 1, rows, 0, digest.hex())._asdict())
    write_json(out / MANIFEST, {"shards": 1, "list_bytes": 1, "part_rows": PART_ROWS})


def merging(out: Path) -> float:
    """Rows a second."""
    with redirect_stdout(StringIO()):
        return rate(MERGED_PARTS * PART_ROWS, lambda: merge(out))


def kilobytes(paths: Sequence[Path]) -> int:
    """The files' mean size."""
    return round(sum(path.stat().st_size for path in paths) / len(paths) / 1000)


def rate(count: int, work: Callable[[], object]) -> float:
    """Images per second."""
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def decoding(config: Config, paths: Sequence[Path]) -> float:
    """One thread reading and decoding files that are in memory already."""
    cv2.setNumThreads(1)
    return rate(len(paths), lambda: [decode(path, kept_short_side(config.predict_size)) for path in paths])


def transfer(config: Config, device: torch.device) -> float:
    """Pinned uint8 batches to a GPU."""
    size, batches = config.predict_size, 50
    batch = torch.zeros((config.infer.batch_size, size, size, 3), dtype=torch.uint8).pin_memory()

    def work() -> None:
        for _ in range(batches):
            batch.to(device, non_blocking=True)
        torch.cuda.synchronize(device)

    return rate(batches * len(batch), work)


def network(config: Config, model: Classifier, paths: Sequence[Path], device: torch.device) -> float:
    """Decoded images through `predict`: resized, transferred, one pass."""
    images = [decode(path, kept_short_side(config.predict_size)).pixels for path in paths]
    rows = np.arange(len(images))
    return rate(len(rows), lambda: predict_as_configured(config, [model], images, rows, [PLAIN], device))


def command(chosen: Run, paths: Sequence[Path], folder: Path, counts: tuple[int, int]) -> Command:
    """Runs infer.py on a list of each length."""
    seconds, peaks = [], []
    for count in counts:
        place = folder / str(count)
        write_text(place / "list.txt", "".join(f"{paths[number % len(paths)]}\n" for number in range(count)))
        options = ["--run", chosen.folder, "--images", place / "list.txt", "--out", place / "out"]
        start = time.perf_counter()
        with (place / "log.txt").open("w") as log:
            process = subprocess.Popen([sys.executable, ROOT / "src/infer.py", *options], stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss / 1024)
        if status:
            sys.exit((place / "log.txt").read_text())
    return Command((seconds[0], seconds[1]), (peaks[0], peaks[1]))


def line(name: str, rates: Sequence[float]) -> str:
    """A stage's row of the table."""
    return f"| {name} | {spread(rates, 0)} | {spread([1e6 / rate / 3600 for rate in rates], 3)} |"


if __name__ == "__main__":
    run(main)
