"""What a load test sends: serialized PredictRequests, made before the clock starts."""

import base64
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from .client import Client, as_array
from .protos import message
from .tensors import STRING, numpy_type, to_proto, type_name

SENTENCE = "The staff were friendly, but we waited an hour for a meal that came cold."
# A grey PNG of 32 x 32 pixels.
PICTURE = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgCAAAAABWESUoAAAAFklEQVR42mNoIAAYRhWMKhhVMFIVAABCAAAfN5c2AAAA"
    "AABJRU5ErkJggg=="
)
_MOST_ROWS = 10_000  # of a CSV, and of these the first: they are all in memory
_SIGNATURE = "serving_default"


@dataclass(frozen=True)
class Given:
    """What the user wants sent: texts, or pictures' files, or columns of a CSV, or nothing."""

    texts: Sequence[str] = ()
    images: Sequence[Path] = ()
    data: Path | None = None
    columns: Sequence[str] = ()


def bodies(client: Client, given: Given, batch: int) -> list[bytes]:
    """Serialized PredictRequests of `batch` rows each, to be sent in turn.

    Args:
        client: asked what the model takes.
        given: the rows; too few for a batch are repeated. If there are none, a model with the
            inputs of Espalier's gets a plain sentence or a small grey picture.
        batch: rows in a request.

    Raises:
        ConfigError: the model takes something else, or a file cannot be read.
        DataError: the CSV lacks a column or has no rows.
        ServerError: the server does not answer, or serves no such model.
    """
    signatures = client.metadata()
    if _SIGNATURE not in signatures:
        raise ConfigError(f"{client.model}: the model has no signature {_SIGNATURE}.")
    infos = signatures[_SIGNATURE].inputs
    rows = _rows(client.model, infos, given)
    count = len(next(iter(rows.values())))
    made = []
    for start in range(0, count, batch):
        request = message("PredictRequest")()
        request.model_spec.name = client.model
        for name, values in rows.items():
            part = [values[(start + place) % count] for place in range(batch)]
            array = as_array(name, part, infos[name].dtype)
            to_proto(array, request.inputs[name], infos[name].dtype)
        made.append(request.SerializeToString())
    return made


def _rows(model: str, infos: Mapping[str, Any], given: Given) -> dict[str, list[Any]]:
    """Values of each input by its name, as many of each."""
    names = sorted(infos)
    if given.data is not None:
        return _of_csv(given.data, given.columns, infos)
    if given.texts or given.images:
        if len(names) != 1 or infos[names[0]].dtype != STRING:
            raise ConfigError(f"{model} {_takes(infos)}: give a CSV, with --data and --column.")
        return {names[0]: [*given.texts, *map(_read, given.images)]}
    if names == ["image_bytes"]:
        return {"image_bytes": [PICTURE]}
    if names in (["text"], ["text", "text_pair"]):
        return {name: [SENTENCE] for name in names}
    raise ConfigError(
        f"{model} {_takes(infos)}: say what to send, with --text, --image, or --data CSV and a "
        "--column for each input in this order."
    )


def _takes(infos: Mapping[str, Any]) -> str:
    kinds = (f"{name} ({type_name(infos[name].dtype)})" for name in sorted(infos))
    return f"takes {', '.join(kinds)}"


def _of_csv(file: Path, columns: Sequence[str], infos: Mapping[str, Any]) -> dict[str, list[Any]]:
    """A column for each input; the inputs are in the order of their names."""
    names = sorted(infos)
    columns = columns or (["path"] if names == ["image_bytes"] else names)
    if len(columns) != len(names):
        raise ConfigError(f"the model {_takes(infos)}: name a --column for each in this order.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as opened:
            lines = list(islice(csv.DictReader(opened), _MOST_ROWS))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: is no CSV in UTF-8: {error}.") from None
    if not lines:
        raise DataError(f"{file}: has no rows.")
    found: dict[str, list[Any]] = {}
    for name, column in zip(names, columns, strict=True):
        if any(line.get(column) is None for line in lines):
            raise DataError(f"{file}: has no column {column}, or a row lacks it. Name --column.")
        values: list[Any] = [line[column] for line in lines]
        if names == ["image_bytes"]:
            values = [_read(file.parent / path) for path in values]
        elif infos[name].dtype != STRING:
            values = _numbers(file, column, values, infos[name].dtype)
        found[name] = values
    return found


def _numbers(file: Path, column: str, values: list[str], dtype: int) -> list[Any]:
    kind = np.dtype(numpy_type(dtype)).kind
    try:
        return [int(one) if kind in "iu" else float(one) for one in values]
    except ValueError as error:
        raise DataError(
            f"{file}: column {column} is not of {type_name(dtype)}, which the model takes: {error}."
        ) from None


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}.") from None
