"""Runs the commands of docs/walkthrough.md again, and puts their output and new pictures into it.

    python benchmarks/walkthrough.py

Each `console` block has one command. A comment above a picture names the page it shows, and the page's sections. This
takes a few minutes, works in a temporary folder, and needs playwright (requirements-dev.txt) and chromium.
"""

import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from report_picture import take

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/walkthrough.md"
BLOCK = re.compile(r"```console\n\$ (?P<command>.*)\n(?:.*\n)*?```")
PICTURE = re.compile(r"<!-- (?P<page>\S+): (?P<sections>.*) -->\n!\[.*\]\((?P<file>.*)\)")
PROGRESS = re.compile(r"\d+/\d+ .*s left|^\s*$")  # on a terminal each such line replaces the one before
WIDTH, MOST_LINES = 118, 24
STYLE = "header, .numbers, .findings { display: none; }"


def shown(command: str, folder: Path) -> str:
    """Runs a command and returns a block with its output; long output loses lines from the middle."""
    words = [sys.executable if word == "python" else word for word in shlex.split(command)]
    print(f"$ {command}", flush=True)
    done = subprocess.run(words, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout)
    lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.search(line)]
    lines = [line if len(line) <= WIDTH else f"{line[: WIDTH - 1]}…" for line in lines]
    if len(lines) > MOST_LINES:
        lines = [*lines[: MOST_LINES // 3], "…", *lines[MOST_LINES // 3 - MOST_LINES :]]
    return "\n".join(["```console", f"$ {command}", *lines, "```"])


def main() -> None:
    """Goes through the page from top to bottom."""
    text = PAGE.read_text(encoding="utf-8")
    places = sorted([*BLOCK.finditer(text), *PICTURE.finditer(text)], key=lambda place: place.start())
    parts, end = [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("src", "configs"):
            Path(scratch, name).symlink_to(ROOT / name)
        for place in places:
            parts.append(text[end : place.start()])
            end = place.end()
            if place.re is BLOCK:
                parts.append(shown(place["command"], Path(scratch)))
            else:
                take(Path(scratch, place["page"]), PAGE.parent / place["file"], place["sections"].split(), STYLE, 64)
                parts.append(place[0])
    PAGE.write_text("".join(parts) + text[end:], encoding="utf-8")


if __name__ == "__main__":
    main()
