"""The ServingCheck's executor: unpacks artifacts; the work is in `check` and `probe`."""

import os
from typing import Any

from tfx.components.util import examples_utils
from tfx.dsl.components.base import base_executor
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils, json_utils, path_utils

from . import check

INPUTS = "inputs"
ROWS = "rows"
SERVER = "server"
REPORT_FILE = "serving_check.json"
VERDICT = "verdict"
# TFX's own marks (tfx/components/infra_validator/executor.py), which the Pusher reads.
BLESSED = "blessed"
_MARKERS = {True: "INFRA_BLESSED", False: "INFRA_NOT_BLESSED"}
# A row without an input is passed over; a column without any must not cost a read of all rows.
_ROWS_READ_AT_MOST = 1000


class Executor(base_executor.BaseExecutor):
    """Reads a few raw rows, has them checked, and marks the blessing."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Blesses the model, or says in `verdict` why not; never raises because of the model."""
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        examples = artifact_utils.get_single_instance(
            input_dict[standard_component_specs.EXAMPLES_KEY]
        )
        blessing = artifact_utils.get_single_instance(
            output_dict[standard_component_specs.BLESSING_KEY]
        )
        inputs = json_utils.loads(exec_properties[INPUTS])
        folder = path_utils.serving_model_path(model.uri, path_utils.is_old_model_artifact(model))
        rows = read_rows(split_files(examples), list(inputs.values()), exec_properties[ROWS])
        server = exec_properties[SERVER]
        mark(blessing, check.check_serving(folder, rows, inputs, server=server))


def split_files(examples: Artifact) -> list[str]:
    """The files of the split `eval`, or of the first split where there is no such split."""
    splits = artifact_utils.decode_split_names(examples.split_names)
    split = "eval" if "eval" in splits else splits[0]
    (pattern,) = examples_utils.get_split_file_patterns([examples], split)
    return sorted(fileio.glob(pattern))


def read_rows(files: list[str], keys: list[str], rows: int) -> list[bytes]:
    """The first rows that have every input, as serialized tf.Examples.

    Args:
        files: TFRecord files of tf.Examples; names that end in .gz are read as such.
        keys: features that must hold at least one bytes value.
        rows: how many to return, at most.
    """
    import tensorflow as tf

    found: list[bytes] = []
    for file in files:
        compression = "GZIP" if file.endswith(".gz") else ""
        records = tf.data.TFRecordDataset(file, compression).take(_ROWS_READ_AT_MOST)
        for record in records.as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            if all(key in features and features[key].bytes_list.value for key in keys):
                found.append(record)
            if len(found) == rows:
                return found
    return found


def mark(blessing: Artifact, report: check.Report) -> None:
    """Writes the report, the marker file and the custom properties."""
    io_utils.write_string_file(os.path.join(blessing.uri, REPORT_FILE), report.to_json())
    io_utils.write_string_file(os.path.join(blessing.uri, _MARKERS[report.blessed]), "")
    blessing.set_int_custom_property(BLESSED, int(report.blessed))
    blessing.set_string_custom_property(VERDICT, report.verdict)
