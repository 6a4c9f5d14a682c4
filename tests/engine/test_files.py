"""Atomic writes, checked JSON, and checksums."""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pytest

from mnist_flax.core.config import UserError
from mnist_flax.engine import files


class Inner(TypedDict):
    """A part of a record."""

    values: list[float]


class Record(TypedDict):
    """What the tests store."""

    name: str
    count: int
    score: float | Inner
    note: NotRequired[str | None]


VALID = '{"name": "x", "count": 1, "score": 0.5}'


def test_a_file_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    files.write_text(path, "old")
    with contextlib.suppress(ZeroDivisionError), files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_link_in_place_of_the_temporary_file_is_not_followed(tmp_path):
    path, outside = tmp_path / "file", tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "file.tmp").symlink_to(outside)
    files.write_text(path, "new")
    assert (path.read_text(), outside.read_text()) == ("new", "precious")


def test_only_a_regular_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileExistsError, match="not a file"):
        files.write_text(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_is_on_disk_before_it_replaces_the_old_one(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, Path.replace

    def record_fsync(descriptor):
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        fsync(descriptor)

    def record_replace(self, target):
        events.append("replaced")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(Path, "replace", record_replace)
    files.write_text(tmp_path / "file", "text")
    assert events == [tmp_path / "file.tmp", "replaced", tmp_path]


def test_json_that_was_written_is_read_again(tmp_path):
    record: Record = {"name": "ä\x1b", "count": 3, "score": {"values": [1.5, 2.0]}, "note": None}
    files.write_json(tmp_path / "record.json", record)
    assert files.read_json(tmp_path / "record.json", Record) == record
    assert files.read_json(tmp_path / "missing.json", Record) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\x00",
        VALID + VALID,
        VALID.replace('"x"', "1"),
        VALID.replace('"count": 1', '"count": 1.0'),
        VALID.replace('"count": 1', '"count": "1"'),
        VALID.replace('"count": 1', '"count": null'),
        VALID.replace('"count": 1, ', ""),
        VALID.replace("}", ', "extra": 1}'),
        VALID.replace("}", ', "note": 1}'),
        VALID.replace("0.5", "[0.5]"),
        VALID.replace("0.5", '{"values": 1}'),
        VALID.replace("0.5", '{"values": [1, 2, 3, "4"]}'),
        VALID.replace("0.5", '{"values": [1], "extra": 1}'),
        VALID.replace("0.5", "{}"),
        VALID.replace("0.5", "NaN"),
        VALID.replace("0.5", "-Infinity"),
        VALID.replace("0.5", "1e400"),
        VALID.replace("0.5", '{"values": [Infinity]}'),
        VALID.replace('"count": 1', f'"count": {2**63}'),
        VALID.replace('"count": 1', f'"count": -{2**63}'),
        VALID.replace('"count": 1', f'"count": {"9" * 5000}'),
        VALID.replace('"x"', '"\\ud800"'),
        VALID.replace("}", ', "\\ud800": 1}'),
        VALID.replace("0.5", "[" * 9**5),
        VALID.replace("0.5", "[" * 900 + "]" * 900),
    ],
)
def test_json_of_another_type_is_refused_in_one_line(tmp_path, text):
    path = tmp_path / "record.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"record\.json is damaged: ") as error:
        files.read_json(path, Record)
    assert "\n" not in str(error.value)


def test_the_largest_numbers_are_accepted():
    text = VALID.replace('"count": 1', f'"count": {2**63 - 1025}')
    assert files.parse_json(text, Record)["count"] == 2**63 - 1025


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    path = tmp_path / "record.json"
    path.write_bytes(VALID.replace("x", "ä").encode("latin-1"))
    with pytest.raises(UserError, match=r"record\.json is damaged: "):
        files.read_json(path, Record)


def test_only_a_regular_file_is_read(tmp_path):
    """Reading a pipe could block forever."""
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(UserError, match=r"cannot read .*: it is not a file"):
            files.read_json(tmp_path / name, Record)


def test_an_unreadable_file_is_reported(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "record.json").write_text(VALID)
    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(UserError, match=r"cannot read .*record\.json: Permission denied"):
        files.read_json(tmp_path / "record.json", Record)


def test_quarantine_renames_and_never_overwrites(tmp_path):
    for content in ("first", "second", "third"):
        (tmp_path / "file").write_text(content)
        target = files.quarantine(tmp_path / "file")
        assert target.read_text() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "file.damaged",
        "file.damaged1",
        "file.damaged2",
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with checksums."""
    folder = tmp_path / "folder"
    (folder / "inner").mkdir(parents=True)
    (folder / "a").write_text("one")
    (folder / "inner" / "b c").write_text("two")
    files.write_checksums(folder)
    return folder


def test_sha256sum_checks_the_checksums(folder):
    command = ["sha256sum", "--check", "--strict", files.CHECKSUMS]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert result.stdout == "a: OK\ninner/b c: OK\n"
    assert files.find_corruption(folder) is None


def flip_first_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


DAMAGES: dict[str, tuple[Any, str]] = {
    "changed": (lambda x: flip_first_byte(x / "a"), "a is not as it was written"),
    "emptied": (lambda x: (x / "inner/b c").write_text(""), "inner/b c is not as it was written"),
    "deleted": (lambda x: (x / "inner/b c").unlink(), "inner/b c is missing"),
    "added": (lambda x: (x / "new").write_text(""), "new is not as it was written"),
    "no checksums": (lambda x: (x / files.CHECKSUMS).unlink(), "SHA256SUMS is missing"),
    "no lines": (lambda x: (x / files.CHECKSUMS).write_text(""), "a is not as it was written"),
    "no names": (lambda x: (x / files.CHECKSUMS).write_text("0\n"), "SHA256SUMS is damaged"),
    "no text": (lambda x: (x / files.CHECKSUMS).write_bytes(b"\xff"), "SHA256SUMS is damaged"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_corruption_is_found_and_named(folder, kind):
    damage, expected = DAMAGES[kind]
    damage(folder)
    assert files.find_corruption(folder) == expected


def test_a_file_in_place_of_a_folder_has_no_checksums(tmp_path):
    (tmp_path / "file").write_text("")
    assert files.find_corruption(tmp_path / "file") == "SHA256SUMS is missing"
    assert files.find_corruption(tmp_path / "nothing") == "SHA256SUMS is missing"
