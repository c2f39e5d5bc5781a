"""Follows a run on Kubeflow Pipelines to its end."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ServerError
from .server import Server, seconds

_OVER = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
_PASSING = ("INTERNAL", "UNAVAILABLE")  # what waiting may mend: a restart, a network


@dataclass(frozen=True)
class Task:
    """A task of a run: its state by KFP's name, "" before it began; seconds; error, if told."""

    state: str = ""
    seconds: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        state: SUCCEEDED, FAILED, CANCELED or SKIPPED.
        seconds: from its creation to its end, by the server's clock.
        failed: the tasks that failed.
    """

    state: str
    seconds: float | None
    failed: Mapping[str, Task] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """0 for a run that succeeded, else 3."""
        return 0 if self.state == "SUCCEEDED" else 3


def tasks_of(run: Mapping[str, Any], names: Iterable[str]) -> dict[str, Task]:
    """The state of each named task of a run.

    The server lists the nodes of the Argo workflow, by name: `NAME-driver` prepares, `NAME` runs,
    and there are others that are no tasks (root, executor).
    """
    nodes: dict[str, Mapping[str, Any]] = {}
    for detail in (run.get("run_details") or {}).get("task_details") or ():
        nodes[detail.get("display_name", "")] = detail
    found = {}
    for name in names:
        node, driver = nodes.get(name, {}), nodes.get(f"{name}-driver", {})
        state = node.get("state", "")
        if driver.get("state") == "FAILED":
            node, state = driver, "FAILED"
        elif state in ("", "PENDING") and driver.get("state"):
            state = "RUNNING"
        errors = [node, *reversed(node.get("state_history") or ())]
        told = [str((one.get("error") or {}).get("message") or "") for one in errors]
        took = seconds(driver.get("start_time") or node.get("start_time"), node.get("end_time"))
        found[name] = Task(state, took, next(filter(None, told), ""))
    return found


def watch(
    server: Server,
    run: str,
    names: Iterable[str],
    told: Callable[[str, Task], None],
    said: Callable[[str], None],
    *,
    every: float = 5.0,
    patience: float = 1800.0,
) -> Outcome:
    """Follow a run to its end.

    Args:
        server: where it runs.
        run: its id.
        names: of its tasks.
        told: called with a task when its state has changed.
        said: called with a sentence when the connection is lost, and when it is back.
        every: seconds between looks; up to a minute while there is no answer.
        patience: seconds without an answer after which it gives up.

    Raises:
        ServerError: no answer for so long, the token expired, or the run is gone.
    """
    names = tuple(names)
    before: dict[str, Task] = {}
    while True:
        now = _read_patiently(server, run, said, every, patience)
        after = tasks_of(now, names)
        for name, task in after.items():
            if task.state != before.get(name, Task()).state:
                told(name, task)
        before = after
        if (state := now.get("state", "")) in _OVER:
            failed = {name: task for name, task in after.items() if task.state == "FAILED"}
            return Outcome(state, seconds(now.get("created_at"), now.get("finished_at")), failed)
        time.sleep(every)


def _read_patiently(
    server: Server, run: str, said: Callable[[str], None], every: float, patience: float
) -> dict[str, Any]:
    """The run, as soon as the server answers."""
    pause, lost = every, 0.0
    while True:
        try:
            now = server.read(run)
        except ServerError as error:
            if error.code not in _PASSING or (lost and time.monotonic() - lost > patience):
                raise _abandoned(server, run, error) from None
            if not lost:
                said(f"{error} Trying again.")
                lost = time.monotonic()
            time.sleep(pause)
            pause = min(2 * pause, max(every, 60.0))
            continue
        if lost:
            said("The server answers again.")
        return now


def _abandoned(server: Server, run: str, error: ServerError) -> ServerError:
    """Why waiting ended before the run did."""
    if error.code == "NOT_FOUND":
        return ServerError(error.code, f"{server.host}: the run {run} was deleted meanwhile.")
    what, then = str(error), ""
    if error.code == "UNAUTHENTICATED":
        what = f"{server.host}: the token expired while waiting (401)."
        then = f"; with a new token, `espalier runs --host {server.host}` says how it ended"
    return ServerError(
        error.code, f"{what} The run goes on on the cluster: {server.link(run)}{then}."
    )
