"""Where a result comes from."""

import json
import subprocess
from datetime import UTC, datetime

from mnist_flax.core.config import Config
from mnist_flax.evaluate import provenance
from mnist_flax.evaluate.provenance import METADATA, saved_at


def save(folder, step, content):
    checkpoint = folder / "checkpoints" / str(step)
    checkpoint.mkdir(parents=True)
    (checkpoint / METADATA).write_text(content)


def test_the_date_is_that_of_a_checkpoint(tmp_path):
    assert saved_at(tmp_path) is None
    for step, seconds in ((10, 1_000), (20, 2_000)):
        save(tmp_path, step, json.dumps({"commit_timestamp_nsecs": seconds * 10**9}))
    for step, content in ((30, "{"), (40, "[]"), (50, '{"commit_timestamp_nsecs": 1e300}')):
        save(tmp_path, step, content)
    assert saved_at(tmp_path) == datetime.fromtimestamp(2_000, UTC)
    assert saved_at(tmp_path, 10) == datetime.fromtimestamp(1_000, UTC)
    assert saved_at(tmp_path, 30) is saved_at(tmp_path, 60) is None


def test_the_date_of_a_real_run_is_known(small_run):
    saved = saved_at(small_run, 48)
    assert saved
    assert abs((datetime.now(UTC) - saved).total_seconds()) < 24 * 3600


def test_what_is_not_known_is_left_out(monkeypatch):
    monkeypatch.setattr(provenance, "code_version", lambda: None)
    rows = provenance.provenance(Config(dataset="mnist"), None, None)
    assert list(rows) == ["Command", "Recipe", "Data"]


def test_the_commit_is_that_of_a_checkout_which_tracks_the_code(tmp_path, monkeypatch):
    module = tmp_path / "package" / "room" / "module.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    monkeypatch.setattr(provenance, "__file__", str(module))
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init", "--quiet")
    assert provenance.code_version() is None  # like an environment inside another project
    git("add", ".")
    git("commit", "--quiet", "-m", "m")
    commit = f"commit {git('rev-parse', '--short=12', 'HEAD')}"
    assert provenance.code_version() == commit
    module.write_text("changed")
    assert provenance.code_version() == f"{commit}, changed since"
    monkeypatch.setenv("PATH", "")
    assert provenance.code_version() is None
