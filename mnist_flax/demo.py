"""The command `python -m mnist_flax.demo`: a page on this machine to draw a digit on.

Needs the extra `demo` (Gradio); the page loads nothing from any other machine.
"""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from mnist_flax import command
from mnist_flax.command import OptionalPath, keep_compiled_programs
from mnist_flax.config import IMAGE_SHAPE, UserError
from mnist_flax.predict import UNSURE

if TYPE_CHECKING:
    from PIL import Image

    from mnist_flax.trained import Trained

PROG = command.called("demo")
HOST = "127.0.0.1"
MAX_UPLOAD = "20mb"
# Seconds that a visitor is kept waiting.
PATIENCE = 20.0
# How large the 28x28 images are shown.
MAGNIFIED = 8

# The 28x28 image as shown, the probabilities, the saliency, and what to say.
Answer = tuple[np.ndarray | None, dict[str, float] | None, np.ndarray | None, str]


@dataclasses.dataclass(frozen=True)
class Options:
    """Shows a page to draw a digit on, or to upload one, and what the network makes of it."""

    workdir: OptionalPath = None
    """The run's workdir. Required."""

    port: int = 7860
    """Port of this machine, 127.0.0.1, to serve the page on."""

    checkpoint: str = "latest"
    """Which checkpoint: `latest`, `best` (by the validation accuracy) or a step."""

    seed_index: int | None = None
    """Which of several networks. Default: all, answering together by their mean probability."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command, until it is interrupted; returns its exit code."""

    def action(argv: Sequence[str]) -> int:
        options = command.parse(Options, PROG, argv)
        folder = command.trained_workdir(options.workdir)
        if not 1 <= options.port <= 65_535:
            raise UserError(f"--port must be from 1 to 65,535, but is {options.port}")
        from mnist_flax import load

        keep_compiled_programs()
        serve(load(folder, options.checkpoint, options.seed_index), options.port)
        return 0

    return command.run_command(action, argv, interrupted="stopped")


def serve(trained: "Trained", port: int) -> None:
    """Serves the page until interrupted.

    Raises:
      UserError: Gradio is not installed, or the port is taken.
    """
    page = build(answerer(trained))
    try:
        page.launch(
            server_name=HOST,
            server_port=port,
            share=False,
            show_error=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size=MAX_UPLOAD,
            theme=_gradio().themes.Default(font=["sans-serif"], font_mono=["monospace"]),
            footer_links=[],
        )
    except OSError as error:
        raise UserError(f"port {port} is taken; choose another with --port") from error
    print(f"draw a digit at http://{HOST}:{port} (Ctrl-C ends this)", flush=True)
    page.block_thread()


def answerer(trained: "Trained") -> Callable[["Image.Image | None"], Answer]:
    """The function from a picture to all that the page shows of it."""
    from matplotlib import colormaps

    from mnist_flax.inference import sway
    from mnist_flax.preprocess import to_mnist

    first, config = trained.first_params(), trained.only(0).config
    blank = np.zeros((1, *IMAGE_SHAPE), np.uint8)
    trained.probabilities(blank)  # compiles, so that the first visitor need not wait
    sway(first, blank, config)

    def answer(picture: "Image.Image | None") -> Answer:
        if picture is None:
            return None, None, None, "Draw a digit, or upload one."
        try:
            image = to_mnist(picture)
        except UserError as error:
            return None, None, None, f"I see no digit: {error}."
        chance = trained.probabilities(image[None])[0]
        saliency = np.asarray(sway(first, image[None], config))[0]
        best = int(chance.argmax())
        doubt = ": hardly legible" if chance[best] < UNSURE else ""
        return (
            _magnified(image[..., 0]),
            {str(digit): float(chance[digit]) for digit in range(10)},
            _magnified(colormaps["viridis"](saliency, bytes=True)[..., :3]),
            f"# {best}\n{chance[best]:.1%} sure{doubt}",
        )

    return answer


def build(answer: Callable[["Image.Image | None"], Answer]) -> Any:
    """The page, not yet served.

    Raises:
      UserError: Gradio is not installed.
    """
    gradio = _gradio()
    with gradio.Blocks(
        title="mnist_flax", analytics_enabled=False, delete_cache=(600, 600)
    ) as page:
        gradio.Markdown("## Draw a digit")
        with gradio.Row():
            with gradio.Column():
                with gradio.Tab("Draw"):
                    sketch = gradio.Sketchpad(
                        value=np.full((360, 360, 3), 255, np.uint8),
                        label="A digit",
                        type="pil",
                        canvas_size=(360, 360),
                        fixed_canvas=True,
                        layers=False,
                        transforms=(),
                        buttons=[],
                        brush=gradio.Brush(default_size=18, colors=["#000000"], color_mode="fixed"),
                    )
                with gradio.Tab("Upload"):
                    # Not an Image, which would open the file itself, and complain by itself.
                    upload = gradio.File(label="A photo or a scan of one digit")
            with gradio.Column():
                said = gradio.Markdown("Draw a digit, or upload one.")
                with gradio.Row():
                    given = gradio.Image(label="What the network gets", buttons=[])
                    looked = gradio.Image(label="What sways it", buttons=[])
                chances = gradio.Label(
                    label="How probable each digit is", num_top_classes=10, show_heading=False
                )
        shown = [given, chances, looked, said]
        # For the page alone: the API would tell where files lie.
        hidden: Any = {"api_visibility": "private"}
        drawing = lambda drawn: _in_time(lambda: answer(_drawn(drawn)))  # noqa: E731
        sketch.input(drawing, sketch, shown, show_progress="hidden", **hidden)
        uploading = lambda path: _in_time(lambda: _uploaded(answer, path))  # noqa: E731
        upload.change(uploading, upload, shown, **hidden)
    return page


def _in_time(work: Callable[[], Answer]) -> Answer:
    """What `work` answers; where it takes too long, it is left to end by itself."""
    worker = ThreadPoolExecutor(1)
    try:
        return worker.submit(work).result(PATIENCE)
    except TimeoutError:
        return None, None, None, "That took too long. Try a smaller picture."
    finally:
        worker.shutdown(wait=False)


def _drawn(drawn: dict[str, Any] | None) -> "Image.Image | None":
    """The drawing in what the sketchpad gives; None where it is empty."""
    picture = drawn["composite"] if drawn else None
    return picture if picture is not None and picture.getextrema()[-1][1] else None


def _uploaded(answer: Callable[["Image.Image | None"], Answer], path: str | None) -> Answer:
    from pathlib import Path

    from mnist_flax.preprocess import read_image

    if path is None:
        return answer(None)
    try:
        return answer(read_image(Path(path)))
    except UserError:
        return None, None, None, "That is not a picture that I can read."


def _magnified(image: np.ndarray) -> np.ndarray:
    return image.repeat(MAGNIFIED, axis=0).repeat(MAGNIFIED, axis=1)


def _gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import gradio
    except ImportError as error:
        raise UserError("gradio is missing; pip install 'mnist-flax[demo]'") from error
    return gradio


if __name__ == "__main__":
    sys.exit(main())
