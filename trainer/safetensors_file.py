"""Safetensors files (https://huggingface.co/docs/safetensors), read with their faults told.

The header is held against the file's size, so that a download cut short is found without reading
it all; the format's own library says little more than that a header is invalid.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

_WIDTHS = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_MAX_HEADER = 10_000_000  # bytes: a hundred thousand tensors; the format allows ten times it
_MOST_DIMENSIONS = 32  # numpy's


@dataclass(frozen=True)
class Tensor:
    """Where one tensor lies: its file, type (safetensors' name), shape, first byte and bytes."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


def read_header(file: Path) -> dict[str, Tensor]:
    """Return every tensor of a file by name, from its header. Raises CheckpointError.

    The file is: the header's length (8 bytes, little endian), the header (JSON), the data.
    """
    again = "Fetch the checkpoint again."
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = struct.unpack("<Q", stream.read(8))[0] if size >= 8 else size
            if length > size - 8:
                raise CheckpointError(
                    f"{file} is no whole safetensors file: it has {size} bytes, and its header "
                    f"alone would need {length + 8}. {again}"
                )
            if length > _MAX_HEADER:
                raise CheckpointError(
                    f"{file}: the header has {length} bytes, and {_MAX_HEADER} are the most that "
                    f"are read. Choose another checkpoint."
                )
            header = json.loads(stream.read(length), object_pairs_hook=_once)
        entries = {n: v for n, v in header.items() if n != "__metadata__"}
        tensors = {name: _entry(file, 8 + length, value) for name, value in entries.items()}
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing, and the index beside it names it. {again}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = str(error)[:200]
        raise CheckpointError(f"{file}: the header is damaged ({why}). {again}") from None
    end = 8 + length
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].offset, pair[1].size)):
        if tensor.offset != end:
            raise CheckpointError(
                f"{file}: the header is damaged ({name[:100]!r} begins at byte {tensor.offset}, "
                f"and what stands before it ends at {end}). {again}"
            )
        end += tensor.size
    if end != size:
        raise CheckpointError(
            f"{file} has {size} bytes, and its header speaks of {end}: the file is "
            f"{'cut short' if size < end else 'longer than it says'}. {again}"
        )
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose names all differ. Raises ValueError."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)[:100]!r} stands twice")
    return found


def _entry(file: Path, start: int, value: dict[str, Any]) -> Tensor:
    """Check one entry of a header against itself. Raises ValueError, KeyError, TypeError."""
    dtype, shape, (first, last) = value["dtype"], value["shape"], value["data_offsets"]
    if type(dtype) is not str or type(shape) is not list or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a type and a shape were expected, found {str(dtype)[:50]!r}")
    if any(
        type(number) is not int or not 0 <= number < 1 << 63 for number in (first, last, *shape)
    ):
        raise ValueError("sizes and places must be whole numbers from 0 up")
    size = math.prod(shape) * _WIDTHS.get(dtype, 0)
    if last < first or (dtype in _WIDTHS and last - first != size):
        raise ValueError(f"{dtype} {shape} needs {size} bytes, the header gives it {last - first}")
    return Tensor(file, dtype, tuple(shape), start + first, last - first)


def read_tensor(name: str, tensor: Tensor) -> "np.ndarray":
    """Return one tensor's values as float32. Its type must be a float's.

    Raises CheckpointError: it does not fit into the memory, or a value is not finite: training
    would go on from it to nothing.
    """
    import numpy as np

    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    count = math.prod(tensor.shape)
    try:
        values = np.fromfile(tensor.file, kinds[tensor.dtype], count, offset=tensor.offset)
        if tensor.dtype == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
            values = (values.astype(np.uint32) << 16).view(np.float32)
        values = values.astype(np.float32, copy=False).reshape(tensor.shape)
    except (MemoryError, ValueError) as error:
        raise CheckpointError(
            f"{tensor.file}: {name}, {list(tensor.shape)} of {tensor.size} bytes, cannot be read "
            f"into memory ({str(error)[:100]}). Choose a smaller checkpoint."
        ) from None
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{tensor.file}: {name} holds numbers that are not finite (NaN or infinite). Fetch the "
            f"checkpoint again, or choose another."
        )
    return values
