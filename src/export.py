"""Exports a trained run for other programs: one ONNX file, or a folder for each fold that timm loads."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Exports, and compares the result with PyTorch's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, runs/NAME")
    parser.add_argument("--to", required=True, choices=("onnx", "timm"))
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every fold that is trained")
    parser.add_argument("--out", type=Path, help="by default NAME.onnx or timm/ in the run's folder")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    from scenes.runs import Run

    chosen = Run(arguments.run)
    config = chosen.load_config(arguments.set)
    folds = chosen.chosen_folds(arguments.folds, config.data.folds)

    if arguments.to == "onnx":
        from scenes.inference.export import export_onnx

        export_onnx(chosen, config, folds, arguments.out)
        return
    from scenes.model.export import export_timm
    from scenes.model.weights import load_classifier
    from scenes.runs import fold_name

    for fold in folds:
        model = load_classifier(chosen.weights_file(fold), config)
        export_timm(model, config, (arguments.out or chosen.folder / "timm") / fold_name(fold))


if __name__ == "__main__":
    ensure_environment()
    run(main)
