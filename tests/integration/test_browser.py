"""The drawing page in a browser: drawing, answers, photos, keyboard, phones, accessibility."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

import mnist_flax
from experiments.handwriting import STROKES
from mnist_flax import demo
from mnist_flax.evaluate.pad import render_drawing_page
from tests.predict.test_preprocess import seven
from tests.test_demo import serving

pytestmark = pytest.mark.slow

DESKTOP = {"viewport": {"width": 1280, "height": 900}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 3,
    "has_touch": True,
    "is_mobile": True,
}
ANSWERS = ".pad-digit, .pad-text, .pad-canvas, .pad-tools, .pad-bars, .pad-input, .pad-features"


@pytest.fixture(scope="module")
def trained() -> Any:
    return mnist_flax.load()


@pytest.fixture(scope="module")
def file(trained, tmp_path_factory) -> str:
    """The address of the page as a file."""
    path = tmp_path_factory.mktemp("page") / "digits.html"
    path.write_text(render_drawing_page(trained), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def served(trained) -> Iterator[str]:
    """The address of the page as `demo` serves it."""
    with serving(render_drawing_page(trained, upload=True), demo.convert_photo) as address:
        yield address


@pytest.fixture
def open_page(browser) -> Iterator[Any]:
    """Opens a page; in the end there must have been no error, and no request to elsewhere."""
    contexts, problems = [], []

    def open_page(address, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text))

        def note(request):
            if not request.url.startswith((address, "blob:")):
                problems.append(request.url)

        page.on("request", note)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def strokes_of(digit, variant=0):
    """The strokes of a digit, each a list of points from 0 to 1."""
    variants = [line[2:] for line in STROKES.splitlines() if line.startswith(f"{digit}:")]
    strokes = []
    for stroke in variants[variant % len(variants)].split(";"):
        points = np.array([point.split(",") for point in stroke.split()], float)
        curve = CubicSpline(np.arange(len(points)), points)(np.linspace(0, len(points) - 1, 20))
        strokes.append((curve / 220 + (0.27, 0.16)).tolist())
    return strokes


def draw(page, strokes, touch=False):
    """Draws with the mouse, or with a finger."""
    box = page.locator(".pad-canvas").bounding_box()
    session = page.context.new_cdp_session(page) if touch else None
    for stroke in strokes:
        for index, (x, y) in enumerate(stroke):
            place = {"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]}
            if session:
                kind = "touchMove" if index else "touchStart"
                parameters = {"type": kind, "touchPoints": [place]}
                session.send("Input.dispatchTouchEvent", parameters)
            else:
                page.mouse.move(**place)
                if index == 0:
                    page.mouse.down()
        if session:
            session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        else:
            page.mouse.up()
    settle(page)


def settle(page):
    """Waits until what was drawn is answered."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def answer(page):
    """The digit that is shown, or else the message."""
    return page.inner_text(".pad-digit") or page.inner_text(".pad-headline")


def boxes(page):
    script = "(all) => all.map((element) => JSON.stringify(element.getBoundingClientRect()))"
    return page.eval_on_selector_all(ANSWERS, script)


def test_digits_drawn_with_mouse_and_finger_are_recognized(file, open_page):
    correct = 0
    for options in (DESKTOP, PHONE):
        touch = "has_touch" in options
        page = open_page(file, **options)
        for digit in range(10):
            draw(page, strokes_of(digit, variant=touch), touch)
            correct += answer(page) == str(digit)
            page.click(".pad-clear")
            assert answer(page) == "Draw a digit"
    assert correct >= 19


def test_clearing_and_drawing_again_works_each_time(file, open_page):
    page = open_page(file, **DESKTOP)
    for index in range(20):
        draw(page, strokes_of(7 if index % 2 else 1))
        assert answer(page) == ("7" if index % 2 else "1")
        page.click(".pad-clear")
        assert answer(page) == "Draw a digit"


def test_answers_come_while_one_draws_and_nothing_jumps(file, open_page):
    page = open_page(file, **DESKTOP)
    before = boxes(page)
    box = page.locator(".pad-canvas").bounding_box()
    page.mouse.move(box["x"] + 180, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 180, box["y"] + 260, steps=10)
    settle(page)
    assert answer(page) == "1"
    assert page.inner_text(".pad-status") == "Draw a digit"  # nothing is read out before the end
    page.mouse.up()
    settle(page)
    assert page.inner_text(".pad-status").startswith("1, ")
    assert boxes(page) == before
    shares = [float(text[:-1]) for text in page.locator(".pad-share").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=0.06)
    assert page.locator(".pad-bars li").nth(1).get_attribute("class") == "pad-first"


