"""What both doors share: each call is timed, counted, sampled for the log, or fails as Status."""

import hmac
import logging
import time
from collections.abc import Callable
from typing import Any

import grpc

from .dataplane import DataPlane
from .metrics import Metrics
from .request_log import Record, RequestLog
from .status import Status

log = logging.getLogger("espalier.serving")
API_NAMES = {
    "predict": "Predict",
    "classify": "Classify",
    "regress": "Regress",
    "multi_inference": "MultiInference",
}


class Frontend:
    """Calls of the data plane, as a server makes them.

    Args:
        plane: what answers.
        metrics: what counts.
        request_log: what samples.
        token: that callers must show; "" lets all in.
    """

    def __init__(
        self, plane: DataPlane, metrics: Metrics, request_log: RequestLog, token: str = ""
    ) -> None:
        self.plane, self.metrics, self._log = plane, metrics, request_log
        self._token = token.encode()

    @property
    def guarded(self) -> bool:
        """Whether a token is asked for."""
        return bool(self._token)

    def admit(self, authorization: str) -> None:
        """Let a caller in by its `authorization: Bearer TOKEN`.

        Raises:
            Status: UNAUTHENTICATED, after as long a comparison as for the right token.
        """
        given = authorization.encode(errors="replace")
        if self._token and not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Status(
                grpc.StatusCode.UNAUTHENTICATED,
                "A valid token is needed: authorization: Bearer TOKEN",
            )

    def infer(
        self,
        method: str,
        request: Any,
        entrypoint: str,
        deadline: float | None = None,
        request_id: str = "",
        received: float | None = None,
    ) -> Any:
        """Answer one of API_NAMES.

        Args:
            method: of the data plane.
            request: its request.
            entrypoint: GRPC or REST, for the metrics.
            deadline: by time.monotonic().
            request_id: the caller's own name for it, for the log.
            received: when it came, in seconds since 1970; now, if left out.

        Raises:
            Status: whatever went wrong.
        """
        started, begin, code = time.time(), time.perf_counter(), "OK"
        tasks = request.tasks if method == "multi_inference" else [request]
        model = tasks[0].model_spec.name if tasks else ""
        try:
            if deadline is not None and deadline <= time.monotonic():
                raise Status(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")
            response = guarded(getattr(self.plane, method), request, deadline)
        except Status as status:
            code = status.code.name
            raise
        finally:
            self._count(method, model, entrypoint, code, time.perf_counter() - begin)
        if rate := self._log.chosen(model):
            times = (received or started, started, time.time())
            self._log.add(model, Record(method, request, response, request_id, *times, rate))
        return response

    def refused(self, method: str, model: str, entrypoint: str, status: Status) -> None:
        """Count a request that could not be read."""
        self._count(method, model, entrypoint, status.code.name, 0.0)

    def _count(self, method: str, model: str, entrypoint: str, code: str, seconds: float) -> None:
        # Of names that callers make up, only one is counted: they would fill the memory.
        known = model if self.plane.manager.knows(model) else ""
        self.metrics.answered(known, API_NAMES[method], entrypoint, code, seconds)


def guarded(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call, and turn any exception but Status into INTERNAL, with the details in the server's log.

    Raises:
        Status: as the call, or INTERNAL.
    """
    try:
        return call(*arguments)
    except Status:
        raise
    except Exception as error:
        log.exception("a request failed in a way that should not be")
        raise Status(
            grpc.StatusCode.INTERNAL, f"The server failed ({type(error).__name__}); see its log."
        ) from None
