"""Makes docs/report.png, the picture in the README: a report's header, scores, confusions and first mistakes.

    bash train.sh configs/quickstart.yaml
    python benchmarks/report_picture.py runs/quickstart/report.html docs/report.png

Needs playwright (requirements-dev.txt) and chromium.
"""

import argparse
import shutil
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image

SHOWN = ("cross-validation", "confusion", "confident-mistakes")
STYLE = """
h2 { margin-top: 1rem; padding-top: 0.75rem; }
main { padding-block: 1.5rem 1rem; }
nav, .gallery figure:nth-child(n+5), .sortable tbody tr:nth-child(n+9), .more { display: none; }
"""


def take(page: Path, out: Path, sections: Sequence[str], style: str = "", colours: int = 256) -> None:
    """Opens a page in headless chromium, hides all but the given sections and saves a picture of it.

    Args:
        page: report.html or check.html.
        out: The PNG to write.
        sections: The ids of the sections to show: their titles in lower case, with hyphens.
        style: CSS that hides more.
        colours: How many colours the PNG's palette has.
    """
    from playwright.sync_api import sync_playwright

    others = ":not(" + ", ".join(f"#{name}" for name in sections) + ")"
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1280, "height": 200}, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        if missing := [name for name in sections if not opened.locator(f"#{name}").count()]:
            raise SystemExit(f"{page}: has no section {', '.join(missing)}")
        opened.add_style_tag(content=f"section{others} {{ display: none; }}{STYLE}{style}")
        picture = Image.open(BytesIO(opened.screenshot(full_page=True)))
        browser.close()
    picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE).save(out, optimize=True)


def main() -> None:
    """Takes the picture requested on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    take(arguments.page, arguments.out, SHOWN)


if __name__ == "__main__":
    main()
