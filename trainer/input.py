"""From transformed examples to batches: texts with little padding, pictures with augmentation.

Texts are sorted by length within a shuffled window, so that a batch holds rows of like length;
each batch is trimmed to its longest row, rounded up to a multiple of 4 (Hugging Face calls the
first half `group_by_length`). Every row is used exactly once per epoch.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .preprocess import LABEL

if TYPE_CHECKING:
    import tensorflow as tf
    import tensorflow_transform as tft

WINDOW = 50  # batches that are sorted together
SHUFFLE_ROWS = 20_000  # held in memory; more rows than that mix within this
SHUFFLE_BYTES = 500_000_000  # and no more than this: pictures are large
LENGTH_STEP = 4

Shape = tuple[int, int, int]
# (features, labels float32 [B, C], number of the batch in its epoch) -> features, labels
Augmentation = Callable[[Any, "tf.Tensor", "tf.Tensor"], tuple[Any, "tf.Tensor"]]


@dataclass(frozen=True)
class Source:
    """Where transformed rows lie and how they are read.

    Attributes:
        files: gzipped TFRecord files of tf.Example.
        spec: the features' parse specification.
        classes: how many labels there are.
        sequence: names of features [B, L] that may be trimmed; the first gives the length,
            as its number of non-zero ids.
        pixel_shapes: (height, width, channels) of the features that hold pixels as bytes.
        transform: what Transform left.
    """

    files: Sequence[str]
    spec: dict[str, Any]
    classes: int
    sequence: Sequence[str] = ()
    pixel_shapes: Mapping[str, Shape] = field(default_factory=dict)
    transform: "tft.TFTransformOutput | None" = None

    def pixels(self, name: str) -> "tf.data.Dataset":
        """One feature's pixels, uint8 [B, height, width, channels], in the order of the files."""
        import tensorflow as tf

        spec, shape = {name: self.spec[name]}, self.pixel_shapes[name]
        return (
            records(self)
            .batch(64)
            .map(lambda rows: unpack(tf.io.parse_example(rows, spec)[name], shape))
        )


def records(source: Source) -> "tf.data.Dataset":
    """Serialized rows, in the order of the files."""
    import tensorflow as tf

    return tf.data.TFRecordDataset(
        sorted(source.files), compression_type="GZIP", buffer_size=8 << 20
    )


def label_counts(source: Source) -> tuple[int, dict[int, int]]:
    """How many rows there are, and rows per label id; -1 counts labels no training row has."""
    total, counts = count_values(records(source), {LABEL: source.spec[LABEL]})
    return total, counts[LABEL]


def count_values(
    rows: "tf.data.Dataset", specs: Mapping[str, Any], lengths: Collection[str] = ()
) -> tuple[int, dict[str, dict[Any, int]]]:
    """How many rows there are, and by feature how often each of its values comes in them.

    Args:
        rows: serialized tf.Examples.
        specs: how each feature is parsed; they may be VarLenFeatures.
        lengths: features of texts, whose lengths in characters are counted instead.
    """
    import numpy as np
    import tensorflow as tf

    def parse(serialized: "tf.Tensor") -> "tuple[tf.Tensor, dict[str, tf.Tensor]]":
        found = tf.io.parse_example(serialized, specs)
        values = {k: v.values if isinstance(v, tf.SparseTensor) else v for k, v in found.items()}
        for name in lengths:
            values[name] = tf.strings.length(values[name], "UTF8_CHAR")
        return tf.size(serialized), values

    total = 0
    counts: dict[str, dict[Any, int]] = {name: {} for name in specs}
    # Few at a time: whole rows, pictures and all, are in memory.
    for size, batch in rows.batch(64).map(parse).as_numpy_iterator():
        for name, column in batch.items():
            values, numbers = np.unique(column, return_counts=True)
            for value, number in zip(values.tolist(), numbers.tolist(), strict=True):
                counts[name][value] = counts[name].get(value, 0) + number
        total += int(size)
    return total, counts


def batches(
    source: Source,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    group: bool = True,
    augment: Augmentation | None = None,
) -> "tf.data.Dataset":
    """Batches of (features, label).

    Features are ids int32 [B, <=L], or pixels float32 [B, H, W, C] of 0 to 255. Labels are
    float32 [B, C]: 1 for each label that a row has.

    Args:
        source: the rows.
        batch_size: rows per batch; only the last one is smaller.
        shuffle_seed: the order of this epoch; None keeps the files' order.
        group: sort by length within a window and trim; off, rows stay padded to L.
        augment: changes a batch, for training.
    """
    import tensorflow as tf

    rows = records(source)
    if shuffle_seed is not None:
        rows = rows.shuffle(_shuffle_rows(rows), shuffle_seed, reshuffle_each_iteration=False)
    if source.sequence and group:
        parsed = _grouped(rows, source, batch_size, shuffle_seed)
    else:
        parsed = rows.batch(batch_size).map(
            lambda serialized: tf.io.parse_example(serialized, source.spec), num_parallel_calls=2
        )
    found = parsed.map(lambda features: _finish(features, source, group))
    if augment is not None:
        found = found.enumerate().map(
            lambda number, batch: augment(batch[0], batch[1], number), num_parallel_calls=2
        )
    return found.prefetch(4)


