"""ExampleGen's executors for what TFX's own split configuration cannot do, one for each format.

The rows are read by TFX's executors as ever; what differs is which are taken, and into which
split each goes: see `rule`.
"""

from hashlib import sha256
from typing import Any

import apache_beam as beam
import tensorflow as tf
from tfx.components.example_gen.base_example_gen_executor import BaseExampleGenExecutor
from tfx.components.example_gen.csv_example_gen import executor as csv_executor
from tfx.components.example_gen.custom_executors import parquet_executor
from tfx.components.example_gen.import_example_gen import executor as tfrecord_executor
from tfx.proto import example_gen_pb2
from tfx.types import standard_component_specs
from tfx.utils import proto_utils

from ...errors import DataError
from ..by_content import unpack
from .gather import find_cuts, find_highest
from .rule import TIME_FORMATS, Cuts, Key, Rule, read_time


class _Executor(BaseExampleGenExecutor):
    """Reads as another executor does, and splits by the rule in the custom_config."""

    def GenerateExamplesByBeam(
        self, pipeline: beam.Pipeline, exec_properties: dict[str, Any]
    ) -> dict[str, beam.PCollection]:
        """The rows that are taken, by split."""
        settings = unpack(exec_properties[standard_component_specs.CUSTOM_CONFIG_KEY])
        rule, label = Rule(**settings["rule"]), settings["label"]
        given = example_gen_pb2.Input()
        proto_utils.json_to_proto(exec_properties[standard_component_specs.INPUT_CONFIG_KEY], given)
        read = self.GetInputSourceToExamplePTransform()
        rows = {
            split.name: pipeline
            | f"Read[{split.name}]" >> read(exec_properties, split.pattern)
            | f"Key[{split.name}]" >> beam.Map(_keyed, rule, label)
            for split in given.splits
        }
        if rule.sample is not None:
            keys = {split: part | f"Keys[{split}]" >> beam.Keys() for split, part in rows.items()}
            highest = beam.pvalue.AsSingleton(find_highest(keys, rule.sample))
            rows = {
                split: part | f"Take[{split}]" >> beam.Filter(_is_taken, split, highest)
                for split, part in rows.items()
            }
        if rule.ratios:
            (whole,) = rows.values()
            cuts: Any = Cuts()
            if rule.by in ("label", "time"):
                cuts = beam.pvalue.AsSingleton(find_cuts(whole | "Keys" >> beam.Keys(), rule))
            parts = whole | "Split" >> beam.Partition(_place, len(rule.splits), rule, cuts)
            rows = dict(zip(rule.splits, parts, strict=True))
        return {split: part | f"Row[{split}]" >> beam.Values() for split, part in rows.items()}


class CsvExecutor(_Executor, csv_executor.Executor):
    """CSV."""


class ParquetExecutor(_Executor, parquet_executor.Executor):
    """Parquet."""


class TFRecordExecutor(_Executor, tfrecord_executor.Executor):
    """TFRecord files of tf.train.Example."""


EXECUTORS = {"csv": CsvExecutor, "parquet": ParquetExecutor, "tfrecord": TFRecordExecutor}


def _keyed(row: tf.train.Example, rule: Rule, label: str) -> tuple[Key, tf.train.Example]:
    """A row behind its key; what is hashed is what TFX's _PartitionFn would hash."""
    digest = sha256(row.SerializeToString(deterministic=True)).digest()
    features, given = row.features.feature, {}
    if rule.ratios and rule.by == "label":
        given["label"] = features[label].SerializeToString(deterministic=True)
    elif rule.ratios and rule.by == "group":
        given["group"] = features[rule.column].SerializeToString(deterministic=True)
    elif rule.ratios and rule.by == "time":
        given["time"] = _time(features[rule.column], rule.column)
    return rule.key(digest, **given), row


def _time(feature: tf.train.Feature, column: str) -> int:
    if feature.int64_list.value:
        return int(feature.int64_list.value[0])
    cell = feature.bytes_list.value[0].decode() if feature.bytes_list.value else ""
    try:
        return read_time(cell)
    except ValueError:
        raise DataError(
            f"column {column!r} holds {cell!r}, which is no time. Expected {TIME_FORMATS}."
        ) from None


def _place(row: tuple[Key, Any], _: int, rule: Rule, cuts: Cuts) -> int:
    return rule.splits.index(rule.place(row[0], cuts))


def _is_taken(row: tuple[Key, Any], split: str, highest: dict[str, int]) -> bool:
    return row[0][0] <= highest[split]
