"""What benchmarks share: sections of RESULTS.md, each written by one of them, and how they time and tell."""

import os
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

RESULTS = Path(__file__).with_name("RESULTS.md")
PEERS = Path(__file__).resolve().parents[1] / ".cache/peers"  # where benchmarks/requirements.txt is installed
T = TypeVar("T")


def write_section(name: str, title: str, text: str) -> None:
    """Prints a section, and writes or replaces it in RESULTS.md.

    Args:
        name: What the benchmark finds it by again.
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
    """Measures A B A B …, so that what is compared meets the same machine, whose speed drifts."""
    found: dict[str, list[T]] = {name: [] for name in measures}
    for _ in range(repeats):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median and the range, as ``58.0 (57.2 to 58.9)``."""
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """The ratio of each pair of what was measured in turn."""
    return [a / b for a, b in zip(over, under, strict=True)]


def hardware() -> str:
    """The machine, and the versions that decide its speed; says so where it was not at rest."""
    from scenes.environment import describe, usable_cores

    about = describe()
    devices, packages = about["devices"], about["packages"]
    assert isinstance(devices, list) and isinstance(packages, dict)
    names = " ".join(f"{name} {packages[name]}" for name in ("torch", "timm") if name in packages)
    busy, cores = os.getloadavg()[0], usable_cores()
    rest = f"; load {busy:.1f} on {cores} cores, so not at rest" if busy > cores + 1 else ""
    return f"{devices[0].strip()}, {about['cpu_threads']} threads, {names}{rest}"


def has_fastai() -> bool:
    """Whether a peer's process will find it."""
    return find_spec("fastai") is not None or (PEERS / "fastai").is_dir()


def peer_environment() -> dict[str, str]:
    """The environment in which a script of benchmarks/peers finds its packages."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(PEERS)]))
    return {**os.environ, "PYTHONPATH": path}
