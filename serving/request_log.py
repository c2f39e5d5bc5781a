"""A sample of requests and answers on disk, which stock TensorFlow Serving cannot write.

`PREFIX-TIME-PID-N.tfrecord` holds PredictionLogs, as TensorFlow Serving's own interface for loggers
has them; `.jsonl` beside it has a line for each: request_id, model, version, method, and the times
received, started and sent in seconds since 1970. A full queue or disk loses records, and never
holds up an answer.
"""

import contextlib
import json
import logging
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from .manager import ModelConfig

log = logging.getLogger("espalier.serving")
_QUEUED = 1000  # records
_QUEUED_BYTES = 64 * 2**20
_PAUSE_SECONDS = 60.0  # after a failure
_CLOSE_SECONDS = 10.0
_LARGEST = 64 * 2**20  # bytes of a file, after which the next one is begun


@dataclass(frozen=True)
class Record:
    """One answered request. Times are seconds since 1970."""

    method: str  # predict, classify, regress, multi_inference
    request: Any
    response: Any
    request_id: str
    received: float
    started: float
    sent: float
    rate: float = 1.0


def _size(record: Record) -> int:
    return record.request.ByteSize() + record.response.ByteSize()


class RequestLog:
    """Writes the sampled requests of all models in a thread of its own.

    Args:
        lost: called with a model's name for each record that is not written.
        largest: bytes of a file before the next one is begun.
    """

    def __init__(self, lost: Callable[[str], None], largest: int = _LARGEST) -> None:
        self._lost, self._largest = lost, largest
        self._models: dict[str, ModelConfig] = {}  # those that are logged
        self._records: queue.Queue[Record | None] = queue.Queue(_QUEUED)
        self._files: dict[str, _File] = {}
        self._paused: dict[str, float] = {}  # until when, by time.monotonic()
        self._bytes, self._lock = 0, threading.Lock()  # of what is queued
        self._thread = threading.Thread(target=self._write, name="request-log", daemon=True)
        self._thread.start()

    def configure(self, models: list[ModelConfig]) -> None:
        """Log these models from now on, those that have a prefix and a rate."""
        self._models = {one.name: one for one in models if one.log_prefix and one.log_rate > 0}

    def chosen(self, model: str) -> float:
        """The sampling rate if this request is to be logged, else 0."""
        config = self._models.get(model)
        return config.log_rate if config and random.random() < config.log_rate else 0.0

    def add(self, model: str, record: Record) -> None:
        """Queue a record; drop it if too many wait, or too large ones."""
        size = _size(record)
        with self._lock:
            if self._bytes + size > _QUEUED_BYTES:
                self._lost(model)
                return
            self._bytes += size
        try:
            self._records.put_nowait(record)
        except queue.Full:
            self._taken(record)
            self._lost(model)

    def _taken(self, record: Record) -> None:
        with self._lock:
            self._bytes -= _size(record)

    def close(self) -> None:
        """Write what is queued, and end."""
        with contextlib.suppress(queue.Full):  # by a disk that hangs
            self._records.put(None, timeout=_CLOSE_SECONDS)
        self._thread.join(timeout=_CLOSE_SECONDS)

    def _write(self) -> None:
        while (record := self._records.get()) is not None:
            name = _spec(record).name
            self._taken(record)
            if time.monotonic() < self._paused.get(name, 0.0):
                self._lost(name)
                continue
            try:
                self._append(name, record)
            except Exception as error:  # a full disk must not end the thread
                self._lost(name)
                log.warning("the request log of %s was not written: %s", name, error)
                self._files.pop(name, None)
                # Each try begins a new file: a full disk would be strewn with empty ones.
                self._paused[name] = time.monotonic() + _PAUSE_SECONDS
        for file in self._files.values():
            file.close()

    def _append(self, name: str, record: Record) -> None:
        config, file = self._models.get(name), self._files.get(name)
        prefix = config.log_prefix if config else ""
        if file is not None and (file.written >= self._largest or file.prefix != prefix):
            file.close()
            del self._files[name]
        if not prefix:
            return  # no longer logged
        file = self._files.get(name) or _File(prefix)
        self._files[name] = file
        file.append(_prediction_log(record), _line(record))


class _File:
    """A TFRecord file and its lines."""

    def __init__(self, prefix: str) -> None:
        import tensorflow as tf

        Path(prefix).parent.mkdir(parents=True, exist_ok=True)
        number = 0
        stem = f"{prefix}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        while os.path.exists(f"{stem}-{number}.tfrecord"):
            number += 1
        path = f"{stem}-{number}"
        self._records = tf.io.TFRecordWriter(f"{path}.tfrecord")
        self._lines: IO[str] = open(f"{path}.jsonl", "w", encoding="utf-8")  # noqa: SIM115
        self.prefix, self.written = prefix, 0

    def append(self, data: bytes, line: Mapping[str, Any]) -> None:
        self._records.write(data)
        self._records.flush()
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        self.written += len(data)

    def close(self) -> None:
        self._records.close()
        self._lines.close()


def _prediction_log(record: Record) -> bytes:
    from tensorflow_serving.apis import prediction_log_pb2

    written = prediction_log_pb2.PredictionLog()
    written.log_metadata.model_spec.CopyFrom(_spec(record))
    written.log_metadata.sampling_config.sampling_rate = record.rate
    written.log_metadata.timestamp_secs = int(record.received)
    field = getattr(written, f"{record.method}_log")
    field.request.CopyFrom(record.request)
    field.response.CopyFrom(record.response)
    return written.SerializeToString()


def _spec(record: Record) -> Any:
    """What answered."""
    if record.method == "multi_inference":
        return record.response.results[0].model_spec
    return record.response.model_spec


def _line(record: Record) -> dict[str, Any]:
    spec = _spec(record)
    return {
        "request_id": record.request_id,
        "model": spec.name,
        "version": spec.version.value,
        "method": record.method,
        "received": record.received,
        "started": record.started,
        "sent": record.sent,
    }