def weighted(
    dataset: "tf.data.Dataset", weights: Mapping[int, float], classes: int
) -> "tf.data.Dataset":
    """The batches with a third part, each row's weight, float32 [B], by its one label.

    Args:
        dataset: (features, labels float32 [B, C]).
        weights: by label id.
        classes: C.
    """
    import tensorflow as tf

    table = tf.constant([weights.get(label, 1.0) for label in range(classes)], tf.float32)
    return dataset.map(lambda features, labels: (features, labels, tf.linalg.matvec(labels, table)))


def _shuffle_rows(rows: "tf.data.Dataset") -> int:
    """How many rows to hold: the first one says how large they are."""
    size = max((len(row) for row in rows.take(1).as_numpy_iterator()), default=1)
    return max(1, min(SHUFFLE_ROWS, SHUFFLE_BYTES // size))


def _grouped(
    rows: "tf.data.Dataset", source: Source, batch_size: int, shuffle_seed: int | None
) -> "tf.data.Dataset":
    """Batches of rows of like length."""
    import tensorflow as tf

    def split(window: dict[str, "tf.Tensor"]) -> "tf.data.Dataset":
        parts = tf.data.Dataset.from_tensor_slices(window).batch(batch_size)
        # Without it every window would go from short to long.
        if shuffle_seed is None:
            return parts
        return parts.shuffle(WINDOW, shuffle_seed, reshuffle_each_iteration=False)

    return (
        rows.batch(WINDOW * batch_size)
        .map(
            lambda serialized: _sort_by_length(
                tf.io.parse_example(serialized, source.spec), source
            ),
            num_parallel_calls=2,
        )
        .flat_map(split)
    )


def _sort_by_length(window: dict[str, "tf.Tensor"], source: Source) -> dict[str, "tf.Tensor"]:
    import tensorflow as tf

    lengths = tf.math.count_nonzero(window[source.sequence[0]], axis=1)
    order = tf.argsort(lengths, stable=True)
    return {name: tf.gather(values, order) for name, values in window.items()}


def _finish(
    features: dict[str, Any], source: Source, group: bool
) -> tuple[dict[str, "tf.Tensor"], "tf.Tensor"]:
    import tensorflow as tf

    features = dict(features)
    label = one_hot(features.pop(LABEL), source.classes)
    if source.sequence and group:
        ids = features[source.sequence[0]]
        longest = tf.reduce_max(tf.math.count_nonzero(ids, axis=1, dtype=tf.int32))
        width = tf.minimum(-(-longest // LENGTH_STEP) * LENGTH_STEP, tf.shape(ids)[1])
        for name in source.sequence:
            if name in features:
                features[name] = features[name][:, :width]
    return model_inputs(features, source.pixel_shapes), label


def one_hot(ids: Any, classes: int) -> "tf.Tensor":
    """Label ids, [B] or sparse [B, any], as float32 [B, classes]; -1 is no label."""
    import tensorflow as tf

    if not isinstance(ids, tf.SparseTensor):
        return tf.one_hot(ids, classes)
    dense = tf.sparse.to_dense(ids, default_value=-1)  # (B, most labels of a row)
    # The largest of nothing, where no row of the batch has a label, would be minus infinity.
    return tf.maximum(tf.reduce_max(tf.one_hot(dense, classes), axis=1), 0.0)


def model_inputs(
    features: Mapping[str, "tf.Tensor"], pixel_shapes: Mapping[str, Shape]
) -> dict[str, "tf.Tensor"]:
    """Transformed features as the models take them: ids int32, pixels float32."""
    import tensorflow as tf

    found = {}
    for name, values in features.items():
        if name in pixel_shapes:
            found[name] = tf.cast(unpack(values, pixel_shapes[name]), tf.float32)
        else:
            found[name] = tf.cast(values, tf.int32) if values.dtype == tf.int64 else values
    return found


def unpack(packed: "tf.Tensor", shape: Shape) -> "tf.Tensor":
    """Pixels' bytes, string [B], as uint8 [B, height, width, channels]."""
    import tensorflow as tf

    return tf.reshape(tf.io.decode_raw(packed, tf.uint8), [-1, *shape])
