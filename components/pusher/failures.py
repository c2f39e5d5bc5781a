"""Turns what a file system reports into a sentence about the place to push to."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from ...errors import ComponentError, ConfigError

_REASONS = {
    errno.ENOSPC: "the disk is full. Make room there, or lower push.keep",
    errno.EDQUOT: "your quota there is used up. Make room, or lower push.keep",
    errno.EROFS: "the file system is read-only. Name another folder in push.to",
    errno.EACCES: "you may not write there. Name another folder in push.to, or change its mode",
    errno.EPERM: "you may not write there. Name another folder in push.to, or change its mode",
    errno.EEXIST: "a file stands where the folder should be. Name another folder in push.to",
    errno.ENOTDIR: "a file stands where the folder should be. Name another folder in push.to",
}
# Codes of gRPC, and of TensorFlow's errors, that may be others the next time:
# DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNAVAILABLE.
_PASSING = (4, 8, 10, 14)


@contextmanager
def destination_errors(destination: str, model: str) -> Iterator[None]:
    """Raises ConfigError about `destination`, or ComponentError about `model`, for an I/O error."""
    try:
        yield
    except OSError as error:
        if _is_about(error, model):
            raise ComponentError(
                f"Pusher: cannot read the model's file {error.filename}: {error.strerror}."
            ) from error
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}")
        raise ConfigError(_sentence(destination, reason)) from error
    except Exception as error:
        import tensorflow as tf  # its errors are those of gs:// and the like

        if not isinstance(error, tf.errors.OpError):
            raise
        passing = error.error_code in _PASSING
        raise ConfigError(_sentence(destination, error.message), passing=passing) from error


def _is_about(error: OSError, model: str) -> bool:
    # A copy that fails between two files names both, and then it is the writing that failed.
    named = os.fspath(error.filename) if isinstance(error.filename, str | os.PathLike) else ""
    return error.filename2 is None and named.startswith(model.rstrip("/") + "/")


def _sentence(destination: str, reason: str) -> str:
    return (
        f"Pusher: cannot write the model to {destination}: {reason}. Nothing was published, and "
        "the versions there are as they were; run again to push."
    )
