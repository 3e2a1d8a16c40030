"""Pages are one file, whole or absent, that loads nothing from outside; text from data stays text."""

import base64
import re
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import pytest

from scenes.insight import page

HOSTILE = "<script>alert(1)</script>"
MACROS = "{% from 'macros.html' import section, numbers, table, gallery %}"


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Renders a template's text; returns the page's text."""
    templates = tmp_path / "templates"
    templates.mkdir()
    for file in page.TEMPLATES.iterdir():
        (templates / file.name).symlink_to(file)
    monkeypatch.setattr(page, "TEMPLATES", templates)

    def render(text: str, **content: Any) -> str:
        (templates / "try.html").write_text(MACROS + text)
        page.render("try.html", tmp_path / "try.html", **content)
        return (tmp_path / "try.html").read_text()

    return render


def test_a_page_asks_for_nothing_from_outside(show: Any) -> None:
    text = show('{% extends "base.html" %}{% block title %}t{% endblock %}{% block content %}here{% endblock %}')
    assert text.startswith("<!doctype html>") and "here" in text
    assert not re.findall(r"https?://|@import|url\(|<script src|rel=.?stylesheet", text)
    assert "prefers-color-scheme: dark" in text


def test_text_stays_text_everywhere(show: Any) -> None:
    text = show(
        "{% call section(x, x) %}{% endcall %}{{ numbers([(x, x)]) }}{{ table([x], [[x]]) }}"
        "{{ gallery([{'src': x, 'large': x, 'caption': x}]) }}{{ figure }}",
        x=f'"{HOSTILE}',
        figure=page.svg(labelled(HOSTILE)),
    )
    assert "<script" not in text and '""' not in text
    assert text.count("&lt;script&gt;") >= 10


def test_a_page_that_fails_leaves_the_old_one(show: Any, tmp_path: Path) -> None:
    first = show('{% extends "base.html" %}{% block title %}t{% endblock %}')
    with pytest.raises(jinja2.UndefinedError):
        show("second {{ forgotten }}")
    assert (tmp_path / "try.html").read_text() == first
    assert not list(tmp_path.glob("*.tmp"))


def test_only_pages_are_overwritten(show: Any, tmp_path: Path) -> None:
    (tmp_path / "try.html").write_text("mine")
    page_of_ours = '{% extends "base.html" %}{% block title %}t{% endblock %}'
    for _ in range(3):
        show(page_of_ours)
    assert (tmp_path / "try.1.html").read_text() == "mine"
    assert not (tmp_path / "try.2.html").exists()


def test_names_that_utf_8_cannot_hold_are_shown_somehow(show: Any) -> None:
    assert "a?b" in show("{{ x }}", x="a\udcffb")


@pytest.mark.parametrize(
    ("cell", "numeric"),
    [
        *((cell, True) for cell in (3, 0.5, "0.93 ± 0.01", "−0.2 ± 0.1", "+3", "12 %", "5,000", "1e-05", ".5")),
        *((cell, False) for cell in ("", "a", "3.jpg", "fold 1", "0.1 to 0.2", "2 ↔ 3", "±")),
    ],
)
def test_numbers_are_distinguished_from_words(cell: object, numeric: bool, show: Any) -> None:
    assert ('<td class="number">' in show("{{ table(['a'], [[x]]) }}", x=cell)) == numeric


def labelled(*texts: str) -> Any:
    figure, axes = page.figure(title=texts[0])
    axes.plot([0, 1], [1, 2], label=texts[0])
    axes.set_xticks(range(len(texts)), texts)
    axes.legend()
    return figure


def test_a_figure_takes_any_text_and_is_the_same_each_time() -> None:
    texts = [HOSTILE, "$x_{", "$\\frac{1}$", "雪山", "a & b"]
    first, second = page.svg(labelled(*texts)), page.svg(labelled(*texts))
    assert first == second
    assert first.startswith("<svg") and first.rstrip().endswith("</svg>")
    assert "currentColor" in first and "#000000" not in first and "#ffffff" not in first
    assert HOSTILE not in first and "$x_{" in first and "雪山" in first


@pytest.mark.parametrize(("shape", "expected"), [((100, 300), (50, 150)), ((40, 20), (40, 20)), ((1, 3000), (1, 150))])
def test_thumbnails_shrink_and_never_grow(shape: tuple[int, int], expected: tuple[int, int]) -> None:
    image = np.full((*shape, 3), (200, 40, 10), np.uint8)
    head, _, data = page.thumbnail(image, 150).partition(",")
    assert head == "data:image/jpeg;base64"
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape[:2] == expected
    np.testing.assert_allclose(decoded.mean((0, 1))[::-1], (200, 40, 10), atol=6)  # red is still red
