"""Time and memory as the number of images grows: python benchmarks/scaling.py [--sizes 1000 4000 16000 64000].

Each size runs in its own process, forked after all imports: it checks the CSVs, decodes into a new cache, groups rows
and makes the folds (all as train.py does before it trains), opens everything again as a second run would, goes through
all training batches once without a network, and predicts every image with timm's smallest test network. The last line
is the time per image at the largest size over that at the size before: 1.00 means that time is linear.

The images are drawings with noise, so that no two are the same. Memory is the process's own at its peak (RssAnon); it
excludes the program's files, the cache's pages, which the kernel can reclaim, and the loader's workers. The last line
shows how many bytes each further image adds. Needs Linux. Takes about 8 minutes on two cores.
"""

import argparse
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, TypeVar

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from results import hardware, write_section  # noqa: E402

from scenes.competition.sample import draw  # noqa: E402
from scenes.config import Config  # noqa: E402
from scenes.config_file import load_config  # noqa: E402
from scenes.console import say  # noqa: E402
from scenes.data.augment import AugmentedImages  # noqa: E402
from scenes.data.batches import Schedule, StepSampler, train_loader  # noqa: E402
from scenes.inference.predict import predict_as_configured  # noqa: E402
from scenes.inference.views import PLAIN  # noqa: E402
from scenes.script import add_settings_option, run  # noqa: E402
from scenes.training.job import Job  # noqa: E402
from scenes.training.prepare import prepare  # noqa: E402

T = TypeVar("T")
STATUS = Path("/proc/self/status")
STAGES = ("first preparation", "preparation again", "training batches", "prediction")
DRAWINGS = 240  # how many different ones


class Measured(NamedTuple):
    """What one size took: seconds by stage, and MiB."""

    images: int
    seconds: dict[str, float]
    start_mib: float
    peak_mib: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measures all sizes and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 4000, 16_000, 64_000], metavar="N")
    parser.add_argument("--pixels", type=int, default=64, help="height and width of each image")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)
    fork = multiprocessing.get_context("fork")  # otherwise each process's imports would count
    found = []
    for count in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            settings = ["model.name=test_efficientnet", "model.weights=none", f"image_size={arguments.pixels}"]
            settings += ["infer.image_size=null", "train.linear_probe=false", "recipe=near", *arguments.set]
            settings += [f"data.root={folder}/input", f"data.cache={folder}/cache"]
            config = load_config(ROOT / "configs/effnet_lite0.yaml", settings)
            draw_many(config.data.root, count, arguments.pixels)
            with ProcessPoolExecutor(1, fork) as pool:
                found.append(pool.submit(measure, config, count).result())
        say(line(found[-1]))
    given = f" --set {' '.join(arguments.set)}" if arguments.set else ""
    about = (
        f"`python benchmarks/scaling.py{given}`: images of {arguments.pixels} px; seconds by stage, MiB of memory "
        f"owned by the process; one measurement per size. {hardware()}."
    )
    text = "\n".join([about, "", *table(found)])
    write_section("scaling", "Scaling", text)


def draw_many(root: Path, count: int, size: int) -> None:
    """Makes a competition with that many different images and no test.csv."""
    drawings = root.with_name("drawings")
    draw(drawings, train_rows=min(count, DRAWINGS), test_rows=6, size=size)
    rows = [row.split(",") for row in (drawings / "train.csv").read_text().split()[1:]]
    images = [cv2.imread(str(drawings / "SceneImages" / name)) for name, _ in rows]
    (root / "SceneImages").mkdir(parents=True)
    lines = ["image_name,label"]
    generator = np.random.default_rng(0)
    for number in range(count):
        kind = number % len(rows)
        grain = generator.integers(0, 8, images[kind].shape, np.uint8)
        cv2.imwrite(str(root / "SceneImages" / f"{number}.jpg"), cv2.add(images[kind], grain))
        lines.append(f"{number}.jpg,{rows[kind][1]}")
    (root / "train.csv").write_text("\n".join(lines) + "\n")


def measure(config: Config, count: int) -> Measured:
    """Goes through the stages in this process."""
    owned, ended = [own_mib()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            owned.append(own_mib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    seconds: dict[str, float] = {}

    def timed(stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - start
        return result

    try:
        timed(STAGES[0], lambda: prepare(config, [0]))
        job = timed(STAGES[1], lambda: prepare(config, [0]))
        timed(STAGES[2], lambda: all_batches(job))
        model, rows = job.new_model(), np.arange(count)
        timed(STAGES[3], lambda: predict_as_configured(config, [model], job.data.images, rows, [PLAIN], job.device))
    finally:
        ended.set()
        watcher.join()
    return Measured(count, seconds, owned[0], max(owned))


def all_batches(job: Job) -> None:
    """Goes through one epoch of augmented batches of all rows."""
    config, rows = job.config, np.arange(len(job.data.table))
    schedule = Schedule(rows, 1, config.train.batch_size, config.seed, 0)
    pictures = AugmentedImages(job.data.images, config.augment, config.image_size, config.seed, 0)
    steps = StepSampler(schedule, 0)
    for _ in train_loader(pictures, steps, config.loader.workers, job.device, 3 * config.image_size**2):
        pass


def own_mib() -> float:
    """Returns this process's memory that is not backed by files."""
    found = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(found.split()[1]) / 1024


def line(measured: Measured) -> str:
    """Returns one size's line of the table."""
    cells = [f"{measured.seconds[stage]:.2f}" for stage in STAGES]
    cells += [f"{sum(measured.seconds.values()):.2f}", f"{measured.peak_mib - measured.start_mib:.0f}"]
    return f"| {measured.images} | {' | '.join(cells)} |"


def table(found: Sequence[Measured]) -> list[str]:
    """Returns all sizes, and the cost of the last step relative to linear growth."""
    lines = [f"| images | {' | '.join(STAGES)} | total | memory |", "|" + "---|" * (len(STAGES) + 3)]
    lines += [line(measured) for measured in found]
    for few, many in list(pairwise(found))[-1:]:
        more = many.images / few.images
        cells = [f"{many.seconds[stage] / few.seconds[stage] / more:.2f}" for stage in STAGES]
        cells.append(f"{sum(many.seconds.values()) / sum(few.seconds.values()) / more:.2f}")
        each = (many.peak_mib - few.peak_mib) * 2**20 / (many.images - few.images)
        cells.append(f"{each:.0f} bytes per image")
        lines.append(f"| last step, relative to linear | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    run(main)
