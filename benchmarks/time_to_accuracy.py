"""Wall-clock time from the CSV to fixed validation accuracies: python benchmarks/time_to_accuracy.py [--folds 0-4].

EfficientNet-Lite0 is trained from the same ImageNet weights, at 150 px, on the same folds by

- this project: the probe, and one, three and five epochs,
- fastai's fine_tune: with its defaults, and tuned (frozen batch norm statistics, this project's crops, channels last),
- a plain PyTorch loop (benchmarks/peers/).

This project tells glibc to keep freed memory, which doubles the speed of training on a CPU. So each peer is measured
twice: as it comes, and with environment variables that have the same effect (arms that end in "-malloc").

Each trial is a separate process that starts with nothing cached. The clock runs from its start until an accuracy on the
fold's held-out rows is known: start-up, decoding, features, probe, training and validation count for all arms.
Accuracies are taken after the probe and after each epoch.

The time to an accuracy is that of the first point that reaches it. The table shows the median over folds and the range,
and "not reached" if half of the folds or more did not; for such a peer, the length of its training is a lower bound.
A peer with several learning rates uses the one with the best last accuracy on the first fold; the search is not timed.

fastai: pip install --no-deps --target .cache/peers -r benchmarks/requirements.txt (skipped if not installed).
--against CHECKOUT measures this project's arms with another checkout of it too.

A finished trial is kept in runs/benchmarks/time_to_accuracy/ and not repeated, so an interrupted benchmark resumes.
Delete the folder to measure again.
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import pandas as pd  # noqa: E402
from results import hardware, has_fastai, peer_environment, spread, write_section  # noqa: E402

from scenes.config import Config  # noqa: E402
from scenes.config_file import load_config  # noqa: E402
from scenes.console import say  # noqa: E402
from scenes.environment import commit_of  # noqa: E402
from scenes.files import write_text  # noqa: E402
from scenes.runs import parse_folds  # noqa: E402
from scenes.script import add_settings_option, run  # noqa: E402

LEVELS = (0.88, 0.90, 0.91, 0.92, 0.93)
KEPT = Path("runs/benchmarks/time_to_accuracy")
FASTAI_RATES = (1e-3, 2e-3)
TUNED = ("--tuned", "--channels-last")
KEEPS_MEMORY = "-malloc"  # suffix of a peer that runs with the allocator setting


class Ours(NamedTuple):
    """A config of this project, with settings; another checkout does not get the `newer` ones."""

    label: str
    config: str
    settings: tuple[str, ...] = ()
    newer: tuple[str, ...] = ()
    root: Path = ROOT  # of the checkout


class Peer(NamedTuple):
    """A script of benchmarks/peers with its options; the first fold chooses among the learning rates."""

    label: str
    script: str
    rates: tuple[float, ...]
    options: tuple[str, ...] = ()
    epochs: int | None = None  # None: as given with --epochs
    keeps_memory: bool = False


Arm = Ours | Peer
SMOOTHED, LAST = "train.label_smoothing=0.1", "train.average_epochs=1"  # the config's own are for five epochs
OURS = {
    "probe": Ours("this project, the probe", "configs/effnet_lite0_probe.yaml"),
    "one-epoch": Ours("this project, 1 epoch", "configs/effnet_lite0.yaml", ("train.epochs=1", SMOOTHED), (LAST,)),
    "three-epochs": Ours("this project, 3 epochs", "configs/effnet_lite0.yaml", ("train.epochs=3", SMOOTHED), (LAST,)),
    "five-epochs": Ours("this project, 5 epochs", "configs/effnet_lite0.yaml"),
}
PEERS = {
    "plain-loop": Peer("plain PyTorch loop", "plain_loop.py", (1e-3,)),
    "fastai": Peer("fastai, defaults", "fastai_peer.py", (2e-3,)),
    "fastai-tuned": Peer("fastai, tuned", "fastai_peer.py", FASTAI_RATES, TUNED),
    "fastai-one": Peer("fastai, tuned, 1 epoch", "fastai_peer.py", FASTAI_RATES, TUNED, epochs=1),
}
ARMS: dict[str, Arm] = {**OURS}
for name, plain in PEERS.items():
    ARMS[name] = plain._replace(label=f"{plain.label}, as it comes")
    ARMS[name + KEEPS_MEMORY] = plain._replace(label=f"{plain.label}, with the allocator setting", keeps_memory=True)


class Point(NamedTuple):
    """An accuracy on held-out rows, and when it was known, in seconds since process start."""

    seconds: float
    accuracy: float


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the trials that have not been run yet and writes their section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folds", default="0-4", help="as in train.py")
    parser.add_argument("--peer-folds", help="folds for the peers, which take over an hour; by default the same")
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=", ".join(ARMS))
    parser.add_argument("--epochs", type=int, default=2, help="epochs for each peer")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, to compare with")
    add_settings_option(parser, "settings of all arms, e.g. data.root=DIR")
    arguments = parser.parse_args(argv)
    arms = chosen_arms(arguments.only, arguments.against)
    root = load_config(ROOT / "configs/effnet_lite0.yaml", arguments.set).data.root.resolve()
    settings = [*arguments.set, f"data.root={root}"]  # absolute: each trial runs in its own folder
    config = load_config(ROOT / "configs/effnet_lite0.yaml", ["recipe=near", *settings])
    folds = parse_folds(arguments.folds, config.data.folds)
    peer_folds = parse_folds(arguments.peer_folds or arguments.folds, config.data.folds)
    results: dict[str, list[list[Point]]] = {}
    labels = {}
    for name, arm in arms.items():
        if isinstance(arm, Peer) and "fastai" in arm.script and not has_fastai():
            say(f"{arm.label}: skipped because fastai is not installed; see benchmarks/requirements.txt")
            continue
        labels[name] = arm.label
        if isinstance(arm, Ours):
            results[name] = [ours(arm, settings, fold) for fold in folds]
        else:
            inputs = peer_inputs(config)
            epochs = arm.epochs or arguments.epochs
            rate = best_rate(arm, config, inputs, peer_folds[0], epochs)
            labels[name] += f", rate {rate:g}"
            results[name] = [peer(arm, config, inputs, fold, epochs, rate) for fold in peer_folds]
    given = " ".join(["python benchmarks/time_to_accuracy.py", *(sys.argv[1:] if argv is None else argv)])
    about = (
        f"`{given}`: seconds since process start, median (range) over n = {len(folds)} folds, {len(peer_folds)} "
        f"for peers; peers train {arguments.epochs} epochs unless named otherwise. {hardware()}."
    )
    text = "\n".join([about, "", *table(results, labels), "", *comparison(results, arms)]).rstrip()
    write_section("time to accuracy", "Time to accuracy", text)


def chosen_arms(names: Sequence[str], against: Path | None) -> dict[str, Arm]:
    """Returns the arms by name, followed by this project's arms with another checkout, if one is given."""
    arms = {name: ARMS[name] for name in names}
    own = {name: arm for name, arm in arms.items() if isinstance(arm, Ours)}
    if against:
        for name, arm in own.items():
            arms[f"before-{name}"] = arm._replace(label=f"before: {arm.label}", newer=(), root=against.resolve())
    return arms


