"""A network as a web page to draw on: one file that needs nothing but a browser."""

import base64
import contextlib
import html
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mnist_flax.engine.trained_model import TrainedModel
from mnist_flax.evaluate.pad import render_drawing_page

NODE = ("node", "nodejs")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "msedge")
TIMEOUT_SECONDS = 120
# Runs the network of a page on images, with the page's own script and parameters.
SCRIPT = """
%(script)s
const network = mnistNetwork.load(%(network)s);
const pixels = Uint8Array.from(atob("%(images)s"), (char) => char.charCodeAt(0));
const answers = [];
for (let start = 0; start < pixels.length; start += 784) {
  answers.push(mnistNetwork.run(network, pixels.subarray(start, start + 784)).probabilities);
}
print(JSON.stringify(answers));
"""


def to_html(trained: TrainedModel) -> bytes:
    """The page with the first network."""
    return render_drawing_page(trained).encode()


def load_html(path: Path) -> Callable[[np.ndarray], np.ndarray] | None:
    """Loads the network of a page; None if nothing on this machine can run it."""
    program = find_javascript()
    if program is None:
        return None
    page = path.read_text(encoding="utf-8")
    scripts = re.findall(r"<script ([^>]*)>(.*?)</script>", page, re.DOTALL)
    script, network = (
        next(text for attributes, text in scripts if name in attributes)
        for name in ('data-name="network"', 'class="pad-network"')
    )

    def predict(images: np.ndarray) -> np.ndarray:
        pixels = base64.b64encode(images.tobytes()).decode()
        values = {"script": script, "network": network, "images": pixels}
        return np.array(json.loads(run_javascript(program, SCRIPT % values)))

    return predict


def find_javascript() -> str | None:
    """The path of a program that runs JavaScript: Node, or else a browser."""
    for name in (*NODE, *BROWSERS):
        path = shutil.which(name)
        with contextlib.suppress(RuntimeError):  # it may be another program, or broken
            if path and run_javascript(path, "print(6 * 7)") == "42":
                return path
    return None


def run_javascript(program: str, script: str) -> str:
    """What a script gives to its function `print`, in Node or a headless browser.

    Raises a RuntimeError if it fails.
    """
    if Path(program).name in NODE:
        return _run([program, "-"], f"const print = console.log;\n{script}").strip()
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder, "page.html")
        print_function = "const print = (text) => { document.body.textContent = text; };"
        page.write_text(f"<body><script>\n{print_function}\n{script}\n</script></body>")
        # The page is ours, and containers have no sandbox for the browser.
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        output = _run([program, *flags, "--dump-dom", page.as_uri()])
    result = re.search(r"<body>([^<]*)</body>", output)
    if result is None:
        raise RuntimeError(f"{Path(program).name} failed to run the page")
    return html.unescape(result[1])


def _run(command: list[str], text: str | None = None) -> str:
    """The output of a command that gets the text as its input."""
    name = Path(command[0]).name
    try:
        result = subprocess.run(
            command,
            input=text,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{name} failed: {error}") from error
    if result.returncode:
        raise RuntimeError(f"{name} failed: {result.stderr.strip()[-500:]}")
    return result.stdout
