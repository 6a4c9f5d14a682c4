"""The experiment with faults, in small."""

import json
import time

import pytest
from tensorflow_datasets.core.download import resource

from mnist_flax import download
from mnist_flax.config import UserError
from tests.conftest import EXPERIMENTS, script

faults = script("faults")


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch):
    """Also by the processes that they start, which inherit the path."""
    monkeypatch.syspath_prepend(str(EXPERIMENTS))


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [fault for fault in faults.FAULTS if fault.few], ids=lambda fault: fault.name
)
def test_nothing_is_lost(fault, tmp_path):
    row = faults.attempt(fault, fault.few, seed=1)
    if not row["tries"]:
        pytest.skip("this system lets nobody mount a disk of their own")
    assert row["lost"] == []
    assert row["survived"] == row["tries"]


def test_rows_are_kept_beside_those_of_other_faults(tmp_path):
    names = [fault.name for fault in faults.FAULTS]
    row = {"tries": 1_000, "survived": 1_000, "lost": []}
    faults.keep([row | {"fault": names[1]}, row | {"fault": names[0], "survived": 0}], tmp_path)
    untried = {"fault": names[1], "tries": 0, "survived": 0, "lost": []}
    again = row | {"fault": names[0], "survived": 999, "lost": ["x"]}
    path = faults.keep([again, untried], tmp_path)
    stored = json.loads(path.read_text())
    assert [kept["fault"] for kept in stored["faults"]] == names[:2]
    assert stored["table"][2:] == [
        f"| {names[0]} | 1,000 | 999 | 1 |",
        f"| {names[1]} | 1,000 | 1,000 | 0 |",
    ]


def test_what_is_lost_is_told():
    def attempt(folder, tries, seed):
        (folder / "details.json").write_text('{"seed": 7}')
        yield from (None, "all of it")

    row = faults.attempt(faults.Fault("fire", attempt, 2, 2), 2, 7)
    assert (row["tries"], row["survived"], row["lost"]) == (2, 1, ["all of it"])
    assert row["details"] == {"seed": 7}


def test_every_fault_is_tried_in_small():
    assert [fault.name for fault in faults.FAULTS if not fault.few] == [
        "SIGKILL while MNIST is prepared"  # which has to be at hand, and takes minutes
    ]
    assert len({fault.name for fault in faults.FAULTS}) == len(faults.FAULTS)


def test_a_failed_download_leaves_no_other_half_way(tmp_path, monkeypatch):
    write, begun, ended = resource.write_info_file, [], []

    def write_slowly(**given):
        begun.append(given["url"])
        time.sleep(2)
        write(**given)
        ended.append(given["url"])

    monkeypatch.setattr(resource, "write_info_file", write_slowly)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.5)
    network, originals = faults.bad_network, tmp_path / "originals"
    network.write_originals(originals, 0)
    with network.serving(originals) as server, network.expecting(originals, server.url):
        server.behaviour, server.bad = "hangs", network.NAMES[2]
        with pytest.raises(UserError, match="cannot be downloaded"):
            network.load(tmp_path / "data")
        assert begun
        assert sorted(ended) == sorted(begun)
