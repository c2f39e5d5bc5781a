"""Prediction with a model that Espalier pushed: in this process, or by a server that serves it."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .. import cpu, reach
from ..errors import ConfigError, ServerError
from .client import Client, as_array, text

_DESCRIPTION = Path("assets.extra", "espalier.json")
_ADDRESS = re.compile(r"(?P<target>(?:\w+:/{0,3})?[^/\s]+:\d+|unix:.+)/(?P<model>[^/:]+)")
_AT_ONCE = 32  # rows in a request to a server


@dataclass(frozen=True)
class Prediction:
    """The likeliest label, its score, and every class's score (softmax, sums to 1).

    Where labels do not exclude each other: all that score 0.5 or more, with | between them, the
    highest score, and each label's own.
    """

    label: str
    score: float
    scores: list[float]


class Predictor:
    """A pushed model: loaded, or behind a server.

    Args:
        target: a model's base path (its newest version is taken), one version's folder, or a
            server's "HOST:PORT/MODEL".
        connection: of a server, as `Client` takes it: timeout, tls, token.

    Raises:
        ConfigError: no version is there, or it is not a SavedModel of ours, or this machine
            lacks the instructions that it was exported for.
        ServerError: the server does not answer, or serves no such model.
    """

    def __init__(self, target: str | Path, **connection: Any) -> None:
        self.path = str(target)
        if (address := parse_address(self.path)) is not None:
            self._model: _Served | _Loaded = _Served(*address, connection)
        else:
            self._model = _Loaded(newest_version(Path(target)))
            self.path = str(self._model.path)
        self.inputs = sorted(self._model.inputs)
        missing = {"scores", "label"} - set(self._model.outputs)
        if missing or self.inputs not in (["image_bytes"], ["text"], ["text", "text_pair"]):
            raise ConfigError(
                f"{self.path}: takes {', '.join(self.inputs)} and gives "
                f"{', '.join(sorted(self._model.outputs))}, so it is not a model that Espalier "
                f"pushed. Call it with espalier.Client."
            )

    @property
    def takes_images(self) -> bool:
        """Whether the model reads pictures, and not texts."""
        return self.inputs == ["image_bytes"]

    def predict(
        self, rows: Sequence[str | bytes | Path], pairs: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Predict each row; any number of threads at once.

        Args:
            rows: any number of texts, or, for a model of pictures, of their files or bytes.
            pairs: their second texts, for a model trained on pairs.

        Raises:
            ConfigError: the model takes pairs and got none, or the other way round; a file
                cannot be read, or is no picture.
            ServerError: the server refused, or did not answer in time.
        """
        first = "image_bytes" if self.takes_images else "text"
        given: dict[str, list[Any]] = {first: list(rows)}
        if pairs:
            given["text_pair"] = list(pairs)
        if sorted(given) != self.inputs or len(given[self.inputs[-1]]) != len(rows):
            raise ConfigError(
                f"{self.path}: the model takes {' and '.join(self.inputs)}, as many of each; "
                f"found {', '.join(f'{len(v)} {k}' for k, v in given.items())}."
            )
        if self.takes_images:
            # One by one: a bad picture would fail them all, and large ones need not fit at once.
            return [self._ask_about(picture) for picture in rows]
        found: list[Prediction] = []
        for at in range(0, len(rows), _AT_ONCE):
            found += self._ask({name: v[at : at + _AT_ONCE] for name, v in given.items()})
        return found

    def _ask_about(self, picture: str | bytes | Path) -> Prediction:
        name = "the bytes given" if isinstance(picture, bytes) else str(picture)
        try:
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            (prediction,) = self._ask({"image_bytes": [data]})
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror}.") from None
        except ServerError as error:
            if error.code != "INVALID_ARGUMENT":
                raise
            raise ConfigError(f"{name}: not a picture that the model can read: {error}") from None
        return prediction

    def _ask(self, inputs: dict[str, list[Any]]) -> list[Prediction]:
        answer = self._model.ask(inputs)
        return [
            Prediction(label, float(row.max()), row.tolist())
            for label, row in zip(answer["label"], answer["scores"], strict=True)
        ]


