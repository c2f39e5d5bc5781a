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

_Mistake = tuple[float, bytes, str, str]  # score, the tf.Example, what it is, what was said


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
    """Our extractor, for the candidate."""
    models = eval_shared_model if isinstance(eval_shared_model, list) else [eval_shared_model]
    model = describe(models[0].model_path)
    name = models[0].model_name if len(models) > 1 else ""
    images = model.get("kind") == "image"
    rows = Gather(model["labels"], model["multi_label"])
    look = _Look(name, rows, model["inputs"], images, FOLDER.get())
    return [tfma.extractors.Extractor("CloserLook", look)]


class _Look(beam.PTransform):
    """Passes extracts on as they are, and writes closer.json and the mistakes' tf.Examples."""

    def __init__(
        self, model: str, rows: "Gather", columns: list[str], images: bool, folder: str
    ) -> None:
        super().__init__()
        self._model, self._rows = model, rows
        self._how = (rows.labels, columns, images, folder)

    def expand(self, extracts: Any) -> Any:
        """See beam.PTransform."""
        _ = (
            extracts
            | "Rows" >> beam.Map(_row, self._model)
            | "Gather" >> beam.CombineGlobally(self._rows)
            | "Write" >> beam.Map(_write, *self._how)
        )
        return extracts


def _row(extracts: Any, model: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Of one row, as TFMA's own extractors leave it: its tf.Example, its label's id or, where it
    may have several, 1 for each that it has [C], and its scores [C]."""
    said, has = (extracts[key] for key in (tfma.PREDICTIONS_KEY, tfma.LABELS_KEY))
    if model:  # there is a baseline, too
        said, has = said[model], has[model]
    example = bytes(np.asarray(extracts[tfma.INPUT_KEY]).reshape(()).item())
    return example, np.asarray(has).reshape(-1), np.asarray(said["scores"])


class Gather(beam.CombineFn):
    """Rows into `Seen`.

    Args:
        labels: the C labels.
        multi_label: whether a row may have any number of them.
    """

    def __init__(self, labels: list[str], multi_label: bool) -> None:
        super().__init__()
        self.labels, self._several = labels, multi_label
        self._counted = len(labels) if len(labels) <= LABELS else 0

    def create_accumulator(self) -> Seen:
        """Of no rows."""
        return Seen([], np.zeros((self._counted, 2, BINS), np.int64))

    def add_input(self, seen: Seen, row: tuple[bytes, np.ndarray, np.ndarray]) -> Seen:
        """One more row."""
        example, given, scores = row
        judge = self._of_several if self._several else self._of_one
        if wrong := judge(given, scores):
            score, is_, said = wrong
            _keep(seen.mistakes, [(score, example, is_, said)])
        if self._counted and (self._several or given[0] >= 0):
            every = np.arange(self._counted)
            has = given > 0 if self._several else every == given[0]
            places = np.clip(np.nan_to_num(scores) * BINS, 0, BINS - 1).astype(int)
            seen.scores[every, has.astype(int), places] += 1
        return seen

    def _of_one(self, given: np.ndarray, scores: np.ndarray) -> tuple[float, str, str] | None:
        """Score, what the row is and what was said, if that is wrong."""
        label, said = int(given[0]), int(scores.argmax())
        if said == label:
            return None
        is_ = self.labels[label] if label >= 0 else "a label that training did not see"
        return float(scores[said]), is_, self.labels[said]

    def _of_several(self, given: np.ndarray, scores: np.ndarray) -> tuple[float, str, str] | None:
        """The same of the label about which the model was surest, and wrong."""
        scores = np.nan_to_num(scores)
        said, has = scores >= 0.5, given > 0  # as trainer.export says them
        sure = np.where(said != has, np.maximum(scores, 1 - scores), -1)
        worst = int(sure.argmax())
        if sure[worst] < 0:
            return None
        yes, no = self.labels[worst], f"not {self.labels[worst]}"
        is_, was_said = (yes, no) if has[worst] else (no, yes)
        return float(sure[worst]), is_, was_said

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
                "is": is_,
                "said": said,
                "score": score,
            }
            for score, example, is_, said in sorted(seen.mistakes, reverse=True)
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
