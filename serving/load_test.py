"""A load test of a model server over gRPC: TensorFlow Serving, or our own.

Closed loop: so many requests are always under way. Open loop: requests come at random times at a
rate, whether or not the server keeps up, and their time is counted from when they were due; a
server that stands still for a second is then seen to keep all of that second's callers waiting.
"""

import functools
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.table import Table

from ..errors import ConfigError
from .client import Connection

_PREDICT = "/tensorflow.serving.PredictionService/Predict"
_TIMEOUT = 30.0  # seconds, for a request
_TOLD = 0.25  # seconds between reports of progress
_SUFFIXES = (".svg", ".png", ".pdf")
PERCENTILES = (50.0, 90.0, 99.0, 99.9)


@dataclass(frozen=True)
class Plan:
    """How requests are sent.

    `concurrency` requests are always under way; or, if `rate` is not None, that many begin in a
    second. Those that begin in the first `warmup_seconds` do not count, those of the `seconds`
    after them do.
    """

    concurrency: int = 8
    rate: float | None = None
    seconds: float = 10.0
    warmup_seconds: float = 2.0
    batch: int = 1


@dataclass(frozen=True)
class Result:
    """What came of it. Times are in seconds.

    Args:
        ended: float64 [N], when each request that succeeded was answered, since counting began.
        took: float64 [N], how long each of them took, in the same order.
        errors: how many requests failed, by gRPC's code.
        first_error: what the server said to the first of them.
        seconds: for which requests were begun; what was late ended after them.
        batch: rows in a request.
    """

    ended: np.ndarray
    took: np.ndarray
    errors: Counter[str] = field(default_factory=Counter)
    first_error: str = ""
    seconds: float = 0.0
    batch: int = 1

    @property
    def requests(self) -> int:
        """All that were counted, those that failed too."""
        return len(self.took) + self.errors.total()

    @property
    def per_second(self) -> float:
        """Requests that succeeded, a second; what ended after the `seconds` is none of that."""
        return float((self.ended <= self.seconds).sum()) / self.seconds if self.seconds else 0.0

    def percentile(self, percent: float) -> float:
        """So many in a hundred took no longer, in ms; NaN if none succeeded."""
        if not len(self.took):
            return float("nan")
        return 1000 * float(np.percentile(self.took, percent, method="inverted_cdf"))


def run(
    target: str,
    bodies: Sequence[bytes],
    plan: Plan,
    connection: Connection | None = None,
    told: Callable[[float, int, int], None] = lambda seconds, requests, failed: None,
) -> Result:
    """Load a server. Ctrl-C ends it early, with the result so far.

    Args:
        target: HOST:PORT, or unix:PATH.
        bodies: serialized PredictRequests, sent in turn.
        plan: how.
        connection: token and TLS.
        told: called a few times a second: seconds since the start, requests ended, those of them
            that failed.

    Raises:
        ConfigError: a certificate's file cannot be read.
    """
    known = connection or Connection()
    balanced = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
    # Nothing is sent again: a failure is to be seen.
    channel = known.channel(target, enable_retries=0, service_config=balanced)
    load = _Load(channel, bodies, known.metadata(), plan, told)
    try:
        return load.run()
    finally:
        channel.close()


