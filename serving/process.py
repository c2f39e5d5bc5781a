"""A model server in a process of its own: TensorFlow Serving's binary, or ours, same flags."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..errors import ServerError
from .client import Client

MODEL = "model"  # its name in a server started here
_LONGEST_FOLDER = 70  # characters: a UNIX socket's path has 107 at most
_STARTING = 0.05  # seconds between looks
# What this process sets for itself must not decide how the model behaves in a server.
_OURS = ("TF_", "XLA_", "KERAS_", "CUDA_VISIBLE_DEVICES")
# Becomes a command that Linux kills when this process has ended, however it did (PR_SET_PDEATHSIG):
# killed for want of memory, it would leave a server that holds a model for ever.
_TOGETHER = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


@dataclass
class ServerProcess:
    """A server that serves one version as `MODEL`."""

    target: str
    process: "subprocess.Popen[bytes]"
    log: Path
    deadline: float  # by time.monotonic()

    def left(self) -> float:
        """Seconds until the deadline; a call needs some in any case."""
        return max(self.deadline - time.monotonic(), 0.1)

    def fate(self) -> str:
        """How the process ended, with its last words; "" while it runs."""
        code = self.process.poll()
        return "" if code is None else f"{_ending(code)}.{self.last_words()}"

    def last_words(self, count: int = 4, width: int = 300) -> str:
        """The last lines of what it wrote."""
        written = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line.strip()[:width] for line in written.splitlines() if line.strip()]
        return f" Its last words: {' / '.join(lines[-count:])}" if lines else ""


@contextmanager
def started(version: Path, binary: str = "", timeout: float = 300.0) -> Iterator[ServerProcess]:
    """Start a server for a version, at a UNIX socket, and end it afterwards.

    Args:
        version: a SavedModel's folder, whatever its name.
        binary: a tensorflow_model_server; "" starts our own, isolated from this environment.
        timeout: seconds that all until the end of the block may take.

    Raises:
        OSError: the binary cannot be run.
    """
    if binary and not os.access(binary, os.X_OK):
        number = errno.EACCES if os.path.exists(binary) else errno.ENOENT
        raise OSError(number, os.strerror(number), binary)
    short = None if len(tempfile.gettempdir()) < _LONGEST_FOLDER else "/tmp"
    with tempfile.TemporaryDirectory(prefix="espalier-", dir=short) as folder:
        base = Path(folder, "versions")
        base.mkdir()
        (base / "1").symlink_to(version.resolve(), target_is_directory=True)
        socket, log = Path(folder, "socket"), Path(folder, "log")
        # -I: no PYTHONPATH, no current directory, no user site.
        own = [sys.executable, "-I", "-W", "ignore", "-m", "espalier.serving", "serve"]
        command = [
            *[sys.executable, "-I", "-S", "-c", _TOGETHER, str(os.getpid())],
            *([binary] if binary else own),
            "--port=0",
            "--rest_api_port=0",
            f"--grpc_socket_path={socket}",
            f"--model_name={MODEL}",
            f"--model_base_path={base}",
            "--max_num_load_retries=0",
        ]
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=_clean(), stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        try:
            deadline = time.monotonic() + timeout
            yield ServerProcess(f"unix:{socket}", process, log, deadline)
        finally:
            process.kill()
            process.wait()


def wait_until_served(server: ServerProcess, client: Client) -> str:
    """Wait until the version answers; what kept it from that, or ""."""
    while True:
        if fate := server.fate():
            return fate
        if time.monotonic() >= server.deadline:
            return f"the server was not ready in time.{server.last_words()}"
        try:
            state = client.status().get(1, "START")
        except ServerError:
            state = "START"  # not listening yet
        if state == "AVAILABLE":
            return ""
        if state == "END":
            return client.reasons().get(1) or f"the server gave up.{server.last_words()}"
        time.sleep(_STARTING)


def _clean() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}


def _ending(code: int) -> str:
    if code >= 0:
        return f"the server ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the server was ended by {name}"
