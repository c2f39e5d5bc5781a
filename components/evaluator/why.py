"""Why the model said what it said of the rows of which it was surest, and wrong."""

import json
import os
import time
from typing import Any

import tensorflow as tf
from tfx.utils import io_utils

from ...trainer import explain
from . import closer

FILE = "why.json"
_MOST, _SECONDS = 5, 20.0
_POINTS = 64  # a large model takes a second for each ten


def write(evaluation: str, model: str) -> None:
    """Write why.json beside closer.json: `explanations`, each `explain.facts`, worst mistake first.

    There are five at most, and fewer where they would take more than 20 seconds. What cannot be
    explained never fails a run: `problem` then says why.

    Args:
        evaluation: the evaluation's folder.
        model: the SavedModel's folder.
    """
    if not tf.io.gfile.exists(os.path.join(evaluation, closer.EXAMPLES)):
        return
    found: dict[str, Any] = {"explanations": [], "problem": ""}
    try:
        _explain(evaluation, model, found["explanations"])
    except Exception as error:  # whatever it is, the evaluation stands
        found["problem"] = f"{type(error).__name__}: {error}"[:500]
    io_utils.write_string_file(os.path.join(evaluation, FILE), json.dumps(found))


def _explain(evaluation: str, model: str, explanations: list[dict[str, Any]]) -> None:
    told = json.loads(io_utils.read_string_file(os.path.join(evaluation, closer.FILE)))
    if not told["mistakes"]:
        return
    end, explainer = time.monotonic() + _SECONDS, explain.Explainer(model, _POINTS)
    examples = tf.data.TFRecordDataset(os.path.join(evaluation, closer.EXAMPLES))
    rows = zip(told["mistakes"][:_MOST], examples.as_numpy_iterator(), strict=False)
    for mistake, example in rows:
        if time.monotonic() > end:
            break
        # Of several labels a row, the mistake may be one that was not said.
        said = (mistake["said"], mistake["said"].removeprefix("not "))
        label = next((one for one in said if one in explainer.labels), None)
        explanations.append(explain.facts(explainer(example, label)))
