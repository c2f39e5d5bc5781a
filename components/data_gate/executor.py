"""The DataGate's executor: unpacks artifacts; the work is in `gate`."""

import os
from collections import Counter
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2, statistics_pb2
from tfx.components.example_validator import executor as example_validator
from tfx.components.statistics_gen import executor as statistics_gen
from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils

from ...trainer.input import count_values
from . import gate

LABEL = "label"
REPORT = "report"


class Executor(base_executor.BaseExecutor):
    """Reads statistics and anomalies of every split, and judges them."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the report; raises DataError, complete in itself, if the data is refused."""
        self._log_startup(input_dict, output_dict, exec_properties)
        statistics = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.STATISTICS_KEY]
        )
        anomalies = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.ANOMALIES_KEY]
        )
        report = gate.judge(read_statistics(statistics), read_anomalies(anomalies))
        artifact_utils.get_single_instance(output_dict[REPORT]).value = report.to_json()
        gate.raise_if_refused(report, exec_properties[LABEL])
        examples = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.EXAMPLES_KEY]
        )
        gate.raise_if_unseen(read_labels(examples, exec_properties[LABEL]), exec_properties[LABEL])


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


def read_labels(examples: Artifact, label: str) -> dict[str, Counter[str]]:
    """Rows per label by split, out of raw tf.Examples; an integer that is missing is a 0, as
    TFX's Parquet reader writes it."""
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
    return {split: _count_labels(rows[split], label, integers) for split in splits}


def _kind(row: bytes, label: str) -> str | None:
    import tensorflow as tf

    kind: str | None = tf.train.Example.FromString(row).features.feature[label].WhichOneof("kind")
    return kind


def _count_labels(rows: Any, label: str, integers: bool) -> Counter[str]:
    import tensorflow as tf

    # A row of strings may have any number of labels.
    spec = tf.io.FixedLenFeature([], tf.int64, 0) if integers else tf.io.VarLenFeature(tf.string)
    _, found = count_values(rows, label, spec)
    return Counter(
        {v.decode() if isinstance(v, bytes) else str(v): count for v, count in found.items()}
    )


def _read(artifact: Artifact, split: str, name: str) -> bytes:
    folder = artifact_utils.get_split_uri([artifact], split)
    content: bytes = io_utils.read_bytes_file(os.path.join(folder, name))
    return content
