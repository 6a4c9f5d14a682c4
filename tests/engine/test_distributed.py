"""How processes agree, with the communication between them replaced."""

import pytest

from mnist_flax.core.config import UserError
from mnist_flax.engine import distributed
from mnist_flax.engine.distributed import PrimaryError, run_on_primary


@pytest.fixture
def messages(monkeypatch):
    """What the primary process has broadcast to this one and another one."""
    messages = []

    def broadcast(text):
        if distributed.is_primary():
            messages.append(text)
        return messages[-1]

    monkeypatch.setattr(distributed, "is_distributed", lambda: True)
    monkeypatch.setattr(distributed, "_broadcast_text", broadcast)
    return messages


def be_primary(monkeypatch, primary):
    monkeypatch.setattr(distributed, "is_primary", lambda: primary)


def test_only_the_primary_process_calls_the_function(messages, monkeypatch):
    calls = []

    @run_on_primary
    def double(value, *, log):
        """Doubles."""
        calls.append(log)
        return {"doubled": 2 * value}

    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    be_primary(monkeypatch, True)
    assert double(3, log="primary") == {"doubled": 6}
    be_primary(monkeypatch, False)
    assert double(3, log="other") == {"doubled": 6}
    assert calls == ["primary"]
    assert len(messages) == 1


@pytest.mark.parametrize("error", [UserError("a mistake"), OSError("a full disk")])
def test_an_error_of_the_primary_process_ends_the_others_without_a_message(
    messages, monkeypatch, error
):
    @run_on_primary
    def fail():
        raise error

    be_primary(monkeypatch, True)
    with pytest.raises(type(error)) as raised:
        fail()
    assert raised.value is error
    be_primary(monkeypatch, False)
    with pytest.raises(PrimaryError, match=str(error)) as raised:
        fail()
    assert raised.value.raised_everywhere
    assert len(messages) == 1
