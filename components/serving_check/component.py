"""The ServingCheck component: its spec, and its arguments checked at construction."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.types.channel import BaseChannel, Channel
from tfx.utils import json_utils

from ...errors import ConfigError
from . import executor

_INPUTS = (("text",), ("text", "text_pair"), ("image_bytes",))


class ServingCheckSpec(component_spec.ComponentSpec):
    """What goes in and out of ServingCheck. `inputs` is a JSON list of strings."""

    PARAMETERS = {
        executor.INPUTS: component_spec.ExecutionParameter(type=str),
        executor.ROWS: component_spec.ExecutionParameter(type=int),
        executor.SERVER: component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        standard_component_specs.MODEL_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Model
        ),
        standard_component_specs.EXAMPLES_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Examples
        ),
    }
    OUTPUTS = {
        standard_component_specs.BLESSING_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.InfraBlessing
        ),
    }


class ServingCheck(base_component.BaseComponent):
    """Checks that a model server in a process of its own serves the exported model.

    A drop-in for InfraValidator, without Docker or Kubernetes. Its output `blessing` is an
    `InfraBlessing`: TFX's marker file and int custom property `blessed`, a string custom
    property `verdict` (one sentence), and serving_check.json (see `check.Report`).

    Args:
        model: channel of the Trainer's `Model`.
        examples: channel of raw `Examples`, as ExampleGen writes them.
        inputs: the raw feature of each input of `serving_default`: {"text": ..., "text_pair":
            ...}, or {"image_bytes": ...}.
        rows: how many rows to send, 1 or more.
        server: a tensorflow_model_server's path; "" is our own server, which answers the same.

    Raises:
        ConfigError: an argument is out of range.
    """

    SPEC_CLASS = ServingCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: BaseChannel,
        examples: BaseChannel,
        inputs: dict[str, str],
        rows: int = 8,
        server: str = "",
    ) -> None:
        """Checks the arguments and wires the channels."""
        named = isinstance(inputs, dict) and all(isinstance(v, str) and v for v in inputs.values())
        if not named or tuple(inputs) not in _INPUTS:
            raise ConfigError(
                f"ServingCheck: inputs must name the features of one of {_INPUTS}. "
                f"Received: {inputs!r}"
            )
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ConfigError(
                f"ServingCheck: rows must be a whole number, 1 or more. Received: {rows!r}"
            )
        spec = ServingCheckSpec(
            **{
                standard_component_specs.MODEL_KEY: model,
                standard_component_specs.EXAMPLES_KEY: examples,
                executor.INPUTS: json_utils.dumps(inputs),
                executor.ROWS: rows,
                executor.SERVER: server,
                standard_component_specs.BLESSING_KEY: Channel(
                    type=standard_artifacts.InfraBlessing
                ),
            }
        )
        super().__init__(spec=spec)
