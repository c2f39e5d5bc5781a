"""Replays the request that a pushed version carries, and compares the answer to it."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .client import Client
from .predictor import newest_version

SAMPLE = Path("assets.extra", "sample_request.json")


@dataclass(frozen=True)
class Compared:
    """One output: what was expected, what came, and whether that will do."""

    output: str
    expected: str
    found: str
    alike: bool


def smoke(client: Client, model: Path, named: bool = True) -> list[Compared]:
    """Send the sample of the newest version below `model`, or of that version.

    Args:
        client: of the server and the model to ask; any that serves the version.
        model: a folder of versions, or a version's.
        named: ask for the version by its folder's number; else the newest that is served.

    Raises:
        ConfigError: the version carries no sample.
        ServerError: the server refused, or did not answer.
    """
    version = newest_version(model)
    file = version / SAMPLE
    try:
        sample = json.loads(file.read_text(encoding="utf-8"))
        inputs = {name: [_given(one) for one in rows] for name, rows in sample["inputs"].items()}
        outputs, tolerance = dict(sample["outputs"]), float(sample["tolerance"])
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise ConfigError(
            f"{file}: there is no readable sample. Versions pushed by Espalier have one; run "
            "`espalier run` again."
        ) from None
    # Of that version, not of whichever the server has: it may not have taken this one.
    answer = client.predict(inputs, version=int(version.name) if named else None)
    return [_compare(name, value, answer.get(name), tolerance) for name, value in outputs.items()]


def _given(value: Any) -> str | bytes:
    return value if isinstance(value, str) else base64.b64decode(value["b64"])


def _compare(name: str, expected: Any, found: np.ndarray | None, tolerance: float) -> Compared:
    if found is None:
        return Compared(name, _shown(expected), "nothing", False)
    wanted = np.array(expected)
    if wanted.shape != found.shape:
        alike = False
    elif wanted.dtype.kind == "U":
        alike = wanted.tolist() == found.tolist()
    else:
        alike = bool(np.abs(wanted - found).max(initial=0) <= tolerance)
    return Compared(
        name,
        _shown(expected),
        _shown(found.astype(float) if found.dtype.kind == "f" else found),
        alike,
    )


def _shown(value: Any) -> str:
    array = np.array(value)
    text = json.dumps((array if array.dtype.kind in "UO" else array.round(5)).tolist())
    return text if len(text) <= 60 else f"{text[:57]}..."
