"""When a second batch is begun beside one that is being computed."""

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from espalier.serving.batching import Batcher, Parameters

PATIENCE = 30.0  # seconds


class Model:
    """Computes a batch when it is told to; knows which are under way, by their rows."""

    def __init__(self) -> None:
        self.under_way: dict[int, threading.Event] = {}  # rows -> what ends it
        self.batcher = Batcher(Parameters(num_batch_threads=2))
        self.callers: list[threading.Thread] = []

    def compute(self, feeds: list[np.ndarray]) -> Sequence[np.ndarray]:
        told = self.under_way[len(feeds[0])] = threading.Event()
        assert told.wait(PATIENCE)
        return feeds

    def ask(self, requests: int) -> None:
        for _ in range(requests):
            row = [np.zeros(1, np.float32)]
            caller = threading.Thread(target=self.batcher.run, args=("key", self.compute, row))
            caller.start()
            self.callers.append(caller)

    def waiting(self) -> int:
        return sum(map(len, self.batcher._queues.values()))

    def end(self, rows: int) -> None:
        self.under_way.pop(rows).set()


def test_small_batches_wait_for_larger_ones_and_equal_ones_do_not() -> None:
    model = Model()
    model.ask(1)
    wait_for(lambda: list(model.under_way) == [1])
    first = model.under_way.pop(1)
    model.ask(1)  # as large as the one under way: beside it
    wait_for(lambda: list(model.under_way) == [1])
    model.ask(3)  # both threads are at work
    wait_for(lambda: model.waiting() == 3)
    first.set()
    wait_for(lambda: set(model.under_way) == {1, 3})
    model.end(1)
    model.callers[1].join(PATIENCE)  # one thread is free
    model.ask(1)
    wait_for(lambda: model.waiting() == 1)
    time.sleep(0.1)
    assert list(model.under_way) == [3]
    model.ask(1)
    wait_for(lambda: model.waiting() == 2)
    assert list(model.under_way) == [3]
    model.end(3)  # who waited is not forgotten
    wait_for(lambda: list(model.under_way) == [2])
    model.end(2)
    for caller in model.callers:
        caller.join(PATIENCE)
        assert not caller.is_alive()
    assert model.batcher._leaders == 0
    assert model.batcher._running == []


def wait_for(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
