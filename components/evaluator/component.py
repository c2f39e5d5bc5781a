"""The Evaluator's specification."""

import json
from typing import Any

from tfx import types
from tfx.dsl.components.base import base_beam_component, executor_spec
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.component_spec import ChannelParameter, ExecutionParameter

from ..compressor import CompressionReport
from . import executor

SETTINGS = "settings"


class EvaluatorSpec(types.ComponentSpec):
    """The stock Evaluator's inputs and outputs, with the YAML's section as its parameter."""

    PARAMETERS = {
        SETTINGS: ExecutionParameter(type=str),
        standard_component_specs.EXAMPLE_SPLITS_KEY: ExecutionParameter(type=str),
    }
    INPUTS = {
        **standard_component_specs.EvaluatorSpec.INPUTS,
        executor.COMPRESSION: ChannelParameter(type=CompressionReport, optional=True),
    }
    OUTPUTS = standard_component_specs.EvaluatorSpec.OUTPUTS


class Evaluator(base_beam_component.BaseBeamComponent):
    """Measures a model with TFMA and blesses or refuses it, always with a sentence.

    The stock component needs the number of classes when the pipeline is built, neither blesses
    nor refuses where no threshold is set (tensorflow/tfx#5148), and dies on a baseline that
    can no longer be compared (tensorflow/tfx#4390).

    Args:
        examples: raw Examples.
        model: the candidate.
        schema: the data's schema.
        split: the split to measure on.
        settings: {"metrics": [...], "slices": [...], "at_least": {...},
            "worse_than_blessed_by_at_most": {...}}.
        baseline_model: the last blessed model, if any.
        compression: the Compressor's report, if any: a model over its budget is not blessed.

    Outputs: `evaluation` (TFMA's files and metrics.json), `blessing` (with a `verdict`).
    """

    SPEC_CLASS = EvaluatorSpec
    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(executor.Executor)

    def __init__(
        self,
        *,
        examples: types.BaseChannel,
        model: types.BaseChannel,
        schema: types.BaseChannel,
        split: str,
        settings: dict[str, Any],
        baseline_model: types.BaseChannel | None = None,
        compression: types.BaseChannel | None = None,
    ) -> None:
        if not settings["metrics"]:
            raise ValueError("evaluate.metrics is empty; name at least one metric.")
        spec = EvaluatorSpec(
            examples=examples,
            model=model,
            schema=schema,
            baseline_model=baseline_model,
            compression=compression,
            settings=json.dumps(settings, sort_keys=True),
            example_splits=json.dumps([split]),
            evaluation=types.Channel(type=standard_artifacts.ModelEvaluation),
            blessing=types.Channel(type=standard_artifacts.ModelBlessing),
        )
        super().__init__(spec=spec)
