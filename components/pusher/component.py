"""The Pusher component: TFX's own, with our executor and its arguments checked."""

from typing import Any

from tfx.components.pusher import component as stock
from tfx.dsl.components.base import executor_spec
from tfx.proto import pusher_pb2
from tfx.types.channel import BaseChannel

from ...errors import ConfigError
from . import executor

KEEP = "keep"
CONFIG = "config"
RUN = "run"


class Pusher(stock.Pusher):
    """Publishes a blessed SavedModel as the next version of a TensorFlow Serving folder.

    Inputs, output and the marks on the output are those of TFX's Pusher. The output also bears
    a string custom property `reason` when the model was not pushed, and `needs` when it was
    exported for certain CPUs.

    Args:
        model: channel of the Trainer's `Model`.
        push_destination: a filesystem destination; its base directory holds the versions.
        model_blessing: channel of the Evaluator's `ModelBlessing`, optional.
        infra_blessing: channel of the ServingCheck's `InfraBlessing`, optional.
        custom_config: `keep`: int >= 1, how many versions stay (default: all of them);
            `config`: str, YAML text to put into the version as assets.extra/config.yaml;
            `run`: str, a new one each time keeps TFX from answering out of its cache: what is
            served may have changed since.

    Raises:
        ConfigError: an argument is missing, unknown or out of range.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)

    def __init__(
        self,
        model: BaseChannel,
        push_destination: pusher_pb2.PushDestination,
        model_blessing: BaseChannel | None = None,
        infra_blessing: BaseChannel | None = None,
        custom_config: dict[str, Any] | None = None,
    ) -> None:
        """Checks the arguments and wires the channels."""
        check_destination(push_destination)
        check_custom_config(custom_config or {})
        super().__init__(
            model=model,
            push_destination=push_destination,
            model_blessing=model_blessing,
            infra_blessing=infra_blessing,
            custom_config=custom_config,
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
    unknown = sorted(set(custom_config) - {KEEP, CONFIG, RUN})
    if unknown:
        raise ConfigError(
            f"Pusher: custom_config knows {KEEP!r}, {CONFIG!r} and {RUN!r} only. "
            f"Received: {unknown}"
        )
    keep = custom_config.get(KEEP)
    if keep is not None and (isinstance(keep, bool) or not isinstance(keep, int) or keep < 1):
        raise ConfigError(f"Pusher: {KEEP} must be a whole number, 1 or more. Received: {keep!r}")
    config = custom_config.get(CONFIG)
    if config is not None and not isinstance(config, str):
        raise ConfigError(f"Pusher: {CONFIG} must be YAML text. Received: {type(config).__name__}")
