"""Ranks backbones by their linear probe on this competition, to choose which one to fine-tune."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Probes the named backbones, or those of the shipped configs whose weights are available locally."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="timm models; by default those of configs/")
    parser.add_argument("--config", type=Path, default=Path("configs/effnet_lite0_probe.yaml"), help="data, image size")
    parser.add_argument("--hub", action="store_true", help="also download weights that are not available locally")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.competition.experiment import load_experiment
    from scenes.training.scan import scan, shipped_backbones

    weights = [] if arguments.hub else ["model.weights=local"]
    config = load_experiment(arguments.config, [*weights, *arguments.set])
    scan(config, arguments.models or shipped_backbones())


if __name__ == "__main__":
    ensure_environment()
    run(main)
