"""Pages for people: one self-contained HTML file each, in light and dark, that works from a disk and on a phone."""

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
# Okabe and Ito's colours, which colour-blind people tell apart, those first that show on white and on black alike.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
JPEG_QUALITY = 85
GENERATOR = b'<meta name="generator" content="scenes">'  # stands in every page
NUMBER = re.compile(r"[+\-−]?[\d,]*\.?\d+(e[+-]?\d+)?\s*(%|±.*)?")


def render(template: str, path: Path, **content: Any) -> None:
    """Writes a page: everything it needs is inside the file, and all text in `content` is escaped.

    Args:
        template: A file of ``templates/``, made upon base.html.
        path: The page's file, written atomically; a file there that is no page of ours is kept under another name.
        **content: What the template asks for; `Markup` goes in as it is.

    Raises:
        UserError: If `path` cannot be a file.
    """
    check_file(path)
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.tests["numeric"] = lambda value: bool(NUMBER.fullmatch(str(value)))
    text = environment.get_template(template).render(content)
    if path.exists() and GENERATOR not in path.read_bytes():
        say(f"{path} was there and is no page of ours; it is now {keep_old(path)}")
    write_text(path, text.encode(errors="replace").decode())  # a file's name may hold what UTF-8 does not


def figure(width: float = 4.4, height: float = 3.0, title: str = "") -> tuple[Figure, Axes]:
    """Makes an empty figure of one plot in the pages' style.

    Args:
        width: Inches; 4.4 fits a phone, two of them stand side by side on a screen.
        height: Inches.
        title: What is drawn, for people who do not see it too.
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
    """Draws a figure as inline SVG: the same bytes each time, transparent, its black in the text's colour.

    Args:
        figure: A figure that belongs to no window (not pyplot's). Dollars in its texts are dollars, not formulas.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    for legend in figure.findobj(Legend):
        legend.set_frame_on(False)  # its ground would be white in the dark
    settings = {"svg.hashsalt": "scenes", "svg.fonttype": "none", "text.parse_math": False}
    drawn = io.StringIO()
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has the letters that this font lacks
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(drawn, format="svg", transparent=True, metadata=nothing)
    # From the first group on: what is before it, a style for the whole page and a size in points, is replaced.
    body = drawn.getvalue().partition("</defs>")[2].replace("#000000", "currentColor")
    body = re.sub(r' id="[A-Za-z.]+\d?[a-z]*_\d+"', "", body)  # figure_1, patch_2, …: the same in every figure
    body = re.sub(r"font-family: [^;]+; ", "", body)
    width, height = figure.get_size_inches() * 72
    return Markup('<svg viewBox="0 0 {0:g} {1:g}" style="max-width: {0:g}pt" role="img" aria-label="{2}">{3}').format(
        width, height, figure.get_label(), Markup(body)
    )


def thumbnail(image: np.ndarray, side: int) -> str:
    """Packs an image into a JPEG data URI.

    Args:
        image: RGB, uint8, shape (h, w, 3).
        side: The longer side's pixels; a smaller image stays as it is.
    """
    scale = side / max(image.shape[:2])
    if scale < 1:
        height, width = (max(1, round(length * scale)) for length in image.shape[:2])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
