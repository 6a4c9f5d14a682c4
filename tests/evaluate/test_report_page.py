"""The report and the comparison in a browser, on a desktop and on a phone."""

from pathlib import Path
from typing import Any

import pytest

from mnist_flax.evaluate.comparison import render_comparison
from mnist_flax.evaluate.report import render_html
from tests.evaluate.test_charts import SEEDS
from tests.evaluate.test_comparison import make_group
from tests.evaluate.test_metrics import LABELS, PREDICTIONS, evaluate, make_logits
from tests.evaluate.test_report import make_page

pytestmark = pytest.mark.slow

PHONE, DESKTOP = {"width": 390, "height": 800}, {"width": 1280, "height": 900}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The files of a report with everything in it, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    evaluation = evaluate(make_logits(PREDICTIONS), LABELS)
    evaluation["robustness"] = {kind: [0.9, 0.8, 0.7] for kind in ("noise", "blur", "shift")}
    evaluation["mnist_c"] = {"fog": 0.5}
    report = make_page(evaluation, metrics=SEEDS)
    files = {"report": render_html(report), "comparison": render_comparison(make_group(0.04, 0.06))}
    for name, content in files.items():
        (folder / f"{name}.html").write_text(content, encoding="utf-8")
    return {name: folder / f"{name}.html" for name in files}


def open_page(
    browser: Any, file: Path, size: dict[str, int], **settings: Any
) -> tuple[Any, list[str]]:
    """An opened page, and what its console and its requests to the outside say."""
    page = browser.new_context(viewport=size, **settings).new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    inside = ("data:", file.as_uri())
    page.on("request", lambda x: x.url.startswith(inside) or problems.append(x.url))
    page.goto(file.as_uri())
    return page, problems


def hover(page: Any, element: Any) -> str:
    """Moves the pointer to an element; returns the value that is shown. Scrolling would hide it."""
    element.scroll_into_view_if_needed()
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 50)))")
    element.hover()
    return page.locator("#tip:visible").inner_text()


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_pages_fit_and_need_nothing_from_outside(browser, pages, name, scheme, size):
    page, problems = open_page(browser, pages[name], size, color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((x) => (x.open = true))")
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert hover(page, page.locator("svg .hover").first)
    assert problems == []


def test_hover_values_are_shown_beside_the_pointer(browser, pages):
    page, _ = open_page(browser, pages["report"], DESKTOP)
    assert page.locator("#tip").is_hidden()
    strip = page.locator("#curves svg").nth(1).locator(".hover").nth(2)
    assert hover(page, strip) == "epoch 3\ntest 9.00% (8.00% to 10.00%)"
    cell = page.locator("#confusion .cell").nth(1)
    assert hover(page, cell) == "1 of 4 images of a 0 were classified as 1"
    page.locator("h1").hover()
    assert page.locator("#tip").is_hidden()


def test_mistakes_are_filtered_by_their_digits(browser, pages):
    page, _ = open_page(browser, pages["report"], PHONE)
    shown = page.locator(".gallery li:visible")
    assert shown.count() == 3  # a 0 as 1, a 1 as 0 and a 2 as 3
    page.select_option("select[name=label]", "2")
    assert shown.count() == 1
    assert "2 as 3" in shown.inner_text()
    assert page.locator("output").inner_text() == "1 of 3 shown"
    page.select_option("select[name=prediction]", "0")
    assert shown.count() == 0
    page.get_by_role("button", name="Show all").click()
    page.wait_for_function("document.querySelector('output').textContent === '3 of 3 shown'")
    assert shown.count() == 3


def test_everything_is_readable_without_script(browser, pages):
    page, problems = open_page(browser, pages["report"], PHONE, java_script_enabled=False)
    assert page.locator(".gallery li:visible").count() == 3
    assert page.locator("#filter").is_hidden()
    assert page.locator("svg title").count() > 100  # the browser shows them
    page.get_by_text("Config", exact=True).click()
    assert page.get_by_text("learning rate", exact=True).last.is_visible()
    assert problems == []
