"""Sets up a competition's files in input/ and describes them: from class folders, from Kaggle, or the sample."""

import argparse
import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from scenes.console import UserError, print_table, say
from scenes.environment import ensure_environment
from scenes.script import run


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    folders = commands.add_parser("folders", help="make train.csv and test.csv from one folder per class")
    folders.add_argument("folder", type=Path, metavar="DIR", help="DIR/CLASS/*.jpg, or DIR/train/CLASS, DIR/test, …")

    download = commands.add_parser(
        "download", help="download a competition's files from Kaggle (needs the kaggle command)"
    )
    download.add_argument("--competition", required=True, metavar="SLUG", help="the last part of its URL")

    detect = commands.add_parser("detect", help="infer competition.yaml from the competition's files")
    detect.add_argument("folder", type=Path, nargs="?", default=Path("input"), metavar="DIR", help="default: input")

    sample = commands.add_parser("sample", help="draw the built-in sample competition")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument("--train-rows", type=int, default=600, metavar="N")
    sample.add_argument("--test-rows", type=int, default=200, metavar="N")

    for command, out in ((folders, "input"), (download, "input"), (sample, "input/sample")):
        command.add_argument(
            "--out", type=Path, default=Path(out), metavar="DIR", help=f"the output folder (default: {out})"
        )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the chosen command."""
    args = parse(argv)
    if args.command == "folders":
        prepare_folders(args.folder, args.out)
    elif args.command == "download":
        download_competition(args.competition, args.out)
    elif args.command == "detect":
        detect_competition(args.folder)
    else:
        draw_sample(args.out, args.train_rows, args.test_rows, args.seed)


def prepare_folders(folder: Path, out: Path) -> None:
    """Writes the CSVs for a folder of class folders and says what they contain and how to use them."""
    from scenes.competition.folders import read_folders, write_csvs

    layout = read_folders(folder)
    written = write_csvs(layout, out)
    classes = Counter(row.label for row in layout.train)
    named = ", ".join(f"{label} {n}" for label, n in list(classes.items())[:20]) + (", …" if len(classes) > 20 else "")
    say(f"wrote {', '.join(map(str, written))}")
    say(f"  train: {len(layout.train)} images, {len(classes)} classes ({named})")
    if layout.validation:
        say(f"  validation: {len(layout.validation)} images, also in train.csv, where the column `split` marks them")
    if layout.test:
        kept = "; their labels are only in test_labels.csv" if layout.test[0].label else ""
        say(f"  test: {len(layout.test)} images{kept}")
    else:
        say("  test: no test folder, so no test.csv")
    if layout.ignored:
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(layout.ignored.items()))
        say(f"  ignored: {layout.ignored.total()} files ({kinds})")
    if layout.unused:
        say(f"  not used: {', '.join(layout.unused)}")

    places = {"data.root": out.resolve(), "data.image_dir": folder.resolve()}
    say("Nothing was copied: the images stay where they are. Put this into your config")
    say("  data:")
    for key, place in places.items():
        say(f"    {key.removeprefix('data.')}: {yaml_text(place)}")
    say("or add to a command")
    say(f"  {set_option(places)}")


def download_competition(slug: str, out: Path) -> None:
    """Downloads a competition's files from Kaggle and lists them."""
    from scenes.competition.download import download

    placed = download(slug, out)
    say(f"{out} now holds {', '.join(path.relative_to(out).as_posix() for path in placed)}")
    try:
        detect_competition(out)
    except UserError as error:  # the download itself is done
        say(f"could not infer a description: {error}")


def detect_competition(root: Path) -> None:
    """Unpacks the archives in a folder and writes an inferred competition.yaml; overwrites nothing."""
    from scenes.competition import archives, description
    from scenes.competition.detect import detect
    from scenes.files import write_text

    file = root / description.FILE
    if file.exists():
        raise UserError(f"{file}: already exists and will not be overwritten; change it by hand, or move it away")
    for archive in archives.packed(root) if root.is_dir() else ():
        archives.unpack(archive)
    found = detect(root)
    print_table(["", "inferred", "from"], found.summary)
    say("cannot be inferred from the files:")
    for note in found.unknown:
        say(f"  {note}")
    text = description.text(found.lines, found.unknown)
    try:
        write_text(file, text)
    except OSError as error:  # Kaggle notebooks cannot write to input/
        say(text)
        raise UserError(
            f"{file}: cannot be written ({error.strerror}); put the lines above into a config instead"
        ) from None
    say(f"wrote {file}: review it, then run python src/check.py configs/effnet_lite0.yaml{set_root(root)}")


def set_root(root: Path) -> str:
    """The option that names a data folder, empty for the default one."""
    return "" if root == Path("input") else f" {set_option({'data.root': root.resolve()})}"


def draw_sample(out: Path, train_rows: int, test_rows: int, seed: int) -> None:
    """Draws the sample and says how to use it."""
    if min(train_rows, test_rows) < 1:
        raise UserError("--train-rows and --test-rows must be at least 1")
    if (out / "train.csv").exists():  # possibly drawn with other rows or another seed
        raise UserError(f"{out / 'train.csv'}: already exists and will not be overwritten; choose another --out")
    from scenes.competition.sample import draw

    draw(out, train_rows=train_rows, test_rows=test_rows, seed=seed)
    say(f"{out} holds the sample, {train_rows} training and {test_rows} test rows; add to a command")
    say(f"  {set_option({'data.root': out.resolve()})}")


def set_option(places: dict[str, Path]) -> str:
    """The paths as shell options."""
    return "--set " + " ".join(shlex.quote(f"{key}={yaml_text(place)}") for key, place in places.items())


def yaml_text(path: Path) -> str:
    """A path as YAML, quoted where necessary."""
    text = str(path)
    return text if re.fullmatch(r"/[\w./-]*", text) else json.dumps(text, ensure_ascii=False)


if __name__ == "__main__":
    ensure_environment()
    run(main)
