"""The Evaluator's work: complete the configuration, let TFX's executor measure, say the verdict."""

import gc
import json
import os
from dataclasses import asdict
from typing import Any

from apache_beam.utils import shared
from google.protobuf import json_format
from tfx.components.evaluator import constants
from tfx.components.evaluator import executor as stock
from tfx.dsl.io import fileio
from tfx.types import artifact_utils, standard_component_specs
from tfx.utils import io_utils, path_utils

from ... import cpu
from ...trainer.export import describe
from .. import batches
from ..latest_pushed.executor import FOUND
from . import closer, extractors, metrics, why
from .metrics import Measured

METRICS_FILE = "metrics.json"
VERDICT = "verdict"
COMPRESSION = "compression"
_MODEL = standard_component_specs.MODEL_KEY
_BASELINE = standard_component_specs.BASELINE_MODEL_KEY


class Executor(stock.Executor):
    """TFX's Evaluator executor with the class count filled in and the verdict spelled out."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See TFX's Evaluator; adds metrics.json, closer.json and why.json, and a verdict to the
        blessing."""
        settings = json.loads(exec_properties["settings"])
        model = describe(_model_path(input_dict[_MODEL]))
        input_dict = _without_empty_baseline(input_dict)
        obstacle = _obstacle(model, input_dict.get(_BASELINE))
        inputs = {k: v for k, v in input_dict.items() if k != _BASELINE or not obstacle}
        labels, multi_label = model["labels"], model["multi_label"]
        images = model.get("kind") == "image"
        config = metrics.eval_config(settings, len(labels), multi_label, images)
        config_json = json_format.MessageToJson(config, preserving_proto_field_name=True)
        key = standard_component_specs.EVAL_CONFIG_KEY
        inputs.pop(COMPRESSION, None)
        evaluation = artifact_utils.get_single_uri(output_dict[constants.EVALUATION_KEY])
        closer.FOLDER.set(evaluation)
        looking = {standard_component_specs.MODULE_PATH_KEY: extractors.__name__}
        with batches.bounded(batches.pixels(model.get("pixel_shapes", {}))):
            super().Do(inputs, output_dict, {**exec_properties, key: config_json, **looking})
        _let_go_of_the_models()
        why.write(evaluation, _model_path(input_dict[_MODEL]))

        blessing = artifact_utils.get_single_instance(
            output_dict[standard_component_specs.BLESSING_KEY]
        )
        compared = bool(inputs.get(_BASELINE))
        names = settings["metrics"]
        kind = (names, labels, multi_label)
        candidate = metrics.read(evaluation, *kind, "candidate" if compared else "")
        baseline = metrics.read(evaluation, *kind, "baseline") if compared else None
        blessed, sentence = metrics.verdict(settings, candidate, baseline)
        if obstacle:
            blessed, sentence = False, f"Not blessed: {obstacle}"
        blessed, sentence = _within_budget(input_dict.get(COMPRESSION), blessed, sentence)
        _mark(blessing, blessed, sentence)
        facts = {
            "candidate": asdict(candidate),
            "baseline": asdict(baseline) if baseline else None,
            "blessed": blessed,
            "verdict": sentence,
        }
        io_utils.write_string_file(
            os.path.join(evaluation, METRICS_FILE), json.dumps(facts, indent=1)
        )


def _without_empty_baseline(input_dict: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Without the baseline that LatestPushed gives where nothing was pushed yet."""
    found = [
        one
        for one in input_dict.get(_BASELINE) or []
        if not one.has_custom_property(FOUND) or one.get_int_custom_property(FOUND)
    ]
    kept = {name: artifacts for name, artifacts in input_dict.items() if name != _BASELINE}
    return {**kept, _BASELINE: found} if found else kept


def _within_budget(reports: list[Any] | None, blessed: bool, sentence: str) -> tuple[bool, str]:
    """The verdict, after a look at the Compressor's own."""
    if not reports:
        return blessed, sentence
    report = artifact_utils.get_single_instance(reports)
    if report.get_int_custom_property("kept"):
        return blessed, sentence
    return False, f"Not blessed: {report.get_string_custom_property('verdict')}"


def _let_go_of_the_models() -> None:
    """Beam keeps what it shared last, TFMA's loaded models, until it shares something else. Kept
    to the process's end, they end in tracebacks of TensorFlow's."""
    shared.Shared().acquire(Measured)
    gc.collect()


def _model_path(artifacts: list[Any]) -> str:
    model = artifact_utils.get_single_instance(artifacts)
    return path_utils.serving_model_path(model.uri)


def _obstacle(model: dict[str, Any], baseline: list[Any] | None) -> str:
    """Why the blessed model cannot be compared with the candidate, or nothing."""
    if not baseline:
        return ""
    accept = "Run again with --accept to take the new model without a comparison."
    try:
        before = describe(_model_path(baseline))
    except (OSError, ValueError):
        return f"the blessed model's files at {baseline[0].uri} are gone or broken. {accept}"
    if unfit := cpu.unfit(before):
        return f"the blessed model was {unfit}, so it cannot be compared. {accept}"
    for name, words in (("labels", "label set"), ("inputs", "input columns"),
                        ("label_column", "label column"),
                        ("multi_label", "labels a row")):  # fmt: skip
        if (before.get(name) or False) != (model.get(name) or False):
            return (
                f"the {words} changed from {_short(before.get(name))} to "
                f"{_short(model.get(name))}, so the blessed model cannot be compared. {accept}"
            )
    return ""


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _mark(blessing: Any, blessed: bool, sentence: str) -> None:
    """TFX's own marks, set to the verdict (TFX's executor has set them to TFMA's alone)."""
    names = {True: constants.BLESSED_FILE_NAME, False: constants.NOT_BLESSED_FILE_NAME}
    wrong = os.path.join(blessing.uri, names[not blessed])
    if fileio.exists(wrong):
        fileio.remove(wrong)
    io_utils.write_string_file(os.path.join(blessing.uri, names[blessed]), sentence)
    blessing.set_int_custom_property(constants.ARTIFACT_PROPERTY_BLESSED_KEY, int(blessed))
    blessing.set_string_custom_property(VERDICT, sentence)
