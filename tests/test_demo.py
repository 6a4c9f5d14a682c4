"""The page to draw on: what it answers, and the page itself in a real browser."""

import socket
import subprocess
import sys
import time
from urllib.parse import urlparse

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from mnist_flax import demo, load
from tests.conftest import STROKES
from tests.test_preprocess import seven

gradio = pytest.importorskip("gradio")


@pytest.fixture(scope="module")
def answer(reader):
    return demo.answerer(load(reader))


def test_an_answer_has_all_that_the_page_shows(answer):
    given, chances, saliency, said = answer(seven())
    assert given.shape == (224, 224)
    assert given.max() == 255
    assert saliency.shape == (224, 224, 3)
    assert np.ptp(saliency) > 100
    assert list(chances) == [str(digit) for digit in range(10)]
    assert sum(chances.values()) == pytest.approx(1)
    assert said.startswith(f"# {max(chances, key=chances.get)}")


def test_what_is_no_digit_gets_a_message(answer, tmp_path):
    assert answer(None) == (None, None, None, "Draw a digit, or upload one.")
    assert "I see no digit" in answer(Image.new("L", (90, 90), 255))[3]
    (tmp_path / "text.png").write_text("no picture")
    assert demo._uploaded(answer, str(tmp_path / "text.png"))[3].startswith("That is not a picture")
    assert demo._drawn(None) is None


def test_who_waits_too_long_is_told_so(monkeypatch):
    monkeypatch.setattr(demo, "PATIENCE", 0.01)
    said = demo._in_time(lambda: time.sleep(1) or (None, None, None, "at last"))[3]
    assert said == "That took too long. Try a smaller picture."
    monkeypatch.setattr(demo, "PATIENCE", 20)
    assert demo._in_time(lambda: (None, None, None, "at once"))[3] == "at once"


@pytest.fixture(scope="module")
def served(reader):
    """The demo in a process of its own, and its address."""
    with socket.socket() as free:
        free.bind((demo.HOST, 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mnist_flax.demo", "--workdir", str(reader)]
    process = subprocess.Popen([*command, "--port", str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        assert f"http://{demo.HOST}:{port}" in process.stdout.readline()
        yield process, f"http://{demo.HOST}:{port}"
    finally:
        process.terminate()
        process.communicate()


@pytest.fixture(scope="module")
def page_of_demo(served, browser):
    """A page in headless Chromium that shows the demo."""
    return browser.new_page(viewport={"width": 1200, "height": 900}), served[1]


@pytest.mark.slow
def test_only_this_machine_is_served_and_only_the_page(served, reader):
    process, address = served
    listening = [
        connection.laddr.ip
        for connection in psutil.Process(process.pid).net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]
    assert listening == [demo.HOST]
    api = f"{address}/gradio_api"
    assert requests.get(f"{api}/info", timeout=60).json()["named_endpoints"] == {}
    for path in ("/etc/passwd", reader / "config.json"):
        assert requests.get(f"{api}/file={path}", timeout=60).status_code == 403


@pytest.mark.slow
def test_too_large_a_file_is_not_taken(served):
    upload = f"{served[1]}/gradio_api/upload"
    sizes = {1_000: 200, 21 * 2**20: 413}
    for size, code in sizes.items():
        answer = requests.post(upload, files={"files": bytes(size)}, timeout=60)
        assert answer.status_code == code
        assert "Traceback" not in answer.text


@pytest.mark.slow
def test_digits_drawn_with_a_mouse_are_read(page_of_demo):
    page, address = page_of_demo
    outside, errors = [], []
    page.on("request", lambda request: outside.append(urlparse(request.url).hostname))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    for digit, points in STROKES.items():
        page.goto(address)
        draw(page, points)
        page.wait_for_selector(f"h1:text-is('{digit}')", timeout=30_000)
    assert set(outside) <= {demo.HOST, None, ""}
    assert errors == []


@pytest.mark.slow
def test_a_second_visitor_and_garbage_are_answered(page_of_demo, tmp_path):
    first, address = page_of_demo
    (tmp_path / "text.png").write_text("no picture")
    seven().save(tmp_path / "seven.png")
    second = first.context.browser.new_page()
    for page in (first, second):
        page.goto(address)
    for page in (second, first):
        upload(page, tmp_path / "seven.png")
        page.wait_for_selector("h1", timeout=60_000)
    second.close()
    first.goto(address)
    upload(first, tmp_path / "text.png")
    first.wait_for_selector("text=not a picture", timeout=60_000)


def wait_until_it_listens(page):
    """What is done to a page before that is lost."""
    page.wait_for_selector("canvas", timeout=60_000)
    page.wait_for_timeout(2_000)


def upload(page, path):
    wait_until_it_listens(page)
    page.get_by_role("tab", name="Upload").click()
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Upload')")
    page.set_input_files("input[type=file] >> nth=-1", path)


def draw(page, points):
    """Draws with the mouse on the white square of the sketchpad."""
    wait_until_it_listens(page)
    box = page.locator("canvas").first.bounding_box()
    side = 288  # pixels: the drawing surface, zoomed to fit
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    for index, (x, y) in enumerate(points):
        page.mouse.move(left + x * side, top + y * side, steps=10)
        if index == 0:
            page.mouse.down()
    page.mouse.up()
