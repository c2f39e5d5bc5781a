"""Training on several machines at once, each of them one worker of TF_CONFIG.

Worker 0 is the chief: it takes the data through the whole line, and alone writes. At the Trainer it
leaves the job where all workers see it, and each trains on its rows of every batch, in a process
of its own, since TensorFlow takes on collective operations at a process' start only. When a worker
is lost, the others begin a new attempt, which goes on behind the last whole epoch. The others stay
until the chief has exported the model: it may be lost then, too, and needs them to begin again.
"""

import itertools
import json
import logging
import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

from ..errors import ComponentError, ConfigError, EspalierError, reason
from ..files import write_whole

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


@contextmanager
def leading(home: Path, others: Callable[[], bool]) -> Iterator[None]:
    """What the chief does inside is one run, at the end of which nobody waits for it any longer.

    Args:
        home: the pipeline's folder, which all workers see.
        others: whether another run of it is going on, for whose end this one's would be taken.
    """
    outcome = "was killed"
    try:
        yield
        outcome = ""
    except BaseException as error:
        outcome = str(error) or type(error).__name__
        raise
    finally:
        if not others():
            _write(_over(home), {"outcome": outcome})


def forget(home: Path) -> None:
    """Take away what a chief that was killed has left: others would join a training of no one."""
    _handover(home).unlink(missing_ok=True)


def lead(job: dict[str, Any], state_dir: Path, train: Train) -> None:
    """Train as the chief, together with all workers.

    Args:
        job: what `train` takes, JSON-ready, its paths the same on all workers.
        state_dir: what a killed training goes on from.
        train: does the work; a function of a module's top level.

    Raises:
        EspalierError: what `train` raised, or a ComponentError if workers were lost again and
            again.
    """
    file, lost, reached = _handover(Path(job["state_dir"])), 0, -1
    try:
        for attempt in itertools.count(1):
            _write(file, {"job": job, "state_dir": str(state_dir), "attempt": uuid.uuid4().hex})
            error, _ = _attempt(train, file)
            if error is None:
                return
            epoch = _epoch(state_dir)
            lost = 1 if epoch > reached else lost + 1
            reached = epoch
            if lost == _ATTEMPTS:
                raise ComponentError(
                    f"workers were lost {lost} times without an epoch between, the last time by: "
                    f"{error}. See the other workers' logs; what was trained is kept for the next "
                    f"run."
                )
            progress.info("a worker was lost; attempt %d", attempt + 1)
    finally:
        file.unlink(missing_ok=True)


def follow(home: Path, train: Train) -> None:
    """Wait for the chief to come to its Trainer, and train beside it; nothing of it is kept.

    Args:
        home: the pipeline's folder, where the chief's is.
        train: as in `lead`.

    Raises:
        EspalierError: what `train` raised, or a ComponentError if the chief's run failed.
    """
    file, begun, done = _handover(home), time.time(), ""
    progress.info("waiting for worker 0 to come to the Trainer")
    while True:
        if not _is_wanted(file, _over(home), begun, done):
            return
        _, trained = _attempt(train, file, begun)
        done = trained or done


def _handover(home: Path) -> Path:
    return home / "training" / "workers.json"


def _over(home: Path) -> Path:
    return home / "training" / "workers-over.json"


def _write(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, json.dumps(content))


def _read(file: Path) -> dict[str, Any]:
    """Nothing where there is no such file."""
    try:
        found: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    return found


def _is_wanted(file: Path, over: Path, begun: float, done: str) -> bool:
    """Wait for an attempt to take part in; False when the chief has ended, and well.

    Args:
        file: the handover.
        over: what the chief leaves at its end.
        begun: since when this worker is there: an older end is another run's.
        done: the attempt that this worker has trained to its end, if any.
    """
    while True:
        if _read(file).get("attempt", done) != done:
            return True
        if _is_over(over, begun):
            if outcome := _read(over).get("outcome"):
                raise ComponentError(f"Worker 0 has ended: {outcome}")
            return False
        time.sleep(_POLL)


def _is_over(over: Path, begun: float) -> bool:
    return over.exists() and over.stat().st_mtime >= begun


def _epoch(state_dir: Path) -> int:
    return int(_read(state_dir / "state.json").get("epoch", 0))


def _attempt(
    train: Train, file: Path, begun: float | None = None
) -> tuple[BaseException | None, str]:
    """Train once: what was lost, if a worker was, or else the attempt's id.

    Args:
        train, file: as above.
        begun: as above; None for the chief.
    """
    context = multiprocessing.get_context("spawn")
    with _relayed(context.Queue()) as queue:
        given = (queue, _over(file.parent.parent), begun)
        with ProcessPoolExecutor(1, context, initializer=_start, initargs=given) as pool:
            future = pool.submit(_train, train, file, begun is None)
            error = future.exception()
    if error is None:
        return None, future.result()
    if not _is_loss(error):
        raise error
    return error, ""


def _is_loss(error: BaseException) -> bool:
    """Whether a worker is gone, this one's process or another."""
    # TensorFlow's own errors cannot all be pickled, so `_train` has made sentences of them.
    return isinstance(error, (BrokenProcessPool, ConnectionError))


def _train(train: Train, file: Path, chief: bool) -> str:
    """In a process of its own: join the others, then train; the attempt's id."""
    import tensorflow as tf

    from . import hardware

    try:
        hardware.join()
        # Only now, when the chief has joined, is it certain to be this training's.
        given = json.loads(file.read_text())
        if not tf.io.gfile.exists(given["job"]["transform_output"]):
            raise ConfigError(
                f"{given['job']['transform_output']}: worker 0 has it, and this worker has not. "
                f"`runs` must be a folder that all workers have at the same path."
            )
        if chief:
            train(given["job"], Path(given["state_dir"]), True)
            return str(given["attempt"])
        with tempfile.TemporaryDirectory() as folder:
            state = Path(given["state_dir"]) / "state.json"
            if state.exists():
                shutil.copy(state, folder)
            train({**given["job"], "model_run_dir": folder}, Path(folder), False)
        return str(given["attempt"])
    except EspalierError:
        raise
    except (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError) as error:
        raise ConnectionError(str(error).splitlines()[0][:300]) from None
    except tf.errors.OpError as error:
        raise ComponentError(
            f"training with the other workers failed: {reason(str(error))}"
        ) from None


def _start(queue: Any, over: Path, begun: float | None) -> None:
    threading.Thread(target=_watch, args=(over, begun), daemon=True).start()
    progress.handlers, progress.propagate = [QueueHandler(queue)], False
    progress.setLevel(logging.DEBUG)


def _watch(over: Path, begun: float | None) -> None:
    """End this process with its parent, or when a follower waits for a chief that has ended: an
    orphan would train on, and write beside the next run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive() and (begun is None or not _is_over(over, begun)):
        parent.join(_POLL)
    os._exit(1)


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
