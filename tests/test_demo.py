"""The drawing page: its answers, and the page itself in a browser."""

import socket
import subprocess
import sys
import threading
from urllib.parse import urlparse

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from mnist_flax import demo, load
from tests.conftest import STROKES
from tests.predict.test_preprocess import seven

SLOW, NIGHTLY = pytest.mark.slow, pytest.mark.nightly


@pytest.fixture(scope="module", autouse=True)
def gradio():
    return pytest.importorskip("gradio")  # takes seconds to import


@pytest.fixture(scope="module")
def answer(reader):
    return demo.answerer(load(reader))


@SLOW
def test_answer_has_all_outputs_of_the_page(answer):
    image, probabilities, saliency, message = answer(seven())
    assert image.shape == (224, 224)
    assert image.max() == 255
    assert saliency.shape == (224, 224, 3)
    assert np.ptp(saliency) > 100
    assert list(probabilities) == [str(digit) for digit in range(10)]
    assert sum(probabilities.values()) == pytest.approx(1)
    digit = max(probabilities, key=probabilities.get)
    assert message.startswith(f"# {digit}\nConfidence: {probabilities[digit]:.1%}")


@SLOW
def test_low_confidence_is_reported(answer, monkeypatch):
    for threshold, is_low in ((0.0, False), (1.1, True)):
        monkeypatch.setattr(demo, "LOW_CONFIDENCE", threshold)
        assert answer(seven()).message.endswith(" (low)") == is_low


@SLOW
def test_inputs_without_a_digit_get_a_message(answer, tmp_path):
    invitation = (None, None, None, "Draw a digit, or upload one.")
    assert answer(None) == invitation
    assert answer(Image.new("L", (90, 90), 255))[3] == "No digit found: the image is blank."
    (tmp_path / "text.png").write_text("not an image")
    message = demo._answer_upload(answer, str(tmp_path / "text.png"))[3]
    assert message == "This file is not an image in a supported format."
    assert demo._answer_upload(answer, None) == invitation
    empty = {"composite": Image.new("RGBA", (360, 360))}
    assert demo._answer_drawing(answer, None) == demo._answer_drawing(answer, empty) == invitation


@SLOW
def test_slow_answers_are_abandoned(monkeypatch):
    monkeypatch.setattr(demo, "TIMEOUT_SECONDS", 0.01)
    abandoned = threading.Event()
    answer = demo._with_timeout(lambda: demo.Answer(message=f"late: {abandoned.wait(60)}"))
    assert answer.message == "That took too long. Try a smaller image."
    abandoned.set()
    monkeypatch.setattr(demo, "TIMEOUT_SECONDS", 20)
    assert demo._with_timeout(lambda text: demo.Answer(message=text), "ok").message == "ok"


@pytest.fixture(scope="module")
def served(reader):
    """The demo in a subprocess, and its address."""
    with socket.socket() as unused:
        unused.bind((demo.HOST, 0))
        port = unused.getsockname()[1]
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
def browser_page(served, browser):
    """A page in headless Chromium, and the address of the demo."""
    return browser.new_page(viewport={"width": 1200, "height": 900}), served[1]


@SLOW
def test_only_the_page_is_served_and_only_to_this_machine(served, reader):
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


@SLOW
def test_large_uploads_are_rejected(served):
    upload = f"{served[1]}/gradio_api/upload"
    sizes = {1_000: 200, 21 * 2**20: 413}
    for size, code in sizes.items():
        response = requests.post(upload, files={"files": bytes(size)}, timeout=60)
        assert response.status_code == code
        assert "Traceback" not in response.text


@pytest.mark.parametrize(
    "digit", [pytest.param(x, marks=SLOW if x == 7 else NIGHTLY) for x in STROKES]
)
def test_a_digit_drawn_with_a_mouse_is_classified(browser_page, digit):
    page, address = browser_page
    hosts, errors = [], []
    page.on("request", lambda request: hosts.append(urlparse(request.url).hostname))
    page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    page.goto(address)
    draw(page, STROKES[digit])
    page.wait_for_selector(f"h1:text-is('{digit}')", timeout=30_000)
    assert set(hosts) <= {demo.HOST, None, ""}
    assert errors == []


@NIGHTLY
def test_two_visitors_and_invalid_uploads_get_answers(browser_page, tmp_path):
    first, address = browser_page
    (tmp_path / "text.png").write_text("not an image")
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
    first.wait_for_selector("text=not an image", timeout=60_000)


def wait_until_loaded(page):
    """Input before that is lost."""
    page.wait_for_selector("canvas", timeout=60_000)
    page.wait_for_timeout(2_000)


def upload(page, path):
    wait_until_loaded(page)
    page.get_by_role("tab", name="Upload").click()
    page.wait_for_selector("[role=tab][aria-selected=true]:has-text('Upload')")
    page.set_input_files("input[type=file] >> nth=-1", path)


def draw(page, points):
    """Draws with the mouse on the sketchpad's white square."""
    wait_until_loaded(page)
    box = page.locator("canvas").first.bounding_box()
    side = 288  # pixels: the drawing surface, zoomed to fit
    left, top = box["x"] + (box["width"] - side) / 2, box["y"] + (box["height"] - side) / 2
    for index, (x, y) in enumerate(points):
        page.mouse.move(left + x * side, top + y * side, steps=10)
        if index == 0:
            page.mouse.down()
    page.mouse.up()
