"""The cache of compiled programs: where it is, and that damaged entries are removed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_flax.engine import compilation_cache, environment


def test_compiled_programs_are_stored_for_each_kind_of_processor(tmp_path, monkeypatch):
    settings = {}
    monkeypatch.setattr("jax.config.update", settings.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.enable()
    folder = Path(settings["jax_compilation_cache_dir"])
    assert folder.parent == tmp_path / "mnist_flax"
    assert folder.name == environment.processor_fingerprint()


@pytest.fixture
def cache(tmp_path):
    """A folder with entries that were checked once."""
    for name in "abc":
        (tmp_path / f"jit_{name}-cache").write_text(name)
    compilation_cache._record(tmp_path)
    return tmp_path


def names(folder):
    return [path.name[4] for path in sorted(folder.glob("*-cache"))]


def test_entries_that_changed_are_removed(cache):
    (cache / "jit_a-cache").write_text("b")
    (cache / "jit_b-cache").unlink()
    (cache / "jit_d-cache").write_text("new")
    compilation_cache.check(cache)
    assert names(cache) == ["c", "d"]
    compilation_cache._record(cache)
    (cache / "jit_d-cache").write_text("")
    compilation_cache.check(cache)
    assert names(cache) == ["c"]


@pytest.mark.parametrize("content", ["", "[", '{"jit_a-cache": 1}'])
def test_a_damaged_list_of_digests_is_made_again(cache, content):
    (cache / compilation_cache.DIGESTS).write_text(content)
    compilation_cache.check(cache)
    assert names(cache) == ["a", "b", "c"]
    compilation_cache._record(cache)
    assert "jit_c-cache" in (cache / compilation_cache.DIGESTS).read_text()


def test_an_entry_with_the_content_of_another_is_compiled_again(tmp_path):
    script = (
        "from mnist_flax.engine import cli\ncli.initialize_jax()\n"
        "import jax\njax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "def one(x): return x + 1\ndef two(x, y): return x, y\n"
        "assert jax.jit(one)(1.0) == 2\nassert jax.jit(two)(1.0, 2.0) == (1, 2)"
    )

    def run():
        environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path)}
        command = [sys.executable, "-c", script]
        ended = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert (ended.returncode, ended.stderr) == (0, b"")
        (first,), (second,) = tmp_path.glob("jit_one-*-cache"), tmp_path.glob("jit_two-*-cache")
        return first, second

    first, second = run()
    shutil.copy(second, first)
    run()
    assert first.read_bytes() != second.read_bytes()
