"""Invalid input is refused with exit code 2, the place and a fix, and changes nothing; unusual input is accepted.

Each case runs a real script's main function through `script.run`, in this process.
"""

import contextlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import infer
import train
from scenes import script
from tiny import TINY

TRAIN = ("train", "tiny.yaml", "--folds", "0", "--set", *TINY, "train.epochs=1")
RESUME = ("train", "tiny.yaml", "--set", *TINY)
INFER = ("infer", "--run", "runs/tiny")
CSV = Path("input/train.csv")
TEST = Path("input/test.csv")
SAMPLE = Path("input/sample_submission.csv")
IMAGES = Path("input/SceneImages")


class Outcome(NamedTuple):
    code: int
    errors: str


class Case(NamedTuple):
    """A way to break the current folder, a command, and words that its message must contain."""

    name: str
    spoil: Callable[[], object]
    says: tuple[str, ...] = ()
    command: tuple[str, ...] = TRAIN


def run(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> Outcome:
    """Runs a script as a user would; returns its exit code and stderr."""
    main = {"train": train.main, "infer": infer.main}[command[0]]
    handler = signal.getsignal(signal.SIGTERM)
    capsys.readouterr()
    try:
        script.run(lambda: main(list(command[1:])))
    except SystemExit as done:
        return Outcome(int(done.code or 0), capsys.readouterr().err)
    finally:
        signal.signal(signal.SIGTERM, handler)
    return Outcome(0, capsys.readouterr().err)


def snapshot() -> dict[str, bytes]:
    """Every file here with its content, except the cache."""
    files = (path for path in Path().rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {str(path): path.read_bytes() for path in files}


def check_refusal(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil()
    before = snapshot()
    outcome = run(case.command, capsys)
    assert outcome.code == 2, outcome.errors or "accepted"
    assert "Traceback" not in outcome.errors
    assert [word for word in case.says if word not in outcome.errors] == [], outcome.errors
    assert snapshot() == before


# ------------------------------------------------------------------------------------------------------- CSVs


def lines(*, first: str | None = None, **changed: str) -> Callable[[], None]:
    """Replaces lines of train.csv: `first` the header, `line3` the third."""

    def spoil() -> None:
        content = CSV.read_text().splitlines()
        for where, text in changed.items():
            content[int(where.removeprefix("line")) - 1] = text
        content[0] = first if first is not None else content[0]
        CSV.write_text("\n".join(content) + "\n")

    return spoil


def text(change: Callable[[str], str | bytes], file: Path = CSV) -> Callable[[], None]:
    """Rewrites a CSV."""

    def spoil() -> None:
        changed = change(file.read_text())
        file.write_bytes(changed if isinstance(changed, bytes) else changed.encode())

    return spoil


def all_labels(label: Callable[[str], str]) -> Callable[[], None]:
    def change(content: str) -> str:
        header, *rows = content.splitlines()
        return "\n".join([header, *(f"{name},{label(value)}" for name, value in (row.split(",") for row in rows))])

    return text(change)


def name_of(row: int, file: Path = CSV) -> str:
    """The image of a row, counted from 0."""
    return file.read_text().splitlines()[row + 1].split(",")[0]


def rename(row: int, new: str, make: Callable[[Path], object] | None = None) -> Callable[[], None]:
    """Gives a training row, and its file unless `make` makes one, another image name."""

    def spoil() -> None:
        old = name_of(row)
        target = IMAGES / new
        if make:
            make(target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            (IMAGES / old).rename(target)
        CSV.write_text(CSV.read_text().replace(f"{old},", f"{new},"), encoding="utf-8")

    return spoil


def link_out(target: Path) -> None:
    Path("outside.jpg").write_bytes(picture("JPEG"))
    target.symlink_to(Path("outside.jpg").resolve())


def link_root() -> None:
    IMAGES.rename("elsewhere")
    IMAGES.symlink_to(Path("elsewhere").resolve())


def no_test_rows() -> None:
    TEST.unlink()
    Path("input/sample_submission.csv").unlink()


def case_twins() -> None:
    """Two files whose names differ only in case, which this file system tells apart."""
    target = IMAGES / "TWIN.JPG"
    (IMAGES / name_of(0)).rename(target)
    (IMAGES / name_of(1)).rename(target.with_name("twin.jpg"))
    CSV.write_text(
        CSV.read_text().replace(f"\n{name_of(0)},", "\nTWIN.JPG,").replace(f"\n{name_of(1)},", "\ntwin.jpg,")
    )


PLACE = ("input/train.csv",)
BAD_CSV = [
    Case("UTF-16", text(lambda t: t.encode("utf-16")), (*PLACE, "line 1", "UTF-8")),
    Case("latin-1", text(lambda t: t.replace(",0", ",é").encode("latin-1")), (*PLACE, "not UTF-8", "save it as")),
    Case("semicolons", text(lambda t: t.replace(",", ";")), (*PLACE, "commas")),
    Case("NaN label", lines(line3="1.jpg,nan"), (*PLACE, "line 3", "'nan'", "→")),
    Case("no label", lines(line3="1.jpg,"), (*PLACE, "line 3", "empty label", "→")),
    Case("no name", lines(line4=",3"), (*PLACE, "line 4", "empty image name", "→")),
    Case("a row twice", text(lambda t: t + t.splitlines()[1] + "\n"), (*PLACE, "line 98", "duplicate image name", "→")),
    Case("one class", all_labels(lambda _: "4"), (*PLACE, "'4'", "two classes")),
    Case("an empty file", text(lambda _: ""), (*PLACE, "empty", "header")),
    Case("no rows", text(lambda t: t.splitlines()[0]), (*PLACE, "no rows")),
    Case("no file", CSV.unlink, (*PLACE, "no such file", "quickstart")),
    Case("a folder", lambda: (CSV.unlink(), CSV.mkdir()), (*PLACE, "cannot be read")),
    Case(
        "columns that say nothing", lines(first="file,class,x"), (*PLACE, "'image_name'", "'file'", "data.image_column")
    ),
    Case("a cell too many", lines(line5="1.jpg,2,3"), (*PLACE, "line 5", "number of cells", "→")),
    Case("an open quote", lines(line5='"1.jpg,2'), (*PLACE, "line 5", "not a comma-separated table")),
    Case("path traversal", lines(line2="../../../etc/passwd,1"), (*PLACE, "line 2", "leaves", "→")),
    Case("an absolute path", lines(line2="/etc/passwd,1"), (*PLACE, "line 2", "leaves", "→")),
    Case("NUL bytes", lines(line2="a\0.jpg,1"), PLACE),
    Case("a missing image", lambda: (IMAGES / name_of(5)).unlink(), (*PLACE, "line 7", "not in", "→")),
    Case("a folder as an image", rename(5, "dir.jpg", lambda p: p.mkdir()), (*PLACE, "line 7", "not in", "→")),
    Case("a name too long", lines(line2="x" * 300 + ".jpg,1"), (*PLACE, "line 2", "→")),
    Case("no image folder", lambda: shutil.rmtree(IMAGES), ("input/SceneImages", "data.image_dir")),
    Case("a test image in training", lambda: shutil.copy(CSV, TEST), ("input/test.csv", "also a training image", "→")),
    Case("an empty test.csv", text(lambda _: "", TEST), ("input/test.csv", "empty")),
]
GOOD_CSV = [
    Case("BOM and CRLF", text(lambda t: t.replace("\n", "\r\n").encode("utf-8-sig"))),
    Case("more columns", text(lambda t: "\n".join(f"x,{row}" for row in t.splitlines()))),
    Case("words as labels", all_labels(lambda label: f"klass é {label}")),
    Case("non-ASCII names", rename(0, "日本 é.jpg")),
    Case("a comma in a name", lambda: (rename(0, "COMMA")(), rename(1, "x.jpg")(), quote_comma())),
    Case("sub-folders", rename(0, "a/b/c.jpg")),
    Case("a linked image folder", link_root),
    Case("names that differ in case", case_twins),
    Case("a link to an image elsewhere", rename(0, "link.jpg", link_out)),
    Case("no test.csv, but a sample", TEST.unlink),
    Case("no test rows", no_test_rows),
    Case("other columns", lines(first="file,class")),
    Case("images in another folder", lambda: IMAGES.rename("input/gone")),
    Case(
        "a test image damaged, to get the prior",
        lambda: (IMAGES / name_of(3, TEST)).write_bytes(b""),
        command=(*TRAIN, "infer.on_bad_image=prior"),
    ),
]


def quote_comma() -> None:
    (IMAGES / "COMMA").rename(IMAGES / "a, b.jpg")
    CSV.write_text(CSV.read_text().replace("COMMA", '"a, b.jpg"'))


# ----------------------------------------------------------------------------------------------------- images


def picture(kind: str, size: tuple[int, int] = (48, 48), mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels).convert(mode) if mode != "I;16" else Image.new(mode, size, 40_000)
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return picture("JPEG", (40, 60), exif=exif)


def animated() -> bytes:
    frames = [Image.new("P", (48, 48), shade) for shade in (10, 200)]
    buffer = BytesIO()
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header promises 40,000 × 40,000 pixels."""
    import struct
    import zlib

    data = bytearray(picture("PNG"))
    data[16:24] = struct.pack(">II", 40_000, 40_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def image(content: bytes, file: Path = CSV, row: int = 3) -> Callable[[], None]:
    def spoil() -> None:
        (IMAGES / name_of(row, file)).write_bytes(content)

    return spoil


JPEG, PNG = picture("JPEG"), picture("PNG")
AT_TEST_ROW = ("input/test.csv", "line 5", "→", "unreadable image")
DAMAGED = {
    "0 bytes": b"",
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "text": b"version https://git-lfs.github.com/spec/v1\n",
    "a decompression bomb": bomb(),
    "zeros": bytes(5_000),
    **{f"a JPEG cut at {at}": JPEG[:at] for at in (3, 20, 300, len(JPEG) // 2, len(JPEG) - 2)},
    **{f"a PNG cut at {at}": PNG[:at] for at in (8, 40, len(PNG) // 2, len(PNG) - 12)},
}
GOOD_IMAGES = {
    "PNG named .jpg": PNG,
    "CMYK": picture("JPEG", mode="CMYK"),
    "16 bits": picture("PNG", mode="I;16"),
    "gray": picture("JPEG", mode="L"),
    "1 bit": picture("PNG", mode="1"),
    "palette": picture("PNG", mode="P"),
    "alpha": picture("PNG", mode="RGBA"),
    "gray and alpha": picture("PNG", mode="LA"),
    "animated GIF": animated(),
    "EXIF-rotated": exif_rotated(),
    "progressive": picture("JPEG", progressive=True),
    "1 x 1": picture("PNG", (1, 1)),
    "1 x 5000": picture("PNG", (1, 5000)),
    "5000 x 1": picture("PNG", (5000, 1)),
    "BMP": picture("BMP"),
    "WebP": picture("WEBP"),
    "TIFF": picture("TIFF"),
}


# ------------------------------------------------------------------------------- configs, command lines, places


def config(content: str | bytes) -> Callable[[], None]:
    return lambda: Path("tiny.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())


PLAIN_RUN = ("train", "tiny.yaml")
BAD_CONFIGS = [
    Case(f"config {content[:40]!r}", config(content), ("tiny.yaml", *says), PLAIN_RUN)
    for content, *says in (
        ("sed: 1", "line 1", "'sed'", "did you mean 'seed'"),
        ("train:\n  epochs: many", "line 2", "train.epochs", "integer"),
        ("train:\n  lr: .nan", "line 2", "finite"),
        ("data:\n  folds: 1e9", "data.folds", "1000"),
        ("infer:\n  on_bad_image: skip", "infer.on_bad_image", "'error' or 'prior'"),
        ("infer:\n  tta: vflip", "infer.tta", "'hflip'"),
        ("seed: 1\nseed: 2", "line 2", "duplicate"),
        ("seed: !!python/object/apply:os.system [touch owned]", "line 1", "tag"),
        ("name: ../x", "line 1", "name", "letters, digits"),
        ("\tseed: 1", "line 1", "not valid YAML"),
        ("- 1\n- 2", "key: value"),
        (b"\xff\xfes\0", "UTF-8"),
    )
]
BAD_COMMANDS = [
    *(
        Case(f"--folds {given}", lambda: None, says, (*PLAIN_RUN, f"--folds={given}"))
        for given, says in (
            ("9", ("--folds 9", "0 to 4")),
            ("a", ("--folds", "0-4")),
        )
    ),
    Case("--set x", lambda: None, ("--set", "key=value", "'x'"), (*PLAIN_RUN, "--set", "x")),
    Case("--set unknown", lambda: None, ("--set trian.lr=1", "did you mean"), (*PLAIN_RUN, "--set", "trian.lr=1")),
    Case("--set [", lambda: None, ("--set seed=[1", "not valid YAML"), (*PLAIN_RUN, "--set", "seed=[1")),
    Case("a config that is missing", lambda: None, ("no such config", "tiny.yaml"), ("train", "tinny.yaml")),
    Case("a folder as a config", lambda: None, ("input", "cannot be read"), ("train", "input")),
    Case("no config", lambda: None, ("usage", "config"), ("train",)),
    Case("an unknown option", lambda: None, ("usage", "--fold5"), (*PLAIN_RUN, "--fold5")),
    Case("an unknown model", lambda: None, ("no_such_net",), (*TRAIN, "model.name=no_such_net")),
    Case("an unknown transform", lambda: None, ("augment", "Flipp"), (*TRAIN, "augment=[Flipp]")),
    Case("class weights", lambda: None, ("class_weights", "2", "6"), (*TRAIN, "train.class_weights=[1, 2]")),
    Case("class names", lambda: None, ("class_names", "6 labels", "→"), (*TRAIN, "data.class_names=[a, b]")),
    Case("no run", lambda: None, ("no finished run", "train one first"), ("infer",)),
]
BAD_PLACES = [
    Case("runs is a file", Path("runs").touch, ("runs:", "is a file", "move it")),
    Case("runs/tiny is a file", lambda: (Path("runs").mkdir(), Path("runs/tiny").touch()), ("runs/tiny:", "is a file")),
    Case(".cache is a file", Path(".cache").touch, (".cache:", "is a file", "move it")),
    Case("input is a file", lambda: (shutil.rmtree("input"), Path("input").touch()), ("input/train.csv",)),
]


# ---------------------------------------------------------------------------------- weights and checkpoints


class Evil:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("owned", "w")


def write(path: str, content: bytes) -> Callable[[], object]:
    return lambda: Path(path).write_bytes(content)


def tensors(path: str) -> Callable[[], None]:
    return lambda: save_file({"head.0.weight": torch.zeros(3, 3), "conv_stem.weight": torch.zeros(2)}, path)


def zipped_evil(path: str) -> Callable[[], object]:
    return lambda: torch.save({"state_dict": Evil()}, path)


def weights(file: str, spoil: Callable[[], object], *says: str) -> Case:
    return Case(f"weights {file}", spoil, (file, *says), (*TRAIN, f"model.weights={file}"))


BAD_PRETRAINED = [
    weights("zip.pth", zipped_evil("zip.pth"), "not readable as weights"),
    weights("evil.safetensors", write("evil.safetensors", pickle.dumps(Evil())), "not readable as weights"),
    weights("shapes.safetensors", tensors("shapes.safetensors"), "does not fit", "check model.name"),
    weights("page.safetensors", write("page.safetensors", DAMAGED["HTML"]), "not readable as weights"),
    weights("list.pth", lambda: torch.save([torch.zeros(1)], "list.pth"), "not a plain mapping"),
    weights("gone.pth", lambda: None, "no file", "hub, local and none"),
    weights("input", lambda: None, "no file", "hub, local and none"),
    Case("local weights", lambda: None, ("Looked in", "input/weights", "→"), (*TRAIN, "model.weights=local")),
]


GROUPED = (*TRAIN, "data.near_duplicates=near.csv")
BAD_GROUPS = [
    Case("near duplicates: no file", lambda: None, ("data.near_duplicates", "input/near.csv", "src/check.py"), GROUPED),
    *(
        Case(f"near duplicates: {name}", write("input/near.csv", content), ("input/near.csv", *says), GROUPED)
        for name, content, *says in (
            ("not UTF-8", b"\xff\xfe", "line 1", "UTF-8"),
            ("another table", b"image_name,fold\na,1\n", "'group'", "src/check.py"),
            ("an unknown image", b"image_name,group\nx.jpg,1\n", "line 2", "'x.jpg'", "→"),
            ("an empty group", b"image_name,group\nx.jpg,\n", "line 2", "empty group", "→"),
        )
    ),
]


def unfinish(spoil: Callable[[Path], object]) -> Callable[[], None]:
    """Leaves fold 1 of a finished run with nothing but its checkpoint, which is then damaged."""

    def spoil_all() -> None:
        folder = Path("runs/tiny/fold1")
        for name in ("weights.safetensors", "oof.safetensors", "previous.pt"):
            (folder / name).unlink(missing_ok=True)
        spoil(folder / "last.pt")

    return spoil_all


def edit_state(**changed: Any) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        torch.save({**torch.load(path, weights_only=True), **changed}, path)

    return spoil


def cut(share: float) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


LAST = ("runs/tiny/fold1/last.pt", "→ delete")
OTHER_RUN = edit_state(identity="other fold1 test_efficientnet 6 classes")
OTHER_NET = edit_state(identity="tiny fold1 test_vit 6 classes", model={})
BAD_CHECKPOINTS = [
    Case(f"checkpoint: {name}", unfinish(spoil), (*LAST, *says), RESUME)
    for name, spoil, *says in (
        ("code in a zip", lambda path: torch.save({"format": Evil()}, path), "damaged or not a checkpoint"),
        ("cut in half", cut(0.5), "damaged"),
        ("another run's", OTHER_RUN, "belongs to 'other fold1"),
        ("another network's", OTHER_NET, "belongs to 'tiny fold1 test_vit"),
    )
]
BAD_CHECKPOINTS += [
    Case("checkpoint: other tensors", unfinish(edit_state(model={"x": torch.zeros(1)})), LAST, RESUME),
    Case("checkpoint: another optimiser", unfinish(edit_state(optimizer={})), LAST, RESUME),
    Case("checkpoint: no step", unfinish(edit_state(step=None)), LAST, RESUME),
]


def change_csv() -> None:
    header, *rows = CSV.read_text().splitlines()
    CSV.write_text("\n".join([header, *rows[::-1]]) + "\n")


BAD_RUNS = [
    Case("another config", lambda: None, ("runs/tiny", "train.lr", "→"), (*RESUME, "train.lr=1")),
    Case("other data", change_csv, ("the training data changed", "runs/tiny", "→"), RESUME),
    Case("folds.csv", write("runs/tiny/folds.csv", b"\xff,\n"), ("runs/tiny/folds.csv", "delete"), RESUME),
    Case("config.yaml", write("runs/tiny/config.yaml", b"[}"), ("runs/tiny/config.yaml", "not valid YAML"), RESUME),
]


WEIGHTS = "runs/tiny/fold1/weights.safetensors"


def resave(metadata: Any = None, **changed: torch.Tensor) -> Callable[[], None]:
    """Writes fold 1's weights with other tensors or other text in the header."""

    def spoil() -> None:
        text = metadata if isinstance(metadata, str) else json.dumps(metadata or META)
        save_file({**load_file(WEIGHTS), **changed}, WEIGHTS, {"scenes": text})

    return spoil


META = {"format": 1, "classes": list("012345"), "run": "tiny"}
BAD_INFERENCE = [
    *(
        Case(f"inference: {name}", spoil, (WEIGHTS, *says), INFER)
        for name, spoil, *says in (
            ("wrong shapes", resave(**{"head.1.bias": torch.zeros(2)}), "does not fit"),
            ("no metadata", lambda: save_file({"x": torch.zeros(1)}, WEIGHTS), "not the weights of a trained fold"),
            ("no classes", resave({"format": 1}), "not the weights of a trained fold"),
            ("cut", lambda: cut(0.5)(Path(WEIGHTS)), "not a complete safetensors file"),
            ("code", write(WEIGHTS, pickle.dumps(Evil())), "not a complete safetensors file"),
        )
    ),
    Case("classes", resave({**META, "classes": list("abcdef")}), ("runs/tiny", "fold1", "different classes"), INFER),
    Case(
        "another network in the config",
        lambda: None,
        ("weights.safetensors", "does not fit", "test_vit"),
        (*INFER, "--set", "model.name=test_vit"),
    ),
    Case("--tta nosuch", lambda: None, ("infer.tta", "'hflip'", "nosuch"), (*INFER, "--tta", "nosuch")),
    Case("--images nosuch", lambda: None, ("nosuch", "no such folder"), (*INFER, "--images", "nosuch", "--out", "out")),
    Case("--images alone", lambda: None, ("--images", "--out"), (*INFER, "--images", "input")),
    Case("--run nosuch", lambda: None, ("nosuch", "runs/tiny"), ("infer", "--run", "nosuch")),
    Case("--folds 2", lambda: None, ("--folds 2", "0 to 1"), (*INFER, "--folds", "2")),
    Case("--folds full", lambda: None, ("full not trained", "fold0, fold1"), (*INFER, "--folds", "full")),
    Case("--out folder", lambda: None, ("input", "is a folder", "--out"), (*INFER, "--out", "input")),
    Case("submissions is a file", Path("submissions").touch, ("submissions:", "is a file", "move it"), INFER),
    Case("no test rows", no_test_rows, ("input/test.csv", "no such file"), INFER),
    Case("a test row twice", text(lambda t: t + t.splitlines()[1], TEST), ("test.csv", "line 26", "→"), INFER),
    Case("a test image missing", lambda: (IMAGES / name_of(3, TEST)).unlink(), ("test.csv", "line 5", "→"), INFER),
    Case("a test image damaged", image(b"", TEST), AT_TEST_ROW, INFER),
    Case(
        "another sample",
        write("input/sample_submission.csv", b"image_name,label\nx,0\n"),
        ("sample_submission.csv", "'x'", "→"),
        INFER,
    ),
    Case(
        "another sample, before training",
        write("input/sample_submission.csv", b"image_name,label\nx,0\n"),
        ("sample_submission.csv", "'x'", "→"),
        TRAIN,
    ),
    Case(
        "a sample with foreign columns, before training",
        text(lambda t: t.replace("label", "cat,dog", 1).replace(",0\n", ",0,1\n"), SAMPLE),
        ("sample_submission.csv", "'cat', 'dog'", "→"),
        TRAIN,
    ),
    Case(
        "a metric of another task",
        lambda: None,
        ("labels_f1_micro", "f1_macro"),
        (*TRAIN, "name=new", "metric=labels_f1_micro"),
    ),
    Case(
        "an unknown metric",
        lambda: None,
        ("quadratic_kapa", "quadratic_kappa"),
        (*TRAIN, "name=new", "metric=quadratic_kapa"),
    ),
    Case(
        "a UTF-16 sample",
        text(lambda t: t.encode("utf-16"), SAMPLE),
        ("sample_submission.csv", "not UTF-8"),
        INFER,
    ),
    Case(
        "no shares for the prior",
        lambda: (resave(META)(), image(b"", TEST)()),
        (WEIGHTS, "shares", "train the fold again"),
        (*INFER, "--folds", "1", "--set", "infer.on_bad_image=prior"),
    ),
]

# ------------------------------------------------------------------------------------------------------ tests

REFUSED_NEW = [*BAD_CSV, *BAD_GROUPS, *BAD_CONFIGS, *BAD_COMMANDS, *BAD_PLACES, *BAD_PRETRAINED]
REFUSED_RUN = [*BAD_CHECKPOINTS, *BAD_RUNS, *BAD_INFERENCE]
by_name = {"ids": lambda case: case.name}


@pytest.mark.parametrize("case", REFUSED_NEW, **by_name)
def test_refused_before_training(case: Case, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refusal(case, capsys)


@pytest.mark.parametrize("case", REFUSED_RUN, **by_name)
def test_refused_in_a_run(case: Case, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_refusal(case, capsys)


@pytest.mark.parametrize("case", GOOD_CSV, **by_name)
def test_accepted(case: Case, workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case.spoil()
    assert run(case.command, capsys) == (0, "")


@pytest.mark.parametrize("table", [CSV, TEST], ids=["training", "test"])
def test_every_kind_of_damage_is_refused_with_its_row(
    table: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil() -> None:
        for row, content in enumerate(DAMAGED.values()):
            image(content, table, row)()

    rows = [f"line {row + 2} ('{name_of(row, table)}')" for row in range(len(DAMAGED))]
    check_refusal(Case("", spoil, (str(table), "unreadable image", "→", *rows)), capsys)


def test_every_kind_of_image_is_accepted(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for row, content in enumerate(GOOD_IMAGES.values()):
        image(content, row=row)()
    assert run(TRAIN, capsys) == (0, "")


def test_the_network_is_not_touched(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert run((*TRAIN, "--submit"), capsys) == (0, "")
    hub = (*TRAIN, "name=hub", "model.weights=hub", "model.name=resnet10t.c3_in1k")
    check_refusal(Case("", lambda: None, ("no weights for resnet10t", "Looked in", "→"), hub), capsys)


def test_a_bare_environment(workspace: Path) -> None:
    """No HOME, the C locale, no UTF-8 mode, and non-ASCII names."""
    rename(0, "日本 é.jpg")()
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "LANG", "PYTHONPATH")}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(Path(train.__file__)), *TRAIN[1:]]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    done = subprocess.run([*command[:2], "日本.yaml"], env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"no such config" in done.stderr
    assert b"tiny.yaml" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").mkdir()
    Path("runs").chmod(0o555)
    with contextlib.ExitStack() as stack:
        stack.callback(Path("runs").chmod, 0o755)
        check_refusal(Case("", lambda: None, ("runs", "allow writing")), capsys)


# -------------------------------------------------------------------------------------- what on_bad_image does


def spoil_two() -> tuple[str, str]:
    """Deletes one training image and damages another; returns their names."""
    gone, damaged = name_of(3), name_of(7)
    (IMAGES / gone).unlink()
    image(JPEG[:300], row=7)()
    return gone, damaged


def test_skipped_rows_are_named_and_in_no_fold(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from scenes.config_file import load_config
    from scenes.data.dataset import read_dataset

    gone, damaged = spoil_two()
    command = ["data.on_bad_image=skip", *TINY]
    data = read_dataset(load_config(Path("tiny.yaml"), command))
    assert data.skipped == [(gone, "no such file"), (damaged, "cut off: the JPEG has no end")]
    printed = capsys.readouterr().out
    assert f"2 rows left out of training and scoring, the image cannot be read: line 5 ('{gone}: no such" in printed
    assert len(data.table) == len(data.images) == len(data.fold_of) == len(data.targets) == 94
    assert not {gone, damaged} & set(data.table.names)
    assert set(data.fold_of) == {0, 1}
    again = read_dataset(load_config(Path("tiny.yaml"), command))  # now from the cache
    assert again.skipped == data.skipped
    whole = read_dataset(load_config(Path("tiny.yaml"), [*TINY, f"data.train_csv={without(gone, damaged)}"]))
    assert whole.skipped == []
    assert whole.fold_table().equals(data.fold_table())
    assert all(np.array_equal(whole.images[row], data.images[row]) for row in range(94))
    assert run((*TRAIN, "data.on_bad_image=skip"), capsys).code == 0
    assert len(Path("runs/tiny/folds.csv").read_text().splitlines()) == 95


def without(*names: str) -> str:
    """Writes train.csv without these rows to a new file; returns its name below input/."""
    rows = [row for row in CSV.read_text().splitlines() if row.split(",")[0] not in names]
    (CSV.parent / "less.csv").write_text("\n".join(rows))
    return "less.csv"


@pytest.mark.parametrize("which", ["all", "name"])
def test_skipping_leaves_enough_and_forgives_nothing_else(
    which: str, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row.split(",") for row in CSV.read_text().splitlines()[1:]]
    says: tuple[str, ...] = ("line 2", "leaves")
    if which == "name":
        lines(line2="../../x.jpg,1")()
        rows = []
    for name, label in rows:
        if which == "all" or label == "4":
            (IMAGES / name).write_bytes(b"")
            says = ("no row has an image that can be read",)
    says = ("input/train.csv", *says)
    check_refusal(Case("", lambda: None, says, (*TRAIN, "data.on_bad_image=skip")), capsys)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["metric=log_loss"], ("'4'", "not labels of the training rows")),
        (["data.relabel={NAME: '4'}"], ("data.relabel", "unknown label: '4'")),
    ],
)
def test_a_class_without_a_readable_image_is_found_before_training(
    settings: list[str], says: tuple[str, ...], workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row.split(",") for row in CSV.read_text().splitlines()[1:]]
    for name, label in rows:
        if label == "4":
            (IMAGES / name).write_bytes(b"")
    names = [row.split(",")[0] for row in Path("input/test.csv").read_text().splitlines()[1:]]
    sample = ["image_name,0,1,2,3,4,5", *(f"{name},0,0,0,0,0,1" for name in names)]
    Path("input/sample_submission.csv").write_text("\n".join(sample))
    other = next(name for name, label in rows if label != "4")
    command = (*TRAIN, "data.on_bad_image=skip", *(setting.replace("NAME", other) for setting in settings))
    check_refusal(Case("", lambda: None, says, command), capsys)


def test_a_test_image_that_cannot_be_read_gets_the_class_shares(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import pandas as pd

    infer.main([])
    first = pd.read_csv("submissions/tiny_probabilities.csv")
    prior = [0.1, 0.1, 0.5, 0.1, 0.1, 0.1]
    for fold in (0, 1):
        path = f"runs/tiny/fold{fold}/weights.safetensors"
        save_file(load_file(path), path, {"scenes": json.dumps(META | {"prior": prior})})
    gone, damaged = name_of(2, TEST), name_of(5, TEST)
    (IMAGES / gone).unlink()
    image(b"", TEST, row=5)()
    capsys.readouterr()
    infer.main(["--set", "infer.on_bad_image=prior"])
    printed = capsys.readouterr().out
    assert "test.csv: 2 rows" in printed
    assert gone in printed
    assert damaged in printed
    table = pd.read_csv("submissions/tiny_probabilities.csv")
    assert table["image_name"].tolist() == first["image_name"].tolist()
    probabilities = table[list("012345")].to_numpy()
    np.testing.assert_allclose(probabilities[[2, 5]], [prior, prior], atol=1e-6)
    others = np.setdiff1d(np.arange(24), [2, 5])
    np.testing.assert_allclose(probabilities[others], first[list("012345")].to_numpy()[others], atol=1e-5)
    labels = pd.read_csv("submissions/tiny.csv")["label"]
    assert labels[2] == labels[5] == 2
