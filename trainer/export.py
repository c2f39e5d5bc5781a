"""From a trained model and its transform graph to a SavedModel that takes raw columns.

Signatures: `serving_default` (raw texts), `serve_examples` (serialized tf.Examples, for TFMA)
give `scores` float32 [B, C] and `label` string [B]; `transform_features` gives the transformed
features and `label` int64 [B], for TFMA.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ComponentError
from . import serving_ops
from .input import narrow
from .preprocess import LABEL, TEXT_INPUTS

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft
    import tf_keras as keras

DESCRIPTION = os.path.join("assets.extra", "espalier.json")


@dataclass(frozen=True)
class Columns:
    """The raw columns: the text's one or two, and the label's."""

    texts: Sequence[str]
    label: str


def export(
    model: "keras.Model",
    transform_output: "tft.TFTransformOutput",
    labels: Sequence[str],
    columns: Columns,
    path: str,
    description: dict[str, Any],
) -> None:
    """Write the SavedModel, and beside it what it is as `assets.extra/espalier.json`.

    Args:
        model: float32 features -> logits [B, C].
        transform_output: the graph that preprocesses raw columns.
        labels: the C labels, in the order of the logits.
        columns: which raw columns are read.
        path: a folder that does not exist yet, or is empty.
        description: JSON-ready facts stored with the model.

    Raises:
        ComponentError: if the graph has an op that stock TensorFlow Serving does not know.
    """
    import tf_keras as keras

    transform = transform_output.transform_features_layer()
    archive = keras.export.ExportArchive()
    archive.track(model)
    archive.transform = transform  # tables and assets; it has no weights to track()
    signatures = _Signatures(model, transform, transform_output.raw_feature_spec(), labels, columns)
    signatures.add_to(archive)
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
        facts = {"inputs": list(columns.texts), "label_column": columns.label}
        json.dump({"labels": list(labels), **facts, **description}, out)


def describe(path: str) -> dict[str, Any]:
    """What `export` stored beside the SavedModel at `path`."""
    with open(os.path.join(path, DESCRIPTION), encoding="utf-8") as file:
        return json.load(file)


class _Signatures:
    def __init__(
        self, model: Any, transform: Any, raw_spec: Any, labels: Sequence[str], columns: Columns
    ) -> None:
        self._model, self._transform, self._raw_spec = model, transform, raw_spec
        self._labels, self._columns = list(labels), columns

    def add_to(self, archive: Any) -> None:
        import tensorflow as tf

        plain = tf.autograph.experimental.do_not_convert  # as in fit.compile_model
        inputs = TEXT_INPUTS[: len(self._columns.texts)]
        strings = [tf.TensorSpec([None], tf.string, name=name) for name in inputs]
        examples = [tf.TensorSpec([None], tf.string, name="examples")]
        archive.add_endpoint("serving_default", plain(self._serve_raw), input_signature=strings)
        archive.add_endpoint(
            "serve_examples", plain(self._serve_examples), input_signature=examples
        )
        archive.add_endpoint(
            "transform_features", plain(self._transform_all), input_signature=examples
        )

    def _serve_raw(self, text: "tf.Tensor", text_pair: "tf.Tensor | None" = None) -> Any:
        texts = [text] if text_pair is None else [text, text_pair]
        return self._predict(
            {
                name: self._as_raw(name, values)
                for name, values in zip(self._columns.texts, texts, strict=True)
            }
        )

    def _serve_examples(self, examples: "tf.Tensor") -> Any:
        import tensorflow as tf

        spec = {name: self._raw_spec[name] for name in self._columns.texts}
        return self._predict(tf.io.parse_example(examples, spec))

    def _transform_all(self, examples: "tf.Tensor") -> Any:
        import tensorflow as tf

        names = [*self._columns.texts, self._columns.label]
        spec = {name: self._raw_spec[name] for name in names}
        features = self._transform(tf.io.parse_example(examples, spec))
        return {**features, LABEL: tf.cast(features[LABEL], tf.int64)}

    def _as_raw(self, name: str, values: "tf.Tensor") -> Any:
        import tensorflow as tf

        spec = self._raw_spec[name]
        column = values[:, tf.newaxis]
        if isinstance(spec, tf.io.VarLenFeature):
            return tf.sparse.from_dense(column)
        return tf.reshape(values, [-1, *spec.shape])

    def _predict(self, raw: dict[str, Any]) -> dict[str, "tf.Tensor"]:
        import tensorflow as tf

        features = {
            name: narrow(values) for name, values in self._transform(raw).items() if name != LABEL
        }
        scores = tf.nn.softmax(self._model(features, training=False), axis=-1)
        best = tf.gather(tf.constant(self._labels), tf.argmax(scores, axis=-1))
        return {"scores": scores, LABEL: best}
