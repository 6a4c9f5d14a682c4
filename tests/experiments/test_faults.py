"""The faults of the experiment, with few tries."""

import json

import pytest

from experiments.faults import __main__ as faults
from experiments.faults.fault import Fault

NEED_LINUX = (
    "a full disk",
    "a full disk under the data",
    "a system call that fails",
    "the power fails",
)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "fault", [fault for fault in faults.FAULTS if fault.few], ids=lambda fault: fault.name
)
def test_nothing_is_lost(fault, tmp_path):
    row = faults.attempt(fault, fault.few, seed=1)
    if not row["tries"] and fault.name in NEED_LINUX:
        pytest.skip("this user may not mount a disk, or there is no C compiler")
    assert row["lost"] == []
    assert row["survived"] == row["tries"] >= fault.few


def test_rows_are_stored_beside_those_of_other_faults(tmp_path):
    names = [fault.name for fault in faults.FAULTS]
    row = {"tries": 1_000, "survived": 1_000, "lost": []}
    faults.update([row | {"fault": names[1]}, row | {"fault": names[0], "survived": 0}], tmp_path)
    untried = {"fault": names[1], "tries": 0, "survived": 0, "lost": []}
    second = row | {"fault": names[0], "survived": 999, "lost": ["x"]}
    path = faults.update([second, untried], tmp_path)
    stored = json.loads(path.read_text())
    assert [row["fault"] for row in stored["faults"]] == names[:2]
    assert stored["table"][2:] == [
        f"| {names[0]} | 1,000 | 999 | 1 |",
        f"| {names[1]} | 1,000 | 1,000 | 0 |",
    ]


def test_losses_are_reported():
    def attempt(folder, tries, seed):
        (folder / "details.json").write_text('{"seed": 7}')
        yield from (None, "all of it")

    row = faults.attempt(Fault("fire", attempt, 2, 2), 2, 7)
    assert (row["tries"], row["survived"], row["lost"]) == (2, 1, ["all of it"])
    assert row["details"] == {"seed": 7}


def test_faults_have_tries_in_the_tests():
    assert [fault.name for fault in faults.FAULTS if not fault.few] == [
        "SIGKILL while MNIST is prepared"  # needs its files, and takes minutes
    ]
    assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS)
