"""The rows' tf.train.Examples, byte for byte as TFX's readers make them, without TensorFlow.

A hash of these bytes is what ExampleGen splits by, so the pre-flight check can count as it will.
Source: tfx 1.16, csv_example_gen/executor.py, example_gen/utils.py (dict_to_example) and
base_example_gen_executor.py (_GeneratePartitionKey); map entries are written in the keys' order.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..components.faults import Faults
from .csv_rows import FLOAT, INT, STRING, CsvFile
from .tfrecord import example_class, read_records

Features = dict[str, bytes]  # by name, a serialized tf.train.Feature


def rows_of(
    file: Path, kind: str, types: Mapping[str, int], faults: Faults
) -> Iterator[tuple[bytes, Features]]:
    """(serialized Example, its features) of each row of a file that was checked.

    Args:
        file: CSV, Parquet or TFRecord.
        kind: which of them.
        types: what each column of the split is to TFX; CSV alone needs it.
        faults: gets what the check of the used columns could not see.
    """
    read: dict[str, Callable[[], Iterator[Features]]] = {
        "csv": lambda: _csv(file, types, faults),
        "parquet": lambda: _parquet(file, faults),
        "tfrecord": lambda: _tfrecord(file, faults),
    }
    for features in read[kind]():
        yield example(features), features


def example(features: Mapping[str, bytes]) -> bytes:
    """A tf.train.Example as SerializeToString(deterministic=True) writes it."""
    entries = b"".join(
        _part(b"\n", _part(b"\n", name.encode()) + _part(b"\x12", features[name]))
        for name in sorted(features)
    )
    return _part(b"\n", entries)


def _csv(file: Path, types: Mapping[str, int], faults: Faults) -> Iterator[Features]:
    with CsvFile(file, faults) as table:
        made = [(name, _FROM_CELL.get(types.get(name, 0), _unknown)) for name in table.columns]
        for _, row in table.rows():
            yield {name: make(cell) for (name, make), cell in zip(made, row, strict=True)}


def _unknown(_: str) -> bytes:
    return b""


def _bytes(cell: str) -> bytes:
    return _part(b"\n", _part(b"\n", cell.encode()) if cell else b"")


def _float(cell: str) -> bytes:
    return _part(b"\x12", _part(b"\n", _float32(float(cell))) if cell else b"")


def _int(cell: str) -> bytes:
    return _part(b"\x1a", _part(b"\n", _varint(int(cell))) if cell else b"")


_FROM_CELL = {INT: _int, FLOAT: _float, STRING: _bytes}


def _parquet(file: Path, faults: Faults) -> Iterator[Features]:
    from .parquet_rows import batches

    for row, (names, cells) in enumerate(batches(file, faults), 1):
        try:
            yield {name: _of_value(value) for name, value in zip(names, cells, strict=True)}
        except UnicodeDecodeError:
            faults.add(file, row, "a value that is not UTF-8", "Decode it before writing it.")
            yield {}


def _of_value(value: Any) -> bytes:
    """What TFX makes of a value of Parquet; of all that Python calls false, nothing."""
    if isinstance(value, bytes):
        value = value.decode("utf-8")
    if not value:
        return b""
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], int):
        return _part(b"\x1a", _part(b"\n", b"".join(_varint(int(one)) for one in values)))
    if isinstance(values[0], float):
        return _part(b"\x12", _part(b"\n", b"".join(map(_float32, values))))
    return _part(b"\n", b"".join(_part(b"\n", str(one).encode()) for one in values))


def _tfrecord(file: Path, faults: Faults) -> Iterator[Features]:
    for record in read_records(file, faults):
        entries = example_class().FromString(record).features.feature
        yield {entry.key: entry.value.SerializeToString() for entry in entries}


def _part(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    if 0 <= number < len(_SHORT):
        return _SHORT[number]
    return _long_varint(number & (1 << 64) - 1)


def _long_varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


_SHORT = [_long_varint(number) for number in range(1 << 12)]


def _float32(number: float) -> bytes:
    return bytes(ctypes.c_float(number))  # too large a one is infinite, as protobuf has it
