"""Training on several machines at once, each of them one worker of TF_CONFIG.

Worker 0 is the chief: it takes the data through the whole line, and alone writes. At the Trainer it
leaves the job where all workers see it, and each trains on its rows of every batch, in a process
of its own, since TensorFlow takes on collective operations at a process' start only. When a worker
is lost, the others begin a new attempt, which goes on behind the last whole epoch.
"""

import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

from ..errors import ComponentError, ConfigError, EspalierError

_VARIABLE = "TF_CONFIG"
_EXAMPLE = '{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}'
_ATTEMPTS = 5
_POLL = 1.0  # seconds

progress = logging.getLogger("espalier.progress")
Train = Callable[[dict[str, Any], Path, bool], None]  # job, where its state is kept, chief


@dataclass(frozen=True)
class Worker:
    """Which of how many workers this process is."""

    index: int
    count: int

    @property
    def chief(self) -> bool:
        """Whether it runs the whole line."""
        return self.index == 0


def current() -> Worker:
    """This machine's place in TF_CONFIG, as Kubeflow's TFJob sets it.

    Raises:
        ConfigError: it is not set, or cannot be used.
    """
    text = os.environ.get(_VARIABLE, "")
    try:
        found = json.loads(text)
        addresses, task = found["cluster"]["worker"], found["task"]
        worker = Worker(int(task["index"]), len(addresses))
        sound = set(found["cluster"]) == {"worker"} and task["type"] == "worker"
    except (ValueError, KeyError, TypeError):
        sound = False
    if not sound or not 0 <= worker.index < worker.count:
        what = f"is {text[:200]}" if text else "is not set"
        raise ConfigError(
            f"train.distribute is multi_worker, and {_VARIABLE} {what}. Expected in every worker's "
            f"environment the addresses of all workers and its own place: {_EXAMPLE}. "
            f"`espalier manifests` writes a TFJob that sets it; on one machine leave "
            f"train.distribute out."
        )
    return worker


def lead(job: dict[str, Any], state_dir: Path, train: Train) -> None:
    """Train as the chief, together with all workers.

    Args:
        job: what `train` takes, JSON-ready, its paths seen by all workers.
        state_dir: what a killed training goes on from.
        train: does the work; a function of a module's top level.

    Raises:
        EspalierError: what `train` raised, or a ComponentError if workers were lost again and
            again.
    """
    file = _handover(Path(job["state_dir"]))
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".new")
    temporary.write_text(json.dumps({"job": job, "state_dir": str(state_dir)}))
    os.replace(temporary, file)
    try:
        _attempts(train, file, chief=True)
    finally:
        file.unlink()


def follow(home: Path, train: Train) -> None:
    """Wait for the chief to come to its Trainer, and train beside it; nothing of it is kept.

    Args:
        home: the pipeline's folder, where the chief's is.
        train: as in `lead`.

    Raises:
        EspalierError: as in `lead`.
    """
    file = _handover(home)
    progress.info("waiting for worker 0 to come to the Trainer")
    _attempts(train, file, chief=False)


def _handover(home: Path) -> Path:
    return home / "training" / "workers.json"


def _attempts(train: Train, file: Path, *, chief: bool) -> None:
    for attempt in range(_ATTEMPTS):
        while not file.exists():  # never so for the chief
            time.sleep(_POLL)
        if attempt:
            progress.info("a worker was lost; attempt %d of %d", attempt + 1, _ATTEMPTS)
        context = multiprocessing.get_context("spawn")
        with _relayed(context.Queue()) as queue:
            pool = ProcessPoolExecutor(1, context, initializer=_start, initargs=(queue,))
            with pool:
                error = pool.submit(_train, train, file, chief).exception()
        if error is None:
            return
        if not _is_loss(error):
            raise error
    raise ComponentError(
        f"workers were lost {_ATTEMPTS} times in a row, the last time by: {error}. See the other "
        f"workers' logs; what was trained is kept for the next run."
    )


def _is_loss(error: BaseException) -> bool:
    """Whether a worker is gone, this one's process or another."""
    # TensorFlow's own errors cannot all be pickled, so `_train` has made sentences of them.
    return isinstance(error, (BrokenProcessPool, ConnectionError))


def _train(train: Train, file: Path, chief: bool) -> None:
    """In a process of its own: join the others, then train."""
    import tensorflow as tf

    from . import hardware

    try:
        hardware.join()
        # Only now, when the chief has joined, is it certain to be this training's.
        given = json.loads(file.read_text())
        if chief:
            train(given["job"], Path(given["state_dir"]), True)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = Path(given["state_dir"]) / "state.json"
            if state.exists():
                shutil.copy(state, folder)
            train({**given["job"], "model_run_dir": folder}, Path(folder), False)
    except EspalierError:
        raise
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise ConnectionError(str(error).splitlines()[0][:300]) from None
    except tf.errors.OpError as error:
        raise RuntimeError(str(error)[:2000]) from None


def _start(queue: Any) -> None:
    progress.handlers, progress.propagate = [QueueHandler(queue)], False
    progress.setLevel(logging.DEBUG)


class _Relay(logging.Handler):
    """Gives the other process' records to this one's logger."""

    def emit(self, record: logging.LogRecord) -> None:
        logging.getLogger(record.name).handle(record)


@contextmanager
def _relayed(queue: Any) -> Iterator[Any]:
    listener = QueueListener(queue, _Relay())
    listener.start()
    try:
        yield queue
    finally:
        listener.stop()
