"""The Pusher's executor: unpacks artifacts; the work is in `publish`."""

import json
import os
import time
from datetime import datetime
from typing import Any

from absl import logging
from tfx.components.pusher import executor as stock
from tfx.proto import pusher_pb2
from tfx.types import artifact_utils, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.utils import io_utils, json_utils, proto_utils

from ...retrying import retried
from ...trainer.export import describe_any
from . import card, publish

EVALUATION, DATA, COMPRESSION = "evaluation", "data", "compression"
# What a model card is written from: the JSON in an input's folder; a String's URI is a file itself.
_TOLD = {
    EVALUATION: ["metrics.json"],
    DATA: [],
    COMPRESSION: ["report.json"],
    standard_component_specs.INFRA_BLESSING_KEY: ["serving_check.json"],
}
REASON = "reason"
MODEL_ID = "model_id"
NEEDS = "needs"
_VALIDATORS = {
    standard_component_specs.MODEL_BLESSING_KEY: "the Evaluator",
    standard_component_specs.INFRA_BLESSING_KEY: "the serving check",
}


class Executor(stock.Executor):
    """TFX's Pusher executor, with its copying replaced."""

    def Do(
        self,
        input_dict: dict[str, list[Artifact]],
        output_dict: dict[str, list[Artifact]],
        exec_properties: dict[str, Any],
    ) -> None:
        """Pushes the model if every blessing given says so; else says why not in `reason`."""
        self._log_startup(input_dict, output_dict, exec_properties)
        pushed = artifact_utils.get_single_instance(
            output_dict[standard_component_specs.PUSHED_MODEL_KEY]
        )
        if not self.CheckBlessing(input_dict):
            self._MarkNotPushed(pushed)
            pushed.set_string_custom_property(REASON, refusal(input_dict))
            return
        model = self.GetModelPath(input_dict)
        destination = pusher_pb2.PushDestination()
        proto_utils.json_to_proto(
            exec_properties[standard_component_specs.PUSH_DESTINATION_KEY], destination
        )
        custom = exec_properties.get(standard_component_specs.CUSTOM_CONFIG_KEY) or "null"
        settings = json_utils.loads(custom) or {}
        base = destination.filesystem.base_directory
        source = artifact_utils.get_single_instance(input_dict[standard_component_specs.MODEL_KEY])
        pushed.set_int_custom_property(MODEL_ID, source.id)
        description = describe_any(model)
        if needs := description.get("graph", {}).get("needs"):
            pushed.set_string_custom_property(NEEDS, ", ".join(needs))
        retries = settings.get("retries", 0)
        if served := retried(lambda: publish.published(model, base), retries, logging.warning):
            # The model is the same, of an earlier run or of one killed just now; what is said of
            # it may not be.
            added = _added(input_dict, description, settings, served.number)
            publish.refresh(served, added, keep=settings.get("keep"))
            self._MarkPushed(pushed, pushed_destination=served.path, pushed_version=served.name)
            return
        # First the archive: were it to fail after the push, a rerun would push the model twice.
        publish.archive(model, pushed.uri)
        now = int(time.time())
        added = _added(input_dict, description, settings, now)
        version = retried(
            lambda: publish.publish(model, base, keep=settings.get("keep"), now=now, added=added),
            retries,
            logging.warning,
        )
        self._MarkPushed(pushed, pushed_destination=version.path, pushed_version=version.name)


def _added(
    input_dict: dict[str, list[Artifact]],
    model: dict[str, Any],
    settings: dict[str, Any],
    pushed: int,
) -> dict[str, str]:
    """What a version has beside the model: its configuration, and its card.

    `model` is its description, `pushed` the time of its push in seconds.
    """
    if (config := settings.get("config")) is None:
        return {}
    if not model:  # not ours: nothing is known of it
        return {publish.CONFIG: config}

    def told(key: str) -> dict[str, Any]:
        for artifact in input_dict.get(key) or []:
            file = os.path.join(artifact.uri, *_TOLD[key])
            return dict(json.loads(io_utils.read_string_file(file)))
        return {}

    facts = card.Facts(
        config=config,
        when=datetime.fromtimestamp(pushed).date().isoformat(),
        model=model,
        licence=settings.get("licence", ""),
        data=told(DATA),
        evaluation=told(EVALUATION),
        compression=told(COMPRESSION),
        serving=told(standard_component_specs.INFRA_BLESSING_KEY),
    )
    return {publish.CONFIG: config, **card.files(facts)}


def refusal(input_dict: dict[str, list[Artifact]]) -> str:
    """One sentence: who refused the model, and its verdict where the blessing bears one."""
    for key, validator in _VALIDATORS.items():
        for blessing in input_dict.get(key) or []:
            if blessing.get_int_custom_property("blessed") != 1:
                sentence = f"Not pushed: {validator} did not bless the model."
                verdict = blessing.get_string_custom_property("verdict")
                return f"{sentence} {verdict}" if verdict else sentence
    return "Not pushed."
