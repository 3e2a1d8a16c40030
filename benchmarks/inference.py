"""Compares inference with several folds and views to other ways of doing it: python benchmarks/inference.py.

Five networks with different weights (which do not affect time) predict the same drawn JPEGs under 1, 2 and 5 views
(none, hflip, five_crop), once with small files and once with large ones. Measured in alternation, A B A B …:

- this project: `open_images` with nothing cached, then `predict`: each file is decoded once, hashed and checked
- a loop: for each fold and view, a DataLoader that decodes with OpenCV; same networks, precision, layout and allocator
  setting; its workers are started, and read all files once, before the clock starts, which favours it
- the networks alone, the same number of times on one resident batch: the limit

Then one network is compared with fastai's get_preds under one view, and with its tta under 5 views. fastai runs in its
default fp32 and decodes with Pillow at full size, so this project is measured in fp32 too; fastai runs as it comes and
with the allocator setting that this project uses (see time_to_accuracy.py).
fastai: pip install --no-deps --target .cache/peers -r benchmarks/requirements.txt (skipped if not installed).
Takes about 10 minutes on two cores.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from results import hardware, has_fastai, in_turn, peer_environment, ratios, spread, write_section  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from scenes.competition.sample import draw  # noqa: E402
from scenes.config import Config  # noqa: E402
from scenes.config_file import load_config  # noqa: E402
from scenes.console import say  # noqa: E402
from scenes.data.batches import resize  # noqa: E402
from scenes.data.images import open_images  # noqa: E402
from scenes.inference.models import fuse_bodies  # noqa: E402
from scenes.inference.predict import autocast, predict_as_configured  # noqa: E402
from scenes.inference.views import VIEWS, View  # noqa: E402
from scenes.model.backbone import Classifier  # noqa: E402
from scenes.model.device import choose_device, choose_precision  # noqa: E402
from scenes.script import add_settings_option, run  # noqa: E402

FOLDS, CLASSES = 5, 6
VIEW_SETS = ("none", "hflip", "five_crop")


class Files(Dataset):
    """Image files that are decoded on each access."""

    def __init__(self, paths: Sequence[Path], side: int) -> None:
        self.paths, self.side = paths, side

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> torch.Tensor:
        image = cv2.cvtColor(cv2.imread(str(self.paths[row])), cv2.COLOR_BGR2RGB)
        return torch.from_numpy(resize(image, self.side))


class Bench:
    """The networks, and different ways to predict with them; each returns seconds."""

    def __init__(self, config: Config, folds: int) -> None:
        self.config, self.device = config, choose_device()
        self.precision = choose_precision(config.infer.precision, self.device)
        made = [Classifier(config.model, config.predict_size, CLASSES) for _ in range(folds)]
        self.models = [model.to(self.device, memory_format=torch.channels_last).eval() for model in made]
        fuse_bodies(self.models, config.predict_size)  # for the loop and the limit too

    def own(self, paths: Sequence[Path], views: Sequence[View]) -> float:
        """This project's way."""
        with tempfile.TemporaryDirectory() as cache:
            start = time.perf_counter()
            images, bad = open_images(paths, self.config.predict_size, Path(cache), "test")
            assert images is not None, bad
            predict_as_configured(self.config, self.models, images, np.arange(len(paths)), views, self.device)
            return time.perf_counter() - start

    def loop(self, paths: Sequence[Path], views: Sequence[View]) -> float:
        """Decodes again for each fold and view."""
        size, workers = self.config.predict_size, torch.get_num_threads()
        loaders = {
            view.canvas(size): DataLoader(
                Files(paths, view.canvas(size)),
                self.config.infer.batch_size,
                num_workers=workers,
                persistent_workers=True,
                worker_init_fn=lambda _: cv2.setNumThreads(0),
            )
            for view in views
        }
        for loader in loaders.values():
            list(loader)
        start = time.perf_counter()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for model in self.models:
                for view in views:
                    for canvas in loaders[view.canvas(size)]:
                        seen = view.apply(canvas.to(self.device), size).permute(0, 3, 1, 2)
                        model(seen).float().softmax(-1).cpu()
        return time.perf_counter() - start

    def limit(self, count: int, views: int) -> float:
        """The networks alone."""
        size, batch = self.config.predict_size, self.config.infer.batch_size
        images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, device=self.device)
        start = time.perf_counter()
        with torch.inference_mode(), autocast(self.device, self.precision):
            for model in self.models:
                for _ in range(views):
                    for begun in range(0, count, batch):
                        seen = images[: min(batch, count - begun)].permute(0, 3, 1, 2)
                        model(seen).float().softmax(-1).cpu()
        return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and writes the section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=96, help="small files; fastai gets five times as many")
    parser.add_argument("--large", type=int, default=24, help="large files")
    parser.add_argument("--large-size", type=int, default=2000, help="their height and width in pixels")
    parser.add_argument("--repeats", type=int, default=3)
    add_settings_option(parser)
    arguments = parser.parse_args(argv)
    config = load_config(ROOT / "configs/effnet_lite0.yaml", ["infer.image_size=null", *arguments.set])
    bench = Bench(config, FOLDS)
    with tempfile.TemporaryDirectory() as folder:
        small = draw_files(Path(folder) / "small", arguments.images * 5, config.image_size)
        large = draw_files(Path(folder) / "large", arguments.large, arguments.large_size)
        lines = [
            "| | views | this project | a loop | the networks alone | loop / this | this / alone |",
            "|" + "---|" * 7,
        ]
        for what, paths in (
            (f"{config.image_size} px", small[: arguments.images]),
            (f"{arguments.large_size} px", large),
        ):
            for views in VIEW_SETS:
                lines.append(compare(bench, f"{len(paths)} files of {what}", paths, VIEWS[views], arguments.repeats))
                say(lines[-1])
        lines += ["", *compare_with_fastai(config, small, arguments.repeats)]
    given = f" --set {' '.join(arguments.set)}" if arguments.set else ""
    about = (
        f"`python benchmarks/inference.py{given}`: {config.model.name} at {config.predict_size} px, {FOLDS} folds, "
        f"{bench.precision}; seconds, median (range) of n = {arguments.repeats}. {hardware()}."
    )
    text = "\n".join([about, "", *lines])
    write_section("inference", "Inference", text)


