"""The DataGate's executor: unpacks artifacts; the work is in `gate`."""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2
from tfx.components.example_validator import executor as example_validator
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils

from ...trainer.input import count_values
from ..sizes import Sizes, to_json
from . import gate

LABEL, TEXTS = "label", "texts"
REPORT = "report"


class Executor(base_executor.BaseExecutor):
    """Reads statistics and anomalies of every split, and judges them."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the report; raises DataError, complete in itself, if the data is refused.

        The lengths of the texts, which StatisticsGen leaves out, come from the pass over the rows
        that the labels need.
        """
        self._log_startup(input_dict, output_dict, exec_properties)
        statistics = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.STATISTICS_KEY]
        )
        anomalies = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.ANOMALIES_KEY]
        )
        found, label = read_statistics(statistics), exec_properties[LABEL]
        report = gate.judge(found, read_anomalies(anomalies))
        written = artifact_utils.get_single_instance(output_dict[REPORT])
        written.value = report.to_json()
        gate.raise_if_refused(report, label)
        examples = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.EXAMPLES_KEY]
        )
        texts = _strings(found, json.loads(exec_properties[TEXTS]))
        labels, lengths = read_rows(examples, label, texts)
        written.value = dataclasses.replace(report, lengths=to_json(lengths)).to_json()
        gate.raise_if_unseen(labels, label)


def read_statistics(artifact: Artifact) -> dict[str, statistics_pb2.DatasetFeatureStatisticsList]:
    """StatisticsGen's output by split."""
    return {
        split: statistics_pb2.DatasetFeatureStatisticsList.FromString(
            _read(artifact, split, statistics_gen.DEFAULT_FILE_NAME)
        )
        for split in artifact_utils.decode_split_names(artifact.split_names)
    }


def read_anomalies(artifact: Artifact) -> dict[str, anomalies_pb2.Anomalies]:
    """ExampleValidator's output by split."""
    return {
        split: anomalies_pb2.Anomalies.FromString(
            _read(artifact, split, example_validator.DEFAULT_FILE_NAME)
        )
        for split in artifact_utils.decode_split_names(artifact.split_names)
    }


def _strings(
    statistics: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList], names: Sequence[str]
) -> list[str]:
    """Those of the features that are strings in every split; TFX reads digits as numbers."""
    kinds = {
        (feature.path.step[0], feature.type)
        for split in statistics.values()
        for feature in split.datasets[0].features
    }
    string = statistics_pb2.FeatureNameStatistics.STRING
    return [name for name in names if {kind for one, kind in kinds if one == name} == {string}]


def read_rows(
    examples: Artifact, label: str, texts: Sequence[str] = ()
) -> tuple[dict[str, Counter[str]], dict[str, dict[str, Sizes]]]:
    """Rows per label, and the lengths of texts in characters, by split, out of raw tf.Examples.

    An integer that is missing is a 0, as TFX's Parquet reader writes it.
    """
    import tensorflow as tf

    splits = artifact_utils.decode_split_names(examples.split_names)
    rows = {
        split: tf.data.TFRecordDataset(
            tf.io.gfile.glob(os.path.join(artifact_utils.get_split_uri([examples], split), "*")),
            compression_type="GZIP",
        )
        for split in splits
    }
    kinds = (_kind(row, label) for split in splits for row in rows[split].as_numpy_iterator())
    integers = next((kind for kind in kinds if kind), "") == "int64_list"
    # A row of strings may have any number of labels.
    spec = tf.io.FixedLenFeature([], tf.int64, 0) if integers else tf.io.VarLenFeature(tf.string)
    specs = {**dict.fromkeys(texts, tf.io.VarLenFeature(tf.string)), label: spec}
    found = {split: count_values(rows[split], specs, texts)[1] for split in splits}
    labels = {split: _named(counts[label]) for split, counts in found.items()}
    return labels, {
        split: {name: _sizes(counts[name]) for name in texts} for split, counts in found.items()
    }


def _kind(row: bytes, label: str) -> str | None:
    import tensorflow as tf

    kind: str | None = tf.train.Example.FromString(row).features.feature[label].WhichOneof("kind")
    return kind


def _named(counts: Mapping[Any, int]) -> Counter[str]:
    return Counter(
        {v.decode() if isinstance(v, bytes) else str(v): count for v, count in counts.items()}
    )


def _sizes(lengths: Mapping[int, int]) -> Sizes:
    sizes = Sizes()
    for length, rows in lengths.items():
        sizes.add(length, rows)
    return sizes


def _read(artifact: Artifact, split: str, name: str) -> bytes:
    folder = artifact_utils.get_split_uri([artifact], split)
    content: bytes = io_utils.read_bytes_file(os.path.join(folder, name))
    return content
