"""The pages in a real browser: they fit a phone and a desktop, log nothing to the console, sort and enlarge."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import report
from scenes.competition.task import Labels, Number, Task, class_task
from scenes.config import Config
from scenes.config_file import dump
from scenes.inference.evaluate import evaluate_run
from scenes.runs import Run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")


@pytest.fixture(scope="module")
def pages(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/tiny/report.html and comparison.html."""
    root = tmp_path_factory.mktemp("browser") / "root"
    shutil.copytree(trained, root)
    shutil.copytree(root / "runs/tiny", root / "runs/another_run_with_quite_a_long_name")
    names = [
        "<script>alert(1)</script>",
        "forest",
        "a class whose name is long and does not end soon",
        "d",
        "e",
        "f",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        arguments = ["runs/tiny", "runs/another_run_with_quite_a_long_name", "--out", "comparison.html"]
        report.main([*arguments, "--set", f"data.class_names={names}"])
        make_runs()
        for name in ("many", "labels", "number"):
            report.main([f"runs/{name}"])
    return root


def make_run(name: str, task: Task, targets: np.ndarray, predictions: np.ndarray) -> None:
    """Writes the files of a run of two folds that made these predictions."""
    run, config = Run(Path("runs") / name), Config.model_validate({"name": name, "data": {"folds": 2}})
    fold_of = np.arange(len(targets)) % 2
    for fold in range(2):
        run.fold_folder(fold).mkdir(parents=True)
        run.weights_file(fold).touch()
        rows = np.flatnonzero(fold_of == fold)
        tensors = {"rows": rows, "probabilities": predictions[None, rows].astype(np.float32)}
        save_file(tensors, run.fold_oof_file(fold), metadata={"views": "plain"})
    run.config_file.write_text(dump(config))
    evaluate_run(run, config, task, [f"image {row}" for row in range(len(targets))], targets, fold_of)


def make_runs() -> None:
    """Writes runs with many classes, with labels and with a number as target."""
    draw = np.random.default_rng(0)
    names = [f"kind {number:03d}" for number in range(60)]
    targets = np.repeat(np.arange(60), 5)
    predicted = (targets + (np.arange(300) % 5 == 0)) % 60  # one in five predicted as the next class
    make_run("many", class_task(names), targets, np.eye(60)[predicted] * 0.9 + 0.1 / 60)
    labels = (draw.random((200, 5)) < 0.3).astype(np.float32)
    make_run("labels", Labels(names[:5], names[:5]), labels, 0.6 * labels + 0.4 * draw.random((200, 5)))
    numbers = draw.normal(50, 20, 200).astype(np.float32)
    make_run("number", Number.of("age", numbers), numbers, numbers[:, None] + draw.normal(0, 5, (200, 1)))


@pytest.fixture(scope="module")
def browser() -> Iterator[playwright.Browser]:
    """Headless chromium."""
    with playwright.sync_playwright() as driver:
        arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield opened
        opened.close()


@pytest.fixture
def opened(browser: playwright.Browser, pages: Path) -> Iterator[playwright.Page]:
    """The report on a desktop; fails at the end if anything was logged to the console or requested from elsewhere."""
    yield from open_page(browser, pages / "runs/tiny/report.html")


def open_page(browser: playwright.Browser, file: Path) -> Iterator[playwright.Page]:
    said: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: said.append(request.url) if request.url.startswith("http") else None)
    page.goto(file.as_uri())
    yield page
    page.close()
    assert said == []


@pytest.mark.parametrize(
    "name", [*(f"runs/{run}/report.html" for run in ("tiny", "many", "labels", "number")), "comparison.html"]
)
def test_a_page_fits_its_window(name: str, browser: playwright.Browser, pages: Path) -> None:
    for page in open_page(browser, pages / name):
        for width in (1280, 400):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        broken = "[...document.images].filter((one) => one.src && !one.naturalWidth).length"
        assert page.evaluate(broken) == 0
        links = page.locator("nav a").all_text_contents()
        assert links == (page.locator("h2").all_text_contents() if "report" in name else [])


