"""A model's serving graph, and the proof that it answers as the Keras model does.

The proof is made at each export, on rows that the training did not see and on odd ones. A graph
that differs is not served: the Keras graph takes its place.
"""

import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from . import hardware
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

if TYPE_CHECKING:
    pass

progress = logging.getLogger("espalier.progress")

_ROWS, _BATCH, _ALONE = 256, 32, 16  # rows that are asked: in all, at once, one by one
_CALIBRATION = 10  # batches that give int8's ranges
_DIFFERENCE = 1e-4  # of logits, in float32
# (least share of rows that are answered alike, largest loss of accuracy), or one row.
_BOUNDS = {"bf16": (0.99, 0.002), "int8": (0.9, 0.01)}


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

    Its facts: `kind` (lean or keras), `cpu`, `needs` (see `hardware.lacking`), `proof` (rows,
    difference of logits, agreement, accuracy of the Keras graph and of this one), `ranges` for
    int8, and `verdict`, a sentence.

    Args:
        family, settings: the model's.
        weights: of its unrolled model.
        cpu: any, bf16, int8 or auto.
        train: rows that give int8 its ranges.
        evaluation: rows of the proof.
        layers: where a student has fewer.
        multi_label: whether labels do not exclude each other.

    Raises:
        ConfigError: see `hardware.choose`.
    """
    # Each graph has resources of its own: what one does not read shall not be loaded with it.
    bare = Weights(weights.model, weights.formats)
    plain = keras_graph(bare)
    facts: dict[str, Any] = {"kind": "keras", "cpu": "any", "needs": []}
    if not hasattr(family, "serving_graph"):
        verdict = f"The Keras graph: {settings.family} has no serving graph of its own."
        return Served(plain, bare, {**facts, "verdict": verdict})
    cpu = hardware.choose(cpu, family.SERVED)

    def write(ops: Ops) -> Graph:
        graph: Graph = family.serving_graph(settings, ops, layers)
        return graph

    ranges: Ranges = {}
    if cpu == "int8":
        rows = batches(train, _BATCH, shuffle_seed=1).take(_CALIBRATION)
        ranges = calibrated(write, weights, (features for features, _ in rows))
    required = hardware.needs(cpu)
    dtype = tf.bfloat16 if hardware.BFLOAT16 in required else tf.float32
    lean = write(Ops(weights, cpu, dtype, ranges))
    found = _compare(plain, lean, evaluation, multi_label)
    if why := _fault(found, cpu):
        verdict = f"The Keras graph, not the serving graph for {cpu}: {why}."
        progress.info("%s", verdict)
        return Served(plain, bare, {**facts, "proof": found, "verdict": verdict})
    verdict = f"The serving graph for {cpu}: {_words(found)}."
    facts = {"kind": "lean", "cpu": cpu, "needs": required, "proof": found, "verdict": verdict}
    return Served(lean, weights, {**facts, "ranges": ranges} if ranges else facts)


def _compare(plain: Graph, lean: Graph, evaluation: Source, multi_label: bool) -> dict[str, Any]:
    """The two graphs' answers to real and to odd rows."""
    ask, ask_lean = _function(plain), _function(lean)
    difference, largest = 0.0, 1.0
    answers: list[list[np.ndarray]] = [[], [], []]
    for features, label in _rows(evaluation):
        theirs, ours = ask(features), ask_lean(features)
        difference = float(np.maximum(difference, np.abs(theirs - ours).max()))  # keeps a NaN
        largest = max(largest, float(np.abs(theirs).max()))
        if label is not None:
            for kept, new in zip(answers, (theirs, ours, label.numpy()), strict=True):
                kept.append(new)
    theirs, ours, label = (np.concatenate(kept) for kept in answers)
    rows = len(label)
    if multi_label:
        theirs, ours, label = theirs > 0, ours > 0, label > 0
    else:
        theirs, ours, label = (one.argmax(axis=1) for one in (theirs, ours, label))
    return {
        "rows": rows,
        "difference": difference,
        "largest_logit": largest,
        "agreement": float(np.mean(theirs == ours)),
        "accuracy": [float(np.mean(theirs == label)), float(np.mean(ours == label))],
    }


def _function(graph: Graph) -> Callable[[Features], np.ndarray]:
    """As it runs in a server; AutoGraph would rewrite it to no effect."""
    plain = tf.autograph.experimental.do_not_convert(lambda features: graph(features))
    function = tf.function(plain, reduce_retracing=True)
    return lambda features: function(dict(features)).numpy()


def _rows(evaluation: Source) -> Iterator[tuple[Features, tf.Tensor | None]]:
    """(features, labels) of batches, then single rows and odd ones, which have no label."""
    first = None
    for features, label in batches(evaluation, _BATCH, group=False).take(_ROWS // _BATCH):
        first = features if first is None else first
        yield features, label
    if first is None:
        return
    for place in range(min(_ALONE, int(next(iter(first.values())).shape[0]))):
        yield {name: values[place : place + 1] for name, values in first.items()}, None
    if evaluation.sequence:
        ids = first[evaluation.sequence[0]]
        for odd in (
            ids[:, :1],  # one token
            tf.where(tf.range(ids.shape[1]) < 2, ids, 0),  # an empty text: the two that mark it
            tf.where(ids == 0, ids[:, 1:2], ids),  # as long as can be
        ):
            zeros = {name: tf.zeros_like(odd) for name in first}
            yield {**zeros, evaluation.sequence[0]: odd}, None


def _fault(found: dict[str, Any], cpu: str) -> str:
    """Why a graph with these answers is not served; empty if it is."""
    if not np.isfinite(found["difference"]):
        return "its answers are no numbers"
    if cpu == "any":
        bound = _DIFFERENCE * found["largest_logit"]
        if found["difference"] <= bound:
            return ""
        return f"its logits differ by {found['difference']:.2g}, {bound:.2g} is allowed"
    alike, loss = _BOUNDS[cpu]
    row = 1 / found["rows"]
    before, after = found["accuracy"]
    if found["agreement"] < min(alike, 1 - row):
        return f"it answers {found['agreement']:.4f} of the rows alike, {alike} is the least"
    if before - after > max(loss, row):
        return f"its accuracy is {after:.4f} where Keras' is {before:.4f}, {loss} less is allowed"
    return ""


def _words(found: dict[str, Any]) -> str:
    return (
        f"{found['rows']} rows agree to {found['agreement']:.4f}, logits differ by "
        f"{found['difference']:.1g} at most"
    )
