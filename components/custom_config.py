"""An ExampleGen's settings as TFX hands them to its executor; they enter the cache's key."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import wrappers_pb2
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils


def pack(settings: Mapping[str, Any]) -> example_gen_pb2.CustomConfig:
    """Settings that are plain JSON, as a component takes them."""
    config = example_gen_pb2.CustomConfig()
    text = json.dumps(settings, sort_keys=True)
    config.custom_config.Pack(wrappers_pb2.StringValue(value=text))
    return config


def unpack(custom_config: str) -> dict[str, Any]:
    """The same, out of the executor's property `custom_config`."""
    config, text = example_gen_pb2.CustomConfig(), wrappers_pb2.StringValue()
    proto_utils.json_to_proto(custom_config, config)
    config.custom_config.Unpack(text)
    settings: dict[str, Any] = json.loads(text.value)
    return settings
