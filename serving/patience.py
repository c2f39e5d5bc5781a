"""Waits for the messages of gRPC's calls, so that callers who stay silent keep nobody from it.

grpc's server takes a thread for a call before its message has come, and waits without an end. Here
these threads are many and do nothing else, and a call that says nothing is ended: after a minute,
or after a second when many do so at once.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc

THREADS = 256  # that may wait, beside those that answer
_CROWD = THREADS // 2
_SECONDS, _SECONDS_IN_A_CROWD = 60.0, 1.0
_LOOK_SECONDS = 0.25


class Patience(grpc.ServerInterceptor):
    """Reads each call's message itself; one that cannot be read is INVALID_ARGUMENT.

    A method's function may say in `patience_seconds` how long its message may take, and as ever
    in `experimental_thread_pool` whose threads wait for it.
    """

    def __init__(self) -> None:
        self._waiting: dict[grpc.ServicerContext, tuple[float, float]] = {}  # since when, how long
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
        self._waiting[context] = time.monotonic(), allowed
        try:
            return next(messages, None)
        finally:
            del self._waiting[context]

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            waiting, now = self._waiting.copy(), time.monotonic()
            crowded = len(waiting) > _CROWD
            for context, (since, allowed) in waiting.items():
                most = min(allowed, _SECONDS_IN_A_CROWD) if crowded else allowed
                if now - since > most and context in self._waiting:
                    context.cancel()


def _read(message: bytes, deserialize: Callable[[bytes], Any], context: Any) -> Any:
    try:
        return deserialize(message)
    except Exception:  # whatever the bytes are, they are the caller's
        raise _refused(context, "The message cannot be read as protobuf.") from None


def _refused(context: grpc.ServicerContext, words: str) -> Exception:
    context.abort(grpc.StatusCode.INVALID_ARGUMENT, words)  # raises
    raise AssertionError
