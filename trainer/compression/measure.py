"""What each version of a model answers, weighs and takes, side by side in one process.

The versions are loaded as TensorFlow Serving loads them, into sessions of two threads each, and
asked in turn: whatever else the machine does meets all of them alike.
"""

import json
import os
import statistics
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..export import DESCRIPTION, FOR_TFMA, Columns, describe
from .tflite import TFLITE, scorer

if TYPE_CHECKING:
    import numpy as np

BATCHES = (1, 32)
_ROUNDS = {1: 200, 32: 40}
_SECONDS = 20.0  # for all rounds of one batch size
_FEWEST = 10
_WARM = 3  # rounds that do not count
MOST_ROWS = 2000  # that are asked


@dataclass(frozen=True)
class Figures:
    """One version, measured.

    Attributes:
        accuracy, f1: over `rows` (f1 of the second class, or the mean over more).
        agreement: the share of rows answered as the trained model answers them.
        parameters, nonzero: numbers in the model's weights.
        bytes, gzipped: of the SavedModel; a model.tflite beside it counts apart.
        latency_ms: batch size -> {"median", "p99"}, milliseconds a call with raw rows.
        memory_bytes: what loading and a batch of 32 add to a process, at the most.
        tflite: the same for model.tflite: bytes, accuracy, agreement; empty without one.
    """

    rows: int
    accuracy: float
    f1: float
    agreement: float
    parameters: int
    nonzero: int
    bytes: int
    gzipped: int
    latency_ms: dict[str, dict[str, float]]
    memory_bytes: int
    tflite: dict[str, float]


class Served:
    """A version in a session, and its signatures as plain functions.

    Args:
        version: the SavedModel's folder.
        threads: of the session.
    """

    def __init__(self, version: Path, threads: int = 2) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 - registers the tokenizer's ops

        self.facts = describe(str(version))
        self.columns = Columns.described(self.facts)
        config = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=threads, inter_op_parallelism_threads=threads
        )
        self._session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        with self._session.graph.as_default():
            meta = tf.compat.v1.saved_model.load(self._session, ["serve"], str(version))
        self._signatures = meta.signature_def

    def function(self, signature: str, output: str) -> Callable[..., "np.ndarray"]:
        """One output of a signature, of its inputs in the order of their names."""
        from tensorflow.core.protobuf import config_pb2

        found = self._signatures[signature]
        options = config_pb2.CallableOptions()
        names = self.columns.inputs if signature == "serving_default" else sorted(found.inputs)
        options.feed.extend(found.inputs[name].name for name in names)
        options.fetch.append(found.outputs[output].name)
        call = self._session._make_callable_from_options(options)
        return lambda *values: call(*values)[0]

    def close(self) -> None:
        """Free the session."""
        self._session.close()


def measure(
    versions: Mapping[str, Path],
    rows: Sequence[bytes],
    parameters: Mapping[str, tuple[int, int]],
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Figures]:
    """Figures by name, the first of which is the trained model's.

    Args:
        versions: SavedModels that answer the same raw rows.
        rows: serialized raw tf.Examples; the first 2,000 are used.
        parameters: name -> (numbers in its weights, of them not zero).
        progress: is told what is measured now.
    """
    rows = list(rows[:MOST_ROWS])
    served = {name: Served(version) for name, version in versions.items()}
    first = next(iter(served.values()))
    labels = _label_ids(first, rows)
    progress("answers")
    scores = {name: _scores(one, rows) for name, one in served.items()}
    progress("latency")
    latency = _latency(served, rows)
    for one in served.values():
        one.close()
    progress("memory")
    memory = _memory(versions, rows[: BATCHES[-1]])
    theirs = _said(next(iter(scores.values())), first.facts)
    found = {}
    for name, version in versions.items():
        said = _said(scores[name], first.facts)
        total, gzipped = sizes(version)
        found[name] = Figures(
            rows=len(rows),
            **quality(said, labels),
            agreement=float((said == theirs).mean()),
            parameters=parameters[name][0],
            nonzero=parameters[name][1],
            bytes=total,
            gzipped=gzipped,
            latency_ms=latency[name],
            memory_bytes=memory[name],
            tflite=tflite_figures(version, first, rows, labels, theirs),
        )
    return found


def batched(rows: Sequence[Any], size: int = BATCHES[-1]) -> Iterator[Sequence[Any]]:
    """Rows in portions of `size`."""
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]


def _strings(values: Sequence[bytes]) -> "np.ndarray":
    import numpy as np

    return np.array(values, dtype=object)


def _label_ids(served: Served, rows: Sequence[bytes]) -> "np.ndarray":
    """Label ids [N], or 0 and 1 [N, C]."""
    import numpy as np

    ask = served.function("transform_label", FOR_TFMA)
    return np.concatenate([ask(_strings(batch)) for batch in batched(rows)])