def test_low_confidence_is_said_in_words(file, open_page):
    page = open_page(file, **DESKTOP)
    between = strokes_of(3) + strokes_of(4) + strokes_of(2)
    draw(page, between[:3])
    rng = np.random.default_rng(0)
    for _ in range(30):
        share = float(page.inner_text(".pad-headline").split("%")[0])
        remark = page.inner_text(".pad-remark")
        assert bool(remark) == (share < 95)
        if remark:
            assert re.fullmatch(r"Low confidence: it may be a \d \(\d+\.\d\d%\)", remark)
            return
        draw(page, [rng.uniform(0.2, 0.8, (2, 2)).tolist()])
    pytest.fail("all scribbles have a high confidence")


def test_undo_keyboard_dots_and_an_empty_pad(file, open_page):
    page = open_page(file, **DESKTOP)
    for press in (
        lambda: page.keyboard.press("Control+z"),
        lambda: page.click(".pad-undo"),
        lambda: page.keyboard.press("Delete"),
        lambda: page.keyboard.press("Escape"),
    ):
        draw(page, strokes_of(1))
        assert answer(page) == "1"
        press()
        assert answer(page) == "Draw a digit"
        press()
    draw(page, [[(0.5, 0.5)]])
    assert answer(page) == "Draw a digit"
    draw(page, [*strokes_of(1), [(0.1, 0.9), (0.9, 0.9)]])
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert answer(page) == "Draw a digit"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Undo"


def test_phone_shows_all_without_scrolling_sideways(file, open_page):
    page = open_page(file, **PHONE)
    draw(page, strokes_of(8), touch=True)
    assert answer(page) == "8"
    assert page.evaluate("scrollY") == 0  # drawing scrolls nothing
    page.tap(".pad-features summary")
    page.wait_for_function("document.querySelector('.pad-maps').width > 100")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    heights = page.eval_on_selector_all(
        ".pad button, .pad summary", "(all) => all.map((element) => element.offsetHeight)"
    )
    assert min(heights) >= 36


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_accessibility_has_no_serious_violation(scheme, options, served, open_page):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = open_page(served, color_scheme=scheme, bypass_csp=True, **options)
    for strokes in ([], strokes_of(5), [[(0.2, 0.2), (0.8, 0.25), (0.2, 0.5), (0.8, 0.8)]]):
        draw(page, strokes)
        results = axe.run(page).response
        serious = [x for x in results["violations"] if x["impact"] in ("serious", "critical")]
        assert [(x["id"], [node["html"] for node in x["nodes"]]) for x in serious] == []


def test_photos_are_uploaded_dropped_and_pasted(served, open_page, tmp_path):
    seven().save(tmp_path / "seven.png")
    (tmp_path / "text.png").write_text("not an image")
    page, other = open_page(served, **DESKTOP), open_page(served, **PHONE)
    upload = ".pad-upload input"
    for each in (page, other):  # two tabs
        draw(each, strokes_of(3), touch=each is other)
        each.set_input_files(upload, tmp_path / "seven.png")
    for each in (page, other):
        each.wait_for_selector(".pad-digit:text-is('7')")
        assert each.is_visible(".pad-photo")
        assert each.evaluate("document.querySelector('.pad-photo').naturalWidth") == 200
        is_blank = "document.querySelector('.pad-input').toDataURL().length < 300"
        assert not each.evaluate(is_blank)
    page.set_input_files(upload, tmp_path / "text.png")
    page.wait_for_selector("text=not in a supported image format")
    assert not page.is_visible(".pad-photo")
    for kind in ("drop", "paste"):
        page.click(".pad-clear")
        assert answer(page) == "Draw a digit"
        give(page, kind, tmp_path / "seven.png")
        page.wait_for_selector(".pad-digit:text-is('7')")
    draw(page, strokes_of(1))  # takes the place of the photo
    assert not page.is_visible(".pad-photo")
    assert answer(page) == "1"


def give(page, kind, path):
    """Drops or pastes a file."""
    page.evaluate(
        """([kind, bytes]) => {
          const data = new DataTransfer();
          data.items.add(new File([Uint8Array.from(bytes)], "photo.png", { type: "image/png" }));
          const options = { bubbles: true, cancelable: true };
          document.body.dispatchEvent(kind === "drop"
            ? new DragEvent("drop", { ...options, dataTransfer: data })
            : new ClipboardEvent("paste", { ...options, clipboardData: data }));
        }""",
        [kind, list(path.read_bytes())],
    )


def test_a_stopped_server_and_a_large_file_are_reported(trained, browser, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(demo.MAX_BYTES + 1))
    seven().save(tmp_path / "seven.png")
    page = browser.new_page()
    with serving(render_drawing_page(trained, upload=True), lambda _: {}) as address:
        page.goto(address)
        page.set_input_files(".pad-upload input", tmp_path / "large.png")
        assert answer(page) == "The file is larger than 20 MB."
    page.set_input_files(".pad-upload input", tmp_path / "seven.png")
    page.wait_for_selector("text=No answer: is the program that serves this page still running?")
    page.close()


def test_without_javascript_the_page_says_so(file, browser):
    page = browser.new_page(java_script_enabled=False)
    page.goto(file)
    assert page.is_visible("noscript p")
    page.close()
