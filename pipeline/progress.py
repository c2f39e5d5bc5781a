"""What a person sees while a run goes on: a line per component; all else goes to a log file."""

import contextlib
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import masking
from ..terminal import Screen
from .results import produced
from .store import Node

# What TFX's LocalDagRunner and BeamDagRunner log around each node.
_EVENT = re.compile(r"^(?:Component|node) (\S+) is (running|finished)\.$")
_STYLES = {"done": "[green]done[/]", "cached": "[blue]cached[/]", "failed": "[red]failed[/]"}


class _Log:
    """A log that loses lines where the disk is full: no run may fail because of what it says of
    itself, and what it fails of must be told."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def write(self, text: str) -> int:
        """Write it, if there is room; see `io.TextIOBase`."""
        with contextlib.suppress(OSError):
            self._file.write(text)
        return len(text)

    def flush(self) -> None:
        """The same."""
        with contextlib.suppress(OSError):
            self._file.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[IO[str]]:
    """Send what this process writes, C++ and children included, to `log`.

    Yields:
        The stream that still reaches the person.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    screen = sys.stdout  # a notebook's stream is no file descriptor, and stays as it is
    saved = [os.dup(1), os.dup(2)]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if sys.stdout.fileno() == 1:
            screen = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    # Never closed: log handlers that libraries make meanwhile go on writing to it.
    file = masking.open_log(log)
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    try:
        said: Any = _Log(file)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            shown: Any = masking.Stream(screen)
            yield shown
    finally:
        for number, copy in enumerate(saved, start=1):
            os.dup2(copy, number)
            os.close(copy)
        if screen is not sys.stdout:
            screen.close()


def live(shown: RenderableType, console: Console) -> AbstractContextManager[Any]:
    """Keep `shown` at the bottom of a terminal; show nothing where there is none."""
    if not console.is_terminal:
        return contextlib.nullcontext()
    # Rich would print what libraries write to stdout and stderr, which belongs in the log.
    return Live(
        shown,
        console=console,
        refresh_per_second=4,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )


class Steps(logging.Handler):
    """Turns what the trainer logs about its steps into lines, and into a bar on a terminal.

    Args:
        console: where they go.
        width: characters that the bar's name takes.
    """

    loggers: tuple[str, ...] = ("espalier.progress",)

    def __init__(self, console: Console, width: int = 0) -> None:
        super().__init__(logging.DEBUG)
        self._console, self._width = console, width
        self._bar = Progress(
            TextColumn(f"  {{task.fields[name]:<{width}}}"),
            TextColumn("{task.description}"),
            BarColumn(20),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task("running", name="", total=None)
        self._live = live(self._bar, console)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Show progress for as long as the block lasts."""
        loggers = [logging.getLogger(name) for name in self.loggers]
        logging.getLogger("espalier.progress").setLevel(logging.DEBUG)
        for logger in loggers:
            logger.addHandler(self)
        try:
            with self._live:
                yield
        finally:
            for logger in loggers:
                logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record; see `logging.Handler`."""
        message = record.getMessage()
        if record.levelno > logging.DEBUG:
            self._console.print(
                f"      {escape(message)}", style="dim", highlight=False, soft_wrap=True
            )
            self._bar.update(self._task, description="running", total=None)
            return
        done, total = getattr(record, "done", None), getattr(record, "total", None)
        self._bar.update(self._task, description=message, completed=done, total=total)


class Reporter(Steps):
    """The same for a pipeline, with a line per component out of what TFX logs.

    Args:
        console: where the lines go.
        nodes: all the components that will run, in order.
        look_up: reads a component's state and outputs from the metadata.
    """

    loggers = ("absl", "espalier.progress")

    def __init__(
        self, console: Console, nodes: list[str], look_up: Callable[[str], Node | None]
    ) -> None:
        super().__init__(console, max(map(len, nodes), default=0))
        self._nodes, self._look_up = nodes, look_up
        self._started: dict[str, float] = {}
        self.current = ""
        self._bar.update(self._task, visible=False)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Show progress for as long as the block lasts."""
        from absl import logging as absl_logging

        before = absl_logging.get_verbosity()
        absl_logging.set_verbosity(absl_logging.INFO)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        try:
            with super().listening():
                yield
        finally:  # what comes later would stand on the screen
            absl_logging.set_verbosity(before)

    def emit(self, record: logging.LogRecord) -> None:
        """Handle one record; see `logging.Handler`."""
        if record.name == "espalier.progress":
            super().emit(record)
        elif event := _EVENT.match(record.getMessage()):
            name, what = event.groups()
            self._start(name) if what == "running" else self.finish(name)

    def _start(self, name: str) -> None:
        self.current = name
        self._started[name] = time.monotonic()
        self._bar.reset(self._task, name=name, description="running", total=None, visible=True)

    def finish(self, name: str, state: str = "") -> None:
        """Print the component's closing line."""
        seconds = time.monotonic() - self._started.pop(name, time.monotonic())
        node = None if state else self._look_up(name)  # which may be what failed
        state = state or (node.state if node else "done")
        words = produced(node) if node else ""
        self._bar.update(self._task, visible=False)
        place = (
            f"{self._nodes.index(name) + 1:>2}/{len(self._nodes)}" if name in self._nodes else ""
        )
        padding = " " * (6 - len(state))
        self._console.print(
            f"{place} {name:<{self._width}}  {_STYLES.get(state, state)}{padding} "
            f"{seconds:6.1f} s  {escape(words)}",
            highlight=False,
            soft_wrap=True,
        )


@contextlib.contextmanager
def shown(log: Path, console: Console | None = None) -> Iterator[None]:
    """Show the trainer's steps for as long as the block lasts; all else goes to `log`.

    Args:
        log: the file.
        console: where the steps go; standard output if None.
    """
    with quiet(log) as screen:
        console = console or Screen(file=screen)
        console.print(escape(f"log: {log}"), style="dim", highlight=False, soft_wrap=True)
        with Steps(console).listening():
            yield
