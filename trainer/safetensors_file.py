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
_MAX_HEADER = 100_000_000  # bytes; the format's own limit


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
            if length > min(size - 8, _MAX_HEADER):
                raise CheckpointError(
                    f"{file} is no whole safetensors file: it has {size} bytes, and its header "
                    f"alone would need {length + 8}. {again}"
                )
            header = json.loads(stream.read(length))
        entries = {n: v for n, v in header.items() if n != "__metadata__"}
        tensors = {name: _entry(file, 8 + length, value) for name, value in entries.items()}
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing, and the index beside it names it. {again}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: the header is damaged ({error}). {again}") from None
    end = max((t.offset + t.size for t in tensors.values()), default=8 + length)
    if end != size:
        raise CheckpointError(
            f"{file} has {size} bytes, and its header speaks of {end}: the file is "
            f"{'cut short' if size < end else 'longer than it says'}. {again}"
        )
    return tensors


def _entry(file: Path, start: int, value: dict[str, Any]) -> Tensor:
    """Check one entry of a header against itself. Raises ValueError, KeyError, TypeError."""
    dtype, shape = str(value["dtype"]), tuple(int(n) for n in value["shape"])
    first, last = (int(n) for n in value["data_offsets"])
    size = math.prod(shape) * _WIDTHS.get(dtype, 0)
    if min((0, first, *shape)) < 0 or (dtype in _WIDTHS and last - first != size):
        raise ValueError(
            f"{dtype} {list(shape)} needs {size} bytes, the header gives it {last - first}"
        )
    return Tensor(file, dtype, shape, start + first, last - first)


def read_tensor(name: str, tensor: Tensor) -> "np.ndarray":
    """Return one tensor's values as float32. Its type must be a float's.

    Raises CheckpointError if a value is not finite: training would go on from it to nothing.
    """
    import numpy as np

    kinds = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    count = math.prod(tensor.shape)
    values = np.fromfile(tensor.file, kinds[tensor.dtype], count, offset=tensor.offset)
    if tensor.dtype == "BF16":  # numpy has no bfloat16: it is the upper half of a float32
        values = (values.astype(np.uint32) << 16).view(np.float32)
    values = values.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        raise CheckpointError(
            f"{tensor.file}: {name} holds numbers that are not finite (NaN or infinite). Fetch the "
            f"checkpoint again, or choose another."
        )
    return values.reshape(tensor.shape)
