"""TensorFlow Serving's messages without TensorFlow, in a descriptor pool of their own.

The official modules of tensorflow-serving-api need TensorFlow installed, and a second copy of the
same protos in protobuf's one default pool ends the process. `protos.binpb` holds the official
descriptors (Apache License 2.0, The TensorFlow Authors), so that what goes over the wire is the
same. `python -m espalier.serving.protos` writes it anew out of the installed packages.
"""

import functools
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE = Path(__file__).parent / "protos.binpb"
_APIS = ("predict", "classification", "regression", "get_model_metadata", "get_model_status")
# Config files of the server that the package has no modules for: name -> field -> (number, type).
# From tensorflow_serving/config/{ssl,monitoring}_config.proto and
# servables/tensorflow/session_bundle_config.proto.
_CONFIGS: dict[str, dict[str, tuple[int, str]]] = {
    "SSLConfig": {
        "server_key": (1, "string"),
        "server_cert": (2, "string"),
        "custom_ca": (3, "string"),
        "client_verify": (4, "bool"),
    },
    "PrometheusConfig": {"enable": (1, "bool"), "path": (2, "string")},
    "MonitoringConfig": {"prometheus_config": (1, ".tensorflow.serving.PrometheusConfig")},
    "BatchingParameters": {
        "max_batch_size": (1, ".google.protobuf.Int64Value"),
        "batch_timeout_micros": (2, ".google.protobuf.Int64Value"),
        "max_enqueued_batches": (3, ".google.protobuf.Int64Value"),
        "num_batch_threads": (4, ".google.protobuf.Int64Value"),
        "thread_pool_name": (5, ".google.protobuf.StringValue"),
        "allowed_batch_sizes": (6, "repeated int64"),
        "pad_variable_length_inputs": (7, "bool"),
        "enable_large_batch_splitting": (8, ".google.protobuf.BoolValue"),
        "max_execution_batch_size": (9, ".google.protobuf.Int64Value"),
    },
}


@functools.cache
def message(name: str) -> Any:
    """The class of a message of the package tensorflow.serving, or of any by its full name."""
    full = name if "." in name else f"tensorflow.serving.{name}"
    descriptor = _pool().FindMessageTypeByName(full)
    if hasattr(message_factory, "GetMessageClass"):  # protobuf 4.22 and later
        return message_factory.GetMessageClass(descriptor)
    return _factory().GetPrototype(descriptor)


@functools.cache
def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(FILE.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


@functools.cache
def _factory() -> Any:
    return message_factory.MessageFactory(_pool())


def official() -> bytes:
    """What `protos.binpb` should hold, out of the installed official packages."""
    import importlib

    files: dict[str, Any] = {}

    def add(file: Any) -> None:
        if file.name not in files:
            for dependency in file.dependencies:
                add(dependency)
            files[file.name] = file.serialized_pb

    for api in _APIS:
        add(importlib.import_module(f"tensorflow_serving.apis.{api}_pb2").DESCRIPTOR)
    parsed = [descriptor_pb2.FileDescriptorProto.FromString(data) for data in files.values()]
    return descriptor_pb2.FileDescriptorSet(file=[*parsed, _configs()]).SerializeToString(
        deterministic=True
    )


def _configs() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="espalier/server_configs.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=["google/protobuf/wrappers.proto"],
    )
    field_type = descriptor_pb2.FieldDescriptorProto
    for name, fields in _CONFIGS.items():
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            repeated, kind = kind.startswith("repeated "), kind.removeprefix("repeated ")
            added = described.field.add(name=field, number=number)
            added.label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            if kind.startswith("."):
                added.type, added.type_name = field_type.TYPE_MESSAGE, kind
            else:
                added.type = getattr(field_type, f"TYPE_{kind.upper()}")
    return file


if __name__ == "__main__":
    FILE.write_bytes(official())
