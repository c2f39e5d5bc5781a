"""The Pusher component: TFX's own, with our executor, a model card, and its arguments checked."""

from typing import Any

from tfx.dsl.components.base import base_component, executor_spec
from tfx.proto import pusher_pb2
from tfx.types import standard_artifacts, standard_component_specs
from tfx.types.channel import BaseChannel, Channel
from tfx.types.component_spec import ChannelParameter, ComponentSpec
from tfx.utils import json_utils

from ...errors import ConfigError
from ..compressor import CompressionReport
from . import executor

KEEP = "keep"
CONFIG = "config"
LICENCE = "licence"
RUN = "run"
RETRIES = "retries"


class PusherSpec(ComponentSpec):
    """The stock Pusher's, and what a model card is written from."""

    PARAMETERS = standard_component_specs.PusherSpec.PARAMETERS
    INPUTS = {
        **standard_component_specs.PusherSpec.INPUTS,
        executor.EVALUATION: ChannelParameter(
            type=standard_artifacts.ModelEvaluation, optional=True
        ),
        executor.DATA: ChannelParameter(type=standard_artifacts.String, optional=True),
        executor.COMPRESSION: ChannelParameter(type=CompressionReport, optional=True),
    }
    OUTPUTS = standard_component_specs.PusherSpec.OUTPUTS


class Pusher(base_component.BaseComponent):
    """Publishes a blessed SavedModel as the next version of a TensorFlow Serving folder.

    Inputs, output and the marks on the output are those of TFX's Pusher. The output also bears
    a string custom property `reason` when the model was not pushed, and `needs` when it was
    exported for certain CPUs.

    Args:
        model: channel of the Trainer's `Model`.
        push_destination: a filesystem destination; its base directory holds the versions.
        model_blessing: channel of the Evaluator's `ModelBlessing`, optional.
        infra_blessing: channel of the ServingCheck's `InfraBlessing`, optional.
        evaluation: channel of the Evaluator's `ModelEvaluation`, for the model card.
        data: channel of the DataGate's report, for the model card.
        compression: channel of the Compressor's report, for the model card.
        custom_config: `keep`: int >= 1, how many versions stay (default: all of them);
            `config`: str, YAML text to put into the version as assets.extra/config.yaml;
            `licence`: str, of what training started from, for the model card;
            `retries`: int >= 0, how often a publishing that a network failed is tried again;
            `run`: str, a new one each time keeps TFX from answering out of its cache: what is
            served may have changed since.

    Raises:
        ConfigError: an argument is missing, unknown or out of range.
    """

    SPEC_CLASS = PusherSpec
    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: BaseChannel,
        push_destination: pusher_pb2.PushDestination,
        model_blessing: BaseChannel | None = None,
        infra_blessing: BaseChannel | None = None,
        evaluation: BaseChannel | None = None,
        data: BaseChannel | None = None,
        compression: BaseChannel | None = None,
        custom_config: dict[str, Any] | None = None,
    ) -> None:
        """Checks the arguments and wires the channels."""
        check_destination(push_destination)
        check_custom_config(custom_config or {})
        super().__init__(
            spec=PusherSpec(
                model=model,
                push_destination=push_destination,
                model_blessing=model_blessing,
                infra_blessing=infra_blessing,
                evaluation=evaluation,
                data=data,
                compression=compression,
                custom_config=json_utils.dumps(custom_config),
                pushed_model=Channel(type=standard_artifacts.PushedModel),
            )
        )


def check_destination(destination: pusher_pb2.PushDestination) -> None:
    """Refuses (ConfigError) a destination that is not a folder for versions numbered by us."""
    filesystem = getattr(destination, "filesystem", None)
    if filesystem is None or not filesystem.base_directory:
        raise ConfigError(
            "Pusher: push_destination must name a folder: "
            "PushDestination(filesystem=Filesystem(base_directory=...)). "
            f"Received: {destination!r}"
        )
    numbered = (pusher_pb2.Versioning.AUTO, pusher_pb2.Versioning.UNIX_TIMESTAMP)
    if filesystem.versioning not in numbered:
        raise ConfigError(
            "Pusher: versioning must be AUTO or UNIX_TIMESTAMP. "
            f"Received: {pusher_pb2.Versioning.Name(filesystem.versioning)}"
        )


def check_custom_config(custom_config: dict[str, Any]) -> None:
    """Refuses (ConfigError) unknown keys, and values of the wrong kind."""
    known = (KEEP, CONFIG, LICENCE, RUN, RETRIES)
    if unknown := sorted(set(custom_config) - set(known)):
        raise ConfigError(
            f"Pusher: custom_config knows {', '.join(known)} only. Received: {unknown}"
        )
    for name, least in ((KEEP, 1), (RETRIES, 0)):
        number = custom_config.get(name)
        whole = isinstance(number, int) and not isinstance(number, bool)
        if number is not None and not (whole and number >= least):
            raise ConfigError(
                f"Pusher: {name} must be a whole number, {least} or more. Received: {number!r}"
            )
    for name in (CONFIG, LICENCE):
        text = custom_config.get(name)
        if text is not None and not isinstance(text, str):
            raise ConfigError(f"Pusher: {name} must be text. Received: {type(text).__name__}")
