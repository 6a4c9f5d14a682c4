"""The experiment with faults, in small."""

import importlib
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
sys.path.insert(0, str(EXPERIMENTS))
faults = importlib.import_module("faults")
sys.path.remove(str(EXPERIMENTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [fault for fault in faults.FAULTS if fault.few], ids=lambda fault: fault.name
)
def test_nothing_is_lost(fault, tmp_path):
    row = faults.attempt(fault, fault.few, seed=1)
    assert row["lost"] == []
    assert row["survived"] == row["tries"]
