"""What each part of a recipe is worth: python benchmarks/ablations.py configs/NAME.yaml [--folds 0,3] [--only …].

Each variant changes one thing and is trained on the same folds; the table shows its difference to the config as it
ships, paired by row, with its standard error. What is trained already is not trained again (runs/NAME.VARIANT).
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from results import write_section  # noqa: E402

from scenes.metrics import log_losses, standard_error  # noqa: E402

VARIANTS = {
    "as it ships": [],
    "batch norm in training mode": ["train.batch_norm=batch"],
    "head starts at random": ["train.linear_probe=false"],
    "layer decay 0.75": ["train.layer_decay=0.75"],
    "averaged weights (EMA 0.98)": ["train.ema_decay=0.98"],
    "augmentation medium": ["augment=medium"],
    "augmentation strong": ["augment=strong"],
    "mixup 0.2": ["train.mixup=0.2"],
    "cutmix 1.0": ["train.cutmix=1.0"],
    "drop path 0.1": ["model.drop_path=0.1"],
    "sizes 112, 150, 150": ["train.sizes={0: 112, 1: 150}"],
    "1 epoch": ["train.epochs=1"],
    "5 epochs": ["train.epochs=5"],
    "half the rate": ["train.lr=1e-4"],
    "twice the rate": ["train.lr=4e-4"],
    "label smoothing 0": ["train.label_smoothing=0"],
    "predicting at 176 px": ["infer.image_size=176"],
}


def main() -> None:
    """Trains the variants and writes their section of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--folds", default="0,3", help="as in train.py")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), metavar="VARIANT")
    arguments = parser.parse_args()
    tables = {}
    for variant in dict.fromkeys(["as it ships", *arguments.only]):
        tables[variant] = held_out(arguments.config, variant, arguments.folds)
    base = tables["as it ships"]
    header = ["| variant | accuracy | − as it ships | log loss | − as it ships |", "|---|---|---|---|---|"]
    lines = [line(variant, table, base) for variant, table in tables.items()]
    about = f"`python benchmarks/ablations.py {arguments.config} --folds {arguments.folds}`: {len(base)} held-out rows."
    text = "\n".join([about, "", *header, *lines])
    print(text)
    write_section(f"ablations {arguments.config.stem}", f"Ablations: {arguments.config.stem}", text)


def held_out(config: Path, variant: str, folds: str) -> pd.DataFrame:
    """Trains a variant where that has not been done; its out-of-fold predictions, by image name."""
    name = f"{config.stem}.{'-'.join(variant.replace('(', '').replace(')', '').replace(',', '').split())}"
    settings = [*VARIANTS[variant], f"name={name}", "report=false"]
    command = [sys.executable, ROOT / "src/train.py", config.resolve(), "--folds", folds, "--set", *settings]
    subprocess.run(command, cwd=ROOT, check=True)
    return pd.read_csv(ROOT / "runs" / name / "oof.csv", dtype={"label": str}).set_index("image_name").sort_index()


def line(variant: str, table: pd.DataFrame, base: pd.DataFrame) -> str:
    """One variant's row of the table."""
    cells = []
    for scores, others in zip(rowwise(table), rowwise(base), strict=True):
        difference = scores - others
        cells.append(f"{scores.mean():.4f} ± {standard_error(scores):.4f}")
        cells.append(f"{difference.mean():+.4f} ± {standard_error(difference):.4f}" if difference.any() else "")
    return f"| {variant} | {' | '.join(cells)} |"


def rowwise(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Whether each row is right, and its log loss."""
    classes = list(table.columns[2:])
    probabilities = table[classes].to_numpy()
    targets = table["label"].map({name: number for number, name in enumerate(classes)}).to_numpy()
    return (probabilities.argmax(1) == targets).astype(float), log_losses(probabilities, targets)


if __name__ == "__main__":
    main()