def ours(arm: Ours, settings: list[str], fold: int) -> list[Point]:
    """Trains one fold with src/train.py."""
    settings = [*settings, *arm.settings, *arm.newer]
    asked = [arm.config, *settings, f"fold {fold}", str(arm.root), str(commit_of(arm.root))]

    def measure(scratch: Path) -> list[Point]:
        command = [sys.executable, *(str(arm.root / file) for file in ("src/train.py", arm.config))]
        command += ["--folds", str(fold), "--set"]
        command += [*settings, "name=trial", "report=false"]
        started, times = time.time(), []
        with subprocess.Popen(command, cwd=scratch, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            for line in process.stdout:
                print(line, end="", flush=True)
                if re.match(rf"  fold{fold} (linear probe|probe|epoch \d+)\b", line):
                    times.append(time.time() - started)
        if process.returncode:
            sys.exit(process.returncode)
        history = pd.read_csv(scratch / f"runs/trial/fold{fold}/history.csv")
        if history["epoch"].iloc[-1] > 0:  # the final prediction validates the last epoch
            times[-1] = time.time() - started
        return [Point(*pair) for pair in zip(times, history["val_accuracy"].tolist(), strict=True)]

    return kept(f"{Path(arm.config).stem}-fold{fold}", asked, measure)


def peer(arm: Peer, config: Config, inputs: Path, fold: int, epochs: int, rate: float) -> list[Point]:
    """Trains one fold with a peer."""
    model = ["--model", config.model.name.partition(".")[0], "--size", str(config.image_size)]
    model += ["--batch", str(config.train.batch_size), "--rate", str(rate), *arm.options]
    asked = [arm.script, str(config.data.root.resolve()), inputs.name, f"fold {fold}", f"{epochs} epochs", *model]
    asked += ["with the allocator setting"] if arm.keeps_memory else []

    def measure(scratch: Path) -> list[Point]:
        out = scratch / "points.json"
        given = [config.data.root.resolve(), inputs / "folds.csv", fold, epochs, out]
        command = [sys.executable, str(ROOT / "benchmarks/peers" / arm.script), *map(str, given), *model]
        command += ["--weights", str(inputs / "weights.safetensors")]
        subprocess.run(command, cwd=scratch, check=True, env=peer_environment(arm.keeps_memory))
        return [Point(**point) for point in json.loads(out.read_text())["points"]]

    return kept(f"{Path(arm.script).stem}-fold{fold}", asked, measure)


def best_rate(arm: Peer, config: Config, inputs: Path, fold: int, epochs: int) -> float:
    """Returns the learning rate with the best last accuracy on a fold.

    The search always uses the allocator setting, which does not change accuracy and halves the time.
    """
    if len(arm.rates) == 1:
        return arm.rates[0]
    arm = arm._replace(keeps_memory=True)
    last = {rate: peer(arm, config, inputs, fold, epochs, rate)[-1].accuracy for rate in arm.rates}
    say(f"{arm.label}: " + ", ".join(f"rate {rate:g} → {accuracy:.4f}" for rate, accuracy in last.items()))
    return max(last, key=lambda rate: last[rate])


def kept(name: str, asked: list[str], measure: Callable[[Path], list[Point]]) -> list[Point]:
    """Returns the points of a trial, which is run unless its result has been kept."""
    digest = blake2b("\n".join(asked).encode(), digest_size=4).hexdigest()
    file = KEPT / f"{name}-{digest}.json"
    if not file.exists():
        say(" ".join(asked))
        with tempfile.TemporaryDirectory() as scratch:
            points = measure(Path(scratch))
        content = {"asked": asked, "points": [point._asdict() for point in points]}
        write_text(file, json.dumps(content, indent=2) + "\n")
    return [Point(**point) for point in json.loads(file.read_text())["points"]]


def peer_inputs(config: Config) -> Path:
    """Writes the folds and the initial weights for the peers, once."""
    from safetensors.torch import save_file

    from scenes.model.backbone import create_body
    from scenes.training.prepare import prepare

    asked = config.model_dump_json(include={"data": True, "model": True, "image_size": True})
    folder = KEPT.resolve() / f"inputs-{blake2b(asked.encode(), digest_size=4).hexdigest()}"
    if not (folder / "folds.csv").exists():
        with tempfile.TemporaryDirectory() as scratch:
            fresh = config.data.model_copy(update={"cache": Path(scratch)})
            job = prepare(config.model_copy(update={"data": fresh}), [0])
        state = job.pretrained or create_body(config.model, config.image_size).state_dict()
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "weights.safetensors")
        write_text(folder / "folds.csv", job.data.fold_table().to_csv(index=False))
    return folder


