"""One version of a model, loaded: a SavedModel in a Session, or a TFLite file."""

import os
import queue
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, reason
from .status import invalid, of_tensorflow
from .tensors import numpy_type, type_name

SAVED_MODEL, TFLITE = "saved_model.pb", "model.tflite"
_RARE = "saved_model.pbtxt"
_MOST_CALLABLES = 256  # callers choose the outputs: of 20, there are a million choices
INIT_OP = "__saved_model_init_op"  # a signature in the file's own map that nobody calls


@dataclass(frozen=True)
class LoadOptions:
    """How versions are loaded; the names are TensorFlow Serving's flags.

    `inter_op` -1 runs a request's ops in its own thread, which on a busy server is fastest;
    `intra_op` 0 lets one op use all cores, 1 gives each request one core.
    """

    inter_op: int = -1
    intra_op: int = 0
    tags: Sequence[str] = ("serve",)
    prefer_tflite: bool = False
    tflite_interpreters: int = 1


def is_whole(version: Path) -> bool:
    """Whether the file that comes last, and says that the version is complete, is there."""
    # os.path, not pathlib: a folder that may not be read is one that is not whole.
    return any(os.path.isfile(version / name) for name in (SAVED_MODEL, _RARE, TFLITE))


def check_files(version: Path) -> None:
    """See that a version holds nothing that would be waited for for ever when it is read.

    Raises:
        ConfigError: there is a pipe, a socket or a device.
    """
    for folder in ("", "variables", "assets", "assets.extra"):
        with suppress(OSError):  # there is none, or what lies there may not be read
            for name in os.listdir(version / folder):
                path = os.path.join(version, folder, name)
                if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
                    raise ConfigError(f"{path} is a pipe, a socket or a device; remove it.")


class Servable:
    """A version that answers. `signatures` are SignatureDefs by their names."""

    signatures: Mapping[str, Any]

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: tuple[str, ...]
    ) -> Sequence[np.ndarray]:
        """Compute tensors, by their names in the graph; any number of threads at once.

        Raises:
            Status: what the graph answered instead.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the memory, which the next garbage collection gives back.

        No call may be under way, and none may follow.
        """
        raise NotImplementedError


def load(version: Path, options: LoadOptions) -> Servable:
    """Load a version's folder.

    Raises whatever TensorFlow does: any bytes may lie there.
    """
    if options.prefer_tflite and (version / TFLITE).is_file():
        return _Lite(version / TFLITE, options.tflite_interpreters)
    return _SavedModel(version, options)


class _SavedModel(Servable):
    def __init__(self, version: Path, options: LoadOptions) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 - registers the ops that TensorFlow Serving has too

        v1 = tf.compat.v1
        config = v1.ConfigProto(
            inter_op_parallelism_threads=options.inter_op,
            intra_op_parallelism_threads=options.intra_op,
        )
        self._session = v1.Session(graph=tf.Graph(), config=config)
        try:
            with self._session.graph.as_default():
                meta = v1.saved_model.load(self._session, list(options.tags), str(version))
        except BaseException:
            self._session.close()
            raise
        named = meta.signature_def.items()
        self.signatures = {name: one for name, one in named if name != INIT_OP}
        self._callables: dict[tuple[tuple[str, ...], tuple[str, ...]], Any] = {}
        self._making = threading.Lock()
        self._error = tf.errors.OpError

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: tuple[str, ...]
    ) -> Sequence[np.ndarray]:
        names = tuple(feeds)
        try:
            call = self._callables.get((names, fetches)) or self._make(names, fetches)
            return [_array(value) for value in call(*feeds.values())]
        except self._error as error:
            raise of_tensorflow(error) from None
        except UnicodeDecodeError as error:  # of TensorFlow's message, which quotes the input
            raise invalid(reason(error.object.decode(errors="replace"))) from None

    def _make(self, feeds: tuple[str, ...], fetches: tuple[str, ...]) -> Any:
        from tensorflow.core.protobuf.config_pb2 import CallableOptions

        with self._making:
            if (feeds, fetches) not in self._callables:
                options = CallableOptions(feed=feeds, fetch=fetches)
                # A fifth of Session.run's cost: names are looked up once.
                made = self._session._make_callable_from_options(options)
                if len(self._callables) >= _MOST_CALLABLES:
                    self._callables.clear()  # those in use live on
                self._callables[feeds, fetches] = made
            return self._callables[feeds, fetches]

    def close(self) -> None:
        self._callables.clear()
        self._session.close()
        del self._session


def _array(value: Any) -> np.ndarray:
    """A scalar comes out of a session as numpy's, a scalar string as bytes."""
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, object if isinstance(value, bytes) else None)


class _Lite(Servable):
    """A TFLite file. An interpreter answers one call at a time, so there are several."""

    def __init__(self, file: Path, interpreters: int) -> None:
        import tensorflow as tf
        from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(interpreters):
            interpreter = tf.lite.Interpreter(str(file), num_threads=1)
            self._idle.put(interpreter)
        listed = interpreter.get_signature_list()
        self.signatures = {}
        self._places: dict[str, tuple[str, str]] = {}  # a tensor's name -> its signature, its alias
        for name in listed:
            signature = SignatureDef(method_name="tensorflow/serving/predict")
            runner = interpreter.get_signature_runner(name)
            for kind, details in (
                (signature.inputs, runner.get_input_details()),
                (signature.outputs, runner.get_output_details()),
            ):
                for alias, detail in details.items():
                    info = kind[alias]
                    info.name = f"{name}/{alias}"
                    info.dtype = tf.as_dtype(detail["dtype"]).as_datatype_enum
                    for size in detail["shape_signature"]:
                        info.tensor_shape.dim.add().size = int(size)
                    self._places[info.name] = (name, alias)
            self.signatures[name] = signature

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: tuple[str, ...]
    ) -> Sequence[np.ndarray]:
        named = {self._places[name][0] for name in (*feeds, *fetches)}
        if len(named) != 1:
            raise invalid("A TFLite model answers one signature at a time.")
        interpreter = self._idle.get()
        try:
            runner = interpreter.get_signature_runner(named.pop())
            answer = runner(**{self._places[name][1]: value for name, value in feeds.items()})
            return [np.array(answer[self._places[name][1]]) for name in fetches]
        except (ValueError, RuntimeError) as error:
            raise invalid(str(error).splitlines()[0]) from None
        finally:
            self._idle.put(interpreter)

    def close(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._idle.get_nowait()


def check_feed(alias: str, info: Any, value: np.ndarray) -> None:
    """See that an input has the type and a shape that the signature declares.

    Raises:
        Status: INVALID_ARGUMENT. The ops behind would say it in words of their own, or crash.
    """
    if value.dtype != numpy_type(info.dtype):
        names = type_name(info.dtype), "string" if value.dtype == object else value.dtype.name
        raise invalid(f"input {alias}: expects {names[0]}, but {names[1]} is provided")
    if info.tensor_shape.unknown_rank:
        return
    wanted = [dim.size for dim in info.tensor_shape.dim]
    fits = len(wanted) == value.ndim and all(
        size in (-1, given) for size, given in zip(wanted, value.shape, strict=True)
    )
    if not fits:
        raise invalid(f"input {alias}: expects shape {wanted}, but {list(value.shape)} is provided")
