"""Makes docs/report.png, the image in the README: a report's head, scores, confusions and first mistakes.

    python src/report.py runs/effnet_lite0 --set "data.class_names=[buildings, forest, glacier, mountain, sea, street]"
    python benchmarks/report_picture.py runs/effnet_lite0/report.html docs/report.png

Needs playwright (requirements-dev.txt) and chromium.
"""

import argparse
import shutil
from io import BytesIO
from pathlib import Path

from PIL import Image

SHOWN = ("cross-validation", "confusion", "confident-mistakes")
STYLE = f"""
nav, section:not({", ".join(f"#{name}" for name in SHOWN)}), #confident-mistakes figure:nth-child(n+5),
#confusion tbody tr:nth-child(n+7) {{ display: none; }}
h2 {{ margin-top: 1rem; padding-top: 0.75rem; }}
main {{ padding-block: 1.5rem 1rem; }}
"""


def main() -> None:
    """Opens the page, hides what is not shown and saves the rest in 256 colours."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()

    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000}, color_scheme="light")
        page.goto(arguments.page.resolve().as_uri())
        page.add_style_tag(content=STYLE)
        picture = Image.open(BytesIO(page.screenshot(full_page=True)))
        browser.close()
    picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
