"""Trains configs as they ship and writes their scores into README.md.

    python benchmarks/accuracy.py [configs/NAME.yaml …] [--competition scenes] [--parallel auto] [--set KEY=VALUE …]

--set gives what belongs to the competition, such as data.root and metric; everything else stays as the config ships.
The run is runs/NAME, or runs/COMPETITION.NAME for a competition other than scenes. A finished run is not trained again.
The table has a row for each such run that predicts classes.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
START, END = "<!-- scores -->", "<!-- /scores -->"
FIRST, SAMPLE = "scenes", "sample"
HEADER = """\
| competition | config | accuracy ± s.e. | log loss | ECE | n | folds | minutes a fold | commit | hardware |
|---|---|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Trains the requested configs, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="experiments to train first; without any, only the table")
    parser.add_argument("--competition", default=FIRST, help="its name in the table (default: %(default)s)")
    parser.add_argument("--parallel", help="as in train.py")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="what belongs to the competition")
    arguments = parser.parse_args()
    options = ["--parallel", arguments.parallel] if arguments.parallel else []
    for config in arguments.configs:
        name = config.stem if arguments.competition == FIRST else f"{arguments.competition}.{config.stem}"
        settings = ["--set", f"name={name}", *arguments.set]
        train = [sys.executable, ROOT / "src/train.py", config.resolve()]
        subprocess.run([*train, *options, *settings], cwd=ROOT, check=True)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{START}\n{table()}\n{END}{after}", encoding="utf-8")
    print(table())


def table() -> str:
    """Returns the Markdown table: runs by competition and score, then the configs not yet measured."""
    configs = {file.stem for file in (ROOT / "configs").glob("*.yaml")}
    measured: list[tuple[str, float, str]] = []
    for file in (ROOT / "runs").glob("*/metrics.json"):
        *competition, config = file.parent.name.rsplit(".", 1)
        metrics = json.loads(file.read_text())
        if config in configs and metrics["task"]["kind"] == "classes":
            environment = json.loads((file.parent / "environment.json").read_text())
            name = competition[0] if competition else SAMPLE if config == "quickstart" else FIRST
            measured.append((name, metrics["accuracy"], row(name, config, metrics, environment)))
    waiting = sorted(configs - {line.split("`")[1] for _, _, line in measured})
    note = "Not measured yet: " + ", ".join(f"`{name}`" for name in waiting) + "." if waiting else ""
    return "\n".join([HEADER, *(line for _, _, line in sorted(measured)), "", note]).rstrip()


def row(competition: str, config: str, metrics: dict[str, Any], environment: dict[str, Any]) -> str:
    """Returns one run's line."""
    minutes = [fold["seconds"] / 60 for fold in metrics["per_fold"].values() if fold["seconds"]]
    device, threads = re.sub(r"\s+", " ", environment["devices"][0]), environment["cpu_threads"]
    cells = (
        competition,
        f"`{config}`",
        f"{metrics['accuracy']:.4f} ± {metrics['accuracy_se']:.4f}{' (optimistic)' * bool(metrics['optimistic'])}",
        f"{metrics['log_loss']:.4f}",
        f"{metrics['calibration']['ece_after']:.4f}",
        metrics["n"],
        f"{len(metrics['folds'])} of {metrics['of']}",
        f"{sum(minutes) / len(minutes):.1f}",
        (environment["commit"] or "")[:7],
        device if "NVIDIA" in device else f"{threads} core{'s' * (threads > 1)}, {device}",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
