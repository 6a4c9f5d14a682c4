"""Generated input for `predict`: any bytes, any file name, and images with too many pixels."""

import contextlib
import io
import os
import shutil
import struct
import zlib
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image, ImageDraw

from experiments.faults import fuzz_runner as fuzz
from experiments.faults.fault import Outcome
from mnist_flax.predict.preprocess import DECODING_COST, MAX_PIXELS

KINDS = ("png", "jpeg", "tiff", "gif", "bmp", "webp", "ico", "ppm", "tga", "avif", "jpeg2000")
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr")


def pictures() -> dict[str, bytes]:
    """A small picture of a seven in each format and mode that can be written."""
    seven = Image.new("L", (40, 30), 255)
    ImageDraw.Draw(seven).line([(10, 6), (28, 6), (18, 26)], fill=0, width=4)
    contents = {}
    for kind in KINDS:
        for mode in MODES:
            frames = {"append_images": [seven], "save_all": True} if mode == "P" else {}
            with contextlib.suppress(OSError, ValueError, KeyError), io.BytesIO() as file:
                seven.convert(mode).save(file, kind, **frames)
                contents[f"{mode}.{kind}"] = file.getvalue()
    return contents


def predictor(folder: Path) -> fuzz.Main:
    """The command `predict` for one file, with networks that are loaded only once."""
    from mnist_flax import predict
    from mnist_flax.engine import trained_model

    workdir = fuzz.tiny_run(folder)
    trained = trained_model.load_trained(workdir)
    trained_model.load_trained = lambda *_: trained
    return lambda argv: predict.main([*argv, "--workdir", str(workdir)])


def image_bytes(folder: Path) -> fuzz.Experiment:
    """Random bytes, and files of every format with bytes changed."""
    predict, originals, file = predictor(folder), pictures(), folder / "picture"

    def damage(name: str, changes: list[tuple[int, int, bytes]], has_checksums: bool) -> bytes:
        content = fuzz.change(originals[name], changes)
        return _correct_png_checksums(content) if has_checksums else content

    def check(content: bytes) -> Outcome:
        file.write_bytes(content)
        return fuzz.run(predict, [str(file)])

    damaged = st.builds(damage, st.sampled_from(list(originals)), fuzz.CHANGES, st.booleans())
    return check, damaged | st.binary(max_size=500)


def _correct_png_checksums(png: bytes) -> bytes:
    """A PNG with correct checksums of its chunks; decoders ignore a chunk with a wrong one."""
    start, parts = 8, [png[:8]]
    while png.startswith(b"\x89PNG") and start + 12 <= len(png):
        end = start + 8 + struct.unpack(">I", png[start : start + 4])[0]
        parts += [png[start:end], struct.pack(">I", zlib.crc32(png[start + 4 : end]))]
        start = end + 4
    return b"".join(parts) if len(parts) > 1 else png


def huge_pictures(folder: Path) -> fuzz.Experiment:
    """Small files of images with the largest number of pixels that is accepted."""
    predict, file = predictor(folder), folder / "picture"
    kinds = [
        *(("PNG", mode) for mode in ("L", "RGBA", "I;16")),
        *(("TIFF", mode) for mode in ("F", "I", "CMYK", "RGBA")),
        *(("WEBP", "RGBA"), ("GIF", "P"), ("JPEG", "CMYK"), ("JPEG2000", "RGB")),
    ]
    rotated = Image.Exif()
    rotated[0x0112] = 6

    def check(case: tuple[str, str]) -> Outcome:
        kind, mode = case
        side = int((MAX_PIXELS // DECODING_COST.get(kind, 1)) ** 0.5)
        picture = Image.new("L", (side, side), 255)
        picture.paste(0, (1_000, 1_000, 1_200, 3_000))
        picture.convert(mode).save(file, kind, exif=rotated)
        del picture
        return fuzz.run(predict, [str(file)])

    return check, st.sampled_from(kinds)


def file_names(folder: Path) -> fuzz.Experiment:
    """Files, folders, pipes and links with any name, and names and patterns without a match."""
    predict, content = predictor(folder), pictures()["L.png"]
    # Relative, so that a name may also look like an option, a home folder or a pattern.
    cwd = folder / "home" / "names"

    def check(case: tuple[str, str]) -> Outcome:
        name, kind = case
        shutil.rmtree(cwd, ignore_errors=True)
        cwd.mkdir()
        os.chdir(cwd)
        try:
            os.fsencode(name)
        except UnicodeEncodeError:  # the system cannot pass such an argument
            return None
        path = cwd / name
        with contextlib.suppress(OSError):
            if kind in {"folder", "full"}:
                path.mkdir()
            if kind in {"picture", "text", "empty", "full"}:
                file = path / "\udcffa\nb.png" if kind == "full" else path
                file.write_bytes({"text": b"no picture", "empty": b""}.get(kind, content))
            if kind == "pipe":
                os.mkfifo(path)
            if kind in {"link", "loop"}:
                path.symlink_to("/dev/zero" if kind == "link" else path)
        return fuzz.run(predict, [name])

    names = fuzz.TEXT | st.text("*?[]~.-!", min_size=1, max_size=4) | st.just("n" * 5_000)
    kinds = ("picture", "text", "empty", "folder", "full", "pipe", "link", "loop", "nothing")
    return check, st.tuples(names, st.sampled_from(kinds))
