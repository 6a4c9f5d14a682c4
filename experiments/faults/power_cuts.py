"""The power fails: of what a run had not synced, anything may be lost, in any order."""

import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from experiments.faults import fault, kills
from experiments.faults.fault import ARGUMENTS, Fault, Outcome
from experiments.faults.system_calls import library, loading_library


@dataclasses.dataclass(eq=False)
class Node:
    """A file with its content, or a folder with its entries, as on a disk."""

    content: bytes = b""
    entries: dict[str, "Node"] | None = None


@dataclasses.dataclass
class Change:
    """A change of one node, which is certain to last once that node is synced."""

    node: Node
    position: int = 0
    data: bytes | None = None  # None truncates to `position`
    entry: tuple[str, Node | None] | None = None  # a name in a folder, and its new node
    moved_from: tuple[Node, str] | None = None
    is_synced: bool = False

    def apply(self) -> None:
        """Changes the node."""
        if self.entry is not None:
            name, child = self.entry
            assert self.node.entries is not None
            self.node.entries.pop(name, None)
            if child is not None:
                self.node.entries[name] = child
            if self.moved_from:
                folder, old = self.moved_from
                assert folder.entries is not None
                folder.entries.pop(old, None)
        elif self.data is None:
            self.node.content = self.node.content[: self.position].ljust(self.position, b"\0")
        else:
            before = self.node.content[: self.position].ljust(self.position, b"\0")
            after = self.node.content[self.position + len(self.data) :]
            self.node.content = before + self.data + after


def read_calls(log: bytes) -> Iterator[tuple[str, str, str, int, bytes]]:
    """The kind, path, other path, position and data of each call that the library recorded."""
    start = 0
    while start < len(log):
        end = log.index(b"\n", start)
        kind, path, other, position, size = log[start:end].decode().split("\t")
        start = end + 1 + int(size)
        yield kind, path, other, int(position), log[end + 1 : start]


def replay(log: bytes, folder: Path, num_calls: int | None = None) -> tuple[Node, list[Change]]:
    """The disk after some of the calls, all by default, and what changed it since it was empty."""
    root, changes = Node(entries={}), []

    def find(path: str) -> tuple[Node, str]:
        """The folder of a path in the log, and the name in it."""
        parent = root
        *above, name = Path(path).relative_to(folder.parent).parts
        for part in above:
            assert parent.entries is not None
            parent = parent.entries[part]
        return parent, name

    def child(path: str) -> Node:
        parent, name = find(path)
        assert parent.entries is not None
        return parent.entries[name]

    for kind, path, other, position, data in list(read_calls(log))[:num_calls]:
        if kind == "fsync":
            synced = child(path)
            for change in changes:
                change.is_synced |= change.node is synced
            continue
        if kind == "flock":
            continue
        if kind in ("write", "truncate"):
            change = Change(child(path), position, data if kind == "write" else None)
        else:
            parent, name = find(path)
            new = {"create": Node(), "mkdir": Node(entries={}), "remove": None}
            node = child(other) if kind == "rename" else new[kind]
            change = Change(parent, entry=(name, node))
            change.moved_from = find(other) if kind == "rename" else None
        change.apply()
        changes.append(change)
    return root, changes


def write(node: Node, path: Path) -> None:
    """Writes a node below a path of the real disk."""
    if node.entries is None:
        path.write_bytes(node.content)
        return
    path.mkdir(exist_ok=True)
    for name, child in node.entries.items():
        write(child, path / name)


def cut(log: bytes, folder: Path, rng: random.Random) -> Node:
    """The disk after the power failed at some call: each unsynced change may be lost."""
    num_calls = rng.randrange(sum(1 for _ in read_calls(log)))
    root, changes = replay(log, folder, num_calls)
    share = rng.choice((0.0, 0.5, 0.9))
    kept = [change for change in changes if change.is_synced or rng.random() < share]
    nodes = [root, *(change.node for change in changes)]
    for node in nodes:
        node.content, node.entries = b"", None if node.entries is None else {}
    for change in kept:
        change.apply()
    return root


def power_cuts(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """What was synced is found again: the run resumes to the same result."""
    if not library():
        return
    fault.baseline(*ARGUMENTS)
    workdir, log = folder / "disk" / "run", folder / "log"
    prefix = loading_library(FAULT_FOLDER=workdir, FAULT_LOG=log)
    code, _, errors = fault.train(workdir, *ARGUMENTS, prefix=prefix)
    calls, replayed = log.read_bytes(), folder / "replayed"
    write(replay(calls, workdir)[0], replayed)
    if code or contents(replayed / "run") != contents(workdir):
        yield f"the calls of a run were not recorded as a whole: {errors[-300:]}"
        return
    for number in range(tries):
        shutil.rmtree(workdir.parent)
        write(cut(calls, workdir, random.Random(f"{seed} {number}")), workdir.parent)
        yield kills.resume(workdir, *ARGUMENTS)


def contents(folder: Path) -> dict[Path, bytes]:
    """All files in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder): path.read_bytes() for path in files}


FAULTS = (Fault("the power fails", power_cuts, 20, 2),)
