"""Batching: what waits together is computed together, and each gets its own answer."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import grpc
import numpy as np
import pytest

from espalier.serving.batching import Batcher, Parameters
from espalier.serving.manager import ModelConfig
from espalier.serving.status import Status

PATIENCE = 60.0


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(64) as found:
        yield found


class Gate:
    """A model that doubles, keeps the sizes of its batches, and can be held up."""

    def __init__(self, bad: float | None = None) -> None:
        self.bad = bad
        self.sizes: list[int] = []
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()

    def __call__(self, feeds: list[np.ndarray]) -> list[np.ndarray]:
        self.sizes.append(len(feeds[0]))
        self.entered.set()
        assert self.open.wait(PATIENCE)
        if self.bad is not None and self.bad in feeds[0]:
            raise Status(grpc.StatusCode.INVALID_ARGUMENT, "a bad row")
        return [2 * feeds[0]]


def rows(*values: float) -> list[np.ndarray]:
    return [np.array(values, np.float64)]


def waiting(batcher: Batcher) -> int:
    return sum(len(queue) for queue in batcher._queues.values())


def busy(batcher: Batcher, gate: Gate, pool: ThreadPoolExecutor) -> Future[Any]:
    """Keep the only leader at work until the gate opens."""
    gate.open.clear()
    first = pool.submit(batcher.run, "first", gate, rows(-1))
    assert gate.entered.wait(PATIENCE)
    return first


def queue(
    batcher: Batcher, pool: ThreadPoolExecutor, until: Callable, calls: list[tuple]
) -> list[Future[Any]]:
    """Submit calls one after the other, each once the one before it waits."""
    before = waiting(batcher)
    found = []
    for place, (key, *arguments) in enumerate(calls, before + 1):
        found.append(pool.submit(batcher.run, key, *arguments))
        until(lambda place=place: waiting(batcher) == place)
    return found


def answers(calls: list[Future[Any]]) -> list[Any]:
    assert not wait(calls, PATIENCE).not_done
    return [call.exception() or call.result()[0].tolist() for call in calls]


def one_thread(**more: Any) -> Batcher:
    return Batcher(Parameters(**{"num_batch_threads": 1} | more))


# --- batches ------------------------------------------------------------------------------


def test_a_lone_request_is_computed_at_once():
    gate = Gate()
    (answer,) = one_thread(batch_timeout_micros=0).run("k", gate, rows(1, 2))
    assert answer.tolist() == [2, 4] and gate.sizes == [2]


def test_requests_that_wait_together_are_computed_together(pool, tools):
    batcher, gate = one_thread(), Gate()
    first = busy(batcher, gate, pool)
    calls = queue(batcher, pool, tools.until, [("k", gate, rows(n, n + 0.5)) for n in range(5)])
    gate.open.set()
    assert answers(calls) == [[2 * n, 2 * n + 1] for n in range(5)]
    assert answers([first]) == [[-2]]
    assert gate.sizes == [1, 10]


def test_a_batch_is_never_larger_than_allowed(pool, tools):
    batcher, gate = one_thread(max_batch_size=4), Gate()
    busy(batcher, gate, pool)
    calls = queue(batcher, pool, tools.until, [("k", gate, rows(n, n, n)) for n in range(3)])
    gate.open.set()
    assert answers(calls) == [[2 * n] * 3 for n in range(3)]
    assert gate.sizes == [1, 3, 3, 3]


def test_other_keys_and_shapes_are_not_merged(pool, tools):
    batcher, gate = one_thread(), Gate()
    busy(batcher, gate, pool)
    flat, wide = rows(1), [np.ones((1, 2))]
    calls = [("a", gate, flat), ("b", gate, flat), ("a", gate, wide), ("a", gate, flat)]
    found = queue(batcher, pool, tools.until, calls)
    gate.open.set()
    assert answers(found) == [[2], [2], [[2, 2]], [2]]
    assert sorted(gate.sizes) == [1, 1, 1, 2]


def test_a_batch_waits_for_its_timeout_or_until_it_is_full(pool):
    batcher, gate = one_thread(max_batch_size=2, batch_timeout_micros=10**9), Gate()
    calls = [pool.submit(batcher.run, "k", gate, rows(n)) for n in (1, 2)]
    assert answers(calls) == [[2], [4]]
    assert gate.sizes == [2]


def test_a_bad_row_fails_alone(pool, tools):
    batcher, gate = one_thread(), Gate(bad=2)
    busy(batcher, gate, pool)
    calls = queue(batcher, pool, tools.until, [("k", gate, rows(n)) for n in (1, 2, 3)])
    gate.open.set()
    one, bad, three = answers(calls)
    assert (one, three) == ([2], [6])
    assert isinstance(bad, Status) and bad.message == "a bad row"
    assert gate.sizes == [1, 3, 1, 1, 1]


def test_a_call_that_breaks_answers_all_and_nobody_hangs(pool, tools):
    def broken(feeds: list[np.ndarray]) -> list[np.ndarray]:
        raise MemoryError

    batcher, gate = one_thread(), Gate()
    busy(batcher, gate, pool)
    calls = queue(batcher, pool, tools.until, [("k", broken, rows(n)) for n in (1, 2)])
    gate.open.set()
    assert [error.code for error in answers(calls)] == [grpc.StatusCode.INTERNAL] * 2
    assert batcher.run("k", gate, rows(4))[0].tolist() == [8]


def test_an_expired_request_is_dropped_before_it_runs(pool, tools):
    batcher, gate = one_thread(), Gate()
    busy(batcher, gate, pool)
    calls = [("k", gate, rows(1), 0.0), ("k", gate, rows(2), None)]
    late, good = queue(batcher, pool, tools.until, calls)
    gate.open.set()
    assert answers([good]) == [[4]]
    assert late.exception(PATIENCE).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert gate.sizes == [1, 1]


def test_a_full_queue_is_unavailable(pool, tools):
    batcher, gate = one_thread(max_batch_size=2, max_enqueued_batches=1), Gate()
    busy(batcher, gate, pool)
    (call,) = queue(batcher, pool, tools.until, [("k", gate, rows(1, 2))])
    with pytest.raises(Status, match="is full") as caught:
        batcher.run("k", gate, rows(3))
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE
    gate.open.set()
    assert answers([call]) == [[2, 4]]
    assert batcher.run("k", gate, rows(3))[0].tolist() == [6]


def test_batches_are_padded_to_an_allowed_size(pool):
    batcher, gate = one_thread(max_batch_size=8, allowed_batch_sizes=(2, 8)), Gate()
    for count in (1, 2, 3, 8):
        assert len(batcher.run("k", gate, rows(*range(count)))[0]) == count
    assert gate.sizes == [2, 2, 8, 8]


def test_a_large_request_is_split_if_that_is_asked_for():
    gate = Gate()
    with pytest.raises(Status, match="larger than maximum input batch size 2"):
        one_thread(max_batch_size=2).run("k", gate, rows(1, 2, 3))
    batcher = one_thread(max_batch_size=2, enable_large_batch_splitting=True)
    assert batcher.run("k", gate, rows(1, 2, 3))[0].tolist() == [2, 4, 6]
    assert gate.sizes == [2, 1]


def test_inputs_need_the_same_number_of_rows():
    for feeds in ([np.ones(2), np.ones(3)], [np.ones(()), np.ones(())]):
        with pytest.raises(Status, match="equal 0th-dimension size"):
            one_thread().run("k", Gate(), feeds)


def test_outputs_that_are_no_rows_fail():
    with pytest.raises(Status, match="0th dimension") as caught:
        one_thread().run("k", lambda feeds: [np.ones(())], rows(1, 2))
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION


# --- the leader's hand-over ---------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("timeout", [0, 300])
def test_many_threads_each_get_their_own_answers(threads, timeout):
    batcher = Batcher(
        Parameters(
            max_batch_size=16,
            num_batch_threads=threads,
            batch_timeout_micros=timeout,
            max_enqueued_batches=1000,
            allowed_batch_sizes=(4, 16),
            enable_large_batch_splitting=True,
        )
    )
    lock = threading.Lock()
    at_work, most = 0, 0

    def call(feeds: list[np.ndarray]) -> list[np.ndarray]:
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        try:
            if (feeds[0] < 0).any():
                raise Status(grpc.StatusCode.INVALID_ARGUMENT, "negative")
            return [2 * feeds[0], feeds[0].sum(axis=tuple(range(1, feeds[0].ndim)))]
        finally:
            with lock:
                at_work -= 1

    def caller(seed: int) -> str:
        random = np.random.default_rng(seed)
        for turn in range(60):
            size, width = random.integers(1, 24), random.integers(1, 3)
            sent = random.random((size, width))
            bad = random.random() < 0.1
            if bad:
                sent[random.integers(size)] = -1
            deadline = 0.0 if random.random() < 0.1 else None
            try:
                doubled, total = batcher.run(f"key {seed % 2}", call, [sent], deadline)
            except Status as status:
                expected = bad if status.message == "negative" else deadline == 0.0
                if not expected:
                    return f"{seed}, {turn}: {status.message}"
                continue
            if bad or not np.array_equal(doubled, 2 * sent):
                return f"{seed}, {turn}: the answer of another"
            if not np.allclose(total, sent.sum(axis=1)):
                return f"{seed}, {turn}: the sum of another"
        return ""

    with ThreadPoolExecutor(24) as pool:
        calls = [pool.submit(caller, seed) for seed in range(24)]
        assert not wait(calls, PATIENCE).not_done, "a request hangs"
        assert [call.result() for call in calls] == [""] * 24
    assert 1 <= most <= threads
    assert batcher._leaders == 0 and not batcher._queues


def test_shapes_that_never_come_again_leave_nothing():
    batcher = one_thread()
    for width in range(1, 50):
        batcher.run("k", Gate(), [np.ones((1, width))])
    assert not batcher._queues and batcher._leaders == 0


# --- through the server -------------------------------------------------------------------


def test_a_server_with_batching_answers_each_its_own(models, open_door):
    config = (
        ModelConfig("half_plus_two", models / "half_plus_two"),
        ModelConfig("odd", models / "odd"),
    )
    parameters = Parameters(max_batch_size=8, batch_timeout_micros=1000, num_batch_threads=1)
    door = open_door(*config, batching=parameters, grpc={"max_threads": 16})
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda n: door.half(n, n + 1), range(100)))
    assert found == [(2, [n / 2 + 3, n / 2 + 3.5]) for n in range(100)]
    code, words = door.refusal("half_plus_two", {"x": np.ones(9, np.float32)})
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words == "Task size 9 is larger than maximum input batch size 8"
    a = np.array([b"a", b"b"])
    assert door.predict("odd", {"a": a, "b": a})["joined"].tolist() == [b"aa", b"bb"]


def test_a_bad_row_fails_alone_through_the_server(models, open_door):
    parameters = Parameters(max_batch_size=4, batch_timeout_micros=10**8, num_batch_threads=1)
    door = open_door(ModelConfig("odd", models / "odd"), batching=parameters)

    def ask(number: float) -> str:
        x = np.array([number, number], np.float32)
        try:
            return str(door.predict("odd", {"x": x}, signature="positive")["x"].tolist())
        except grpc.RpcError as error:
            return error.code().name

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, [1, -1])) == ["[1.0, 1.0]", "INVALID_ARGUMENT"]
