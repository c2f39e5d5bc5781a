"""What went wrong with a request: a gRPC status code and TensorFlow Serving's words for it.

The data plane raises `Status`; gRPC and REST each turn it into their own form in one place.
"""

from typing import Any

import grpc

from ..errors import reason

_BY_NUMBER = {code.value[0]: code for code in grpc.StatusCode}
# tensorflow_serving/model_servers/http_server.cc, ToHTTPStatusCode.
_HTTP = {
    "OK": 200, "CANCELLED": 499, "UNKNOWN": 500, "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504, "NOT_FOUND": 404, "ALREADY_EXISTS": 409, "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429, "FAILED_PRECONDITION": 400, "ABORTED": 409, "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501, "INTERNAL": 500, "UNAVAILABLE": 503, "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}  # fmt: skip
_LONGEST = 1024  # bytes: grpc_status_util.cc cuts what is longer, which also fits gRPC's trailers


class Status(Exception):
    """A request's failure. `code` is a grpc.StatusCode."""

    def __init__(self, code: grpc.StatusCode, message: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http(self) -> int:
        """HTTP's number for the code."""
        return _HTTP[self.code.name]

    @property
    def short(self) -> str:
        """The message, cut as TensorFlow Serving cuts it for gRPC."""
        data = self.message.encode()
        if len(data) <= _LONGEST:
            return self.message
        return data[:_LONGEST].decode(errors="ignore") + "...TRUNCATED"


def invalid(message: str) -> Status:
    """INVALID_ARGUMENT, the commonest."""
    return Status(grpc.StatusCode.INVALID_ARGUMENT, message)


def of_tensorflow(error: Any) -> Status:
    """The status of a tf.errors.OpError: their numbers are gRPC's."""
    return Status(_BY_NUMBER[error.error_code], reason(error.message))