def draw_files(folder: Path, count: int, size: int) -> list[Path]:
    """Draws JPEGs; large ones are drawn small, enlarged, and given noise so that the files are as large as photos'."""
    draw(folder, train_rows=max(12, min(count, 240)), test_rows=6, size=min(size, 150))
    drawn, wanted = sorted((folder / "SceneImages").glob("*.jpg")), folder / "wanted"
    wanted.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        image = cv2.resize(cv2.imread(str(drawn[number % len(drawn)])), (size, size), interpolation=cv2.INTER_CUBIC)
        grain = generator.normal(0, 6, (size, size, 1)).astype(np.float32)
        cv2.imwrite(str(wanted / f"{number:06}.jpg"), np.clip(image + grain, 0, 255).astype(np.uint8))
    return sorted(wanted.glob("*.jpg"))


def compare(bench: Bench, what: str, paths: list[Path], views: Sequence[View], repeats: int) -> str:
    """Returns a line of the table."""
    bench.limit(1, 1)  # warms up
    found = in_turn(
        repeats,
        {
            "own": lambda: bench.own(paths, views),
            "loop": lambda: bench.loop(paths, views),
            "limit": lambda: bench.limit(len(paths), len(views)),
        },
    )
    times = " | ".join(spread(found[name]) for name in ("own", "loop", "limit"))
    faster, over = ratios(found["loop"], found["own"]), ratios(found["own"], found["limit"])
    return f"| {what} | {len(views)} | {times} | {spread(faster, 2)} | {spread(over, 3)} |"


def compare_with_fastai(config: Config, paths: list[Path], repeats: int) -> list[str]:
    """Compares one network under one and five views with fastai."""
    if not has_fastai():
        say("fastai: skipped because it is not installed; see benchmarks/requirements.txt")
        return []
    full = config.model_copy(update={"infer": config.infer.model_copy(update={"precision": "fp32"})})
    benches = [Bench(full, 1), Bench(config, 1)]
    measures: dict[str, Callable[[], list[float]]] = {}
    for bench in benches:
        measures[f"this project, {bench.precision}"] = partial(own_times, bench, paths)
    measures["fastai, fp32, as it comes"] = partial(fastai_times, config, paths, keeps_memory=False)
    measures["fastai, fp32, with the allocator setting"] = partial(fastai_times, config, paths, keeps_memory=True)
    found = in_turn(repeats, measures)
    first = next(iter(found))
    lines = [f"| one network, {len(paths)} small files | 1 view | over {first} | 5 views | over {first} |"]
    lines.append("|---|---|---|---|---|")
    for name, times in found.items():
        cells = [name]
        for views in range(2):
            taken, base = ([pair[views] for pair in values] for values in (times, found[first]))
            cells += [spread(taken), spread(ratios(taken, base), 2)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def own_times(bench: Bench, paths: list[Path]) -> list[float]:
    """Returns the seconds under one view and under five."""
    return [bench.own(paths, VIEWS[views]) for views in ("none", "five_crop")]


def fastai_times(config: Config, paths: list[Path], keeps_memory: bool) -> list[float]:
    """Returns the seconds that fastai's get_preds and tta take in a separate process."""
    out = paths[0].parents[1] / "seconds.json"
    options = ["--model", config.model.name.partition(".")[0], "--size", config.predict_size]
    options += ["--batch", config.infer.batch_size, "--images", len(paths)]
    command = [sys.executable, ROOT / "benchmarks/peers/fastai_inference.py", paths[0].parent, out, *options]
    subprocess.run([str(part) for part in command], check=True, env=peer_environment(keeps_memory))
    seconds = json.loads(out.read_text())
    return [seconds["get_preds"], seconds["tta"]]


if __name__ == "__main__":
    run(main)
