"""ExampleGens that TFX takes from its cache by their rows' content, a hash of which is among their
settings, and by nothing else."""

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf import wrappers_pb2
from tfx.components.example_gen import component, driver, input_processor
from tfx.proto import example_gen_pb2
from tfx.utils import proto_utils


class _Processor(input_processor.FileBasedInputProcessor):
    def get_input_fingerprint(self, span: int, version: int | None) -> str | None:
        """TFX's is made of the files' sizes and times: a fresh checkout would be read anew."""
        return "by content"


class Driver(driver.FileBasedDriver):
    """TFX's, without a look at the times of files."""

    def get_input_processor(
        self, splits: Any, range_config: Any = None, input_base_uri: str | None = None
    ) -> input_processor.InputProcessor:
        """See TFX's."""
        return _Processor(input_base_uri, splits, range_config)


class FileBasedExampleGen(component.FileBasedExampleGen):
    """TFX's, with that driver; its custom_config must hold a hash of the content: see `pack`."""

    DRIVER_CLASS = Driver


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
