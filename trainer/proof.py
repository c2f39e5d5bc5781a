"""A model's serving graph, and the proof that it answers as the Keras model does.

The proof is made at each export, on rows that the training did not see and on odd ones. A graph
that differs is not served: the Keras graph takes its place.
"""

import logging
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import tensorflow as tf

from .. import cpu as cpus
from ..errors import ComponentError
from .compression.job import compiled
from .input import Source, batches
from .serving_graph import (
    Features,
    Graph,
    Ops,
    Ranges,
    Served,
    Weights,
    calibrated,
    keras_graph,
)

progress = logging.getLogger("espalier.progress")

_ROWS, _BATCH, _ALONE = 256, 32, 16  # rows that are asked: in all, at once, one by one
# What serves is a CPU; a GPU that trains rounds otherwise.
_CPU = "/CPU:0"
_CALIBRATION = 10  # batches that give int8's ranges
# The largest difference of logits, as a share of the largest logit.
_DIFFERENCE = {"any": 1e-4, "bf16": 0.1, "int8": 0.5}
# Share of rows that may be answered otherwise, that may be wrong and were right; one row at least.
_BOUNDS = {"any": (0.0, 0.0), "bf16": (0.01, 0.002), "int8": (0.1, 0.01)}


def served(
    family: ModuleType,
    settings: Any,
    weights: Weights,
    cpu: str,
    train: Source,
    evaluation: Source,
    *,
    layers: int | None = None,
    multi_label: bool = False,
) -> Served:
    """The graph that a model is exported with.

    Its facts: `kind` (lean or keras), `wanted` and `cpu` (what it is), `needs` (see
    `cpu.lacking`), `proof` (rows, difference of logits, rows answered alike, rows that the
    Keras graph and this one have right), `ranges` for int8, and `verdict`, a sentence.

    Args:
        family, settings: the model's.
        weights: of its unrolled model.
        cpu: any, bf16, int8 or auto.
        train: rows that give int8 its ranges.
        evaluation: rows of the proof.
        layers: where a student has fewer.
        multi_label: whether labels do not exclude each other.

    Raises:
        ConfigError: see `cpu.choose`.
        ComponentError: a weight is not finite; not every row meets it, so no metric may show it.
    """
    if broken := weights.broken():
        raise ComponentError(
            f"the model has weights that are not finite (NaN or infinite), in {broken}: it is not "
            f"exported. Lower train.learning_rate, or train in float32 (train.precision)."
        )
    # Each graph has resources of its own: what one does not read shall not be loaded with it.
    bare = Weights(weights.model, weights.formats)
    plain = keras_graph(bare)
    facts: dict[str, Any] = {"kind": "keras", "wanted": cpu, "cpu": "any", "needs": []}
    if not hasattr(family, "serving_graph"):
        verdict = f"The Keras graph: {settings.family} has no serving graph of its own."
        return Served(plain, bare, {**facts, "verdict": verdict})
    wanted, cpu = cpu, cpus.choose(cpu, family.SERVED)

    def write(ops: Ops) -> Graph:
        graph: Graph = family.serving_graph(settings, ops, layers)
        return graph

    ranges: Ranges = {}
    if cpu == "int8":
        rows = batches(train, _BATCH, shuffle_seed=1).take(_CALIBRATION)
        with tf.device(_CPU):
            own = Weights(weights.model, weights.formats)
            ranges = calibrated(write, own, (features for features, _ in rows))
    required = cpus.needs(cpu)
    dtype = tf.bfloat16 if cpus.BFLOAT16 in required else tf.float32
    lean = write(Ops(weights, cpu, dtype, ranges))
    with tf.device(_CPU):
        found = _compare(plain, lean, evaluation, multi_label)
    if why := _fault(found, cpu):
        verdict = f"The Keras graph, not the serving graph for {cpu}: {why}."
        progress.info("%s", verdict)
        return Served(plain, bare, {**facts, "proof": found, "verdict": verdict})
    verdict = f"The serving graph for {cpu}: {_words(found)}."
    facts = {"kind": "lean", "wanted": wanted, "cpu": cpu, "needs": required, "proof": found}
    facts |= {"verdict": verdict, **({"ranges": ranges} if ranges else {})}
    return Served(lean, weights, facts)


