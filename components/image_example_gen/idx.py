"""MNIST's idx files: arrays of unsigned bytes behind a short header, gzipped or not.

A header is two zero bytes, the type (8: unsigned byte), how many dimensions, and each dimension as
a big-endian int32. Pictures have three dimensions (grey) or four, the last of them 3; labels one.
"""

import functools
import gzip
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..faults import Faults, Unreadable
from ..names import split_of

if TYPE_CHECKING:
    import numpy as np

_GZIP = b"\x1f\x8b"
_MAGIC = {b"\0\0\x08\x01", b"\0\0\x08\x03", b"\0\0\x08\x04"}
MOST_BYTES = 2 << 30  # of an array; it has to fit into the memory, and MNIST's has 47 MB
_ADVICE = "Copy it anew; MNIST's files are of this form."
_EXPECTED = "Expected unsigned bytes: pictures of 3 dimensions (4 if in RGB), labels of 1."


def is_idx(file: Path) -> bool:
    """Whether a file is named like an idx file, or begins like one."""
    if re.search(r"idx\d", file.name.lower()):
        return True
    try:
        with _open(file) as opened:
            return opened.read(4) in _MAGIC
    except (OSError, EOFError, zlib.error):
        return False


def pairs(files: Iterable[Path], faults: Faults) -> dict[str, tuple[Path, Path]]:
    """(pictures, labels) by split; under `all` where they are a single pair.

    Pictures and labels belong together when their names differ in nothing but `images` and
    `labels`, the digit behind `idx`, and `.gz`.
    """
    found: dict[str, dict[str, Path]] = {}
    for file in files:
        name = file.name.lower().removesuffix(".gz")
        kind = "labels" if "label" in name else "images"
        key = re.sub(r"images?|labels?", "", re.sub(r"idx\d", "idx", name))
        other = found.setdefault(key, {}).setdefault(kind, file)
        if other != file:
            faults.add(file, None, f"the same as {other.name}, by its name", "Keep one of them.")
    for pair in found.values():
        if len(pair) == 1:
            ((kind, file),) = pair.items()
            lacks = "labels" if kind == "images" else "images"
            faults.add(
                file,
                None,
                f"idx {kind} without their {lacks}",
                f"Expected a file of the same name with `{lacks}` in place of `{kind}`.",
            )
    whole = [pair for pair in found.values() if len(pair) == 2]
    if len(whole) == 1:
        return {"all": (whole[0]["images"], whole[0]["labels"])}
    return _by_split(whole, faults)


def _by_split(whole: Iterable[dict[str, Path]], faults: Faults) -> dict[str, tuple[Path, Path]]:
    found: dict[str, tuple[Path, Path]] = {}
    for pair in whole:
        file = pair["images"]
        split = "test" if "t10k" in file.name.lower() else split_of(file)
        if split is None or split in found:
            faults.add(
                file,
                None,
                f"a second pair of idx files{f' for {split}' if split else ''} in this folder",
                "Their names must say which is for train, eval and test (t10k is test).",
            )
        else:
            found[split] = (file, pair["labels"])
    return found


def read_pair(images: Path, labels: Path, faults: Faults) -> list[str]:
    """The label of each picture; none if a fault was noted."""
    try:
        pictures, numbers = load(images, faults), load(labels, faults)
        if pictures.ndim not in (3, 4) or pictures.shape[3:] not in ((), (3,)):
            raise faults.stop(images, None, f"an array of {_shape(pictures)}", _EXPECTED)
        if numbers.ndim != 1:
            raise faults.stop(labels, None, f"labels of {_shape(numbers)}", _EXPECTED)
        if len(pictures) != len(numbers):
            what = f"{len(numbers):,} labels for the {len(pictures):,} pictures in {images.name}"
            raise faults.stop(labels, None, what, "Are these two of the same set?")
        return [str(number) for number in numbers.tolist()]
    except Unreadable:
        return []


def load(file: Path, faults: Faults) -> "np.ndarray":
    """The array in a file, kept until `forget`.

    Raises:
        Unreadable: there is none in it; the fault is noted.
    """
    try:
        status = os.stat(file)
        return _load(str(file), status.st_mtime_ns, status.st_size)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise faults.stop(file, None, f"not a whole idx file: {what}", _ADVICE) from None


@functools.lru_cache(maxsize=6)  # pictures and labels of three splits
def _load(file: str, changed: int, size: int) -> "np.ndarray":
    import numpy as np

    with _open(Path(file)) as opened:
        head = opened.read(4)
        if head[:2] != b"\0\0" or len(head) < 4:
            raise ValueError(f"it begins with 0x{head.hex()}, and not with 0x0000")
        if head[2] != 8:
            raise ValueError(
                f"its values are of type 0x{head[2]:02X}, and not unsigned bytes (0x08)"
            )
        sizes = opened.read(4 * head[3])
        if len(sizes) < 4 * head[3]:
            raise ValueError("cut short in its header")
        shape = struct.unpack(f">{head[3]}I", sizes)
        announced, what = math.prod(shape), " x ".join(f"{size:,}" for size in shape)
        if announced > MOST_BYTES:
            raise ValueError(f"{what} were announced, and {MOST_BYTES:,} bytes are the most")
        # No more than was announced is unpacked, whatever a gzip file would grow to; and block by
        # block, since one read of so many bytes asks for the memory first.
        data = bytearray()
        while block := opened.read(min(1 << 20, announced - len(data))):
            data += block
        if len(data) < announced or opened.read(1):
            found = f"{len(data):,} bytes" if len(data) < announced else "more bytes"
            raise ValueError(f"{found} of data, and {what} were announced")
    return np.frombuffer(data, np.uint8).reshape(shape)


def forget() -> None:
    """Let go of the arrays."""
    _load.cache_clear()


def row(file: str, index: int) -> "np.ndarray":
    """One picture's pixels; the file is decompressed once.

    Raises:
        Unreadable: the file is no longer what it was.
    """
    return load(Path(file), Faults())[index]


def to_png(pixels: "np.ndarray") -> bytes:
    """Pixels as a PNG, packed as fast as may be: the Examples are gzipped anyway."""
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _open(file: Path) -> io.BufferedIOBase:
    with file.open("rb") as opened:
        packed = opened.read(2) == _GZIP
    return gzip.open(file) if packed else file.open("rb")


def _shape(array: "np.ndarray") -> str:
    return f"{array.ndim} dimensions ({' x '.join(f'{size:,}' for size in array.shape)})"