def _scores(served: Served, rows: Sequence[bytes]) -> "np.ndarray":
    import numpy as np

    ask = served.function("serve_examples", "scores")
    return np.concatenate([ask(_strings(batch)) for batch in batched(rows)])


def _said(scores: "np.ndarray", facts: Mapping[str, Any]) -> "np.ndarray":
    """The answers: ids [N], or 0 and 1 [N, C]."""
    return (scores >= 0.5).astype(int) if facts["multi_label"] else scores.argmax(axis=1)


def quality(said: "np.ndarray", labels: "np.ndarray") -> dict[str, float]:
    """accuracy and f1 of answers, ids [N] or 0 and 1 [N, C]."""
    from sklearn.metrics import f1_score

    labels = labels.astype(int)
    average = "binary" if labels.ndim == 1 and max(labels.max(), said.max()) <= 1 else "macro"
    return {
        "accuracy": float((said == labels).mean()),
        "f1": float(f1_score(labels, said, average=average, zero_division=0)),
    }


def raw_inputs(served: Served, rows: Sequence[bytes]) -> list["np.ndarray"]:
    """What serving_default takes: a column of strings for each input."""
    import tensorflow as tf

    features = [tf.train.Example.FromString(row).features.feature for row in rows]
    columns = served.columns.inputs.values()
    return [_strings([f[name].bytes_list.value[0] for f in features]) for name in columns]


def _latency(served: Mapping[str, Served], rows: Sequence[bytes]) -> dict[str, Any]:
    import numpy as np

    asks = {name: one.function("serving_default", "scores") for name, one in served.items()}
    columns = raw_inputs(next(iter(served.values())), rows)
    found: dict[str, Any] = {name: {} for name in served}
    for size in BATCHES:
        times: dict[str, list[float]] = {name: [] for name in served}
        end = time.monotonic() + _SECONDS
        for number in range(_ROUNDS[size] + _WARM):
            if number >= _FEWEST + _WARM and time.monotonic() > end:
                break
            places = np.arange(number * size, (number + 1) * size) % len(rows)
            batch = [column[places] for column in columns]
            for name, ask in asks.items():
                begin = time.perf_counter()
                ask(*batch)
                times[name].append(1000 * (time.perf_counter() - begin))
        for name, values in times.items():
            values = values[_WARM:]
            found[name][str(size)] = {
                "median": statistics.median(values),
                "p99": float(np.percentile(values, 99)),
            }
    return found


def sizes(version: Path) -> tuple[int, int]:
    """Bytes of a SavedModel on disk, and compressed with gzip's method; what it is described by
    (assets.extra) and a TFLite file are no part of it."""
    total = packed = 0
    packer = zlib.compressobj(6, zlib.DEFLATED, 31)
    for file in sorted(p for p in version.rglob("*") if p.is_file()):
        place = file.relative_to(version)
        if place.parts[0] == Path(DESCRIPTION).parts[0] or place.name == TFLITE:
            continue
        data = file.read_bytes()
        total += len(data)
        packed += len(packer.compress(data))
    return total, packed + len(packer.flush())


def _memory(versions: Mapping[str, Path], rows: Sequence[bytes]) -> dict[str, int]:
    """Each version alone in a process of its own."""
    import base64

    request = {
        "versions": {name: str(version.resolve()) for name, version in versions.items()},
        "rows": [base64.b64encode(row).decode() for row in rows],
    }
    script = Path(__file__).with_name("memory.py")
    done = subprocess.run(
        [sys.executable, "-I", str(script)], input=json.dumps(request), capture_output=True,
        text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    answer = done.stdout.strip().splitlines()
    found = json.loads(answer[-1]) if done.returncode == 0 and answer else {}
    return {name: int(found.get(name, 0)) for name in versions}


def tflite_figures(
    version: Path, served: Served, rows: Sequence[bytes], labels: Any, theirs: Any
) -> dict[str, float]:
    """bytes, accuracy, f1 and agreement of model.tflite; empty without one."""
    file = version / TFLITE
    if not file.exists():
        return {}
    import numpy as np

    score = scorer(file)
    answers = np.concatenate([score(batch) for batch in _transformed(version, served, rows)])
    said = _said(answers, served.facts)
    agreement = float((said == theirs).mean())
    return {"bytes": file.stat().st_size, **quality(said, labels), "agreement": agreement}


def _transformed(
    version: Path, served: Served, rows: Sequence[bytes]
) -> Iterator[dict[str, "np.ndarray"]]:
    """The model's own features of raw rows, one batch after the other."""
    import tensorflow as tf

    from ..input import model_inputs

    loaded = tf.saved_model.load(str(version))
    for batch in batched(rows):
        features = loaded.signatures["transform_features"](examples=tf.constant(batch))
        yield {k: v.numpy() for k, v in model_inputs(features, served.columns.pixel_shapes).items()}
