"""Has a SavedModel checked by `probe.py` in a process of its own, and words the verdict."""

import base64
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from ... import cpu

PROBE = os.path.join(os.path.dirname(__file__), "probe.py")
TIMEOUT_SECONDS = 300.0
# What our process sets for itself must not decide how the model behaves in a server.
_OURS = ("TF_", "XLA_", "KERAS_", "CUDA_VISIBLE_DEVICES")


@dataclass(frozen=True)
class Report:
    """What came of a serving check; `to_json` is the content of serving_check.json.

    `measured` is empty unless the probe came to its end: rows, classes, load_seconds,
    latency_ms (median, one row), largest_difference (between the two signatures' scores),
    predictions (two of {text, label, score}; a pair's text is a list, a picture's is its path),
    graph (what the export says of its serving graph) and the versions of tensorflow and
    tensorflow_text.
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
    model: str, rows: list[bytes], inputs: dict[str, str], timeout: float = TIMEOUT_SECONDS
) -> Report:
    """Says whether TensorFlow Serving could load the SavedModel and answer raw rows with it.

    Args:
        model: a SavedModel's folder.
        rows: serialized tf.Examples, each with a value of every feature of `inputs`.
        inputs: the features by the names of serving_default's inputs.
        timeout: seconds after which a probe that hangs is killed.

    Never raises because of the model: a model that cannot be checked is not blessed.
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
    outcome = run_probe(model, rows, inputs, timeout, kind)
    failures = outcome.pop("failures")
    if failures:
        return _refused(" ".join(failures), size_bytes=size, failures=failures, measured=outcome)
    if "graph" in facts:
        outcome["graph"] = facts["graph"]["verdict"]
    return Report(True, _praise(outcome, size), size_bytes=size, measured=outcome)


def run_probe(
    model: str,
    rows: list[bytes],
    inputs: dict[str, str],
    timeout: float,
    kind: Mapping[str, bool] = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs the probe; returns what it measured, and `failures`: sentences, empty if all is well."""
    with tempfile.TemporaryDirectory(prefix="espalier-probe-") as folder:
        request = os.path.join(folder, "request.json")
        result = os.path.join(folder, "result.json")
        encoded = [base64.b64encode(row).decode() for row in rows]
        content = {
            "model": model,
            "rows": encoded,
            "inputs": inputs,
            **kind,
        }
        with open(request, "w", encoding="utf-8") as file:
            json.dump(content, file)
        # -I: no PYTHONPATH, no current directory, no user site. Nothing of ours can leak in.
        command = [sys.executable, "-I", "-W", "ignore", PROBE, request, result]
        try:
            done = subprocess.run(
                command, env=_clean_environment(), capture_output=True, timeout=timeout
            )
        except subprocess.TimeoutExpired as late:
            told = _last_lines(late.stderr)
            return {"failures": [f"the model did not answer within {timeout:g} s.{told}"]}
        if done.returncode == 0:
            with open(result, encoding="utf-8") as file:
                outcome: dict[str, Any] = json.load(file)
            return outcome
        return {"failures": [f"{_ending(done.returncode)}.{_last_lines(done.stderr)}"]}


def size_on_disk(folder: str) -> int:
    """Bytes of all files below a folder, local or remote."""
    from tfx.dsl.io import fileio

    files = (os.path.join(place, name) for place, _, names in fileio.walk(folder) for name in names)
    return sum(fileio.stat(file).length for file in files)


def _clean_environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(_OURS)}
    return kept | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}


def _ending(code: int) -> str:
    if code >= 0:
        return f"the process that loaded the model failed with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"the process that loaded the model was ended by {name}"


def _last_lines(stderr: bytes | None, count: int = 4, width: int = 300) -> str:
    lines = [line for line in (stderr or b"").decode(errors="replace").splitlines() if line.strip()]
    told = " / ".join(line.strip()[:width] for line in lines[-count:])
    return f" Its last words: {told}" if told else ""


def _refused(why: str, **values: Any) -> Report:
    values.setdefault("failures", [why])
    return Report(False, f"The model cannot be served: {why}", **values)


def _praise(outcome: dict[str, Any], size: int) -> str:
    return (
        f"The model can be served: {outcome['rows']} raw rows answered alike by both signatures "
        f"(largest difference {outcome['largest_difference']:.1e}), {size / 1e6:.1f} MB, loaded "
        f"in {outcome['load_seconds']:.1f} s, {outcome['latency_ms']:.1f} ms for one row."
    )
