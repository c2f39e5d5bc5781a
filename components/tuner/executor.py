"""The Tuner's executor: TFX's search and its files; the work is in `trainer.tuning.search`."""

import json
import os
from typing import Any

from tfx.components.tuner import executor as stock
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils

from ...trainer import states

TRIALS_FILE = "trials.json"


class Executor(stock.Executor):
    """TFX's Tuner executor, whose own list of trials lacks what became of them."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Writes the best values and all trials; see `Tuner`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        search = stock.search(
            input_dict, exec_properties, self._get_tmp_dir(), print_tuning_summary=False
        )
        stock.write_best_hyperparameters(search, output_dict)
        results = artifact_utils.get_single_uri(
            output_dict[standard_component_specs.TUNER_RESULTS_KEY]
        )
        io_utils.write_string_file(
            os.path.join(results, TRIALS_FILE), json.dumps(search.found(), indent=1)
        )
        states.finish(search.folder, results)