def _compare(plain: Graph, lean: Graph, evaluation: Source, multi_label: bool) -> dict[str, Any]:
    """The two graphs' answers to real and to odd rows."""
    ask, ask_lean = compiled(plain), compiled(lean)
    difference, largest = 0.0, 1.0
    answers: list[list[np.ndarray]] = [[], [], []]
    for features, label in _rows(evaluation):
        theirs, ours = (one(dict(features)).numpy() for one in (ask, ask_lean))
        difference = float(np.maximum(difference, np.abs(theirs - ours).max()))  # keeps a NaN
        largest = max(largest, float(np.abs(theirs).max()))
        if label is not None:
            for kept, new in zip(answers, (theirs, ours, label.numpy()), strict=True):
                kept.append(new)
    theirs, ours, label = (np.concatenate(kept) for kept in answers)
    if multi_label:
        theirs, ours, label = theirs > 0, ours > 0, label > 0
    else:
        theirs, ours, label = (one.argmax(axis=1)[:, None] for one in (theirs, ours, label))

    def alike(one: np.ndarray, other: np.ndarray) -> int:
        return int((one == other).all(axis=1).sum())

    return {
        "rows": len(label),
        "difference": difference if np.isfinite(difference) else None,
        "largest_logit": largest,
        "alike": alike(theirs, ours),
        "right": [alike(theirs, label), alike(ours, label)],
    }


def _rows(evaluation: Source) -> Iterator[tuple[Features, tf.Tensor | None]]:
    """(features, labels) of batches and of single rows; then odd rows, which have no label."""
    first, labels = None, None
    for features, label in batches(evaluation, _BATCH, group=False).take(_ROWS // _BATCH):
        if first is None:
            first, labels = features, label
        yield features, label
    if first is None or labels is None:
        return
    for place in range(min(_ALONE, int(labels.shape[0]))):
        one = slice(place, place + 1)
        yield {name: values[one] for name, values in first.items()}, labels[one]
    if evaluation.sequence:
        ids = first[evaluation.sequence[0]]
        for odd in (
            ids[:, :1],  # one token
            _ends(ids),  # an empty text
            tf.where(ids == 0, ids[:, 1:2], ids),  # as long as can be
        ):
            zeros = {name: tf.zeros_like(odd) for name in first}
            yield {**zeros, evaluation.sequence[0]: odd}, None


def _ends(ids: tf.Tensor) -> tf.Tensor:
    """The first and the last token of each text, which mark an empty one."""
    lengths = tf.math.count_nonzero(ids, axis=1, dtype=tf.int32)
    last = tf.gather(ids, tf.maximum(lengths - 1, 0), batch_dims=1)
    pair = tf.stack([ids[:, 0], last], axis=1)
    return tf.pad(pair, [[0, 0], [0, int(ids.shape[1]) - 2]])


def _fault(found: dict[str, Any], cpu: str) -> str:
    """Why a graph with these answers is not served; empty if it is."""
    if found["difference"] is None:
        return "its answers, or those of Keras, are no numbers"
    bound = _DIFFERENCE[cpu] * found["largest_logit"]
    if found["difference"] > bound:
        return f"its logits differ by {found['difference']:.2g}, {bound:.2g} is allowed"
    rows = found["rows"]
    otherwise, wrong = (max(1, int(share * rows)) for share in _BOUNDS[cpu])
    if rows - found["alike"] > otherwise:
        return (
            f"it answers {rows - found['alike']} of {rows} rows otherwise, {otherwise} are allowed"
        )
    lost = found["right"][0] - found["right"][1]
    if lost > wrong:
        return f"it has {lost} of {rows} rows less right, {wrong} are allowed"
    return ""


def _words(found: dict[str, Any]) -> str:
    return (
        f"{found['alike']} of {found['rows']} rows are answered alike, logits differ by "
        f"{found['difference']:.1g} at most"
    )
