"""Damaged checkpoints, and disks that are full, forbidden or oddly named."""

import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import bad_data
from bad_network import NEVER
from interruptions import DIGITS, PATIENCE, baseline, difference, train
from trials import Fault, Outcome, complaint

ARGUMENTS = (*DIGITS, "--no-report")

DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path, _: path.write_bytes(b""),
    "one bit flipped": lambda path, _: path.write_bytes(_flipped(path.read_bytes())),
    "deleted": lambda path, _: path.unlink(),
    "another step's": lambda path, other: shutil.copyfile(other, path),
}


def _flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def _files(checkpoint: Path) -> list[Path]:
    """In an order that goes with that of another one: Orbax gives some random names."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def _damaged(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """One file of the newest checkpoint: the run tells it, goes back, and ends with the same."""
    undisturbed, _ = baseline(*ARGUMENTS)
    *_, older, newest = sorted((undisturbed / "checkpoints").iterdir(), key=lambda x: int(x.name))
    cases = list(itertools.product(range(len(_files(newest))), DAMAGES))
    random.Random(seed).shuffle(cases)
    for number, (index, kind) in enumerate(cases[:tries]):
        workdir = folder / f"damaged{number}"
        shutil.copytree(undisturbed, workdir)
        (workdir / "summary.json").unlink()
        kept = workdir / "checkpoints"
        file, other = _files(kept / newest.name)[index], _files(kept / older.name)[index]
        before = file.read_bytes()
        DAMAGES[kind](file, other)
        told = f"{file.relative_to(kept)}, {kind}: "
        same = file.exists() and file.read_bytes() == before
        process = train(workdir, *ARGUMENTS)
        output, errors = process.communicate(timeout=PATIENCE)
        aside = kept / f"{newest.name}.damaged"
        if process.returncode:
            yield f"{told}code {process.returncode}: {errors[-300:]}"
        elif same != (f"checkpoint {newest.name} is damaged" not in output):
            yield f"{told}not told: {output}"
        elif f"going on from step {int((newest if same else older).name):,} " not in output:
            yield f"{told}did not go on from the newest intact one: {output}"
        else:
            if not same:
                shutil.rmtree(aside)
            problem = difference(workdir, undisturbed)
            yield problem and told + problem
        shutil.rmtree(workdir)


def _all_damaged(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """Every checkpoint: refused, and nothing is touched."""
    rng = random.Random(seed)
    undisturbed, _ = baseline(*ARGUMENTS)
    for number in range(tries):
        workdir = folder / f"all{number}"
        shutil.copytree(undisturbed, workdir)
        (workdir / "summary.json").unlink()
        if number % 3:
            for checkpoint in (workdir / "checkpoints").iterdir():
                file = rng.choice(_files(checkpoint))
                DAMAGES[rng.choice(list(DAMAGES)[:4])](file, file)
        else:
            shutil.rmtree(workdir / "checkpoints")
        yield _refused(workdir)


def _content(folder: Path) -> dict[Path, bytes | None]:
    """Everything in a folder but empty folders, which opening one for checkpoints may make."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _refused(workdir: Path, *prefix: str, watched: Path | None = None) -> Outcome:
    """What is wrong with how a run in that workdir was refused."""
    watched = watched or workdir
    before = _content(watched)
    command = [sys.executable, "-m", "mnist_flax.run", "--workdir", str(workdir), *ARGUMENTS]
    ended = subprocess.run(
        [*prefix, *command], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    problem = complaint(ended.returncode, ended.stderr)
    if problem is None and _content(watched) != before:
        return f"{sorted(_content(watched).keys() ^ before.keys()) or 'a file'} was changed"
    return problem and f"{workdir.name}: {problem}"


def _full(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A disk of a few hundred KiB to some MiB; with room again, the run ends as undisturbed."""
    rng = random.Random(seed)
    undisturbed, _ = baseline(*ARGUMENTS)
    disk, told = folder / "disk", folder / "told"
    disk.mkdir()
    if not _namespaces():
        return
    # The disk is gone with the shell, which therefore copies what is on it.
    script = (
        'mount -t tmpfs -o "size=$SIZE" tmpfs "$DISK" || exit 99\n'
        '"$@" 2> "$TOLD"; code=$?\n'
        'mount -o remount,size=100m "$DISK"; [ $code = 0 ] || "$@" >&2 || exit 98\n'
        'cp -r "$DISK/run" "$COPY"; exit $code'
    )
    command = [sys.executable, "-m", "mnist_flax.run", "--workdir", str(disk / "run"), *ARGUMENTS]
    for number in range(tries):
        copy, size = folder / f"full{number}", f"{rng.randrange(40, 4000)}k"
        told.unlink(missing_ok=True)
        paths = {"DISK": str(disk), "TOLD": str(told), "COPY": str(copy), "SIZE": size}
        ended = _on_its_own_disk(script, command, paths)
        if ended.returncode not in (0, 2):
            yield f"{size}: code {ended.returncode}: {ended.stderr[-300:]}"
            continue
        problem = complaint(2, told.read_text()) if ended.returncode else None
        yield problem or difference(copy, undisturbed)


def _full_while_preparing(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """A disk with too little room for a small data set; with room again, it is prepared."""
    rng = random.Random(seed)
    disk, original = folder / "disk", folder / "original"
    disk.mkdir()
    if not _namespaces():
        return
    bad_data.write_originals(original, 0)
    child = (
        f"import sys, pathlib; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import bad_data\n"
        "*folders, name = sys.argv[1:]\n"
        "disk, true, original = map(pathlib.Path, folders)\n"
        "with bad_data.expecting(original):\n"
        "    true = bad_data.load(true, original)\n"
        "    load = lambda: bad_data.load(disk, original)\n"
        "    print(bad_data.verdict(load, true, name, disk) or '')\n"
    )
    script = (
        'mount -t tmpfs -o "size=$SIZE" tmpfs "$DISK" || exit 99\n'
        '"$@" "$DISK" || exit 98\n'
        f'mount -o remount,size=100m "$DISK"; "$@" "{NEVER}" || exit 97'
    )
    command = [sys.executable, "-c", child, *map(str, (disk, folder / "true", original))]
    for _ in range(tries):
        size = f"{rng.randrange(4, 600)}k"
        ended = _on_its_own_disk(script, command, {"DISK": str(disk), "SIZE": size})
        problem = "".join(ended.stdout.split("\n")) or ended.stderr * (ended.returncode > 0)
        yield problem and f"{size}: {problem[-300:]}"


def _on_its_own_disk(
    script: str, command: list[str], variables: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    """Runs a shell's script, whose arguments are the command, where it may mount what it likes."""
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *command],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=os.environ | variables,
        check=False,
    )


