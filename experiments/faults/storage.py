"""Damaged checkpoints, and disks that are full, read-only or oddly named."""

import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax

from experiments.common.provenance import ROOT
from experiments.faults import datasets, fault
from experiments.faults.fault import ARGUMENTS, Attempts, Fault, Outcome, check_refusal, repeated
from experiments.faults.network import NEVER
from mnist_flax.core import train
from mnist_flax.core.config import Config, UserError
from mnist_flax.engine.checkpoint import CheckpointManager, load_params, tree_sha256
from mnist_flax.engine.workdir import lock_workdir

DAMAGES = ("truncate", "empty", "flip", "delete", "foreign")  # the last one: another step's


def unfinished_copy(workdir: Path, *flags: str) -> Path:
    """A copy of the undisturbed run without its summary, so that it will be resumed."""
    shutil.copytree(fault.baseline(*ARGUMENTS, *flags)[0], workdir)
    (workdir / "summary.json").unlink()
    return workdir


def _files(checkpoint: Path) -> list[Path]:
    """In the same order for every checkpoint: Orbax gives some of them random names."""
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def damaged_newest(folder: Path, tries: int, seed: int) -> Iterator[Outcome]:
    """One file of the newest checkpoint: reported, and the run resumes from the one before."""
    undisturbed, _ = fault.baseline(*ARGUMENTS)
    *_, older, newest = sorted((undisturbed / "checkpoints").iterdir(), key=lambda x: int(x.name))
    cases = list(itertools.product(range(len(_files(newest))), DAMAGES))
    rng = random.Random(seed)
    rng.shuffle(cases)
    for number, (index, kind) in enumerate(cases[:tries]):
        workdir = unfinished_copy(folder / f"damaged{number}")
        checkpoints = workdir / "checkpoints"
        file, other = (_files(checkpoints / step.name)[index] for step in (newest, older))
        before = file.read_bytes()
        datasets.damage(file, kind, other, rng)
        is_damaged = not file.exists() or file.read_bytes() != before
        code, output, errors = fault.train(workdir, *ARGUMENTS)
        step = int((older if is_damaged else newest).name)
        if code:
            problem = f"code {code}: {errors[-300:]}"
        elif is_damaged != (f"checkpoint {newest.name} is damaged" in output):
            problem = f"not reported: {output}"
        elif f"resuming from step {step:,} " not in output:
            problem = f"did not resume from the newest intact checkpoint: {output}"
        else:
            if is_damaged:
                shutil.rmtree(checkpoints / f"{newest.name}.damaged")
            problem = fault.compare(workdir, *ARGUMENTS)
        yield problem and f"{file.relative_to(checkpoints)}, {kind}: {problem}"
        shutil.rmtree(workdir)


def all_damaged(workdir: Path, number: int, rng: random.Random) -> Outcome:
    """Every checkpoint: refused without any change."""
    unfinished_copy(workdir)
    if number % 3 == 0:
        shutil.rmtree(workdir / "checkpoints")
        return check_refused(workdir)
    for checkpoint in (workdir / "checkpoints").iterdir():
        file = rng.choice(_files(checkpoint))
        datasets.damage(file, rng.choice(DAMAGES[:-1]), file, rng)
    return check_refused(workdir)


def check_refused(
    workdir: Path,
    *prefix: str,
    folder: Path | None = None,
    arguments: Sequence[str] = ARGUMENTS,
) -> Outcome:
    """What is wrong with a refusal to train in a workdir, or what it changed in the folder."""
    folder = folder or workdir

    def read() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = read()
    code, _, errors = fault.train(workdir, *arguments, prefix=prefix)
    problem = check_refusal(code, errors)
    if problem is None and read() != before:
        return f"{sorted(read().keys() ^ before.keys()) or 'a file'} was changed"
    return problem and f"{workdir.name}: {problem}"


