"""The command `python -m mnist_flax.demo`: a page on this machine for drawing digits.

Needs the extra `demo` (Gradio). The page loads nothing from any other machine.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from mnist_flax.core.config import IMAGE_SHAPE, UserError
from mnist_flax.engine import cli
from mnist_flax.engine.cli import import_extra
from mnist_flax.engine.options import RunOptions, parse_options
from mnist_flax.predict.command import LOW_CONFIDENCE

if TYPE_CHECKING:
    import gradio
    import numpy as np
    from PIL import Image

    from mnist_flax.engine.trained_model import TrainedModel

HOST = "127.0.0.1"
TIMEOUT_SECONDS = 20.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(RunOptions):
    """Serves a page on which to draw or upload a digit, and shows the prediction.

    Example: mnist-flax demo
    """

    port: int = 7860
    """Port of this machine, 127.0.0.1, to serve the page on."""


class Answer(NamedTuple):
    """What the page shows, in the order of its outputs."""

    image: "np.ndarray | None" = None
    probabilities: dict[str, float] | None = None
    saliency: "np.ndarray | None" = None
    message: str = "Draw a digit, or upload one."


Answerer = Callable[["Image.Image | None"], Answer]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command until it is interrupted; returns its exit code."""
    return cli.run_command(_serve, argv, interrupted="stopped")


def _serve(argv: Sequence[str]) -> int:
    options = parse_options(Options, cli.program_name("demo"), argv)
    if not 1 <= options.port <= 65_535:
        raise UserError(f"--port must be from 1 to 65,535, but is {options.port}")
    from mnist_flax.engine.trained_model import load_selected

    _import_gradio()
    cli.initialize_jax()
    page = build(answerer(load_selected(options)))
    try:
        page.launch(
            server_name=HOST,
            server_port=options.port,
            share=False,
            show_error=False,
            quiet=True,
            prevent_thread_lock=True,
            max_file_size="20mb",
            theme=_import_gradio().themes.Default(font=["sans-serif"], font_mono=["monospace"]),
            footer_links=[],
        )
    except OSError as error:
        raise UserError(f"port {options.port} is in use; choose another with --port") from error
    print(f"draw a digit at http://{HOST}:{options.port} (press Ctrl-C to stop)", flush=True)
    page.block_thread()
    return 0


def answerer(trained: "TrainedModel") -> Answerer:
    """Compiles the function that makes of an image what the page shows."""
    import numpy as np
    from matplotlib import colormaps

    from mnist_flax.core.inference import saliency_map
    from mnist_flax.predict.preprocess import to_mnist

    params, config = trained.first_params(), trained.select_seed(0).config
    blank = np.zeros((1, *IMAGE_SHAPE), np.uint8)
    trained.probabilities(blank)  # so that the first visitor need not wait for the compilation
    saliency_map(params, blank, config)

    def answer(image: "Image.Image | None") -> Answer:
        if image is None:
            return Answer()
        try:
            digit_image = to_mnist(image)
        except UserError as error:
            return Answer(message=f"{str(error).capitalize()}.")
        probabilities = trained.probabilities(digit_image[None])[0]
        saliency = np.asarray(saliency_map(params, digit_image[None], config))[0]
        digit = int(probabilities.argmax())
        warning = " (low)" if probabilities[digit] < LOW_CONFIDENCE else ""
        return Answer(
            _magnify(digit_image[..., 0]),
            {str(digit): float(probability) for digit, probability in enumerate(probabilities)},
            _magnify(colormaps["viridis"](saliency, bytes=True)[..., :3]),
            f"# {digit}\nConfidence: {probabilities[digit]:.1%}{warning}",
        )

    return answer


def build(answer: Answerer) -> "gradio.Blocks":
    """The page, not yet served; raises a UserError if Gradio is not installed."""
    import numpy as np

    gr = _import_gradio()
    with gr.Blocks(title="mnist_flax", analytics_enabled=False, delete_cache=(600, 600)) as page:
        gr.Markdown("## Draw a digit")
        with gr.Row():
            with gr.Column():
                with gr.Tab("Draw"):
                    sketchpad = gr.Sketchpad(
                        value=np.full((360, 360, 3), 255, np.uint8),
                        label="A digit",
                        type="pil",
                        canvas_size=(360, 360),
                        fixed_canvas=True,
                        layers=False,
                        transforms=(),
                        buttons=[],
                        brush=gr.Brush(default_size=18, colors=["#000000"], color_mode="fixed"),
                    )
                with gr.Tab("Upload"):
                    # Not `Image`, which would open the file and report errors by itself.
                    upload = gr.File(label="A photo or a scan of one digit")
            with gr.Column():
                message = gr.Markdown(Answer().message)
                with gr.Row():
                    image = gr.Image(label="Input of the network", buttons=[])
                    saliency = gr.Image(label="Saliency", buttons=[])
                digits = gr.Label(label="Probabilities", num_top_classes=10, show_heading=False)
        outputs = [image, digits, saliency, message]
        private = {"api_visibility": "private"}  # the API would show the paths of files
        on_drawing = functools.partial(_with_timeout, _answer_drawing, answer)
        sketchpad.input(on_drawing, sketchpad, outputs, show_progress="hidden", **private)
        on_upload = functools.partial(_with_timeout, _answer_upload, answer)
        upload.change(on_upload, upload, outputs, **private)
    return page


def _with_timeout(function: Callable[..., Answer], *args: object) -> Answer:
    """The function's answer, unless it takes too long; it then ends in the background."""
    worker = ThreadPoolExecutor(1)
    try:
        return worker.submit(function, *args).result(TIMEOUT_SECONDS)
    except TimeoutError:
        return Answer(message="That took too long. Try a smaller image.")
    finally:
        worker.shutdown(wait=False)


def _answer_drawing(answer: Answerer, drawing: "dict[str, Image.Image] | None") -> Answer:
    image = drawing["composite"] if drawing else None
    return answer(image if image and image.getbbox() else None)


def _answer_upload(answer: Answerer, path: str | None) -> Answer:
    from mnist_flax.predict.preprocess import read_image

    try:
        return answer(read_image(Path(path)) if path else None)
    except UserError:
        return Answer(message="This file is not an image in a supported format.")


def _magnify(image: "np.ndarray") -> "np.ndarray":
    return image.repeat(8, axis=0).repeat(8, axis=1)


def _import_gradio() -> ModuleType:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return import_extra("gradio", "demo")


if __name__ == "__main__":
    raise SystemExit(main())