class _Load:
    """Sends bytes as they are, by futures: a thread for each request, or asyncio, costs more."""

    def __init__(
        self,
        channel: grpc.Channel,
        bodies: Sequence[bytes],
        metadata: Any,
        plan: Plan,
        told: Callable[[float, int, int], None],
    ) -> None:
        self._call = channel.unary_unary(_PREDICT)
        self._bodies = itertools.cycle(bodies)
        self._metadata, self._plan, self._told = metadata, plan, told
        self._done: list[tuple[float, float, str]] = []  # when due, when answered, code
        self._failed, self._first_error = 0, ""
        self._finished = threading.Semaphore(0)
        self._begin = self._told_at = time.perf_counter()
        self._end = self._begin + plan.warmup_seconds + plan.seconds

    def run(self) -> Result:
        """Send until it is over, wait for the last answers."""
        try:
            begun = self._closed() if self._plan.rate is None else self._open(self._plan.rate)
            for _ in range(begun):
                while not self._finished.acquire(timeout=_TOLD):
                    self._tell()
        except KeyboardInterrupt:
            self._end = min(self._end, time.perf_counter())  # and no answer has a request follow
        return self._result()

    def _closed(self) -> int:
        for _ in range(self._plan.concurrency):
            self._send(time.perf_counter(), again=True)
        while (left := self._end - time.perf_counter()) > 0:
            time.sleep(min(left, _TOLD))
            self._tell()
        return self._plan.concurrency

    def _open(self, rate: float) -> int:
        arrivals, due, begun = random.Random(0), self._begin, 0
        while (due := due + arrivals.expovariate(rate)) < self._end:
            while (left := due - time.perf_counter()) > 0:
                time.sleep(min(left, _TOLD))
                self._tell()
            self._send(due, again=False)
            begun += 1
        return begun

    def _send(self, due: float, again: bool) -> None:
        sent = self._call.future(next(self._bodies), timeout=_TIMEOUT, metadata=self._metadata)
        sent.add_done_callback(functools.partial(self._answered, due, again))

    def _answered(self, due: float, again: bool, sent: Any) -> None:
        """Runs in gRPC's own thread. The closed loop goes on from here: waking another costs."""
        now, code = time.perf_counter(), sent.code().name
        self._done.append((due, now, code))
        if code != "OK":
            self._failed += 1
            self._first_error = self._first_error or sent.details() or ""
        if again and now < self._end:
            self._send(now, again)
        else:
            self._finished.release()

    def _tell(self) -> None:
        now = time.perf_counter()
        if now - self._told_at >= _TOLD:
            self._told_at = now
            self._told(now - self._begin, len(self._done), self._failed)

    def _result(self) -> Result:
        start = self._begin + self._plan.warmup_seconds
        counted = [one for one in self._done.copy() if one[0] >= start]
        good = [(ended - start, ended - due) for due, ended, code in counted if code == "OK"]
        ended, took = np.array(good, np.float64).reshape(-1, 2).T
        errors = Counter(code for _, _, code in counted if code != "OK")
        said = self._first_error if errors else ""
        seconds = max(self._end - start, 0.0)
        return Result(ended, took, errors, said, seconds, self._plan.batch)


def facts(result: Result) -> dict[str, Any]:
    """The same numbers as `table` has, by name; times in ms, NaN where nothing succeeded."""
    return {
        "requests": result.requests,
        "requests_per_second": result.per_second,
        "rows_per_second": result.per_second * result.batch,
        "latency_ms": {
            **{f"p{one:g}": result.percentile(one) for one in PERCENTILES},
            "max": result.percentile(100),
        },
        "errors": dict(result.errors),
        "first_error": result.first_error,
    }


def table(result: Result) -> Table:
    """One line: how many, how fast, how long, what failed."""
    shown = Table(box=None, padding=(0, 2, 0, 0))
    titles = ["requests", "requests/s", "rows/s", *(f"p{one:g}, ms" for one in PERCENTILES)]
    for title in (*titles, "max, ms"):
        shown.add_column(title, justify="right")
    shown.add_column("errors")
    times = [result.percentile(one) for one in (*PERCENTILES, 100)]
    errors = (f"{code} {count:,}" for code, count in result.errors.most_common())
    shown.add_row(
        f"{result.requests:,}",
        f"{result.per_second:,.1f}",
        f"{result.per_second * result.batch:,.1f}",
        *("-" if np.isnan(one) else f"{one:.2f}" for one in times),
        ", ".join(errors) or "none",
    )
    return shown


def check_picture(file: Path) -> None:
    """See before the test that its picture can be written under this name.

    Raises:
        ConfigError: it cannot.
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib.figure  # noqa: F401

    if file.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{file}: name a picture that ends in {', '.join(_SUFFIXES)}.")
    if not file.parent.is_dir():
        raise ConfigError(f"{file}: there is no folder {file.parent}.")


def picture(result: Result, title: str, file: Path) -> None:
    """Draw how long requests took, by percentile, and how many ended in each second.

    Raises:
        ConfigError: the file cannot be written.
    """
    from matplotlib.figure import Figure  # pyplot would look for a screen

    figure = Figure(figsize=(9, 4), layout="constrained", dpi=110)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    count = len(result.took)
    if count:
        # Even steps lead to 90, 99, 99.9 %: what is rare is what this curve is drawn for.
        rarer = np.geomspace(1, count, 200)
        left.plot(rarer, [result.percentile(100 - 100 / one) for one in rarer], color="#0072B2")
        left.set_xscale("log")
        ticks = [one for one in (1, 2, 10, 100, 1000, 10_000, 100_000) if one <= count]
        left.set_xticks(ticks, [f"{100 - 100 / one:g}" for one in ticks])
        left.minorticks_off()
        width = max(result.seconds / 50, 0.1)
        edges = np.arange(0, result.seconds + width, width)
        each, _ = np.histogram(result.ended, edges)
        right.stairs(each / width, edges, color="#009E73")
    left.set(xlabel="percentile", ylabel="latency, ms", ylim=(0, None))
    right.set(xlabel="seconds", ylabel="requests/s", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(file)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}.") from None
