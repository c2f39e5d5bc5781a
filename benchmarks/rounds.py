"""One process per model, asked in turn: whatever else the machine does meets all of them alike.

A worker is started with a command, and answers each line of JSON on its standard input with one on
its standard output: {"answers": true} with {"labels": [...]} for all rows of a CSV, and
{"size", "start", "rounds"} with {"ms": [...]}, the times of so many calls with so many rows each.
"""

import csv
import json
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Worker:
    """One process that serves one model."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True,
        )  # fmt: skip

    def tell(self, **request: Any) -> None:
        """Send a request."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for its answer."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended: {' '.join(map(str, self._process.args))}")
        found: dict[str, Any] = json.loads(line)
        return found

    def labels(self) -> list[int]:
        """What the model says of all rows."""
        self.tell(answers=True)
        found: list[int] = self.hear()["labels"]
        return found

    def interrupt(self) -> None:
        """Press Ctrl-C: the job under way ends with what there is."""
        self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


def in_turn(
    workers: Mapping[str, Sequence[Worker]], size: int, rounds: int, calls: int
) -> dict[str, float]:
    """Milliseconds a call by name: the median over the rounds of the clients' mean.

    Args:
        workers: by the model's name, as many as there are clients; they are asked at once.
        size: rows of a call.
        rounds: that count; one more comes before them.
        calls: of each client in a round.
    """
    found: dict[str, list[float]] = {name: [] for name in workers}
    for number in range(rounds + 1):
        for name, clients in workers.items():
            for place, client in enumerate(clients):
                client.tell(size=size, start=(number + place) * size * calls, rounds=calls)
            times = [statistics.median(client.hear()["ms"]) for client in clients]
            if number:
                found[name].append(statistics.mean(times))
    return {name: statistics.median(times) for name, times in found.items()}


def serve(ask: Callable[[list[str]], Sequence[int]], test: str) -> None:
    """Be a worker.

    Args:
        ask: texts -> label ids.
        test: a CSV with the column `text`.
    """
    import sys

    with Path(test).open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    for line in sys.stdin:
        request, answer = json.loads(line), {}
        if "answers" in request:
            portions = [ask(texts[i : i + 32]) for i in range(0, len(texts), 32)]
            answer["labels"] = [int(label) for portion in portions for label in portion]
        else:
            answer["ms"] = []
            for number in range(request["rounds"]):
                first = request["start"] + number * request["size"]
                batch = [texts[(first + i) % len(texts)] for i in range(request["size"])]
                begin = time.perf_counter()
                ask(batch)
                answer["ms"].append(1000 * (time.perf_counter() - begin))
        print(json.dumps(answer), flush=True)


def true_labels(test: Path) -> list[int]:
    """The labels of a CSV with the column `label`."""
    with test.open(encoding="utf-8") as file:
        return [int(row["label"]) for row in csv.DictReader(file)]


def accuracy(worker: Worker, labels: Sequence[int]) -> tuple[float, list[int]]:
    """(the share of rows that are right, what was said)."""
    said = worker.labels()
    right = sum(a == b for a, b in zip(said, labels, strict=True))
    return right / len(labels), said
