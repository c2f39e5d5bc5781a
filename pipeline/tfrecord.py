"""Read TFRecord files of tf.train.Example without TensorFlow, and count their used features."""

import functools
import gzip
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import google_crc32c

from ..components.faults import Faults
from ..trainer.checkpoints import sha256
from .csv_rows import FLOAT, INT, STRING, UNKNOWN
from .tally import Columns, Tally, same_columns

_LONGEST = 100_000_000  # bytes of a record
_KINDS = {"bytes_list": STRING, "int64_list": INT, "float_list": FLOAT, None: UNKNOWN}
_AGAIN = "Expected a TFRecord file of tf.train.Example; write it anew."


def read_tfrecord(file: Path, tally: Tally, columns: Columns, _: list[str]) -> str:
    """Count one file's records; return its SHA-256.

    Raises:
        Unreadable: the file cannot be used; the fault is noted.
    """
    used, key = columns.used, columns.rule.column
    for row, record in enumerate(read_records(file, tally.faults), 1):
        features = _features(file, row, record, tally.faults)
        if row == 1:
            _look_at_first(file, features, used, tally, columns)
        values = {name: _value(file, row, name, features, tally) for name in used}
        texts, slices = ([values[name] for name in names] for names in (columns[0], columns[2]))
        tally.add(file, row, texts, values[columns[1]], slices, values[key] if key else "")
    return sha256(file)


def read_records(file: Path, faults: Faults) -> Iterator[bytes]:
    """The records' bytes; like Beam, this takes a file that begins like gzip for one.

    A record is: length, uint64; the length's masked CRC-32C, uint32; the bytes; their CRC. TFX
    will check both, and name neither file nor row.
    """
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    if packed and file.suffix != ".gz":
        what = "a gzip file, which Beam unpacks only if its name ends in .gz"
        raise faults.stop(file, None, what, "Rename it.")
    row = 0
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            while head := stream.read(12):
                row += 1
                yield _record(file, row, head, stream, faults)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise faults.stop(file, row or None, "a damaged gzip file", "Write it anew.") from None
    if not row:
        raise faults.stop(file, None, "the file is empty", _AGAIN)


def _record(file: Path, row: int, head: bytes, stream: Any, faults: Faults) -> bytes:
    length, checksum = struct.unpack("<QI", head) if len(head) == 12 else (0, 0)
    if len(head) < 12 or masked_crc32c(head[:8]) != checksum or length > _LONGEST:
        what = "not a TFRecord file" if row == 1 else "damaged"
        raise faults.stop(file, row, f"{what}: no record's length and checksum", _AGAIN)
    record = stream.read(length + 4)
    if len(record) < length + 4:
        raise faults.stop(file, row, "cut off in this record", "Write it anew.")
    if masked_crc32c(record[:-4]) != struct.unpack("<I", record[-4:])[0]:
        raise faults.stop(file, row, "damaged: its checksum is of other bytes", "Write it anew.")
    return record[:-4]


def _features(file: Path, row: int, record: bytes, faults: Faults) -> dict[str, Any]:
    from google.protobuf.message import DecodeError

    try:
        example = example_class().FromString(record)
    except DecodeError:
        raise faults.stop(file, row, "not a tf.train.Example", _AGAIN) from None
    return {entry.key: entry.value for entry in example.features.feature}


def _look_at_first(
    file: Path, features: dict[str, Any], used: Sequence[str], tally: Tally, columns: Columns
) -> None:
    """Names and types, by a file's first record. Examples leave out what is empty: files need
    not have the same features beyond those that are used."""
    if not set(used) <= set(features):
        same_columns(file, sorted(features), tally, columns)
    tally.columns = list(used)
    for name in used:
        kind = _KINDS[features[name].WhichOneof("kind")]
        if name in columns[0] and kind in (INT, FLOAT):
            what = f"feature {name!r} holds numbers, and it is to be the text"
            raise tally.faults.stop(file, 1, what, "Is it the right feature?")
        if tally.types.setdefault(name, kind) != kind and UNKNOWN not in (kind, tally.types[name]):
            what = f"feature {name!r} is of another type than in the files before"
            raise tally.faults.stop(file, 1, what, "Write it alike in all.")


def _value(file: Path, row: int, name: str, features: dict[str, Any], tally: Tally) -> str:
    """A feature's one value as CSV would hold it, "" where there is none."""
    kind = features[name].WhichOneof("kind") if name in features else None
    values = getattr(features[name], kind).value if kind else ()
    if len(values) > 1:
        what = f"feature {name!r} has several values, and one was expected"
        tally.faults.add(file, row, what, "Is it the right feature?")
    if not values:
        return ""
    if kind != "bytes_list":
        return str(values[0])
    try:
        return str(values[0], "utf-8")
    except UnicodeDecodeError:
        what = f"feature {name!r} is not UTF-8"
        tally.faults.add(file, row, what, "Decode it before writing it.")
        return str(values[0], "latin-1")


@functools.cache
def example_class() -> Any:
    """tf.train.Example, declared here: importing its module imports all of TensorFlow.

    Source: tensorflow/core/example/{example,feature}.proto. A map travels as its entries.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example", package="e", syntax="proto3")
    messages: dict[str, list[tuple[str, int | str]]] = {
        "BytesList": [("value", field.TYPE_BYTES)],
        "FloatList": [("value", field.TYPE_FLOAT)],
        "Int64List": [("value", field.TYPE_INT64)],
        "Feature": [
            ("bytes_list", "BytesList"),
            ("float_list", "FloatList"),
            ("int64_list", "Int64List"),
        ],
        "Entry": [("key", field.TYPE_STRING), ("value", "Feature")],
        "Features": [("feature", "Entry")],
        "Example": [("features", "Features")],
    }
    for name, parts in messages.items():
        message = file.message_type.add(name=name)
        if name == "Feature":
            message.oneof_decl.add(name="kind")
        for number, (part, kind) in enumerate(parts, 1):
            many = name.endswith("List") or name == "Features"
            label = field.LABEL_REPEATED if many else field.LABEL_OPTIONAL
            added = message.field.add(name=part, number=number, label=label)
            if name == "Feature":
                added.oneof_index = 0
            if isinstance(kind, str):
                added.type, added.type_name = field.TYPE_MESSAGE, f".e.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()  # not the default one, which may hold TensorFlow's
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("e.Example")
    return message_factory.MessageFactory(pool).GetPrototype(descriptor)


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated and shifted."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
