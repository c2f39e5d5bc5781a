"""A closer look at the evaluated rows, in the same pass: the worst mistakes, and all scores.

TFMA's pipeline takes it as one more extractor (tfma.default_extractors). What it gathers has the
same size for any number of rows.
"""

import base64
import heapq
import io
import json
import os
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
import numpy as np
import tensorflow as tf
import tensorflow_model_analysis as tfma
from PIL import Image
from tfx.utils import io_utils

from ...trainer.export import describe
from ..image_example_gen.ingest import PATH

FILE, EXAMPLES = "closer.json", "mistakes.tfrecord"
BINS = 200  # of scores, from 0 to 1
MISTAKES = 20
THUMBNAIL = 96  # pixels
LABELS = 20  # more have no curves: a page has no room for them
FOLDER: ContextVar[str] = ContextVar("FOLDER")  # the evaluation's; TFX passes no arguments on

_Mistake = tuple[float, bytes, int, int]  # score, the tf.Example, the label it has, the one said


@dataclass
class Seen:
    """What was gathered of some rows.

    Attributes:
        mistakes: a heap of the surest wrong answers.
        scores: rows by label, by whether they have it (1) or not (0), and by score: int64
            [C, 2, BINS].
    """

    mistakes: list[_Mistake]
    scores: np.ndarray


def extractor(eval_shared_model: Any) -> list[Any]:
    """Our extractor, for the candidate; none where a row may have several labels."""
    models = eval_shared_model if isinstance(eval_shared_model, list) else [eval_shared_model]
    model = describe(models[0].model_path)
    if model["multi_label"]:
        return []
    name = models[0].model_name if len(models) > 1 else ""
    images = model.get("kind") == "image"
    look = _Look(name, model["labels"], model["inputs"], images, FOLDER.get())
    return [tfma.extractors.Extractor("CloserLook", look)]


class _Look(beam.PTransform):
    """Passes extracts on as they are, and writes closer.json and the mistakes' tf.Examples."""

    def __init__(
        self, model: str, labels: list[str], columns: list[str], images: bool, folder: str
    ) -> None:
        super().__init__()
        self._model, self._labels = model, labels
        self._how = (labels, columns, images, folder)

    def expand(self, extracts: Any) -> Any:
        """See beam.PTransform."""
        _ = (
            extracts
            | "Rows" >> beam.Map(_row, self._model)
            | "Gather" >> beam.CombineGlobally(Gather(len(self._labels)))
            | "Write" >> beam.Map(_write, *self._how)
        )
        return extracts


def _row(extracts: Any, model: str) -> tuple[bytes, int, np.ndarray]:
    """Of one row, as TFMA's own extractors leave it: its tf.Example, label id, and scores [C]."""
    said, has = (extracts[key] for key in (tfma.PREDICTIONS_KEY, tfma.LABELS_KEY))
    if model:  # there is a baseline, too
        said, has = said[model], has[model]
    scores, label = np.asarray(said["scores"]), int(np.asarray(has).reshape(()))
    return bytes(np.asarray(extracts[tfma.INPUT_KEY]).reshape(()).item()), label, scores


class Gather(beam.CombineFn):
    """Rows into `Seen`."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._counted = classes if classes <= LABELS else 0

    def create_accumulator(self) -> Seen:
        """Of no rows."""
        return Seen([], np.zeros((self._counted, 2, BINS), np.int64))

    def add_input(self, seen: Seen, row: tuple[bytes, int, np.ndarray]) -> Seen:
        """One more row."""
        example, label, scores = row
        said = int(scores.argmax())
        if said != label:
            _keep(seen.mistakes, [(float(scores[said]), example, label, said)])
        if self._counted and label >= 0:
            places = np.clip(np.nan_to_num(scores) * BINS, 0, BINS - 1).astype(int)
            has = np.arange(self._counted) == label
            seen.scores[np.arange(self._counted), has.astype(int), places] += 1
        return seen

    def merge_accumulators(self, parts: Iterable[Seen]) -> Seen:
        """What was gathered elsewhere, together."""
        whole = self.create_accumulator()
        for part in parts:
            _keep(whole.mistakes, part.mistakes)
            whole.scores += part.scores
        return whole

    def extract_output(self, seen: Seen) -> Seen:
        """As it is."""
        return seen


def _keep(heap: list[_Mistake], more: Iterable[_Mistake]) -> None:
    for one in more:
        if len(heap) < MISTAKES:
            heapq.heappush(heap, one)
        else:
            heapq.heappushpop(heap, one)


def _write(seen: Seen, labels: list[str], columns: list[str], images: bool, folder: str) -> None:
    facts = {
        "mistakes": [
            {
                **_shown(example, columns, images),
                "is": labels[label] if label >= 0 else "a label that training did not see",
                "said": labels[said],
                "score": score,
            }
            for score, example, label, said in sorted(seen.mistakes, reverse=True)
        ],
        "scores": {
            label: {"without": counts[0].tolist(), "with": counts[1].tolist()}
            for label, counts in zip(labels, seen.scores, strict=False)
        },
    }
    with tf.io.TFRecordWriter(os.path.join(folder, EXAMPLES)) as examples:
        for _, example, *_ in sorted(seen.mistakes, reverse=True):
            examples.write(example)
    io_utils.write_string_file(os.path.join(folder, FILE), json.dumps(facts))


def _shown(example: bytes, columns: list[str], images: bool) -> dict[str, str]:
    """A row as a person knows it: its texts, or its picture and where that lies."""
    features = tf.train.Example.FromString(example).features.feature
    found = [v for name in ([PATH] if images else columns) for v in features[name].bytes_list.value]
    text = " | ".join(value.decode(errors="replace") for value in found)[:500]
    if not images:
        return {"text": text}
    return {"text": text, "image": _thumbnail(features[columns[0]].bytes_list.value[0])}


def _thumbnail(picture: bytes) -> str:
    """A small PNG in base64; nothing for what PIL refuses, though TensorFlow reads it."""
    small = io.BytesIO()
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            opened.thumbnail((THUMBNAIL, THUMBNAIL))
            opened.convert("RGB").save(small, "PNG")
    except Exception:  # PIL has errors of many kinds, and none of them is worth a run
        return ""
    return base64.b64encode(small.getvalue()).decode()
