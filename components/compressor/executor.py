"""The Compressor's executor: unpacks artifacts; the work is in `trainer.compression`."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils, path_utils

from ...trainer import states
from ...trainer.compression import recipe
from ...trainer.compression.measure import MOST_ROWS
from ...trainer.compression.settings import Compress
from ...trainer.compression.setup import Surroundings, prepare
from ...trainer.settings import Train

SETTINGS = "settings"
COMPRESSED = "compressed_model"
REPORT = "report"
REPORT_FILE = "report.json"
KEPT, VERDICT = "kept", "verdict"


class Executor(base_executor.BaseExecutor):
    """Runs the recipe; what it has finished survives a kill in the pipeline's own folder."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the compressed model and the report; see `Compressor`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        settings = json.loads(exec_properties[SETTINGS])
        model = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        graph = artifact_utils.get_single_uri(
            input_dict[standard_component_specs.TRANSFORM_GRAPH_KEY]
        )
        transformed = input_dict[standard_component_specs.TRANSFORMED_EXAMPLES_KEY]
        surroundings = Surroundings(
            version=Path(path_utils.serving_model_path(model.uri)),
            transform_graph=graph,
            train_files=_files(transformed, "train"),
            eval_files=_files(transformed, "eval"),
            train=Train(**settings["train"]),
            folder=_folder(settings, [model.uri, graph, exec_properties[SETTINGS]]),
        )
        job, trained, export = prepare(surroundings)
        outcome = recipe.run(
            job,
            trained,
            Compress(**settings["compress"]),
            version=surroundings.version,
            export=export,
            rows=_raw_rows(input_dict[standard_component_specs.EXAMPLES_KEY]),
        )
        made = artifact_utils.get_single_instance(output_dict[COMPRESSED])
        shutil.copytree(outcome.version, path_utils.serving_model_dir(made.uri))
        report = artifact_utils.get_single_instance(output_dict[REPORT])
        report.set_int_custom_property(KEPT, int(outcome.kept))
        report.set_string_custom_property(VERDICT, outcome.report["verdict"])
        io_utils.write_string_file(
            os.path.join(report.uri, REPORT_FILE), json.dumps(outcome.report, indent=1)
        )
        states.finish(surroundings.folder, report.uri)


def _folder(settings: dict[str, Any], parts: list[str]) -> Path:
    """The same for the same recipe on the same model, in every execution."""
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    return Path(settings["state_dir"]) / "compression" / key


def _files(examples: list[Artifact], split: str) -> list[str]:
    import tensorflow as tf

    pattern = os.path.join(artifact_utils.get_split_uri(examples, split), "*")
    return sorted(tf.io.gfile.glob(pattern))


def _raw_rows(examples: list[Artifact]) -> list[bytes]:
    """The eval split's serialized raw Examples, as many as are measured on."""
    import tensorflow as tf

    rows = tf.data.TFRecordDataset(_files(examples, "eval"), "GZIP")
    return list(rows.take(MOST_ROWS).as_numpy_iterator())
