"""Has a SavedModel served by a process of its own and checked by `probe.py`; words the verdict."""

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tfx.utils import io_utils

from ... import __version__, cpu
from ...errors import ComponentError
from ...serving.process import started
from .probe import Refusal, probe

TIMEOUT_SECONDS = 300.0
_FULL = 1 << 20  # bytes; with fewer left, a server cannot even say what it does


@dataclass(frozen=True)
class Report:
    """What came of a serving check; `to_json` is the content of serving_check.json.

    `measured` is empty unless the probe came to its end: rows, classes, ready_seconds,
    latency_ms (median, one row over gRPC), largest_difference (between the two signatures'
    scores), predictions (two of {text, label, score}; a pair's text is a list, a picture's is its
    path), graph (what the export says of its serving graph) and server (which one it was).
    """

    blessed: bool
    verdict: str
    size_bytes: int = 0
    failures: list[str] = field(default_factory=list)
    unknown_ops: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The report as JSON, `measured` flattened into it."""
        values = asdict(self)
        values.update(values.pop("measured"))
        return json.dumps(values, indent=2, ensure_ascii=False)


def check_serving(
    model: str,
    rows: list[bytes],
    inputs: dict[str, str],
    timeout: float = TIMEOUT_SECONDS,
    server: str = "",
) -> Report:
    """Says whether a server can load the SavedModel and answer raw rows with it.

    Args:
        model: a SavedModel's folder.
        rows: serialized tf.Examples, each with a value of every feature of `inputs`.
        inputs: the features by the names of serving_default's inputs.
        timeout: seconds after which a server that hangs is killed.
        server: a tensorflow_model_server's path; "" is our own, which answers the same calls.

    Never raises because of the model: a model that cannot be checked is not blessed.

    Raises:
        ComponentError: no server could be run here, whatever the model.
    """
    from ...trainer.export import describe_any  # TensorFlow: not at import time.
    from ...trainer.serving_ops import unknown_ops

    facts = describe_any(model)
    if unfit := cpu.unfit(facts):
        return _refused(
            f"its graph was {unfit}. Check it on a machine like the one that will serve."
        )
    if not rows:
        columns = " and ".join(map(repr, inputs.values()))
        return _refused(f"there is no row with a value in {columns} to send to the model.")
    try:
        size = size_on_disk(model)
        unknown = unknown_ops(model)
    except Exception as error:  # A broken file raises whatever its reader likes.
        return _refused(f"the SavedModel {model} cannot be read ({error}).")
    if unknown:
        names = ", ".join(unknown)
        return _refused(
            f"TensorFlow Serving does not know the op(s) {names}; use others in the graph.",
            size_bytes=size,
            unknown_ops=unknown,
        )
    kind = {
        "multi_label": bool(facts.get("multi_label")),
        "fewer_bits": bool(facts.get("graph", {}).get("needs")),
    }
    outcome = run_probe(model, rows, inputs, timeout, kind, server)
    failures = outcome.pop("failures")
    if failures:
        return _refused(" ".join(failures), size_bytes=size, failures=failures, measured=outcome)
    outcome["server"] = server or f"espalier {__version__}"
    if "graph" in facts:
        outcome["graph"] = facts["graph"]["verdict"]
    return Report(True, _praise(outcome, size), size_bytes=size, measured=outcome)


def run_probe(
    model: str,
    rows: list[bytes],
    inputs: dict[str, str],
    timeout: float,
    kind: dict[str, bool],
    server: str = "",
) -> dict[str, Any]:
    """Starts a server and asks it; returns what was measured, and `failures`: sentences.

    Raises ComponentError for what is no fault of the model: TFX's cache would keep the verdict.
    """
    with tempfile.TemporaryDirectory(prefix="espalier-model-") as folder:
        local = Path(model)
        if "://" in model:  # a server's base path is local, but for those built for others
            local = Path(folder, "1")
            io_utils.copy_dir(model, str(local))
        try:
            with started(local, server, timeout) as running:
                return {"failures": [], **probe(running, rows, inputs, kind)}
        except Refusal as refusal:
            if why := _elsewhere(folder, str(refusal)):
                raise ComponentError(why) from None
            return {"failures": [str(refusal)]}
        except OSError as error:
            raise ComponentError(
                f"ServingCheck: {server or 'a server'} cannot be run: {error.strerror}. Mend that, "
                f"and run again; what was finished is kept."
            ) from None


def _elsewhere(folder: str, refusal: str) -> str:
    """What this machine lacked, where that and not the model is why a server did not answer."""
    if shutil.disk_usage(folder).free < _FULL:
        return (
            f"ServingCheck: the disk of temporary files is full: {os.path.dirname(folder)}. Make "
            f"room there, or name another folder in TMPDIR, and run again; what was finished is "
            f"kept."
        )
    if "SIGKILL" in refusal:
        return (
            "ServingCheck: the server was killed from outside. Is there memory enough for the "
            "model? Run again; what was finished is kept."
        )
    return ""


def size_on_disk(folder: str) -> int:
    """Bytes of all files below a folder, local or remote."""
    from tfx.dsl.io import fileio

    files = (os.path.join(place, name) for place, _, names in fileio.walk(folder) for name in names)
    return sum(fileio.stat(file).length for file in files)


def _refused(why: str, **values: Any) -> Report:
    values.setdefault("failures", [why])
    return Report(False, f"The model cannot be served: {why}", **values)


def _praise(outcome: dict[str, Any], size: int) -> str:
    return (
        f"The model can be served: {outcome['rows']} raw rows answered alike by both signatures "
        f"(largest difference {outcome['largest_difference']:.1e}), {size / 1e6:.1f} MB, ready "
        f"in {outcome['ready_seconds']:.1f} s, {outcome['latency_ms']:.1f} ms for one row."
    )
