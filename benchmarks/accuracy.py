"""Trains configs as they ship and writes their scores into README.md: python benchmarks/accuracy.py configs/….

A finished run is not trained again. The table has a row for each run in runs/ that is named like a shipped config.
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


def main() -> None:
    """Trains what is asked for, then writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("configs", nargs="*", type=Path, help="experiments to train first; none: only the table")
    parser.add_argument("--folds", help="as in train.py")
    arguments = parser.parse_args()
    for config in arguments.configs:
        folds = ["--folds", arguments.folds] if arguments.folds else []
        subprocess.run([sys.executable, ROOT / "src/train.py", config.resolve(), *folds], cwd=ROOT, check=True)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{START}\n{table()}\n{END}{after}", encoding="utf-8")
    print(table())


def table() -> str:
    """The Markdown table: measured configs by score, then those that wait for a machine or for weights."""
    measured, waiting = [], []
    for config in sorted((ROOT / "configs").glob("*.yaml")):
        metrics = ROOT / "runs" / config.stem / "metrics.json"
        if metrics.exists():
            measured.append((config.stem, json.loads(metrics.read_text())))
        else:
            waiting.append(config.stem)
    measured.sort(key=lambda pair: pair[1]["accuracy"])
    lines = [
        "| config | accuracy ± s.e. | log loss | n | folds | minutes a fold | hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [row(name, metrics) for name, metrics in measured]
    note = "Not measured yet: " + ", ".join(f"`{name}`" for name in waiting) + "." if waiting else ""
    return "\n".join([*lines, "", note]).rstrip()


def row(name: str, metrics: dict[str, Any]) -> str:
    """One config's line."""
    environment = json.loads((ROOT / "runs" / name / "environment.json").read_text())
    minutes = [fold["seconds"] / 60 for fold in metrics["per_fold"].values() if fold["seconds"]]
    folds = f"{len(metrics['folds'])} of {metrics['of']}"
    mark = " (optimistic)" if metrics["optimistic"] else ""
    device = re.sub(r"\s+", " ", environment["devices"][0])
    threads = environment["cpu_threads"]
    cores = f"{threads} core{'s' * (threads > 1)}, "
    hardware = device if "GPU" in device or "NVIDIA" in device else cores + device
    score = f"{metrics['accuracy']:.4f} ± {metrics['accuracy_se']:.4f}{mark}"
    average = sum(minutes) / len(minutes)
    return f"| `{name}` | {score} | {metrics['log_loss']:.4f} | {metrics['n']} | {folds} | {average:.1f} | {hardware} |"


if __name__ == "__main__":
    main()
