"""Exports a trained run for other programs: one ONNX file, or one folder per fold for timm and the Hugging Face Hub."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from scenes.console import UserError
from scenes.environment import ensure_environment
from scenes.script import add_settings_option, run


def main(argv: Sequence[str] | None = None) -> None:
    """Exports the run and compares the result with PyTorch's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, runs/NAME")
    formats = ("onnx", "hub-folder", "timm")
    parser.add_argument("--to", required=True, choices=formats, help="the format; timm is the old name of hub-folder")
    parser.add_argument(
        "--int8", action="store_true", help="with --to onnx: also write NAME.int8.onnx, smaller, for phones"
    )
    parser.add_argument("--folds", help="0, 0-4, 0,2,4 or full; by default every trained fold")
    parser.add_argument("--out", type=Path, help="by default NAME.onnx or hub/ in the run's folder")
    add_settings_option(parser)
    arguments = parser.parse_args(argv)

    if arguments.int8 and arguments.to != "onnx":
        raise UserError("--int8 works only with --to onnx")

    from scenes.runs import Run

    chosen = Run(arguments.run)
    config = chosen.load_config(arguments.set)
    folds = chosen.chosen_folds(arguments.folds, config.data.folds)

    if arguments.to == "onnx":
        from scenes.inference.export import export_onnx

        file, graph = export_onnx(chosen, config, folds, arguments.out)
        if arguments.int8:
            from scenes.inference.int8 import export_int8

            export_int8(chosen, config, folds, file, graph)
        return
    from scenes.inference.card import model_card
    from scenes.model.export import export_timm
    from scenes.model.weights import load_classifier
    from scenes.runs import fold_name

    for fold in folds:
        model, card = load_classifier(chosen.weights_file(fold), config), model_card(chosen, config, fold)
        export_timm(model, config, (arguments.out or chosen.folder / "hub") / fold_name(fold), card)


if __name__ == "__main__":
    ensure_environment()
    run(main)
