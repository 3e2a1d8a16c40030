"""Shared by the benchmarks: sections of RESULTS.md, alternating measurements, and the peers' environment."""

import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

RESULTS = Path(__file__).with_name("RESULTS.md")
PEERS = Path(__file__).resolve().parents[1] / ".cache/peers"  # where benchmarks/requirements.txt is installed
MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}
T = TypeVar("T")


def write_section(name: str, title: str, text: str) -> None:
    """Prints a section, and writes or replaces it in RESULTS.md.

    Args:
        name: A unique name that marks the section in the file.
        title: Its heading.
        text: Markdown.
    """
    print(text)
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    section = f"{start}\n## {title}\n\n{text}\n{end}"
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Results\n"
    pattern = re.compile(f"{re.escape(start)}.*{re.escape(end)}", re.DOTALL)
    new = pattern.sub(lambda _: section, old) if pattern.search(old) else f"{old.rstrip()}\n\n{section}\n"
    RESULTS.write_text(new, encoding="utf-8")


def in_turn(repeats: int, measures: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measures in alternation, A B A B …, because a machine's speed drifts."""
    found: dict[str, list[T]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Formats the median and the range as ``58.0 (57.2 to 58.9)``."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Returns the ratio of each pair of measurements."""
    return [a / b for a, b in zip(over, under, strict=True)]


def hardware() -> str:
    """Describes the machine, the versions that affect speed, the commit, and whether other programs were running."""
    from scenes.environment import describe, usable_cores

    about = describe()
    devices, packages = about["devices"], about["packages"]
    assert isinstance(devices, list) and isinstance(packages, dict)
    names = " ".join(f"{name} {packages[name]}" for name in ("torch", "timm") if name in packages)
    busy, cores = os.getloadavg()[0], usable_cores()
    rest = f"; busy machine, load {busy:.1f} on {cores} cores" if busy > cores + 1 else ""
    commit = f", commit {str(about['commit'])[:7]}" if about["commit"] else ""
    return f"{devices[0].strip()}, {about['cpu_threads']} threads, {names}{commit}{rest}"


def has_fastai() -> bool:
    """Tells whether a peer's process will find fastai."""
    return find_spec("fastai") is not None or (PEERS / "fastai").is_dir()


def peer_environment(keeps_memory: bool) -> dict[str, str]:
    """Returns the environment in which a script of benchmarks/peers finds its packages.

    Args:
        keeps_memory: Whether glibc keeps freed memory, as it does in this project (scenes/model/device.py).
    """
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PEERS)]))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return {**inherited, "PYTHONPATH": path, **(MALLOC if keeps_memory else {})}
