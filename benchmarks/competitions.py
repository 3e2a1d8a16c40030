"""Solves small copies of public competitions end to end and grades the submissions.

    python benchmarks/competitions.py SOURCE [NAME …]

SOURCE is a folder with `make_competitions.py NAME OUT`, which writes OUT/public and OUT/private/answers.csv, and
`graders.py NAME SUBMISSION ANSWERS`, which prints JSON. Each competition is described by `prepare.py detect`, trained
as a linear probe at 96 px, and graded. The table, as in RESULTS.md, shows the lines a person had to supply.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PROBE = ["train.epochs=0", "image_size=96", "infer.tta=none", "report=false"]


class Case(NamedTuple):
    """What a person must say about a competition, and the score when its files are converted by hand."""

    given: list[str]
    by_hand: float


CASES = {
    "aerial-cactus-identification": Case(["metric=roc_auc"], 0.83),
    "aptos2019-blindness-detection": Case(["metric=quadratic_kappa"], 0.84),
    "cassava-leaf-disease-classification": Case(["metric=accuracy"], 1.0),
    "dog-breed-identification": Case(["metric=log_loss"], 0.15),
    "dogs-vs-cats-redux-kernels-edition": Case(["metric=log_loss"], 0.29),
    "plant-pathology-2020-fgvc7": Case(["metric=roc_auc"], 1.0),
    "plant-pathology-2021-fgvc8": Case(["metric=labels_f1_micro"], 0.93),
    "plant-seedlings-classification": Case(["metric=f1_micro", "symmetry=all"], 1.0),
    "ranzcr-clip-catheter-line-classification": Case(["metric=roc_auc"], 0.93),
    "siim-isic-melanoma-classification": Case(["metric=roc_auc", "symmetry=all"], 0.79),
    "paddy-disease-classification": Case(["metric=accuracy"], 0.975),
    "hotel-id-2021-fgvc8": Case(["metric=map@5"], 0.98),
    "petfinder-pawpularity-score": Case(["metric=rmse"], 7.5),
    "herbarium-2020-fgvc7": Case(["metric=f1_macro"], 0.97),
    "herbarium-2021-fgvc8": Case(["metric=f1_macro"], 0.94),
    "herbarium-2022-fgvc9": Case(["metric=f1_macro"], 0.97),
    "inaturalist-2019-fgvc6": Case(["metric=accuracy"], 0.025),
    "iwildcam-2020-fgvc7": Case(["metric=accuracy"], 1.0),
}


class Outcome(NamedTuple):
    """How one competition went; `grade` is the grader's JSON, or what failed before it."""

    name: str
    seconds: float
    grade: dict[str, Any]


def solve(name: str, source: Path, scratch: Path) -> Outcome:
    """Makes a competition, describes it, trains the probe, and grades its submission."""
    home = scratch / name
    shutil.rmtree(home, ignore_errors=True)
    python(home, source / "make_competitions.py", name, str(home))
    start = time.monotonic()
    settings = [
        f"data.root={home / 'public'}",
        f"data.cache={home / 'cache'}",
        f"name={name}",
        *PROBE,
        *CASES[name].given,
    ]
    config = ROOT / "configs/effnet_lite0_probe.yaml"
    for command in (
        ["prepare.py", "detect", str(home / "public")],
        ["train.py", str(config), "--set", *settings, "--submit"],
    ):
        done = python(home, ROOT / "src" / command[0], *command[1:])
        if done.returncode:
            return Outcome(
                name, time.monotonic() - start, {"valid": False, "why": f"{command[0]}: {done.stdout[-600:]}"}
            )
    seconds = time.monotonic() - start
    graded = python(home, source / "graders.py", name, f"submissions/{name}.csv", str(home / "private/answers.csv"))
    return Outcome(name, seconds, json.loads(graded.stdout))


def python(folder: Path, script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a folder of its own, so that runs and submissions stay out of the repository."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if script.name != "graders.py" else None,
    )


def main() -> None:
    """Prints a line for each competition as it finishes, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the folder of make_competitions.py and graders.py")
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all")
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmarks/competitions"), help="where to work")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.names or CASES:
        outcome = solve(name, arguments.source.resolve(), arguments.scratch.resolve())
        print(f"{name}: {outcome.grade} ({outcome.seconds:.0f} s)", flush=True)
        rows.append(outcome)
    print(
        "\n| competition | given by hand | metric | score | conversion by hand | seconds |\n|---|---|---|---|---|---|"
    )
    for name, seconds, grade in rows:
        given = ", ".join(f"`{line}`" for line in CASES[name].given)
        score = f"{grade['score']:.3f}" if grade["valid"] else "refused"
        print(f"| {name} | {given} | {grade.get('metric', '')} | {score} | {CASES[name].by_hand} | {seconds:.0f} |")
    sys.exit(0 if all(grade["valid"] for _, _, grade in rows) else 1)


if __name__ == "__main__":
    main()
