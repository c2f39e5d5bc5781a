"""The LatestPushed executor: copies the newest version into its output."""

from typing import Any

from tfx.dsl.components.base import base_executor
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import path_utils

from ..pusher import publish

BASE = "base"
FOUND = "found"


class Executor(base_executor.BaseExecutor):
    """Copies, so that the version stays comparable when the Pusher retires it meanwhile."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Fills the output `Model`, or marks it as not found."""
        self._log_startup(input_dict, output_dict, exec_properties)
        model = artifact_utils.get_single_instance(output_dict[standard_component_specs.MODEL_KEY])
        version = publish.newest_anywhere(exec_properties[BASE])
        model.set_int_custom_property(FOUND, int(version is not None))
        if version is not None:
            publish.archive(version.path, path_utils.serving_model_dir(model.uri))
