"""Rows through a version's own preprocessing, into the files that the trainer reads."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..components.image_example_gen import idx
from ..errors import DataError, reason
from ..files import sync
from ..trainer.compression.measure import MOST_ROWS
from ..trainer.export import TRANSFORM
from .raw_rows import Row, Rows

_BATCH = 64


@dataclass(frozen=True)
class Files:
    """Gzipped TFRecords of tf.Example: transformed rows to train on and to measure on, and the
    latter as raw ones."""

    train: Path
    eval: Path
    raw: Path

    def raw_rows(self) -> list[bytes]:
        """The serialized raw Examples to measure on."""
        import tensorflow as tf

        return list(tf.data.TFRecordDataset(str(self.raw), "GZIP").as_numpy_iterator())


class Transform:
    """A version's preprocessing.

    Args:
        version: the version's folder.
        facts: its description.
    """

    def __init__(self, version: Path, facts: Mapping[str, Any]) -> None:
        import tensorflow as tf
        import tensorflow_text  # noqa: F401 - registers the tokenizer's ops
        import tensorflow_transform as tft

        output = tft.TFTransformOutput(os.path.join(version, TRANSFORM))
        self.raw_spec = output.raw_feature_spec()
        layer = output.transform_features_layer()
        spec = {n: self.raw_spec[n] for n in (*facts["inputs"], facts["label_column"])}
        self._transform = tf.function(
            tf.autograph.experimental.do_not_convert(
                lambda examples: layer(tf.io.parse_example(examples, spec))
            ),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )

    def __call__(self, rows: Sequence[Row], raw: Sequence[bytes]) -> list[bytes]:
        """The rows' transformed tf.Examples, serialized, out of their raw ones.

        Raises:
            DataError: the graph cannot read a row; names it.
        """
        import tensorflow as tf

        try:
            return _serialized(self._transform(tf.constant(raw)), len(raw))
        except tf.errors.InvalidArgumentError as error:
            if len(raw) == 1:
                why = reason(error.message)
                raise DataError(f"{rows[0].place}: the model cannot read it: {why}") from None
            return [made for row, one in zip(rows, raw, strict=True) for made in self([row], [one])]


def _serialized(features: Mapping[str, Any], count: int) -> list[bytes]:
    """Features, dense [B, ...] or sparse [B, any], as an Example each."""
    import tensorflow as tf

    columns = {}
    for name, values in features.items():
        if isinstance(values, tf.SparseTensor):
            ragged = tf.RaggedTensor.from_sparse(values)
            columns[name] = [ragged[row].numpy() for row in range(count)]
        else:
            columns[name] = list(values.numpy().reshape(count, -1))
    return [
        tf.train.Example(
            features=tf.train.Features(feature={n: _feature(v[row]) for n, v in columns.items()})
        ).SerializeToString()
        for row in range(count)
    ]


def _feature(values: Any) -> Any:
    import tensorflow as tf

    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    if values.dtype.kind == "i":
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def write_split(rows: Rows, version: Path, facts: Mapping[str, Any], folder: Path) -> Files:
    """Write all rows, a tenth of them to measure on; what a killed call has finished is kept.

    Raises:
        DataError: a row cannot be read, or all of them fall to one side.
    """
    files = Files(*(folder / f"{name}.tfrecord.gz" for name in ("train", "eval", "raw")))
    if files.raw.exists():
        return files
    folder.mkdir(parents=True, exist_ok=True)
    transform = Transform(version, facts)
    counts = _write(rows.read(transform.raw_spec), transform, files)
    if not all(counts):
        raise DataError(
            f"{counts[0]} rows to train on and {counts[1]} to measure on: too few rows are "
            f"different from one another. Give more."
        )
    _whole(files.raw)
    return files


def write_few(
    rows: Rows, version: Path, facts: Mapping[str, Any], folder: Path, most: int
) -> Files:
    """Write a few rows, the same ones for training and measuring, chosen by their hash."""
    import heapq

    files = Files(*[folder / "rows.tfrecord.gz"] * 3)
    folder.mkdir(parents=True, exist_ok=True)
    transform = Transform(version, facts)
    few = heapq.nsmallest(most, rows.read(transform.raw_spec), key=lambda row: row.digest)
    with _writer(files.eval) as writer:
        for batch in _batches(few):
            for record in transform(batch, [row.example() for row in batch]):
                writer.write(record)
    return files


def _write(rows: Iterable[Row], transform: Transform, files: Files) -> tuple[int, int]:
    """How many rows there are to train on, and to measure on."""
    trained = measured = 0
    with _writer(files.train) as train, _writer(files.eval) as evaluation, \
         _writer(_unfinished(files.raw)) as raw_file:  # fmt: skip
        for batch in _batches(rows):
            raw = [row.example() for row in batch]
            for row, one, made in zip(batch, raw, transform(batch, raw), strict=True):
                if int(row.digest, 16) % 10:
                    train.write(made)
                    trained += 1
                    continue
                evaluation.write(made)
                measured += 1
                if measured <= MOST_ROWS:
                    raw_file.write(one)
    idx.forget()
    return trained, measured


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    given = iter(rows)
    while batch := list(itertools.islice(given, _BATCH)):
        yield batch


def _writer(file: Path) -> Any:
    import tensorflow as tf

    options = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
    return tf.io.TFRecordWriter(str(file), options)


def _unfinished(file: Path) -> Path:
    return file.with_name(f"{file.name}.new")


def _whole(file: Path) -> None:
    """With this name, all files are whole."""
    sync(_unfinished(file))
    _unfinished(file).replace(file)