class _Loaded:
    """A version in this process."""

    def __init__(self, version: Path) -> None:
        self.path = version
        if unfit := cpu.unfit(description(version)):
            raise ConfigError(
                f"{version}: this version was {unfit}. Serve it elsewhere, or export it with "
                f"`cpu: any`."
            )
        from .servable import LoadOptions, check_files, load
        from .status import Status

        self._refused = Status
        try:
            check_files(version)
            reached = reach.found(version)
        except Exception as error:  # any bytes may lie there
            raise ConfigError(f"{version}: cannot be loaded as a model: {error}") from None
        if reached:
            raise ConfigError(reach.refusal(version, reached))
        try:
            self._servable = load(version, LoadOptions())
            self._signature = self._servable.signatures["serving_default"]
        except Exception as error:  # any bytes may lie there
            raise ConfigError(f"{version}: cannot be loaded as a model: {error}") from None
        self.inputs, self.outputs = list(self._signature.inputs), list(self._signature.outputs)

    def ask(self, inputs: Mapping[str, list[Any]]) -> Mapping[str, np.ndarray]:
        """Lists of strings or bytes to arrays; ServerError where the graph refuses."""
        infos, outputs = self._signature.inputs, self._signature.outputs
        feeds = {
            infos[name].name: as_array(name, values, infos[name].dtype)
            for name, values in inputs.items()
        }
        fetches = tuple(outputs[name].name for name in self.outputs)
        try:
            values = self._servable.run(feeds, fetches)
        except self._refused as status:
            raise ServerError(status.code.name, status.message) from None
        return {name: text(value) for name, value in zip(self.outputs, values, strict=True)}


class _Served:
    """A model behind a server."""

    def __init__(self, target: str, model: str, connection: Mapping[str, Any]) -> None:
        self.path = f"{target}/{model}"
        self._client = Client(target, model, **connection)
        signatures = self._client.metadata()
        if "serving_default" not in signatures:
            raise ConfigError(f"{self.path}: the model has no signature serving_default.")
        self.inputs = list(signatures["serving_default"].inputs)
        self.outputs = list(signatures["serving_default"].outputs)

    def ask(self, inputs: Mapping[str, list[Any]]) -> Mapping[str, np.ndarray]:
        return self._client.predict(inputs)


def parse_address(target: str) -> tuple[str, str] | None:
    """A server's address and a model's name, of "HOST:PORT/MODEL"; None for a path."""
    found = _ADDRESS.fullmatch(target)
    if not found or Path(target).exists():
        return None
    return found["target"], found["model"]


def description(version: Path) -> dict[str, Any]:
    """What the export says of a version; empty if it is not ours."""
    file = version / _DESCRIPTION
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_version(name: str) -> bool:
    """Whether TensorFlow Serving takes a folder's name for a version's number, an int64."""
    return name.isascii() and name.isdecimal() and int(name) < 2**63


def find_newest(base: Path) -> Path | None:
    """The folder of the highest number with a SavedModel, as TensorFlow Serving picks it."""
    versions = (p for p in base.glob("[0-9]*") if is_version(p.name))
    whole = [p for p in versions if (p / "saved_model.pb").exists()]
    return max(whole, key=lambda p: int(p.name), default=None)


def newest_version(path: Path) -> Path:
    """The path itself if it is a version, else the newest one below it.

    Raises:
        ConfigError: there is none.
    """
    version = path if (path / "saved_model.pb").exists() else find_newest(path)
    if version is None:
        raise ConfigError(
            f"{path}: no pushed version here (a numbered folder with saved_model.pb). "
            f"Run `espalier run` first, or name the model's folder, or a server's HOST:PORT/MODEL."
        )
    return version
