"""Self-contained HTML pages, light and dark, that open without a server and fit on a phone."""

import base64
import io
import re
import warnings
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from scenes.console import say
from scenes.files import check_file, keep_old, write_text

TEMPLATES = Path(__file__).with_name("templates")
# Okabe and Ito's colour-blind-safe colours; the first ones are legible on both white and black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
JPEG_QUALITY = 85
GENERATOR = b'<meta name="generator" content="scenes">'  # in every page, to tell pages from other files
NUMBER = re.compile(r"[+\-−]?[\d,]*\.?\d+(e[+-]?\d+)?\s*(%|±.*)?")


def render(template: str, path: Path, **content: Any) -> None:
    """Writes a page that needs no other files; all text in `content` is escaped.

    Args:
        template: A file in ``templates/`` that extends base.html.
        path: The page's file, written atomically; an existing file that is not such a page is renamed, not replaced.
        **content: The template's variables; `Markup` is inserted unescaped.

    Raises:
        UserError: If `path` cannot be a file.
    """
    check_file(path)
    text = fragment(template, **content)
    if path.exists() and GENERATOR not in path.read_bytes():
        say(f"{path} was not written by this project; it was renamed to {keep_old(path)}")
    write_text(path, text.encode(errors="replace").decode())  # a file name may not be valid UTF-8


def fragment(template: str, **content: Any) -> str:
    """Renders a template, possibly for just part of a page; all text in `content` is escaped.

    Args:
        template: A file in ``templates/``.
        **content: The template's variables; `Markup` is inserted unescaped.
    """
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["numeric"] = lambda value: bool(NUMBER.fullmatch(str(value)))
    return environment.get_template(template).render(content)


def figure(width: float = 4.4, height: float = 3.0, title: str = "") -> tuple[Figure, Axes]:
    """Makes an empty figure with one plot in the pages' style.

    Args:
        width: Inches; 4.4 fits on a phone, and two fit side by side on a screen.
        height: Inches.
        title: Shown above the plot and read by screen readers.
    """
    drawn = Figure((width, height), layout="constrained")
    drawn.set_label(title)
    axes = drawn.subplots()
    axes.set_prop_cycle(color=PALETTE)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10, loc="left")
    return drawn, axes


def svg(figure: Figure) -> Markup:
    """Draws a figure as inline SVG: transparent, reproducible byte for byte, with black replaced by the text colour.

    Args:
        figure: A figure not made by pyplot. Dollar signs in its text do not start formulas.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for legend in figure.findobj(Legend):
        legend.set_frame_on(False)  # its background would stay white in dark mode
    settings = {"svg.hashsalt": "scenes", "svg.fonttype": "none", "text.parse_math": False}
    drawn = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has glyphs that the font here lacks
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=no_metadata)
    # Keep only what follows the definitions: the header styles the whole page and fixes the size.
    body = drawn.getvalue().partition("</defs>")[2].replace("#000000", "currentColor")
    body = re.sub(r' id="[A-Za-z.]+\d?[a-z]*_\d+"', "", body)  # figure_1, patch_2, …: the same in every figure
    body = re.sub(r"font-family: [^;]+; ", "", body)
    width, height = figure.get_size_inches() * 72
    return Markup('<svg viewBox="0 0 {0:g} {1:g}" style="max-width: {0:g}pt" role="img" aria-label="{2}">{3}').format(
        width, height, figure.get_label(), Markup(body)
    )


def thumbnail(image: np.ndarray, side: int) -> str:
    """Encodes an image as a JPEG data URI.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        side: The longer side in pixels; smaller images are not enlarged.
    """
    scale = side / max(image.shape[:2])
    if scale < 1:
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
