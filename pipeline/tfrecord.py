"""Tell a TFRecord file without TensorFlow: by its first record's length and checksum."""

import gzip
import struct
from pathlib import Path

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected


def begins_as_tfrecord(file: Path) -> str:
    """Say what is wrong with the beginning of a TFRecord file, plain or gzip; "" if nothing is.

    A record is: length, uint64; the length's masked CRC-32C, uint32; the bytes; their CRC.
    """
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(file) if packed else file.open("rb") as stream:
            head = stream.read(12)
            if not head:
                return "the file is empty"
            if len(head) < 12:
                return f"not a TFRecord file: only {len(head)} bytes long"
            length, checksum = struct.unpack("<QI", head)
            if masked_crc32c(head[:8]) != checksum:
                return "not a TFRecord file: its first bytes are no record's length and checksum"
            if not packed and length + 16 > file.stat().st_size:
                return f"cut off in its first record, which should have {length:,} bytes"
    except (gzip.BadGzipFile, EOFError):
        return "a damaged gzip file"
    return ""


def masked_crc32c(data: bytes) -> int:
    """The checksum of TFRecord files: CRC-32C, rotated and shifted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (_POLYNOMIAL if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
