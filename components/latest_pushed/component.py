"""The LatestPushed component: its spec, and its arguments checked at construction."""

from tfx.dsl.components.base import base_component, executor_spec
from tfx.types import component_spec, standard_artifacts, standard_component_specs
from tfx.types.channel import Channel

from ...errors import ConfigError
from . import executor


class LatestPushedSpec(component_spec.ComponentSpec):
    """What goes in and out of LatestPushed."""

    PARAMETERS = {executor.BASE: component_spec.ExecutionParameter(type=str)}
    INPUTS: dict[str, component_spec.ChannelParameter] = {}
    OUTPUTS = {
        standard_component_specs.MODEL_KEY: component_spec.ChannelParameter(
            type=standard_artifacts.Model
        ),
    }


class LatestPushed(base_component.BaseComponent):
    """Gives the model that is served now, as a `Model` to compare a new one with.

    On Kubeflow a Resolver is refused ("non-container and non-importer executor not implemented",
    backend/src/v2/compiler/visitor.go), so the baseline is looked for where it was pushed to. The
    output bears an int custom property `found`: 0 if nothing was pushed yet.

    Args:
        base: the model's base path, as the Pusher has it.

    Raises:
        ConfigError: it is empty.
    """

    SPEC_CLASS = LatestPushedSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(self, base: str) -> None:
        """Checks the argument and wires the output."""
        if not base:
            raise ConfigError("LatestPushed: base must name the folder of versions.")
        spec = LatestPushedSpec(
            **{
                executor.BASE: base,
                standard_component_specs.MODEL_KEY: Channel(type=standard_artifacts.Model),
            }
        )
        super().__init__(spec=spec)
