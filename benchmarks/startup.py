"""Measures how long commands take to start: python benchmarks/startup.py [--against CHECKOUT].

Training starts when its first batch of images goes through the network: the clock runs from the start of the process to
the line that says so. Everything but the features is cached, and the data is the drawn sample. Every run is a fresh
process, alternating with `import torch`, which is a lower bound, and with another checkout of this project if given.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from results import hardware, in_turn, ratios, spread, write_section  # noqa: E402

SETTINGS = ["data.root=sample", "data.sample=true", "report=false"]
COMMANDS = {
    "train.py --help": ("train.py", "--help"),
    "train.py, a probe, to its first batch": ("train.py", "effnet_lite0_probe.yaml"),
    "train.py, fine-tuning, to its first batch": ("train.py", "effnet_lite0.yaml"),
}
FIRST_BATCH = "rows to train on"  # what train.py prints at that point


def main() -> None:
    """Measures, prints a table and writes it to RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, to measure in turn")
    arguments = parser.parse_args()
    checkouts = {"": ROOT} | ({"before: ": arguments.against.resolve()} if arguments.against else {})
    with tempfile.TemporaryDirectory() as scratch:
        places = {which: Path(scratch, which.strip(": ") or "now") for which in checkouts}  # their caches may differ
        for place in places.values():
            place.mkdir()
        measures: dict[str, Callable[[], float]] = {"import torch": partial(seconds, ["-c", "import torch"], scratch)}
        for name, (script, *rest) in COMMANDS.items():
            for which, checkout in checkouts.items():
                command = [str(checkout / "src" / script), *rest]
                if rest != ["--help"]:
                    command = [command[0], str(checkout / "configs" / rest[0]), "--folds", "0", "--set", *SETTINGS]
                measures[which + name] = partial(seconds, command, str(places[which]))
        in_turn(1, measures)  # to fill the caches
        found = in_turn(arguments.repeats, measures)
    lines = ["| | seconds | × `import torch` |", "|---|---|---|"]
    for name, times in found.items():
        lines.append(f"| {name} | {spread(times, 2)} | {spread(ratios(times, found['import torch']), 2)} |")
    given = " ".join(["python benchmarks/startup.py", *sys.argv[1:]])
    about = f"`{given}`: median of n = {arguments.repeats} in turn (range). {hardware()}."
    write_section("start-up", "Start-up", "\n".join([about, "", *lines]))


def seconds(command: list[str], folder: str) -> float:
    """Runs Python until it ends or reaches its first batch; returns the seconds that took."""
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        if any(FIRST_BATCH in line for line in process.stdout):
            taken = time.perf_counter() - begun
            process.kill()
            return taken
    if process.returncode:
        sys.exit(f"{' '.join(command)}: ended with {process.returncode}")
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
