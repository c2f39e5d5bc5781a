"""Dynamic batching: requests that arrive while the model is busy are computed together.

The parameters are TensorFlow Serving's (BatchingParameters in its session_bundle_config.proto).
There are no threads here: a request that finds fewer than `num_batch_threads` at work computes a
batch itself, at once, so that a lone caller pays nothing; the others wait, and one of them goes on.
"""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import grpc
import numpy as np

from .. import cpu
from .status import Status, invalid

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Parameters:
    """The defaults are TensorFlow's (BasicBatchScheduler's options)."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = field(default_factory=cpu.count)
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False


class _Task:
    def __init__(self, feeds: Arrays, deadline: float | None) -> None:
        self.feeds, self.rows, self.deadline = feeds, len(feeds[0]), deadline
        self.arrived = time.monotonic()
        self.answer: Arrays | Status | None = None
        self.leads = False
        self.woken = threading.Event()

    def finish(self, answer: Arrays | Status) -> None:
        self.answer = answer
        self.woken.set()


class Batcher:
    """The queues of one version."""

    def __init__(self, parameters: Parameters) -> None:
        self._settings = parameters
        self._lock = threading.Condition()
        self._queues: dict[Hashable, deque[_Task]] = defaultdict(deque)
        self._leaders = 0
        self._running: list[int] = []  # requests in each batch that is being computed

    def run(
        self,
        key: Hashable,
        call: Callable[[list[np.ndarray]], Arrays],
        feeds: Arrays,
        deadline: float | None = None,
    ) -> Arrays:
        """Compute one request, with others of the same key.

        Args:
            key: what requests must share to be computed together: signature, outputs.
            call: computes a batch: inputs [B, ...] to outputs [B, ...].
            feeds: the inputs, each with its rows first.
            deadline: by time.monotonic(); a task that is still queued then is dropped.

        Raises:
            Status: too many rows, a full queue (UNAVAILABLE), a missed deadline, or what `call`
                raised about this request alone.
        """
        if any(not one.ndim or len(one) != len(feeds[0]) for one in feeds):
            raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
        largest, rows = self._settings.max_batch_size, len(feeds[0])
        if rows > largest:
            if not self._settings.enable_large_batch_splitting:
                raise invalid(f"Task size {rows} is larger than maximum input batch size {largest}")
            parts = [
                self.run(key, call, [one[at : at + largest] for one in feeds], deadline)
                for at in range(0, rows, largest)
            ]
            return [np.concatenate(one) for one in zip(*parts, strict=True)]
        return self._run((key, *(one.shape[1:] for one in feeds)), call, _Task(feeds, deadline))

    def _run(self, key: Hashable, call: Callable[..., Arrays], task: _Task) -> Arrays:
        with self._lock:
            waiting = self._queues[key]
            room = self._settings.max_enqueued_batches * self._settings.max_batch_size
            if sum(one.rows for one in waiting) + task.rows > room:
                raise Status(
                    grpc.StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full",
                )
            waiting.append(task)
            self._lock.notify_all()
            if self._leaders < self._settings.num_batch_threads and self._worth_it(self._leaders):
                self._leaders += 1
                task.leads = True
        while True:
            answer = task.answer  # read before `leads`: it is set before, never after
            if task.leads:
                task.leads = False
                self._lead(key, call, task)
                continue
            if answer is not None:
                break
            task.woken.wait()
            task.woken.clear()
        if isinstance(answer, Status):
            raise answer
        return answer

    def _lead(self, key: Hashable, call: Callable[..., Arrays], own: _Task) -> None:
        """Compute batches until the own task is done, then let the longest waiting go on."""
        try:
            while own.answer is None and (batch := self._take(key)):
                with self._lock:
                    self._running.append(len(batch))
                self._compute(call, batch)
                with self._lock:
                    self._running.remove(len(batch))
        finally:
            with self._lock:
                waiting = (one for queue in self._queues.values() for one in queue)
                heirs = (one for one in waiting if not one.leads)
                heir = min(heirs, key=lambda one: one.arrived, default=None)
                if heir is None or not self._worth_it(self._leaders - 1):
                    self._leaders -= 1
                else:
                    heir.leads = True
                    heir.woken.set()

    def _worth_it(self, others: int) -> bool:
        """Whether to compute beside so many other leaders, or to wait until one of them is free.

        A batch costs less than two halves of it; so the next one is begun when it is as large as
        one that is under way. The last leader always has an heir, so nobody waits for ever.
        """
        waiting = sum(len(queue) for queue in self._queues.values())
        return not others or waiting >= max(self._running, default=0)

    def _take(self, key: Hashable) -> list[_Task]:
        """The next batch: full, or what is there once its first task has waited long enough."""
        largest = self._settings.max_batch_size
        with self._lock:
            waiting = self._queues[key]
            while waiting and sum(one.rows for one in waiting) < largest:
                due = waiting[0].arrived + self._settings.batch_timeout_micros / 1e6
                if (left := due - time.monotonic()) <= 0:
                    break
                self._lock.wait(left)
            batch: list[_Task] = []
            rows = 0
            while waiting and rows + waiting[0].rows <= largest:
                task = waiting.popleft()
                if task.deadline is not None and task.deadline <= time.monotonic():
                    task.finish(Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
                    continue
                batch.append(task)
                rows += task.rows
            if not waiting and self._queues.get(key) is waiting:
                del self._queues[key]  # shapes that never come again cost nothing
            return batch

    def _compute(self, call: Callable[..., Arrays], batch: list[_Task]) -> None:
        try:
            answers: list[Arrays | Status] = [*self._together(call, batch)]
        except Status as status:
            # One bad row fails the whole batch: alone, each fails or succeeds by itself.
            answers = [status] if len(batch) == 1 else [self._alone(call, one) for one in batch]
        except BaseException as error:  # nobody may wait for ever
            answers = [Status(grpc.StatusCode.INTERNAL, f"{type(error).__name__}") for _ in batch]
        for task, answer in zip(batch, answers, strict=True):
            task.finish(answer)

    def _alone(self, call: Callable[..., Arrays], task: _Task) -> Arrays | Status:
        try:
            (answer,) = self._together(call, [task])
        except Status as status:
            return status
        return answer

    def _together(self, call: Callable[..., Arrays], batch: list[_Task]) -> list[Arrays]:
        rows = [task.rows for task in batch]
        total = sum(rows)
        feeds = [
            _padded(list(column), self._padding(total))
            for column in zip(*(task.feeds for task in batch), strict=True)
        ]
        outputs = call(feeds)
        if any(not one.ndim or len(one) != len(feeds[0]) for one in outputs):
            raise Status(
                grpc.StatusCode.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                "sizes of the input tensors",
            )
        if len(batch) == 1:
            return [[one[:total] for one in outputs]]
        ends = np.cumsum(rows)
        return [
            [one[end - count : end] for one in outputs]
            for count, end in zip(rows, ends, strict=True)
        ]

    def _padding(self, rows: int) -> int:
        """How many rows to add, so that the batch has an allowed size."""
        sizes = self._settings.allowed_batch_sizes
        return next((size for size in sizes if size >= rows), rows) - rows


def _padded(column: list[np.ndarray], rows: int) -> np.ndarray:
    if rows:
        column = [*column, np.repeat(column[0][:1], rows, axis=0)]
    return column[0] if len(column) == 1 else np.concatenate(column)
