"""Prediction in this process from a pushed version; needs TensorFlow and TensorFlow Text only."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import cpu
from ..errors import ConfigError, reason

_DESCRIPTION = Path("assets.extra", "espalier.json")


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
    """A pushed model, loaded.

    Args:
        path: a model's base path (its newest version is taken) or one version's folder.

    Raises:
        ConfigError: no version is there, or it is not a SavedModel of ours, or this machine
            lacks the instructions that it was exported for.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = newest_version(Path(path))
        _check_machine(self.path)
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 - registers the tokenizer's ops

        try:
            self._model = tf.saved_model.load(str(self.path))
            self._serve = self._model.signatures["serving_default"]
        except (OSError, KeyError, tf.errors.OpError) as error:
            raise ConfigError(f"{self.path}: cannot be loaded as a model: {error}") from None
        self._inputs = sorted(self._serve.structured_input_signature[1])

    @property
    def takes_images(self) -> bool:
        """Whether the model reads pictures, and not texts."""
        return self._inputs == ["image_bytes"]

    def predict(
        self, rows: Sequence[str | bytes | Path], pairs: Sequence[str] | None = None
    ) -> list[Prediction]:
        """Predict each row.

        Args:
            rows: any number of texts, or, for a model of pictures, of their files or bytes.
            pairs: their second texts, for a model trained on pairs.

        Raises:
            ConfigError: the model takes pairs and got none, or the other way round; a file
                cannot be read, or is no picture.
        """
        import tensorflow as tf

        first = "image_bytes" if self.takes_images else "text"
        given: dict[str, list[Any]] = {first: list(rows)}
        if pairs:
            given["text_pair"] = list(pairs)
        if sorted(given) != self._inputs or len(given[self._inputs[-1]]) != len(rows):
            raise ConfigError(
                f"{self.path}: the model takes {' and '.join(self._inputs)}, as many of each; "
                f"found {', '.join(f'{len(v)} {k}' for k, v in given.items())}."
            )
        if not rows:
            return []
        if not self.takes_images:
            return self._ask({name: tf.constant(values) for name, values in given.items()})
        # One by one: a single bad picture would fail them all, and large ones need not fit at once.
        return [self._ask_about(picture) for picture in rows]

    def _ask_about(self, picture: str | bytes | Path) -> Prediction:
        import tensorflow as tf

        name = "the bytes given" if isinstance(picture, bytes) else str(picture)
        try:
            data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
            (prediction,) = self._ask({"image_bytes": tf.constant([data])})
        except OSError as error:
            raise ConfigError(f"{name}: cannot be read: {error.strerror}.") from None
        except tf.errors.InvalidArgumentError as error:
            why = reason(error.message)
            raise ConfigError(f"{name}: not a picture that the model can read: {why}") from None
        return prediction

    def _ask(self, inputs: dict[str, Any]) -> list[Prediction]:
        answer = self._serve(**inputs)
        scores, labels = answer["scores"].numpy(), answer["label"].numpy()
        return [
            Prediction(label.decode("utf-8"), float(row.max()), row.tolist())
            for label, row in zip(labels, scores, strict=True)
        ]


def description(version: Path) -> dict[str, Any]:
    """What the export says of a version; empty if it is not ours."""
    try:
        found = json.loads((version / _DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_machine(version: Path) -> None:
    if unfit := cpu.unfit(description(version)):
        raise ConfigError(
            f"{version}: this version was {unfit}. Serve it elsewhere, or export it with "
            f"`cpu: any`."
        )


def find_newest(base: Path) -> Path | None:
    """The folder of the highest number with a SavedModel, as TensorFlow Serving picks it."""
    numbered = (p for p in base.glob("[0-9]*") if p.name.isascii() and p.name.isdecimal())
    versions = (p for p in numbered if int(p.name) < 2**63)  # an int64 there
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
            f"Run `espalier run` first, or name the model's folder."
        )
    return version
