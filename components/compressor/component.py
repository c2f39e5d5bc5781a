"""The Compressor's specification, and the artifact that it reports by."""

import json
from typing import Any

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.types.artifact import Artifact
from tfx.types.channel import BaseChannel, Channel

from ...errors import ConfigError
from . import executor


class CompressionReport(Artifact):
    """What each step of a recipe cost and gained: report.json (see `trainer.compression.recipe`).

    Its custom properties say whether the chosen model keeps to its budget (`kept`, an int) and
    why (`verdict`).
    """

    # On Kubeflow, TFX finds the class again by this name, and takes a name with one dot alone.
    TYPE_NAME = "espalier.CompressionReport"


class CompressorSpec(component_spec.ComponentSpec):
    """What goes in and out of the Compressor. `settings` is JSON."""

    PARAMETERS = {executor.SETTINGS: component_spec.ExecutionParameter(type=str)}
    INPUTS = {
        standard_component_specs.MODEL_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Model
        ),
        standard_component_specs.EXAMPLES_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Examples
        ),
        standard_component_specs.TRANSFORMED_EXAMPLES_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Examples
        ),
        standard_component_specs.TRANSFORM_GRAPH_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.TransformGraph
        ),
    }
    OUTPUTS = {
        executor.COMPRESSED: component_spec.ChannelParameter(type=standard_artifacts.Model),
        executor.REPORT: component_spec.ChannelParameter(type=CompressionReport),
    }


class Compressor(base_component.BaseComponent):
    """Runs a recipe on the trained model, which stays as it is.

    Args:
        model: channel of the Trainer's `Model`.
        examples: channel of raw `Examples`: what is measured is asked with them.
        transformed_examples: channel of Transform's `Examples`, which the steps train on.
        transform_graph: channel of its `TransformGraph`, which the compressed model contains.
        settings: {"compress": the YAML's section, "train": the same, "state_dir": a folder that
            survives a kill, "code": a hash}.

    Outputs: `compressed_model`, a `Model` with the trained one's signatures, and `report`.

    Raises:
        ConfigError: there are no steps.
    """

    SPEC_CLASS = CompressorSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        *,
        model: BaseChannel,
        examples: BaseChannel,
        transformed_examples: BaseChannel,
        transform_graph: BaseChannel,
        settings: dict[str, Any],
    ) -> None:
        """Checks the arguments and wires the channels."""
        if not settings.get("compress", {}).get("steps"):
            raise ConfigError("Compressor: settings name no steps of a recipe.")
        spec = CompressorSpec(
            **{
                standard_component_specs.MODEL_KEY: model,
                standard_component_specs.EXAMPLES_KEY: examples,
                standard_component_specs.TRANSFORMED_EXAMPLES_KEY: transformed_examples,
                standard_component_specs.TRANSFORM_GRAPH_KEY: transform_graph,
                executor.SETTINGS: json.dumps(settings, sort_keys=True),
                executor.COMPRESSED: Channel(type=standard_artifacts.Model),
                executor.REPORT: Channel(type=CompressionReport),
            }
        )
        super().__init__(spec=spec)
