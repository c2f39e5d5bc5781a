"""What can go wrong, as one small tree. The command line prints the message and exits by the code.

EspalierError (1)
├── ConfigError (2)         the YAML, an option, or a place that cannot be written
│   └── CheckpointError (2) a pre-trained model that cannot be read or is of another kind
├── DataError (2)           the user's rows
├── ComponentError (3)      a component of the pipeline failed
└── ServerError (5)         a model server refused a request, or does not answer

A refused model is no error (exit code 4), nor is an alarm of `espalier drift` (6).

A message says where, what was found, what was expected and what to do, and needs no traceback.
"""

import re


def reason(message: str) -> str:
    """The one line of TensorFlow's error messages that says what is wrong."""
    before = message.split("\n\t [[")[0].split(" [Op:")[0]
    lines = [line.strip() for line in before.splitlines() if line.strip()] or ["no reason given"]
    return re.sub(r"^(\{\{.*?\}\}\s*)+", "", lines[-1])


class EspalierError(Exception):
    """Base of every error a user can mend; a `passing` one may be gone when it is tried again."""

    exit_code = 1

    def __init__(self, message: str = "", *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class ConfigError(EspalierError):
    """The configuration cannot be used."""

    exit_code = 2


class CheckpointError(ConfigError):
    """The checkpoint that training should start from cannot be used."""


class DataError(EspalierError):
    """The data cannot be used."""

    exit_code = 2


class ComponentError(EspalierError):
    """A component of the pipeline failed."""

    exit_code = 3


class ServerError(EspalierError):
    """A model server refused a request, or does not answer.

    `code` is gRPC's name for why: NOT_FOUND, INVALID_ARGUMENT, UNAVAILABLE, DEADLINE_EXCEEDED.
    """

    exit_code = 5

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