def full_disk(folder: Path, number: int, rng: random.Random) -> Outcome:
    """A disk of a few hundred KiB to some MiB; with more space the run ends as undisturbed."""
    disk, copy, errors = (folder / name for name in ("disk", "copy", "errors"))
    size = f"{rng.randrange(40, 4000)}k"
    # The disk disappears with the shell, which therefore copies its content.
    script = (
        f'"$@" 2> "{errors}"; code=$?\n'
        f'mount -o remount,size=100m "{disk}"; [ $code = 0 ] || "$@" >&2 || exit 98\n'
        f'cp -r "{disk}/run" "{copy}"; exit $code'
    )
    prefix = with_disk(disk, size, script)
    code, _, text = fault.train(disk / "run", *ARGUMENTS, prefix=prefix)
    if code not in (0, 2):
        return f"{size}: code {code}: {text[-300:]}"
    problem = check_refusal(2, errors.read_text()) if code else None
    return problem or fault.compare(copy, *ARGUMENTS)


def full_while_preparing(folder: Path, number: int, rng: random.Random) -> Outcome:
    """A disk with too little space for a small dataset; with more space it is prepared."""
    disk, (source, _) = folder / "disk", datasets.prepared()
    size = f"{rng.randrange(4, 600)}k"
    prepare = (
        "import sys, pathlib\n"
        "from experiments.faults.datasets import expecting, load, verdict\n"
        "disk, source = map(pathlib.Path, sys.argv[1:3])\n"
        "with expecting(source / 'originals'):\n"
        "    expected = load(source / 'data')\n"
        "    print(verdict(disk, expected, sys.argv[3], source / 'originals') or '')\n"
    )
    script = (
        f'"$@" "{disk}" || exit 98\nmount -o remount,size=100m "{disk}"; "$@" "{NEVER}" || exit 97'
    )
    command = [*with_disk(disk, size, script), sys.executable, "-c", prepare, disk, source]
    ended = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=fault.TIMEOUT, check=False
    )
    problem = ended.stdout.replace("\n", "") or ended.stderr * (ended.returncode > 0)
    return (problem and f"{size}: {problem[-300:]}") or None


def with_disk(disk: Path, size: str, script: str) -> list[str]:
    """Runs a shell script, whose arguments are a command, with a small disk."""
    disk.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={size} tmpfs "{disk}" || exit 99\n'
    return ["unshare", "-rm", "sh", "-c", mount + script, "sh"]


def can_mount() -> bool:
    """Whether this user may mount a disk in a namespace."""
    probe = "unshare -rm mount -t tmpfs tmpfs /mnt"
    return subprocess.run(["sh", "-c", probe], capture_output=True, check=False).returncode == 0


def unusable_workdirs(folder: Path) -> Iterator[Outcome]:
    """Workdirs that cannot be used, or contain what they should not."""
    if os.geteuid() or shutil.which("setpriv"):
        workdir = unfinished_copy(folder / "no permission")
        folders = (workdir / "checkpoints", workdir)
        for path in folders:
            path.chmod(0o500)
        # Root needs no permission unless it gives up this capability.
        drop = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")
        outcome = check_refused(workdir, *(() if os.geteuid() else drop))
        for path in reversed(folders):
            path.chmod(0o700)
        yield outcome
    if can_mount():
        workdir = unfinished_copy(folder / "read-only")
        script = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99; shift; "$@"'
        yield check_refused(workdir, "unshare", "-rm", "sh", "-c", script, "sh", str(workdir))
    (folder / "file").write_text("mine")
    yield check_refused(folder / "file", folder=folder)
    yield check_refused(folder / "file" / "run", folder=folder)
    workdir, outside = unfinished_copy(folder / "link inside"), folder / "outside"
    outside.mkdir()
    shutil.rmtree(workdir / "tensorboard")
    (workdir / "tensorboard").symlink_to(outside)
    yield check_refused(workdir, folder=folder)
    for name in ("checkpoints", "tensorboard", "metrics.jsonl", "config.json", "environment.json"):
        workdir = unfinished_copy(folder / f"{name} replaced")
        if (workdir / name).is_dir():
            shutil.rmtree(workdir / name)
            (workdir / name).write_text("mine")
        else:
            (workdir / name).unlink()
            (workdir / name).mkdir()
        yield check_refused(workdir)


