"""The DataGate component: its spec, and its arguments checked at construction."""

import json
from collections.abc import Sequence

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.types.channel import BaseChannel, Channel

from ...errors import ConfigError
from . import executor


class DataGateSpec(component_spec.ComponentSpec):
    """What goes in and out of DataGate."""

    PARAMETERS = {
        executor.LABEL: component_spec.ExecutionParameter(type=str),
        executor.TEXTS: component_spec.ExecutionParameter(type=str),
    }
    INPUTS = {
        standard_component_specs.EXAMPLES_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Examples
        ),
        standard_component_specs.STATISTICS_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.ExampleStatistics
        ),
        standard_component_specs.ANOMALIES_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.ExampleAnomalies
        ),
    }
    OUTPUTS = {executor.REPORT: component_spec.ChannelParameter(type=standard_artifacts.String)}


class DataGate(base_component.BaseComponent):
    """Lets the run go on only if every split has rows, no anomaly is an error, and training
    sees every label.

    Its output `report` is a `String` that holds JSON (see `gate.Report`). Steps that must wait
    for the gate name it with `add_upstream_node`.

    Args:
        examples: channel of ExampleGen's `Examples`.
        statistics: channel of StatisticsGen's `ExampleStatistics`.
        anomalies: channel of ExampleValidator's `ExampleAnomalies`.
        label: the feature that holds the label; the advice about it differs.
        texts: features whose lengths the report tells; those that are no strings are left out.

    Raises:
        ConfigError: the label is not a name.
    """

    SPEC_CLASS = DataGateSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        examples: BaseChannel,
        statistics: BaseChannel,
        anomalies: BaseChannel,
        label: str,
        texts: Sequence[str] = (),
    ) -> None:
        """Checks the arguments and wires the channels."""
        if not isinstance(label, str) or not label:
            raise ConfigError(f"DataGate: label must be a feature's name. Received: {label!r}")
        spec = DataGateSpec(
            **{
                standard_component_specs.EXAMPLES_KEY: examples,
                standard_component_specs.STATISTICS_KEY: statistics,
                standard_component_specs.ANOMALIES_KEY: anomalies,
                executor.LABEL: label,
                executor.TEXTS: json.dumps(list(texts)),
                executor.REPORT: Channel(type=standard_artifacts.String),
            }
        )
        super().__init__(spec=spec)
