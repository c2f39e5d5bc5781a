"""The server: models, the doors to them, and what happens on SIGTERM."""

import logging
import signal
import socket
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import cpu, reach
from ..errors import ConfigError
from . import config_files, dataplane, servable
from .batching import Batcher, Parameters
from .frontend import Frontend
from .grpc_door import DoorOptions, GrpcDoor
from .manager import Manager, ModelConfig, Policy, Version
from .metrics import Metrics
from .predictor import description
from .request_log import RequestLog
from .rest_door import RestDoor, RestOptions
from .status import Status
from .token_file import read_token

log = logging.getLogger("espalier.serving")
WARMUP = Path("assets.extra", "tf_serving_warmup_requests")
_MOST_WARMUP = 1000  # records: saved_model_warmup_util.h, kMaxNumRecords
_DRAIN_SECONDS = 30.0  # Kubernetes kills after as many


@dataclass(frozen=True)
class Options:
    """All that a server can be told; see `espalier serve --help`."""

    models: Sequence[ModelConfig]
    grpc: DoorOptions = field(default_factory=DoorOptions)
    rest: RestOptions = field(default_factory=RestOptions)
    policy: Policy = field(default_factory=Policy)
    load: servable.LoadOptions = field(default_factory=servable.LoadOptions)
    batching: Parameters | None = None
    per_model_batching: bool = False
    request_log: str = ""  # a prefix, for models whose own configuration names none
    request_log_rate: float = 0.0
    as_content: bool = False
    warmup: bool = True
    warmup_iterations: int = 1
    token_file: Path | None = None
    config_file: Path | None = None
    config_poll_seconds: float = 0.0


class Server:
    """A server that answers once `start` has returned.

    Raises:
        ConfigError: a port is taken, or a file it was given cannot be used.
    """

    def __init__(self, options: Options) -> None:
        self._options = options
        self._configured = self._with_log(options.models)
        self._stopped = threading.Event()
        self.metrics = Metrics()
        self._log = RequestLog(self.metrics.unlogged.add)
        self.manager = Manager(self._load, options.policy, self._changed)
        plane = dataplane.DataPlane(self.manager, options.as_content)
        frontend = Frontend(plane, self.metrics, self._log, read_token(options.token_file))
        self._grpc = GrpcDoor(frontend, self._reload, options.grpc)
        self._rest = RestDoor(frontend, options.rest) if options.rest.port else None

    def start(self) -> None:
        """Load what is there and open the doors.

        Raises:
            ConfigError: the models' configuration contradicts itself.
        """
        try:
            self._log.configure(self._configured)
            self.manager.start(self._configured)
        except Status as status:
            raise ConfigError(status.message) from None
        self._grpc.start()
        if self._rest is not None:
            self._rest.start()
        if self._options.config_file and self._options.config_poll_seconds > 0:
            threading.Thread(target=self._poll_config, name="config", daemon=True).start()

    def wait(self) -> None:
        """Serve until SIGTERM or Ctrl-C, then let calls under way finish."""
        # The system may give the signal to any thread, which does not wake Python's first one
        # from an Event: what does is the byte that its handler in C then writes here.
        asked, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.set_wakeup_fd(wakeup.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        while asked.recv(1)[0] not in (signal.SIGTERM, signal.SIGINT):
            pass
        log.info("stopping: no new requests, those under way have %d s", _DRAIN_SECONDS)
        self.stop(_DRAIN_SECONDS)

    def stop(self, grace: float = _DRAIN_SECONDS) -> None:
        """Refuse new calls, give those under way `grace` seconds, unload."""
        if self._stopped.is_set():
            return
        self._stopped.set()
        doors = [door for door in (self._grpc, self._rest) if door is not None]
        closing = [threading.Thread(target=door.stop, args=(grace,)) for door in doors]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()
        self.manager.stop()
        self._log.close()

    def _changed(self) -> None:
        self._grpc.set_ready(self.manager.ready())

    def _reload(self, models: Sequence[ModelConfig]) -> None:
        """What a caller asks for. Where this machine writes to is not theirs to say."""
        known = {one.name: one for one in self._configured}
        unlogged = ModelConfig("", Path())
        self._configure(
            [
                replace(one, log_prefix=before.log_prefix, log_rate=before.log_rate)
                for one in models
                for before in [known.get(one.name, unlogged)]
            ]
        )

    def _configure(self, models: Sequence[ModelConfig]) -> None:
        wanted = self._with_log(models)
        self.manager.configure(wanted)
        self._log.configure(wanted)
        self._configured = wanted

    def _with_log(self, models: Sequence[ModelConfig]) -> list[ModelConfig]:
        prefix, rate = self._options.request_log, self._options.request_log_rate
        return config_files.logged(models, prefix, rate) if prefix else list(models)

    def _poll_config(self) -> None:
        assert self._options.config_file is not None
        while not self._stopped.wait(self._options.config_poll_seconds):
            try:
                models = config_files.read_models(self._options.config_file)
                if (
                    self._with_log(models) != self._configured
                ):  # else failed versions would be retried
                    self._configure(models)
            except (ConfigError, Status) as error:
                log.error("the model config was not taken over: %s", error)

    def _load(self, version: Version) -> None:
        """Load and warm a version; any exception means that it is not served."""
        servable.check_files(version.path)
        if unfit := cpu.unfit(description(version.path)):
            raise ConfigError(f"this version was {unfit}")  # oneDNN would end this process
        version.servable = servable.load(version.path, self._options.load)
        if reached := reach.found(version.path):
            log.warning(
                "%s uses %s: as in TensorFlow Serving, it can reach files, programs or machines "
                "beyond the model", version.path, reached,
            )  # fmt: skip
        if (parameters := self._batching(version.path)) is not None:
            version.batcher = Batcher(parameters)
        if self._options.warmup:
            warm(version, self._options.warmup_iterations)

    def _batching(self, version: Path) -> Parameters | None:
        if self._options.batching is None or not self._options.per_model_batching:
            return self._options.batching
        file = version / "batching_params.pbtxt"
        return config_files.batching(file) if file.exists() else None


def warm(version: Version, iterations: int = 1) -> None:
    """Send a version the requests that lie in its assets.extra, as TensorFlow Serving does.

    Raises:
        Status: one of them fails; the version is broken then.
        ConfigError: the file cannot be read.
    """
    file = version.path / WARMUP
    if not file.is_file():
        return
    for record in _records(file):
        for _ in range(max(iterations, 1)):
            kind = record.WhichOneof("log_type")
            if kind == "predict_log":
                dataplane.predict(version, record.predict_log.request, None, False)
            elif kind == "classify_log":
                dataplane.classify(version, record.classify_log.request, None)
            elif kind == "regress_log":
                dataplane.regress(version, record.regress_log.request, None)
            elif kind == "multi_inference_log":
                dataplane.multi_inference(version, record.multi_inference_log.request, None)


def _records(file: Path) -> list[Any]:
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    try:
        data = tf.compat.v1.io.tf_record_iterator(str(file))
        records = [prediction_log_pb2.PredictionLog.FromString(one) for one in data]
    except (tf.errors.DataLossError, DecodeError) as error:
        raise ConfigError(f"its warm-up requests cannot be read: {error}") from None
    if len(records) > _MOST_WARMUP:
        raise ConfigError(f"it has {len(records)} warm-up requests, more than {_MOST_WARMUP}")
    return records
