"""The config files of TensorFlow Serving: protos as text, for the same flags."""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..text_proto import read
from .batching import Parameters
from .manager import ModelConfig
from .predictor import is_version
from .protos import message
from .servable import is_whole

_LOG_TYPE = "tfrecord"  # of a log collector: the one kind that we have


def read_models(path: Path) -> list[ModelConfig]:
    """The models of a ModelServerConfig's file.

    Raises:
        ConfigError: it cannot be read, or says what cannot be served.
    """
    from tensorflow_serving.config import model_server_config_pb2

    config = read(path, model_server_config_pb2.ModelServerConfig())
    try:
        return models(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def models(config: Any) -> list[ModelConfig]:
    """The models of a ModelServerConfig.

    Raises:
        ConfigError: what it says cannot be served.
    """
    kind = config.WhichOneof("config")
    if kind != "model_config_list":
        raise ConfigError(
            f"the model config holds {kind or 'nothing'}; a model_config_list is expected."
        )
    return [_model(one) for one in config.model_config_list.config]


def _model(config: Any) -> ModelConfig:
    if not config.name or not config.base_path:
        raise ConfigError(f"each model needs a name and a base_path; found {config!s}")
    if "/" in config.name or ":" in config.name or not config.name.isprintable():
        raise ConfigError(
            f"model {config.name!r}: a name must hold no /, no : and no control characters."
        )
    if "\0" in config.base_path:
        raise ConfigError(f"model {config.name}: its base_path holds a NUL, as no path does.")
    if config.model_platform not in ("", "tensorflow"):
        raise ConfigError(
            f"model {config.name} requests unsupported platform {config.model_platform}; "
            "tensorflow is expected."
        )
    policy = config.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    collector = config.logging_config.log_collector_config
    if collector.type not in ("", _LOG_TYPE):
        raise ConfigError(
            f"model {config.name}: log collector {collector.type!r} is unknown; {_LOG_TYPE} is "
            "expected."
        )
    return ModelConfig(
        name=config.name,
        base_path=Path(config.base_path),
        latest=0 if choice == "all" else max(policy.latest.num_versions, 1),
        specific=tuple(policy.specific.versions) if choice == "specific" else (),
        labels=dict(config.version_labels),
        log_prefix=collector.filename_prefix if collector.type else "",
        log_rate=config.logging_config.sampling_config.sampling_rate if collector.type else 0.0,
    )


def batching(path: Path | None) -> Parameters:
    """The BatchingParameters of a file; the defaults without one.

    Raises:
        ConfigError: a number is out of range, or asks for what is not there.
    """
    if path is None:
        return Parameters()
    given = read(path, message("BatchingParameters")())
    if given.pad_variable_length_inputs:
        raise ConfigError(
            f"{path}: pad_variable_length_inputs is not supported; rows of other shapes are "
            "batched apart. Remove it."
        )
    names = (
        "max_batch_size",
        "batch_timeout_micros",
        "max_enqueued_batches",
        "num_batch_threads",
        "enable_large_batch_splitting",
    )
    values = {name: getattr(given, name).value for name in names if given.HasField(name)}
    for name, value in values.items():
        least = 0 if name in ("batch_timeout_micros", "enable_large_batch_splitting") else 1
        if value < least:
            raise ConfigError(f"{path}: {name} is {value}; at least {least} is expected.")
    parameters = Parameters(**values, allowed_batch_sizes=tuple(given.allowed_batch_sizes))
    _check_sizes(path, parameters.allowed_batch_sizes, parameters.max_batch_size)
    return parameters


def _check_sizes(path: Path, sizes: Sequence[int], largest: int) -> None:
    rising = all(a < b for a, b in itertools.pairwise(sizes))
    if sizes and (not rising or sizes[-1] != largest or sizes[0] < 1):
        raise ConfigError(
            f"{path}: allowed_batch_sizes {list(sizes)} must rise, and end with max_batch_size "
            f"({largest})."
        )


def ssl(path: Path) -> Any:
    """The SSLConfig of a file: server_key, server_cert, custom_ca, client_verify.

    Raises:
        ConfigError: it lacks the key, the certificate, or, to verify clients, the authority.
    """
    config = read(path, message("SSLConfig")())
    for name in ("server_key", "server_cert"):
        if not getattr(config, name):
            raise ConfigError(f"{path}: {name} is missing; the PEM's text is expected.")
    if config.client_verify and not config.custom_ca:
        raise ConfigError(f"{path}: client_verify needs custom_ca, which signed the clients'.")
    return config


def monitoring_path(path: Path | None, default: str) -> str:
    """Where metrics are served, of a MonitoringConfig's file; "" if they are turned off."""
    if path is None:
        return default
    config = read(path, message("MonitoringConfig")()).prometheus_config
    return (config.path or default) if config.enable else ""


def of_folders(folders: Sequence[Path], name: str | None) -> list[ModelConfig]:
    """A model for each folder of versions, or for a single version's folder.

    Args:
        folders: the base paths.
        name: of a single model; else each has its folder's.

    Raises:
        ConfigError: there is none, one is missing, or two have one name.
    """
    if not folders:
        raise ConfigError("name a MODEL_DIR, --model_base_path or --model_config_file.")
    if name and len(folders) > 1:
        raise ConfigError("--model_name is for one model; several go by their folders' names.")
    found = []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: there is no such folder. Name a model's base path.")
        path = folder.resolve()
        alone = is_whole(path)
        if alone and not is_version(path.name):
            raise ConfigError(
                f"{folder}: a version's folder must be named as a number, as in {path.name}/1."
            )
        base = path.parent if alone else path
        specific = (int(path.name),) if alone else ()
        found.append(ModelConfig(name or base.name, base, specific=specific))
    return found


def logged(models: Sequence[ModelConfig], prefix: str, rate: float) -> list[ModelConfig]:
    """The models with their requests logged to PREFIX-MODEL, unless they say where themselves."""
    return [
        one if one.log_prefix else replace(one, log_prefix=f"{prefix}-{one.name}", log_rate=rate)
        for one in models
    ]


def channel_arguments(text: str) -> tuple[tuple[str, Any], ...]:
    """`grpc.name=value,...` as gRPC takes it: whole numbers as numbers.

    Raises:
        ConfigError: a part has no =.
    """
    parts = [part for part in text.split(",") if part]
    for part in parts:
        if "=" not in part:
            raise ConfigError(f"--grpc_channel_arguments: {part!r} is not name=value.")
    pairs = [part.split("=", 1) for part in parts]
    return tuple(
        (key, int(value) if value.lstrip("-").isdecimal() else value) for key, value in pairs
    )
