"""Trainings that really diverge; `test_loop.py` has every moment at which that can happen."""

import pytest

from mnist_flax import run
from tests.conftest import SMALL


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (["--learning-rate", "1e30"], "training loss"),
        (["--learning-rate", "1e3"], "training loss"),
        (["--learning-rate", "10"], "training loss"),
        (["--optimizer", "muon", "--learning-rate", "1e3"], "training loss"),
        (["--schedule", "constant", "--learning-rate", "1e3"], "training loss"),
        (["--learning-rate", "1e3", "--num-seeds", "2"], "training loss of seed 0"),
    ],
)
def test_a_far_too_high_learning_rate_is_detected(tmp_path, capsys, flags, name):
    assert run.main(["--workdir", str(tmp_path), *SMALL, "--no-report", *flags]) == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"the {name} became" in message
    assert not (tmp_path / "summary.json").exists()
    assert "try a lower --learning-rate" in message
