"""The command `python -m mnist_flax.demo`: a page on this machine for drawing digits.

The network runs in the page; only photos are sent to this program. Needs the extra `demo`
(Starlette and Uvicorn). The page loads nothing from any other machine.
"""

import asyncio
import base64
import dataclasses
import hashlib
import io
import os
import re
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import urlsplit

from mnist_flax.core.config import UserError
from mnist_flax.engine import cli
from mnist_flax.engine.cli import import_extra
from mnist_flax.engine.options import RunOptions, parse_options

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

HOST = "127.0.0.1"
HOST_NAMES = [HOST, "localhost"]
TIMEOUT_SECONDS = 20.0
MAX_BYTES = 20 * 2**20  # of an uploaded photo, as in `evaluate/assets/upload.js`
MAX_AT_ONCE = 4  # photos
TOO_LARGE = "The file is larger than 20 MB."
TOO_SLOW = "That took too long. Try a smaller image."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Serves a page on which to draw or upload a digit, and shows the prediction.

    Example: mnist-flax demo
    """

    port: int = 7860
    """Port of this machine, 127.0.0.1, to serve the page on."""


class Answer(TypedDict, total=False):
    """The answer to a photo: a message, or the network's input, which the page classifies."""

    message: str
    pixels: str
    """The 28x28 bytes of the input, in Base64."""


Answerer = Callable[[bytes], Answer]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is interrupted; returns its exit code."""
    return cli.run_command(_serve, argv, interrupted="stopped")


def _serve(argv: Sequence[str]) -> int:
    options = parse_options(Options, cli.program_name("demo"), argv)
    if not 1 <= options.port <= 65_535:
        raise UserError(f"--port must be from 1 to 65,535, but is {options.port}")
    for name in ("starlette", "uvicorn"):
        import_extra(name, "demo")
    from mnist_flax.engine.trained_model import load_selected
    from mnist_flax.evaluate.pad import render_drawing_page

    cli.initialize_jax()
    trained = load_selected(options)
    page = render_drawing_page(trained, upload=True)
    serve(make_app(page, convert_photo), options.port)
    return 0


def serve(app: "Starlette", port: int) -> None:
    """Serves until the process ends; raises a UserError if the port cannot be used."""
    import uvicorn

    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        reason = f"cannot use port {port}: {os.strerror(error.errno or 0)}"
        raise UserError(f"{reason}; choose another with --port") from error
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False))
    # Outside the main thread it leaves the signals to this program.
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    print(f"draw a digit at http://{HOST}:{port} (press Ctrl-C to stop)", flush=True)
    thread.join()


def convert_photo(content: bytes) -> Answer:
    """The answer to the content of an image file."""
    from mnist_flax.predict.preprocess import decode_image, to_mnist

    try:
        image = to_mnist(decode_image(io.BytesIO(content), "this file"))
    except UserError as error:
        text = str(error)
        return {"message": f"{text[0].upper()}{text[1:]}."}
    return {"pixels": base64.b64encode(image.tobytes()).decode()}


def make_app(page: str, answer: Answerer) -> "Starlette":
    """The server of the page, which answers to photos at `/predict`."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    headers = security_headers(page)
    workers = ThreadPoolExecutor(MAX_AT_ONCE)

    async def show_page(_: "Request") -> Response:
        return HTMLResponse(page, headers=headers)

    async def predict(request: "Request") -> Response:
        if not _is_same_origin(request):
            return JSONResponse({"message": "Only this page may send photos."}, 403, headers)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                content = await _read_body(request)
                if content is None:
                    return JSONResponse({"message": TOO_LARGE}, 413, headers)
                # After the time-out the worker finishes, but its answer is discarded.
                result = await asyncio.wrap_future(workers.submit(answer, content))
        except ClientDisconnect:
            return Response(headers=headers)  # which nobody gets
        except TimeoutError:
            return JSONResponse({"message": TOO_SLOW}, 503, headers)
        return JSONResponse(result, headers=headers)

    return Starlette(
        routes=[
            Route("/", show_page),
            Route("/predict", predict, methods=["POST"]),
        ],
        # Refuses other host names (DNS rebinding).
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=HOST_NAMES)],
    )


def _is_same_origin(request: "Request") -> bool:
    """Whether the request comes from this page.

    Browsers send `Origin` with every POST; other programs may omit it.
    """
    origin = request.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == request.headers["host"]


async def _read_body(request: "Request") -> bytes | None:
    """The body, whatever its header says of its length; None if it is too large."""
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MAX_BYTES:
            return None
    return bytes(content)


def security_headers(page: str) -> dict[str, str]:
    """Headers by which a browser runs the page's own scripts alone, and asks no other machine."""
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(x.encode()).digest()).decode() for x in scripts]
    policy = {
        "default-src": "'none'",
        "script-src": " ".join(f"'sha256-{x}'" for x in hashes),
        "style-src": "'unsafe-inline'",
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


if __name__ == "__main__":
    raise SystemExit(main())
