"""TFRecord files: that they are there, whole, and framed as TFRecords are."""

import gzip
import hashlib
import struct
import zlib
from pathlib import Path
from typing import IO

from ..errors import DataError
from .parquet_check import hash_file
from .tally import DataReport


def check_tfrecord(
    splits: dict[str, list[Path]], text: list[str], label: str, slices: list[str]
) -> DataReport:
    """Walk the records of every file. Columns are left to the data gate."""
    digest, found = hashlib.sha256(), DataReport()
    for split, files in splits.items():
        found.rows[split] = 0
        for file in files:
            digest.update(f"{split} {file.name} {file.stat().st_size}\n".encode())
            hash_file(file, digest)
            found.bytes += file.stat().st_size
            found.rows[split] += _count(file)
    found.fingerprint = digest.hexdigest()
    return found


def _count(file: Path) -> int:
    """How many records a file has. Beam, too, tells gzip by the name's ending."""
    opener = gzip.open if file.suffix == ".gz" else open
    rows = 0
    try:
        with opener(file, "rb") as stream:
            while _skip(stream, file, rows):
                rows += 1
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{file}: cannot be read: {error}. Write it again.") from None
    if not rows:
        raise DataError(f"{file}: the file is empty. Expected records of tf.Example.")
    return rows


def _skip(stream: IO[bytes], file: Path, rows: int) -> bool:
    """Pass over one record (length, its checksum, data, its checksum); False at the end."""
    head = stream.read(12)
    if not head:
        return False
    length, check = struct.unpack("<QI", head) if len(head) == 12 else (0, 0)
    if len(head) < 12 or check != _masked_crc32c(head[:8]):
        raise DataError(
            f"{file}: not a TFRecord file, or damaged, at record {rows + 1}. Write it again; "
            "a compressed file's name must end in .gz."
        )
    left = length + 4
    while left:
        block = stream.read(min(left, 1 << 20))
        if not block:
            raise DataError(f"{file}: cut short in record {rows + 1}. Write it again.")
        left -= len(block)
    return True


def _table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ 0x82F63B78 * (value & 1)
        table.append(value)
    return table


_TABLE = _table()


def _masked_crc32c(data: bytes) -> int:
    """https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details"""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
