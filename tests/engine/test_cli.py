"""What all commands share: how JAX is started."""

import jax
import pytest

from mnist_flax import run
from mnist_flax.core.config import UserError
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


def test_a_note_tells_that_nothing_is_compiled(capsys):
    with jax.disable_jit():
        cli.initialize_jax(cache=False)
    assert capsys.readouterr().err == (
        "note: JAX_DISABLE_JIT is set, so nothing is compiled, which is slow\n"
    )
