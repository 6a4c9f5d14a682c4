"""What all commands share: how JAX is started."""

import subprocess
import sys

import jax
import pytest

from mnist_flax import run
from mnist_flax.core.config import UserError
from mnist_flax.data.download import data_root
from mnist_flax.engine import cli


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend"), AssertionError()])
def test_a_platform_without_a_device_is_refused_in_one_line(monkeypatch, tmp_path, capsys, error):
    """JAX raises an AssertionError for CUDA without a GPU, a RuntimeError for a misspelled one."""

    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(UserError, match="no device here for JAX_PLATFORMS='cuda'; unset it"):
        cli.initialize_jax(cache=False)
    assert run.main(["--workdir", str(tmp_path / "run"), "--dataset", "digits"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.parametrize("line", ["print('x', flush=True)", "display.print_line('x')"])
def test_a_reader_that_is_gone_gives_its_own_exit_code(line):
    script = (
        "import sys; from mnist_flax.engine import cli; from mnist_flax.run import display\n"
        f"def action(_):\n    while True: {line}\n"
        "sys.exit(cli.run_command(action, None))"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        assert (process.wait(), process.stderr.read()) == (141, b"")


def test_without_a_home_folder_nothing_is_kept_but_all_works(monkeypatch):
    def fail(_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.expanduser", fail)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    cli.initialize_jax()
    with pytest.raises(UserError, match="there is no home folder for the data; use --data-dir"):
        data_root(None)


def test_a_note_tells_that_nothing_is_compiled(capsys):
    with jax.disable_jit():
        cli.initialize_jax(cache=False)
    assert capsys.readouterr().err == (
        "note: JAX_DISABLE_JIT is set, so nothing is compiled, which is slow\n"
    )
