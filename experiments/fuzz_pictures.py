"""What may be handed to `predict`: any bytes, any name, and pictures of too many pixels."""

import contextlib
import io
import os
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from fuzzing import CHANGES, TEXT, Main, changed, ended, tiny_run, tried
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from trials import Outcome


def pictures() -> dict[str, bytes]:
    """A small picture of a seven in each format and mode that can be written."""
    seven = Image.new("L", (40, 30), 255)
    ImageDraw.Draw(seven).line([(10, 6), (28, 6), (18, 26)], fill=0, width=4)
    found = {}
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "YCbCr")
    for kind in ("png", "jpeg", "tiff", "gif", "bmp", "webp", "ico", "ppm", "tga", "avif", "jp2"):
        for mode in modes:
            file = io.BytesIO()
            frames = {"append_images": [seven], "save_all": True} if mode == "P" else {}
            with contextlib.suppress(OSError, ValueError, KeyError):
                picture = (
                    seven.convert("I").convert(mode) if mode == "I;16" else seven.convert(mode)
                )
                picture.save(file, kind.replace("jp2", "jpeg2000"), **frames)
                found[f"{mode}.{kind}"] = file.getvalue()
    return found


def image_bytes(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Random bytes, and files of every format with bytes changed, through `predict`."""
    sound = pictures()
    file = folder / "picture"

    def check(case: tuple[str, list[tuple[int, int, bytes]], bool] | bytes) -> Outcome:
        if isinstance(case, bytes):
            content = case
        else:
            content = changed(sound[case[0]], case[1])
            content = _with_sums(content) if case[2] else content
        file.write_bytes(content)
        return ended(predicting, [str(file)])

    cases = st.tuples(st.sampled_from(list(sound)), CHANGES, st.booleans()) | st.binary(
        max_size=500
    )
    with predictor(folder) as predicting:
        return tried(check, cases, tries, seed)


@contextlib.contextmanager
def predictor(folder: Path) -> Iterator[Main]:
    """The command `predict`, which tells one answer or one mistake; its networks loaded once."""
    import mnist_flax
    from mnist_flax import predict

    where = tiny_run(folder)
    trained = mnist_flax.load(where)
    with mock.patch.object(mnist_flax, "load", return_value=trained):
        yield lambda argv: predict.main([*argv, "--workdir", str(where)])


def _with_sums(png: bytes) -> bytes:
    """A PNG with the right sum after each of its chunks, or else it would not be looked at."""
    at, parts = 8, [png[:8]]
    while png.startswith(b"\x89PNG") and at + 12 <= len(png):
        end = at + 8 + struct.unpack(">I", png[at : at + 4])[0]
        parts += [png[at:end], struct.pack(">I", zlib.crc32(png[at + 4 : end]))]
        at = end + 4
    return b"".join(parts) if len(parts) > 1 else png


def huge_pictures(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Pictures of the most pixels that are read, and of more, in small files."""
    from mnist_flax import preprocess

    kinds = [
        *(("PNG", mode) for mode in ("L", "RGBA", "I;16")),
        *(("TIFF", mode) for mode in ("F", "I", "CMYK", "RGBA")),
        *(("WEBP", "RGBA"), ("GIF", "P"), ("JPEG", "CMYK"), ("JPEG2000", "RGB")),
    ]
    file, outcomes = folder / "picture", []
    with predictor(folder) as predicting:
        for kind, mode in (random.Random(seed).sample(kinds, len(kinds)) * tries)[:tries]:
            pixels = preprocess.MAX_PIXELS // preprocess.SLOWER.get(kind, 1)
            picture = Image.new("L", (int(pixels**0.5), int(pixels**0.5)), 255)
            picture.paste(0, (1_000, 1_000, 1_200, 3_000))
            exif = Image.Exif()
            exif[0x0112] = 6
            plain = picture.convert("I") if mode == "I;16" else picture
            plain.convert(mode).save(file, kind, exif=exif)
            del picture, plain
            problem = ended(predicting, [str(file)])
            outcomes.append(f"{problem}: {kind} {mode}" if problem else None)
    return outcomes


def file_names(folder: Path, tries: int, seed: int) -> list[Outcome]:
    """Files, folders, pipes and links of any name, and names and patterns of nothing."""
    content = pictures()["L.png"]
    # Relative, so that a name may also look like an option, a home or a pattern.
    here = folder / "here" / "names"
    names = TEXT | st.text("*?[]~.-!", min_size=1, max_size=4) | st.just("n" * 5_000)
    kinds = ("picture", "text", "empty", "folder", "full", "pipe", "link", "loop", "nothing")

    def check(case: tuple[str, str]) -> Outcome:
        name, kind = case
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        os.chdir(here)
        with contextlib.suppress(OSError, UnicodeEncodeError):
            _make(here / name, kind, content)
        return ended(predicting, [name]) if _may_be_given(name) else None

    with predictor(folder) as predicting:
        return tried(check, st.tuples(names, st.sampled_from(kinds)), tries, seed)


def _may_be_given(name: str) -> bool:
    """Whether the system can hand it over: undecodable bytes, but no other halves of pairs."""
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


def _make(path: Path, kind: str, content: bytes) -> None:
    """Something of a kind, under a name."""
    if kind in {"folder", "full"}:
        path.mkdir()
    if kind in {"picture", "text", "empty", "full"}:
        file = path / "\udcffa\nb.png" if kind == "full" else path
        file.write_bytes({"text": b"no picture", "empty": b""}.get(kind, content))
    if kind == "pipe":
        os.mkfifo(path)
    if kind in {"link", "loop"}:
        path.symlink_to("/dev/zero" if kind == "link" else path)