def time_to(level: float, points: Sequence[Point]) -> float:
    """Returns when an accuracy was first reached; infinity if it never was."""
    return next((point.seconds for point in points if round(point.accuracy, 6) >= level), math.inf)  # fastai: float32


def table(results: Mapping[str, list[list[Point]]], labels: Mapping[str, str]) -> list[str]:
    """Returns one row per arm: the time to each accuracy, the last accuracy and when it was known."""
    header = f"| | {' | '.join(f'{level:.2f}' for level in LEVELS)} | last accuracy | after |"
    lines = [header, "|" + "---|" * (len(LEVELS) + 3)]
    for name, folds in results.items():
        cells = [seconds([time_to(level, points) for points in folds]) for level in LEVELS]
        cells.append(spread([points[-1].accuracy for points in folds], 4))
        cells.append(seconds([points[-1].seconds for points in folds]))
        lines.append(f"| {labels[name]} | {' | '.join(cells)} |")
    return lines


def seconds(times: Sequence[float]) -> str:
    """Formats the median and the range, and how many folds got there if not all did."""
    reached = [value for value in times if math.isfinite(value)]
    if not reached:
        return "not reached"
    middle = statistics.median(times)
    text = f"{middle:.0f} s" if math.isfinite(middle) else "not reached"
    share = f", {len(reached)} of {len(times)}" if len(reached) < len(times) else ""
    return f"{text} ({min(reached):.0f} to {max(reached):.0f}{share})"


def comparison(results: Mapping[str, list[list[Point]]], arms: Mapping[str, Arm]) -> list[str]:
    """Compares the median times of peers and the other checkout with this project's fastest arm, as multiples."""
    lines = []
    own = [name for name in results if name in OURS]
    others = [name for name in results if name not in OURS]
    for level in LEVELS:
        medians = {name: statistics.median(time_to(level, fold) for fold in folds) for name, folds in results.items()}
        best = min((medians[name] for name in own), default=math.inf)
        if math.isfinite(best) and others:
            multiples = ", ".join(
                f"{arms[name].label} {multiple(medians[name], results[name], best)}" for name in others
            )
            lines.append(f"- {level:.2f}: {best:.0f} s; {multiples}")
    return ["This project's fastest arm, and the others' times as multiples of it:", "", *lines] if lines else []


def multiple(median: float, folds: Sequence[Sequence[Point]], best: float) -> str:
    """A peer's time over the best; if it did not get there, the length of its training is a lower bound."""
    if math.isfinite(median):
        return f"{median / best:.1f} ×"
    return f"more than {statistics.median(points[-1].seconds for points in folds) / best:.1f} ×"


if __name__ == "__main__":
    run(main)
