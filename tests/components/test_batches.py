"""Batches have a bound in bytes, whatever the rows are."""

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import tensorflow as tf
from tfx_bsl.coders import batch_util
from tfx_bsl.public import tfxio

from espalier.components import batches

ROWS, ROW_BYTES, MOST = 300, 200_000, 20 << 20


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rows") / "rows.tfrecord"
    content = tf.train.BytesList(value=[b"x" * ROW_BYTES])
    feature = {"image": tf.train.Feature(bytes_list=content)}
    row = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for _ in range(ROWS):
            writer.write(row)
    return file


def read(records: Path, row_bytes: int, folder: Path) -> list[int]:
    """How many rows the batches have."""
    source = tfxio.TFExampleRecord(str(records), telemetry_descriptors=["test"])
    with batches.bounded(row_bytes), beam.Pipeline() as line:
        sizes = line | source.BeamSource() | beam.Map(lambda batch: str(batch.num_rows))
        sizes | beam.io.WriteToText(str(folder / "sizes"))
    return [int(n) for file in folder.iterdir() for n in file.read_text().split()]


@pytest.mark.parametrize(("row_bytes", "most"), [(0, MOST // ROW_BYTES), (MOST // 7, 7)])
def test_a_batch_is_no_larger_than_its_bound(
    row_bytes: int, most: int, records: Path, tmp_path: Path
) -> None:
    found = read(records, row_bytes, tmp_path)
    assert sum(found) == ROWS and max(found) <= most


def bound() -> tuple[int, int]:
    """The bytes of a batch at most, and as how many a row counts at least, where these are said."""
    found = batch_util.GetBatchElementsKwargs(None)
    least = found["element_size_fn"](b"") if "element_size_fn" in found else 0
    return found["max_batch_size"], least


@pytest.mark.parametrize(
    ("model", "least"),
    [
        ({"family": "resnet", "start": "resnet50", "size": 224}, 224 * 224 * 3),
        ({"family": "bert", "start": "tiny"}, MOST // 1000),
    ],
)
def test_what_becomes_of_a_row_counts_too(
    model: dict[str, Any], least: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    for stock in (batches.transform_executor, batches.statistics_gen_executor):
        monkeypatch.setattr(stock.Executor, "Do", lambda *_: seen.append(bound()))
    given = {}, {}, {"custom_config": json.dumps({"model": model})}
    batches.Transform.EXECUTOR_SPEC.executor_class().Do(*given)
    batches.StatisticsGen.EXECUTOR_SPEC.executor_class().Do(*given)
    assert seen == [(MOST, least), (MOST, MOST // 1000)]
    assert bound() == (1000, 0)