def _namespaces() -> bool:
    """Whether this user may mount a disk that only the user sees."""
    if shutil.which("unshare") is None:
        return False
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def _forbidden(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """Folders that cannot be used, or hold what they should not."""
    undisturbed, _ = baseline(*ARGUMENTS)

    def begun(name: str) -> Path:
        workdir = folder / name
        shutil.copytree(undisturbed, workdir)
        (workdir / "summary.json").unlink()
        return workdir

    def read_only() -> Outcome:
        workdir = begun("read-only")
        script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99; shift; "$@"'
        return _refused(workdir, "unshare", "-rm", "sh", "-c", script, "sh", str(workdir))

    def no_permission() -> Outcome:
        workdir = begun("no permission")
        for path in (workdir / "checkpoints", workdir):
            path.chmod(0o500)
        # Root is asked for no permission unless that right is dropped.
        drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        outcome = _refused(workdir, *(drop if os.geteuid() == 0 else ()))
        for path in (workdir, workdir / "checkpoints"):
            path.chmod(0o700)
        return outcome

    def a_file() -> Outcome:
        (folder / "file").write_text("mine")
        return _refused(folder / "file", watched=folder)

    def below_a_file() -> Outcome:
        (folder / "file").write_text("mine")
        return _refused(folder / "file" / "run", watched=folder)

    def replaced(name: str, as_folder: bool) -> Callable[[], Outcome]:
        def case() -> Outcome:
            workdir = begun(f"{name} replaced")
            path = workdir / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            path.mkdir() if as_folder else path.write_text("mine")
            return _refused(workdir)

        return case

    def a_link_inside() -> Outcome:
        workdir, outside = begun("link inside"), folder / "outside"
        outside.mkdir()
        shutil.rmtree(workdir / "tensorboard")
        (workdir / "tensorboard").symlink_to(outside)
        return _refused(workdir, watched=folder)

    cases = [
        a_file,
        below_a_file,
        a_link_inside,
        *(replaced(name, False) for name in ("checkpoints", "tensorboard")),
        *(replaced(name, True) for name in ("metrics.jsonl", "config.json", "environment.json")),
    ]
    if _namespaces():
        cases.insert(0, read_only)
    if os.geteuid() or shutil.which("setpriv"):
        cases.insert(0, no_permission)
    for case in cases[:tries]:
        yield case()


def _odd_paths(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """Names that are no reason to fail."""
    undisturbed, _ = baseline(*ARGUMENTS)
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    names = ("with  spaces and ünï çødé 数字", "new/folders/below", "link", "-", "%s {0} $HOME ~")
    for name in (*(folder / name for name in names), os.path.relpath(folder / "relative"))[:tries]:
        workdir = Path(name)
        process = train(workdir, *ARGUMENTS)
        _, errors = process.communicate(timeout=PATIENCE)
        yield errors or difference(workdir, undisturbed)


FAULTS = (
    Fault("a damaged file in the newest checkpoint", _damaged, 100, 5),
    Fault("all checkpoints damaged or gone", _all_damaged, 12, 2),
    Fault("a full disk", _full, 24, 2),
    Fault("a full disk under the data", _full_while_preparing, 24, 2),
    Fault("a workdir that cannot be used", _forbidden, 10, 4),
    Fault("a workdir with an odd path", _odd_paths, 6, 2),
)