def test_a_click_on_a_header_sorts_by_value_and_back(opened: playwright.Page) -> None:
    table = opened.locator("#confusion table.sortable")
    header = table.locator("th", has_text="errors")
    column = table.locator("tbody td:nth-child(2)")
    before = [int(text) for text in column.all_text_contents()]
    assert header.get_attribute("aria-sort") == "none"
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert [int(text) for text in column.all_text_contents()] == sorted(before)
    header.get_by_role("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert [int(text) for text in column.all_text_contents()] == sorted(before, reverse=True)
    first = table.locator("th").first
    first.get_by_role("button").click()
    assert (header.get_attribute("aria-sort"), first.get_attribute("aria-sort")) == ("none", "ascending")


def test_long_tables_show_their_first_rows_until_asked_for_all(browser: playwright.Browser, pages: Path) -> None:
    for page in open_page(browser, pages / "runs/many/report.html"):
        table = page.locator("#cross-validation table").nth(1)
        rows = table.locator("tbody tr:visible")
        assert rows.count() == 20
        table.locator("th button").first.click()
        assert rows.first.locator("td").first.text_content() == "kind 000"
        assert rows.count() == 20
        page.locator("#cross-validation .more").click()
        assert rows.count() == 60


def test_a_large_confusion_matrix_names_the_cell_under_the_pointer(browser: playwright.Browser, pages: Path) -> None:
    for page in open_page(browser, pages / "runs/many/report.html"):
        canvas = page.locator("canvas.heatmap")
        for row, width in ((7, 1280), (12, 400)):
            page.set_viewport_size({"width": width, "height": 800})
            canvas.scroll_into_view_if_needed()
            side = canvas.evaluate("(one) => one.clientWidth")
            assert side > 0.9 * (width - 64) / (1 if width == 400 else 2)
            canvas.hover(position={"x": side * (row + 1.5) / 60, "y": side * (row + 0.5) / 60})
            said = page.locator(".confusion output").text_content()
            assert said == f"kind {row:03}, predicted kind {row + 1:03}: 1 (20.0 %)"


def test_negative_numbers_sort_below_and_empty_cells_last(opened: playwright.Page) -> None:
    opened.evaluate(
        """() => {
            const body = document.querySelector("#environment tbody");
            const cells = ["", "−2.5 ± 0.1", "1,000", "3", "−10"];
            const row = (cell) => `<tr><td class="${cell && "number"}">${cell}</td><td></td></tr>`;
            body.innerHTML = cells.map(row).join("");
        }"""
    )
    column = opened.locator("#environment tbody td:first-child")
    opened.locator("#environment th button").first.click()
    assert column.all_text_contents() == ["−10", "−2.5 ± 0.1", "3", "1,000", ""]
    opened.locator("#environment th button").first.click()
    assert column.all_text_contents() == ["1,000", "3", "−2.5 ± 0.1", "−10", ""]


def test_an_image_opens_by_click_and_by_key_and_closes(opened: playwright.Page) -> None:
    viewer, picture = opened.locator("#viewer"), opened.locator(".gallery button").first
    assert not viewer.is_visible()
    picture.click()
    assert viewer.is_visible()
    caption = opened.locator(".gallery figcaption").first.text_content()
    assert viewer.locator("figcaption").text_content() == caption
    assert viewer.locator("img").evaluate("(one) => one.naturalWidth") > 0
    opened.keyboard.press("Escape")
    assert not viewer.is_visible()
    picture.focus()
    opened.keyboard.press("Enter")
    assert viewer.is_visible()
    viewer.get_by_role("button", name="Close").click()
    assert not viewer.is_visible()


def test_text_can_be_read_in_light_and_dark(opened: playwright.Page) -> None:
    script = "(name) => getComputedStyle(document.querySelector(name))[name === 'body' ? 'backgroundColor' : 'fill']"
    for scheme in ("light", "dark"):
        opened.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        ground, ink = (
            [int(part) for part in opened.evaluate(script, name).strip("rgb()").split(",")[:3]]
            for name in ("body", "svg text")
        )
        assert abs(sum(ground) - sum(ink)) > 450
        assert (sum(ground) > sum(ink)) == (scheme == "light")
