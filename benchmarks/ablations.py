"""Measures each part of a recipe: python benchmarks/ablations.py configs/NAME.yaml [--folds 0,3] [--only …].

Each variant changes one thing and trains on the same folds; the table shows its difference from the config itself,
paired by row, with its standard error. `--set` changes the config for all variants, including the base. A finished
variant is not trained again (runs/NAME.VARIANT).
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from results import write_section  # noqa: E402

from scenes.competition.metric import log_losses, standard_error  # noqa: E402
from scenes.competition.scores import with_error  # noqa: E402

BASE = "the config itself"
VARIANTS: dict[str, list[str]] = {
    BASE: [],
    "batch norm in training mode": ["train.batch_norm=batch"],
    "head starts at random": ["train.linear_probe=false"],
    "layer decay 0.75": ["train.layer_decay=0.75"],
    "no average of the last epochs": ["train.average_epochs=1"],
    "augmentation medium": ["augment=medium"],
    "augmentation strong": ["augment=strong"],
    "mixup 0.2": ["train.mixup=0.2"],
    "cutmix 1.0": ["train.cutmix=1.0"],
    "drop path 0.1": ["model.drop_path=0.1"],
    "1 epoch": ["train.epochs=1"],
    "5 epochs": ["train.epochs=5"],
    "all stages train": ["train.trainable_stages=all"],
    "rate 1e-4": ["train.lr=1e-4"],
    "rate 2e-4": ["train.lr=2e-4"],
    "rate 4e-4": ["train.lr=4e-4"],
    "rate 8e-4": ["train.lr=8e-4"],
    "label smoothing 0": ["train.label_smoothing=0"],
    "predicting at 176 px": ["infer.image_size=176"],
}


def main() -> None:
    """Trains the variants and writes their section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--folds", default="0,3", help="as in train.py")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all variants")
    arguments = parser.parse_args()
    config = arguments.config
    tables = {}
    for variant in dict.fromkeys([BASE, *arguments.only]):
        tables[variant] = held_out(config, variant, arguments.folds, arguments.set)
    base = tables[BASE]
    header = ["| variant | accuracy | − base | log loss | − base |", "|---|---|---|---|---|"]
    lines = [line(variant, table, base) for variant, table in tables.items()]
    settings = f" --set {' '.join(arguments.set)}" if arguments.set else ""
    about = f"`python benchmarks/ablations.py {config} --folds {arguments.folds}{settings}`: {len(base)} held-out rows."
    text = "\n".join([about, "", *header, *lines])
    title = " ".join([f"Ablations: {config.stem}", *arguments.set])
    write_section(title.lower(), title, text)


def held_out(config: Path, variant: str, folds: str, common: list[str]) -> pd.DataFrame:
    """Trains a variant unless it is finished; returns its out-of-fold predictions by image name."""
    name = ".".join("-".join(re.findall(r"[\w.]+", part)) for part in (config.stem, *common, variant))
    settings = [*common, *VARIANTS[variant], f"name={name}", "report=false"]
    command = [sys.executable, ROOT / "src/train.py", config.resolve(), "--folds", folds, "--set", *settings]
    subprocess.run(command, cwd=ROOT, check=True)
    return pd.read_csv(ROOT / "runs" / name / "oof.csv", dtype={"label": str}).set_index("image_name").sort_index()


def line(variant: str, table: pd.DataFrame, base: pd.DataFrame) -> str:
    """Returns one variant's row of the table."""
    cells = []
    for scores, others in zip(rowwise(table), rowwise(base), strict=True):
        difference = scores - others
        cells.append(with_error(float(scores.mean()), standard_error(scores)))
        cells.append(f"{difference.mean():+.4f} ± {standard_error(difference):.4f}" if difference.any() else "")
    return f"| {variant} | {' | '.join(cells)} |"


def rowwise(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each row whether it is right, and its log loss."""
    classes = list(table.columns[2:])
    probabilities = table[classes].to_numpy()
    targets = table["label"].map({name: number for number, name in enumerate(classes)}).to_numpy()
    return (probabilities.argmax(1) == targets).astype(float), log_losses(probabilities, targets)


if __name__ == "__main__":
    main()
