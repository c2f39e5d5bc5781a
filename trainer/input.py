"""From transformed examples to batches that carry little padding.

Rows are sorted by length within a shuffled window, so that a batch holds rows of like length;
each batch is trimmed to its longest row, rounded up to a multiple of 8 (Hugging Face calls the
first half `group_by_length`). Every row is used exactly once per epoch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .preprocess import LABEL

if TYPE_CHECKING:
    import tensorflow as tf

WINDOW = 50  # batches that are sorted together
SHUFFLE_ROWS = 20_000  # compressed rows held in memory; more rows than that mix within this
LENGTH_STEP = 8


@dataclass(frozen=True)
class Source:
    """Where transformed rows lie and how they are read.

    Attributes:
        files: gzipped TFRecord files of tf.Example.
        spec: the features' parse specification.
        sequence: names of features [B, L] that may be trimmed; the first gives the length,
            as its number of non-zero ids.
    """

    files: Sequence[str]
    spec: dict[str, Any]
    sequence: Sequence[str] = ()


def records(source: Source) -> "tf.data.Dataset":
    """Serialized rows, in the order of the files."""
    import tensorflow as tf

    return tf.data.TFRecordDataset(
        sorted(source.files), compression_type="GZIP", buffer_size=8 << 20
    )


def label_counts(source: Source) -> dict[int, int]:
    """Rows per label id; -1 counts the rows whose label no training row has."""
    return count_values(records(source), LABEL, source.spec[LABEL])


def count_values(rows: "tf.data.Dataset", name: str, spec: Any) -> dict[Any, int]:
    """How often each value of a feature comes, in serialized tf.Examples.

    Args:
        rows: the serialized rows.
        name: a feature with one value a row.
        spec: how it is parsed.
    """
    import numpy as np
    import tensorflow as tf

    counts: dict[Any, int] = {}
    for batch in rows.batch(4096).map(lambda row: tf.io.parse_example(row, {name: spec})[name]):
        values, numbers = np.unique(batch.numpy(), return_counts=True)
        for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
            counts[value] = counts.get(value, 0) + number
    return counts


def batches(
    source: Source, batch_size: int, *, shuffle_seed: int | None = None, group: bool = True
) -> "tf.data.Dataset":
    """Batches of (features, label): ids int32 [B, <=L], label int64 [B].

    Args:
        source: the rows.
        batch_size: rows per batch; only the last one is smaller.
        shuffle_seed: the order of this epoch; None keeps the files' order.
        group: sort by length within a window and trim; off, rows stay padded to L.
    """
    import tensorflow as tf

    rows = records(source)
    if shuffle_seed is not None:
        rows = rows.shuffle(SHUFFLE_ROWS, seed=shuffle_seed)
    windows = rows.batch(WINDOW * batch_size).map(
        lambda serialized: (
            _sort_by_length(tf.io.parse_example(serialized, source.spec), source)
            if group and source.sequence
            else tf.io.parse_example(serialized, source.spec)
        ),
        num_parallel_calls=2,
    )

    def split(window: dict[str, "tf.Tensor"]) -> "tf.data.Dataset":
        parts = tf.data.Dataset.from_tensor_slices(window).batch(batch_size)
        # Without it every window would go from short to long.
        return parts if shuffle_seed is None else parts.shuffle(WINDOW, seed=shuffle_seed)

    return (
        windows.flat_map(split)
        .map(lambda features: _finish(features, source.sequence if group else ()))
        .prefetch(4)
    )


def _sort_by_length(window: dict[str, "tf.Tensor"], source: Source) -> dict[str, "tf.Tensor"]:
    import tensorflow as tf

    lengths = tf.math.count_nonzero(window[source.sequence[0]], axis=1)
    order = tf.argsort(lengths, stable=True)
    return {name: tf.gather(values, order) for name, values in window.items()}


def _finish(features: dict[str, "tf.Tensor"], sequence: Sequence[str]) -> tuple[Any, "tf.Tensor"]:
    import tensorflow as tf

    features = dict(features)
    label = features.pop(LABEL)
    if sequence:
        ids = features[sequence[0]]
        longest = tf.reduce_max(tf.math.count_nonzero(ids, axis=1, dtype=tf.int32))
        width = tf.minimum(-(-longest // LENGTH_STEP) * LENGTH_STEP, tf.shape(ids)[1])
        for name in sequence:
            if name in features:
                features[name] = features[name][:, :width]
    return {name: narrow(values) for name, values in features.items()}, label


def narrow(values: "tf.Tensor") -> "tf.Tensor":
    """int64 as int32, which the models take; other types as they are."""
    import tensorflow as tf

    return tf.cast(values, tf.int32) if values.dtype == tf.int64 else values
