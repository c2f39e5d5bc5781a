"""From a trained model and its transform graph to a SavedModel that takes raw columns.

Signatures: `serving_default` (raw texts or encoded pictures) and `serve_examples` (serialized
tf.Examples, for TFMA) give `scores` float32 [B, C] and `label` string [B]: the likeliest, or,
where labels do not exclude each other, all with a score of 0.5 or more, with | between them.
`transform_features` gives the transformed features, of rows that need no label. `transform_label`
gives `espalier_label` alone, so that TFMA does not decode pictures again: int64 [B], or float32
[B, C] of 0 and 1.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import ComponentError
from . import sample, serving_ops, warmup
from .input import Shape, model_inputs
from .preprocess import INPUTS, LABEL, one_string, sparse_strings

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

    from .serving_graph import Graph, Served

# TFMA puts it among a row's features, and slices by those: no column may have its name.
FOR_TFMA = "espalier_label"
DESCRIPTION = os.path.join("assets.extra", "espalier.json")
COMPRESSION = "compression"  # in a description: what has changed the model
TRANSFORM = os.path.join("assets.extra", "transform_graph")


@dataclass(frozen=True)
class Columns:
    """The raw columns: the inputs' by their served names, and the label's.

    `pixel_shapes` are those of the features that Transform packs pixels into.
    """

    inputs: Mapping[str, str]
    label: str
    pixel_shapes: Mapping[str, Shape] = field(default_factory=dict)

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> "Columns":
        """Those of a version, out of its description."""
        inputs = dict(zip(INPUTS[facts["kind"]], facts["inputs"], strict=False))
        shapes = {name: tuple(shape) for name, shape in facts.get("pixel_shapes", {}).items()}
        return cls(inputs, facts["label_column"], shapes)


def export(
    served: "Served",
    transform_output: "tft.TFTransformOutput",
    labels: Sequence[str],
    columns: Columns,
    path: str,
    description: dict[str, Any],
    multi_label: bool = False,
) -> None:
    """Write the SavedModel, and beside it what it is as `assets.extra/espalier.json`.

    A model that `compression` has not changed gets a copy of the transform graph too, so that
    `espalier compress` can begin with a pushed version and nothing else.

    Args:
        served: the model's graph, and the weights that it reads.
        transform_output: the graph that preprocesses raw columns.
        labels: the C labels, in the order of the logits.
        columns: which raw columns are read.
        path: a folder that does not exist yet, or is empty.
        description: JSON-ready facts stored with the model.
        multi_label: whether scores are a sigmoid of each logit, not a softmax over all.

    Raises:
        ComponentError: if the graph has an op that stock TensorFlow Serving does not know.
    """
    import tf_keras as keras

    transform = transform_output.transform_features_layer()
    archive = keras.export.ExportArchive()
    archive.transform = transform  # tables and assets; it has no weights to track()
    spec = transform_output.raw_feature_spec()
    signatures = _Signatures(served.graph, transform, spec, labels, columns, multi_label)
    signatures.add_to(archive)
    archive.stored = served.weights.tracked  # all of them: the proof has traced the graph
    archive.write_out(path)
    unknown = serving_ops.unknown_ops(path)
    if unknown:
        raise ComponentError(
            f"The exported graph uses {', '.join(unknown)}, which stock TensorFlow Serving 2.13 to "
            f"2.19 does not have: it would load the model and fail on every request. Express "
            f"it with other ops in the family's preprocess() or build()."
        )
    file = os.path.join(path, DESCRIPTION)
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "w", encoding="utf-8") as out:
        facts = {
            "inputs": list(columns.inputs.values()),
            "label_column": columns.label,
            "multi_label": multi_label,
            "kind": "image" if columns.pixel_shapes else "text",
            "pixel_shapes": dict(columns.pixel_shapes),
            "graph": served.facts,
        }
        json.dump({"labels": list(labels), **facts, **description}, out)
    warmup.write(path, list(columns.inputs), columns.pixel_shapes)
    fewer_bits = bool(served.facts.get("needs"))
    sample.write(path, columns.inputs, columns.pixel_shapes, signatures.serve, fewer_bits)
    if COMPRESSION not in description:
        folder = os.path.join(path, TRANSFORM)
        _copy_folder(os.path.dirname(transform_output.transform_savedmodel_dir), folder)


def describe(path: str) -> dict[str, Any]:
    """What `export` stored beside the SavedModel at `path`."""
    with open(os.path.join(path, DESCRIPTION), encoding="utf-8") as file:
        return json.load(file)


def describe_any(path: str) -> dict[str, Any]:
    """The same of any SavedModel: empty for one that is not ours."""
    try:
        return describe(path)
    except (OSError, ValueError):
        return {}


def _copy_folder(source: str, to: str) -> None:
    from tensorflow import io

    for folder, _, names in io.gfile.walk(source):
        target = os.path.join(to, os.path.relpath(folder, source))
        io.gfile.makedirs(target)
        for name in names:
            io.gfile.copy(os.path.join(folder, name), os.path.join(target, name))


class _Signatures:
    def __init__(
        self,
        graph: "Graph",
        transform: Any,
        raw_spec: Any,
        labels: Sequence[str],
        columns: Columns,
        multi_label: bool,
    ) -> None:
        self._graph, self._transform, self._raw_spec = graph, transform, raw_spec
        self._labels, self._columns, self._multi_label = list(labels), columns, multi_label
        self.serve: Any = None

    def add_to(self, archive: Any) -> None:
        import tensorflow as tf

        plain = tf.autograph.experimental.do_not_convert  # as in fit.compile_model
        strings = [tf.TensorSpec([None], tf.string, name=name) for name in self._columns.inputs]
        examples = [tf.TensorSpec([None], tf.string, name="examples")]
        for name, function, signature in (
            ("serving_default", self._serve_raw, strings),
            ("serve_examples", self._serve_examples, examples),
            ("transform_features", self._transform_all, examples),
            ("transform_label", self._transform_label, examples),
        ):
            endpoint = tf.function(plain(function), input_signature=signature)
            endpoint.get_concrete_function()
            archive.add_endpoint(name, endpoint)
            if name == "serving_default":
                self.serve = endpoint

    def _serve_raw(self, *columns: "tf.Tensor") -> Any:
        names = self._columns.inputs.values()
        return self._predict(
            {name: self._as_raw(name, values) for name, values in zip(names, columns, strict=True)}
        )

    def _serve_examples(self, examples: "tf.Tensor") -> Any:
        return self._predict(self._parse(examples, self._columns.inputs.values()))

    def _transform_all(self, examples: "tf.Tensor") -> Any:
        return self._transform(self._parse(examples, self._columns.inputs.values()))

    def _transform_label(self, examples: "tf.Tensor") -> Any:
        # Not through the transform graph: its look at a picture's size runs even if unused.
        import tensorflow as tf

        raw = self._parse(examples, [self._columns.label])[self._columns.label]
        if self._multi_label:
            given = sparse_strings(raw)
            rows = tf.sparse.to_dense(given, default_value="")[:, :, tf.newaxis]
            known = tf.reduce_any(rows == tf.constant(self._labels), axis=1)  # (B, C)
            return {FOR_TFMA: tf.cast(known, tf.float32)}
        known = one_string(raw)[:, tf.newaxis] == tf.constant(self._labels)  # (B, C)
        place = tf.argmax(tf.cast(known, tf.int32), axis=1)
        return {FOR_TFMA: tf.where(tf.reduce_any(known, axis=1), place, -1)}

    def _parse(self, examples: "tf.Tensor", names: Iterable[str]) -> Any:
        import tensorflow as tf

        return tf.io.parse_example(examples, {name: self._raw_spec[name] for name in names})

    def _as_raw(self, name: str, values: "tf.Tensor") -> Any:
        import tensorflow as tf

        spec = self._raw_spec[name]
        column = values[:, tf.newaxis]
        if isinstance(spec, tf.io.VarLenFeature):
            return tf.sparse.from_dense(column)
        return tf.reshape(values, [-1, *spec.shape])

    def _predict(self, raw: dict[str, Any]) -> dict[str, "tf.Tensor"]:
        import tensorflow as tf

        transformed = self._transform(raw)
        transformed.pop(LABEL, None)
        logits = self._graph(model_inputs(transformed, self._columns.pixel_shapes))
        names = tf.constant(self._labels)
        if not self._multi_label:
            scores = tf.nn.softmax(logits, axis=-1)
            return {"scores": scores, LABEL: tf.gather(names, tf.argmax(scores, axis=-1))}
        scores = tf.sigmoid(logits)
        chosen = tf.ragged.boolean_mask(tf.broadcast_to(names, tf.shape(scores)), scores >= 0.5)
        return {"scores": scores, LABEL: tf.strings.reduce_join(chosen, axis=-1, separator="|")}
