"""What a network failed is tried again, and nothing else."""

import pytest
import tenacity.nap

from espalier.errors import CheckpointError, ConfigError
from espalier.retrying import retried


class Fails:
    """Fails so many times, then answers."""

    def __init__(self, times: int, passing: bool) -> None:
        self.left, self.passing, self.calls = times, passing, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.left:
            self.left -= 1
            error = CheckpointError("The network is away.")
            error.passing = self.passing
            raise error
        return "here"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(tenacity.nap.time, "sleep", slept.append)
    return slept


def test_it_goes_on_when_the_network_is_back(waits: list[float]) -> None:
    said: list[str] = []
    assert retried(Fails(3, passing=True), 3, said.append) == "here"
    assert waits == [1, 2, 4]
    assert said[1] == "The network is away. Trying again in 2 s (2 of 3)."


def test_the_last_error_goes_through(waits: list[float]) -> None:
    call = Fails(9, passing=True)
    with pytest.raises(CheckpointError, match="away"):
        retried(call, 2, lambda line: None)
    assert call.calls == 3


@pytest.mark.parametrize("fault", [Fails(1, passing=False), Fails(1, passing=True)])
def test_what_will_be_no_better_is_not_tried_again(waits: list[float], fault: Fails) -> None:
    with pytest.raises(ConfigError):
        retried(fault, 5 if not fault.passing else 0, lambda line: None)
    assert fault.calls == 1 and not waits