def odd_paths(folder: Path) -> Iterator[Outcome]:
    """Names that must not matter."""
    (folder / "real").mkdir()
    (folder / "link").symlink_to(folder / "real")
    names = ("with  spaces and ünï çødé 数字", "new/folders/below", "link", "-", "%s {0} $HOME ~")
    for workdir in (*map(folder.joinpath, names), Path(os.path.relpath(folder / "relative"))):
        _, _, errors = fault.train(workdir, *ARGUMENTS)
        yield errors or fault.compare(workdir, *ARGUMENTS)


def odd_characters(folder: Path) -> Iterator[Outcome]:
    """Each printable ASCII character in a name: refused, or what is saved there can be read."""
    state = train.create_state(jax.random.key(0), Config())
    for character in sorted(map(chr, range(32, 127)), key=str.isalnum):
        workdir = folder / f"a{character}b"
        try:
            with lock_workdir(workdir), CheckpointManager(workdir / "checkpoints", 1) as manager:
                manager.save(1, state)
            shutil.copytree(workdir, renamed := folder / f"b{character}a")
            read = [load_params(x / "checkpoints")[1] for x in (workdir, renamed)]
            digests = {tree_sha256(params) for params in (state.params, *read)}
            yield None if len(digests) == 1 else f"{character}: another state was read"
        except UserError as error:
            is_clean = "rename it" in str(error) and not any(folder.iterdir())
            yield None if is_clean else f"{character}: {error}"
        for path in folder.iterdir():
            shutil.rmtree(path)


def damaged_programs(workdir: Path, number: int, rng: random.Random) -> Outcome:
    """An entry of the cache of compiled programs: compiled again, once."""
    cache = workdir.with_name("cache")
    fault.baseline(*ARGUMENTS)
    if not cache.exists():
        fault.train(workdir, *ARGUMENTS, prefix=("env", f"JAX_COMPILATION_CACHE_DIR={cache}"))
    entries = sorted(cache.glob("*-cache"))
    file, other = rng.sample(entries, 2)
    kind = DAMAGES[-1 - number % len(DAMAGES)]
    datasets.damage(file, kind, other, rng)
    errors = ""
    for _ in range(2):
        shutil.rmtree(workdir, ignore_errors=True)
        prefix = ("env", f"JAX_COMPILATION_CACHE_DIR={cache}")
        code, _, errors = fault.train(workdir, *ARGUMENTS, prefix=prefix)
        problem = errors if code else fault.compare(workdir, *ARGUMENTS)
        if problem:
            return f"{file.name}, {kind}: {problem[-300:]}"
    return errors[-300:] or None  # the second run reports nothing


def first_of(outcomes: Callable[[Path], Iterator[Outcome]]) -> Attempts:
    """The first tries of a fixed list."""
    return lambda folder, tries, _: itertools.islice(outcomes(folder), tries)


FAULTS = (
    Fault("a damaged file in the newest checkpoint", damaged_newest, 20, 3),
    Fault("all checkpoints damaged or gone", repeated(all_damaged), 12, 2),
    Fault("a full disk", repeated(full_disk, can_mount), 24, 2),
    Fault("a full disk under the data", repeated(full_while_preparing, can_mount), 24, 2),
    Fault("a workdir that cannot be used", first_of(unusable_workdirs), 10, 4),
    Fault("a workdir with an odd path", first_of(odd_paths), 6, 2),
    Fault("a character in a path", first_of(odd_characters), 95, 33),
    Fault("a damaged compiled program", repeated(damaged_programs), 6, 1),
)
