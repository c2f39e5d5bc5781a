"""Threads for gRPC's calls, so that callers who stay silent keep nobody from the server.

grpc takes a thread for a call before its message has come, and waits for that without an end. Here
a thread that only waits is made up for by another, and a call that says nothing is ended: after a
minute, or after a second when many do so at once.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc

_EXTRA = 256  # threads at most that make up for those that wait
_CROWD = 128  # calls that wait, from which on none may for long
_SECONDS, _SECONDS_IN_A_CROWD = 60.0, 1.0
_LOOK_SECONDS = _SILENT_SECONDS = 0.05


class Pool(futures.Executor):
    """So many threads, and extra ones for as long as they are allowed."""

    def __init__(self, size: int) -> None:
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._allowed = self._extra = 0
        for _ in range(size):
            self._start(lambda: False, None)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call it in a thread; its Future."""
        future: futures.Future[Any] = futures.Future()
        self._work.put((future, fn, args, kwargs))
        return future

    def allow(self, extra: int) -> None:
        """Let so many more threads work; those too many end when they have nothing to do."""
        with self._lock:
            self._allowed = min(extra, _EXTRA)
            missing = self._allowed - self._extra
            self._extra += max(missing, 0)
        for _ in range(missing):
            self._start(self._surplus, 1.0)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the threads that have nothing to do."""
        self._work.put(None)

    def _start(self, *how: Any) -> None:
        threading.Thread(target=self._run, args=how, name="grpc", daemon=True).start()

    def _run(self, over: Callable[[], bool], pause: float | None) -> None:
        while not over():
            try:
                task = self._work.get(timeout=pause)
            except queue.Empty:
                continue
            if task is None:
                self._work.put(None)  # for the next one
                return
            future, call, args, kwargs = task
            try:
                future.set_result(call(*args, **kwargs))
            except BaseException as error:  # the thread goes on
                future.set_exception(error)
            del task, future, call, args, kwargs  # a message may be large, and the next one far off

    def _surplus(self) -> bool:
        with self._lock:
            if self._extra <= self._allowed:
                return False
            self._extra -= 1
            return True


class Patience(grpc.ServerInterceptor):
    """Reads each call's message itself; one that cannot be read is INVALID_ARGUMENT.

    A method's function may say in `patience_seconds` how long its message may take, and as ever
    in `experimental_thread_pool` whose threads wait for it, other than the pool's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        # Since when a call waits, how long it may, and whether in the pool.
        self._waiting: dict[grpc.ServicerContext, tuple[float, float, bool]] = {}
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin to look at who waits."""
        threading.Thread(target=self._watch, name="patience", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._stopped.set()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        """grpc's hook: the handler of a method, or None where there is none."""
        made = self._handlers.get(details.method)
        if made is None and (handler := continuation(details)) is not None:
            made = self._handlers[details.method] = self._handler(handler)
        return made

    def _handler(self, handler: Any) -> Any:
        """The same on the wire, but it is called before its message has come."""
        call = handler.unary_unary or handler.unary_stream or handler.stream_stream
        assert call is not None  # there is no stream_unary here

        def first(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            message = self._next(messages, context, call)
            if message is None:
                raise _refused(context, "The call has no message.")
            return _read(message, handler.request_deserializer, context)

        def rest(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            while (message := self._next(messages, context, call)) is not None:
                yield _read(message, handler.request_deserializer, context)

        def answer(messages: Iterator[bytes], context: grpc.ServicerContext, *send: Any) -> Any:
            given = rest if handler.request_streaming else first
            return call(given(messages, context), context, *send)

        for name in ("experimental_thread_pool", "experimental_non_blocking"):
            setattr(answer, name, getattr(call, name, None))
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler
        )
        return make(answer, None, handler.response_serializer)

    def _next(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, call: Callable[..., Any]
    ) -> bytes | None:
        allowed = getattr(call, "patience_seconds", _SECONDS)
        in_pool = getattr(call, "experimental_thread_pool", None) is None
        self._waiting[context] = time.monotonic(), allowed, in_pool
        try:
            return next(messages, None)
        finally:
            del self._waiting[context]

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            waiting, now, silent = self._waiting.copy(), time.monotonic(), 0
            crowded = len(waiting) > _CROWD
            for context, (since, allowed, in_pool) in waiting.items():
                most = min(allowed, _SECONDS_IN_A_CROWD) if crowded else allowed
                if now - since > most and context in self._waiting:
                    context.cancel()
                elif now - since > _SILENT_SECONDS:
                    silent += in_pool
            self._pool.allow(2 * silent)  # more than are missing, as more may come


def _read(message: bytes, deserialize: Callable[[bytes], Any], context: Any) -> Any:
    try:
        return deserialize(message)
    except Exception:  # whatever the bytes are, they are the caller's
        raise _refused(context, "The message cannot be read as protobuf.") from None


def _refused(context: grpc.ServicerContext, words: str) -> Exception:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)  # raises
    raise AssertionError
