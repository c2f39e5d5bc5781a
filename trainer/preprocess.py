"""All of preprocessing, as one TensorFlow Transform graph: training and serving see the same."""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from . import families, wordpiece

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

LABEL = "label"
LABELS_PREFIX = "labels-"
# What the served model's raw inputs are called, by the kind of a family's features.
INPUTS = {"text": ("text", "text_pair"), "image": ("image_bytes",)}


def preprocessing_fn(inputs: dict[str, Any], custom_config: dict[str, Any]) -> dict[str, Any]:
    """Turn raw columns into the family's features and an int64 label.

    Args:
        inputs: raw columns, dense [B, 1], [B] or sparse.
        custom_config: {"inputs": {served name: column}, "label": column, "multi_label": bool,
            "model": settings}.

    Returns:
        The family's features, and `label`: int64 [B], the label's place in sorted order, -1 for
        one that no training row has; with several labels a row, a sparse [B, any] of them.
    """
    family = families.load(custom_config["model"]["family"])
    settings = family.Settings(**custom_config["model"])
    raw = {name: one_string(inputs[column]) for name, column in custom_config["inputs"].items()}
    label = inputs[custom_config["label"]]
    label = sparse_strings(label) if custom_config["multi_label"] else one_string(label)
    return {**family.preprocess(raw, settings), LABEL: _label_ids(label)}


def labels(transform_output: "tft.TFTransformOutput") -> list[str]:
    """The labels in the order of their ids."""
    import tensorflow as tf

    folder = os.path.join(transform_output.transform_savedmodel_dir, "assets")
    (path,) = tf.io.gfile.glob(os.path.join(folder, f"{LABELS_PREFIX}*"))
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read().decode("utf-8").split("\n")[:-1]


def one_string(values: Any) -> "tf.Tensor":
    """One string per row, [B], out of a dense or a sparse column of strings or integers."""
    import tensorflow as tf

    if isinstance(values, tf.SparseTensor):
        # TFX's Parquet reader drops zeros; a label that is really missing stops in pre-flight.
        empty = "" if values.dtype == tf.string else 0
        values = tf.sparse.to_dense(
            tf.sparse.reset_shape(values, [tf.shape(values, tf.int64)[0], 1]), empty
        )
    values = tf.reshape(values, [-1])
    return values if values.dtype == tf.string else tf.strings.as_string(values)


def sparse_strings(values: Any) -> "tf.SparseTensor":
    """Any number of strings a row, [B, any]."""
    import tensorflow as tf

    return values if isinstance(values, tf.SparseTensor) else tf.sparse.from_dense(values)


def _label_ids(label: Any) -> Any:
    import tensorflow as tf
    import tensorflow_transform as tft

    strings = label.values if isinstance(label, tf.SparseTensor) else label
    (path,) = tft.experimental.ptransform_analyzer(
        [strings], _sorted_labels(), [tf.string], [[]], output_asset_default_values=[b"none\n"]
    )
    return tft.apply_vocabulary(label, deferred_vocab_filename_tensor=path, default_value=-1)


def _sorted_labels() -> Any:
    """A Beam transform that writes the distinct labels, sorted, to a file and gives its path.

    `tft.vocabulary` orders by frequency; F1 and the like need a positive class ("1",
    "positive") that does not depend on how many rows there are of each.
    """
    import apache_beam as beam
    import tensorflow_transform.beam as tft_beam

    class SortedLabels(tft_beam.experimental.PTransformAnalyzer):
        def expand(self, batches: Any) -> Any:
            return (
                batches
                | "Labels" >> beam.FlatMap(lambda batch: set(batch[0].ravel().tolist()))
                | "Distinct" >> beam.Distinct()
                | "All" >> beam.combiners.ToList()
                | "Write" >> beam.Map(_write_sorted, self.base_temp_dir)
            )

    return SortedLabels()


def _write_sorted(found: Iterable[bytes], folder: str) -> str:
    names = sort_labels(label.decode("utf-8") for label in found)
    return wordpiece.write_vocabulary(names, folder, LABELS_PREFIX)


def sort_labels(names: Iterable[str]) -> list[str]:
    """Sorted as numbers where all of them are integers, else as text."""
    names = list(names)
    try:
        return sorted(names, key=int)
    except ValueError:
        return sorted(names)
