"""The ServingCheck component: its spec, and its arguments checked at construction."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.types.channel import BaseChannel, Channel
from tfx.utils import json_utils

from ...errors import ConfigError
from . import executor


class ServingCheckSpec(component_spec.ComponentSpec):
    """What goes in and out of ServingCheck. `text_keys` is a JSON list of strings."""

    PARAMETERS = {
        executor.TEXT_KEYS: component_spec.ExecutionParameter(type=str),
        executor.ROWS: component_spec.ExecutionParameter(type=int),
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
    """Checks that the exported model answers raw rows with only TensorFlow and TensorFlow Text.

    A drop-in for InfraValidator, without Docker or Kubernetes. Its output `blessing` is an
    `InfraBlessing`: TFX's marker file and int custom property `blessed`, a string custom
    property `verdict` (one sentence), and serving_check.json (see `check.Report`).

    Args:
        model: channel of the Trainer's `Model`.
        examples: channel of raw `Examples`, as ExampleGen writes them.
        text_keys: the one or two raw features that hold text; sent as `text` and `text_pair`.
        rows: how many rows to send, 1 or more.

    Raises:
        ConfigError: an argument is out of range.
    """

    SPEC_CLASS = ServingCheckSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self, model: BaseChannel, examples: BaseChannel, text_keys: list[str], rows: int = 8
    ) -> None:
        """Checks the arguments and wires the channels."""
        named = isinstance(text_keys, list) and all(isinstance(k, str) and k for k in text_keys)
        if not named or len(text_keys) not in (1, 2):
            raise ConfigError(
                f"ServingCheck: text_keys must be one or two feature names. Received: {text_keys!r}"
            )
        if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
            raise ConfigError(
                f"ServingCheck: rows must be a whole number, 1 or more. Received: {rows!r}"
            )
        spec = ServingCheckSpec(
            **{
                standard_component_specs.MODEL_KEY: model,
                standard_component_specs.EXAMPLES_KEY: examples,
                executor.TEXT_KEYS: json_utils.dumps(text_keys),
                executor.ROWS: rows,
                standard_component_specs.BLESSING_KEY: Channel(
                    type=standard_artifacts.InfraBlessing
                ),
            }
        )
        super().__init__(spec=spec)
