"""What the drills share: a count of what was tried and what was lost, and the table of them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest


@dataclass
class Drill:
    """One line of the table: a thing broken on purpose, again and again."""

    name: str
    tries: int = 0
    lost: list[str] = field(default_factory=list)

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Count one try; whatever is raised within it is a loss, and the drill goes on."""
        self.tries += 1
        try:
            yield
        except Exception as fault:
            self.lost.append(f"{what}: {type(fault).__name__}: {fault}")


TABLE: list[Drill] = []


@pytest.fixture
def drill() -> Iterator[Callable[[str], Drill]]:
    """`drill(name)` opens a line of the table; the test fails at its end if a try was lost."""
    mine: list[Drill] = []

    def begin(name: str) -> Drill:
        mine.append(Drill(name))
        return mine[-1]

    yield begin
    TABLE.extend(mine)
    lost = [f"{one.name}: {what}" for one in mine for what in one.lost]
    assert not lost, "\n".join(lost)


@pytest.fixture(scope="session")
def times(request: pytest.FixtureRequest) -> Callable[[int, int], int]:
    """`times(3, 50)`: how often to try, in the suite and with `--long` (`make drills`)."""
    return lambda short, long: long if request.config.getoption("long") else short


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if not TABLE:
        return
    wide = max(len(one.name) for one in TABLE)
    terminalreporter.section("drills")
    terminalreporter.line(f"{'drill':{wide}}  tries  survived  lost")
    for one in TABLE:
        kept = one.tries - len(one.lost)
        terminalreporter.line(f"{one.name:{wide}}  {one.tries:5}  {kept:8}  {len(one.lost):4}")
