"""Shared by the peers that train: the command line, the fold's rows, and the clock."""

import argparse
import time
from pathlib import Path

import pandas as pd
import psutil


def make_parser(about: str | None, rate: float) -> argparse.ArgumentParser:
    """Returns a parser for the options that benchmarks/time_to_accuracy.py passes; `rate` is the default rate."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder of train.csv and SceneImages/")
    parser.add_argument("folds", type=Path, help="a CSV with image_name and fold")
    parser.add_argument("fold", type=int)
    parser.add_argument("epochs", type=int)
    parser.add_argument("out", type=Path)
    parser.add_argument("--weights", required=True, help="ImageNet weights in timm's names")
    parser.add_argument("--model", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=150)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=rate)
    return parser


def read_rows(arguments: argparse.Namespace) -> pd.DataFrame:
    """Returns train.csv with the added column `is_valid`: whether the fold holds the row out."""
    table = pd.read_csv(arguments.root / "train.csv").merge(pd.read_csv(arguments.folds)[["image_name", "fold"]])
    table["is_valid"] = table["fold"] == arguments.fold
    return table


def point(accuracy: float) -> dict[str, float]:
    """Returns an accuracy, and how many seconds ago this process began."""
    return {"seconds": time.time() - psutil.Process().create_time(), "accuracy": accuracy}
