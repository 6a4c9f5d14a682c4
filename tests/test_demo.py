"""The server of the drawing page: its answers and refusals. See also `test_browser.py`."""

import base64
import contextlib
import io
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest
import requests
from PIL import Image

from mnist_flax import demo, load
from mnist_flax.evaluate.pad import render_drawing_page
from mnist_flax.predict.preprocess import FORMATS, to_mnist
from tests.predict.test_preprocess import seven

pytest.importorskip("starlette")
uvicorn = pytest.importorskip("uvicorn")

PAGE = "<script>let x = 1;</script><p>A page</p>"


@contextlib.contextmanager
def serving(page, answer):
    """Serves a page in a thread; gives its address."""
    listener = socket.create_server((demo.HOST, 0))
    server = uvicorn.Server(uvicorn.Config(demo.make_app(page, answer), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://{demo.HOST}:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def encoded(image, kind="PNG"):
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


@pytest.fixture(scope="module")
def trained(small_run):
    return load(small_run)


@pytest.fixture
def address():
    """Of a server that answers with the number of bytes that it got."""
    with serving(PAGE, lambda content: {"message": str(len(content))}) as address:
        yield address


def test_photo_is_converted_as_predict_does():
    result = demo.convert_photo(encoded(seven(), "JPEG"))
    image = to_mnist(Image.open(io.BytesIO(encoded(seven(), "JPEG"))))
    assert base64.b64decode(result.pop("pixels")) == image.tobytes()
    assert not result


def test_files_without_a_digit_get_a_message_without_a_path():
    bomb = Image.new("1", (9_000, 9_000))
    formats = ", ".join(FORMATS)
    damaged = f"This file is damaged, or not in a supported image format: {formats}."
    cases = {
        b"": damaged,
        b"not an image": damaged,
        encoded(seven())[:200]: damaged,
        encoded(bomb): "This file has 9,000 x 9,000 pixels, more than 60,000,000.",
        encoded(Image.new("L", (90, 90), 255)): "No digit found: the image is blank.",
    }
    for content, message in cases.items():
        assert demo.convert_photo(content) == {"message": message}


def test_page_and_nothing_else_is_served(address, small_run):
    response = requests.get(address, timeout=60)
    assert response.text == PAGE
    for path in ("etc/passwd", "..%2f..%2fetc/passwd", str(small_run / "config.json"), "docs"):
        response = requests.get(f"{address}/{path}", timeout=60)
        assert (response.status_code, response.text) == (404, "Not Found")
    assert requests.get(f"{address}/predict", timeout=60).status_code == 405


def test_headers_allow_only_the_scripts_of_the_page(trained):
    page = render_drawing_page(trained, upload=True)
    headers = demo.security_headers(page)
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"].count("sha256") == page.count("<script") == 3
    values = " ".join(policy.values())
    assert "unsafe-inline" not in values.replace(policy["style-src"], "")
    assert "http" not in values
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_other_sites_are_refused(address):
    foreign = {"Host": "mnist.example"}
    for method in ("get", "post"):
        response = requests.request(method, f"{address}/", headers=foreign, timeout=60)
        assert response.status_code == 400
    for origin in ("http://mnist.example", "null", f"http://{demo.HOST}:1"):
        headers = {"Origin": origin}
        response = requests.post(f"{address}/predict", b"photo", headers=headers, timeout=60)
        assert response.status_code == 403
    for headers in ({}, {"Origin": address}):
        response = requests.post(f"{address}/predict", b"photo", headers=headers, timeout=60)
        assert response.json() == {"message": "5"}


def test_large_uploads_are_refused_whatever_their_header_says(address):
    upload = f"{address}/predict"
    assert requests.post(upload, bytes(demo.MAX_BYTES), timeout=60).ok
    too_large = bytes(demo.MAX_BYTES + 1)
    chunks = (too_large[start : start + 2**20] for start in range(0, len(too_large), 2**20))
    for body in (too_large, chunks):
        response = requests.post(upload, body, timeout=60)
        assert response.status_code == 413
        assert response.json() == {"message": "The file is larger than 20 MB."}
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n"
    assert b'{"message":"10"}' in exchange(address, head.encode() + bytes(1_000))


def exchange(address, data):
    """The first part of the answer to raw bytes."""
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(data)
        return connection.recv(2**16)


def test_slow_uploads_and_answers_are_abandoned_and_hold_up_nobody(monkeypatch):
    finished = threading.Event()

    def answer(content):
        if content == b"slow":
            finished.wait(60)
        return {"message": "done"}

    monkeypatch.setattr(demo, "TIMEOUT_SECONDS", 3)
    with serving(PAGE, answer) as address, ThreadPoolExecutor() as visitors:
        slow = visitors.submit(requests.post, f"{address}/predict", b"slow", timeout=60)
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n"
        stalled = visitors.submit(exchange, address, head)
        assert requests.post(f"{address}/predict", b"fast", timeout=60).json()["message"] == "done"
        assert not slow.done()
        message = "That took too long. Try a smaller image."
        assert slow.result().json() == {"message": message}
        assert slow.result().status_code == 503
        assert message.encode() in stalled.result()
        finished.set()


def test_visitors_who_leave_cause_no_error(address, capfd):
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
        )
        time.sleep(0.2)
    assert requests.get(address, timeout=60).ok
    assert capfd.readouterr().err == ""


def test_mistakes_are_reported_in_one_line(small_run, capsys, monkeypatch):
    workdir = ("--workdir", str(small_run))
    with socket.create_server((demo.HOST, 0)) as used:
        port = str(used.getsockname()[1])
        cases = {
            (*workdir, "--port", port): f"cannot use port {port}: Address already in use; choose",
            (*workdir, "--port", "0"): "--port must be from 1 to 65,535, but is 0",
            ("--workdir", str(small_run.parent)): "holds no run",
        }
        for arguments, message in cases.items():
            assert demo.main(arguments) == 2
            errors = capsys.readouterr().err
            assert message in errors
            assert errors.count("\n") == 1
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert demo.main(workdir) == 2
    assert "uvicorn is missing; in your clone, run pip install" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_serves_this_machine_alone_until_it_is_stopped(small_run, number, code):
    with socket.socket() as unused:
        unused.bind((demo.HOST, 0))
        address = f"{demo.HOST}:{unused.getsockname()[1]}"
    command = [sys.executable, "-m", "mnist_flax.demo", "--workdir", str(small_run)]
    command += ["--port", address.partition(":")[2]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        try:
            assert process.stdout
            assert f"http://{address}" in process.stdout.readline()
            listening = [
                connection.laddr.ip
                for connection in psutil.Process(process.pid).net_connections()
                if connection.status == psutil.CONN_LISTEN
            ]
            assert listening == [demo.HOST]
            assert "Draw a digit" in requests.get(f"http://{address}", timeout=60).text
            photo = encoded(seven())
            answer = requests.post(f"http://{address}/predict", photo, timeout=60).json()
            assert len(base64.b64decode(answer["pixels"])) == 28 * 28
        finally:
            process.send_signal(number)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert errors == "stopped\n"
