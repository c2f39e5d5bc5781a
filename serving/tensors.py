"""TensorProtos to numpy and back, without TensorFlow, for any generated class of the message.

Strings are bytes in arrays of objects, as TensorFlow's sessions take and give them.
"""

import math
from typing import Any

import numpy as np

# tensorflow/core/framework/types.proto: number -> (name, numpy's type, the typed field).
_TYPES: dict[int, tuple[str, Any, str]] = {
    1: ("float", np.float32, "float_val"),
    2: ("double", np.float64, "double_val"),
    3: ("int32", np.int32, "int_val"),
    4: ("uint8", np.uint8, "int_val"),
    5: ("int16", np.int16, "int_val"),
    6: ("int8", np.int8, "int_val"),
    7: ("string", object, "string_val"),
    8: ("complex64", np.complex64, "scomplex_val"),
    9: ("int64", np.int64, "int64_val"),
    10: ("bool", np.bool_, "bool_val"),
    14: ("bfloat16", np.float32, "half_val"),  # numpy has none: widened, which loses nothing
    17: ("uint16", np.uint16, "int_val"),
    18: ("complex128", np.complex128, "dcomplex_val"),
    19: ("half", np.float16, "half_val"),
    22: ("uint32", np.uint32, "uint32_val"),
    23: ("uint64", np.uint64, "uint64_val"),
}
# What a typed field holds; numpy's guess would make floats of large uint64s.
_STORED: dict[str, Any] = {
    "float_val": np.float32, "double_val": np.float64, "int_val": np.int32, "half_val": np.int32,
    "int64_val": np.int64, "uint32_val": np.uint32, "uint64_val": np.uint64, "bool_val": np.bool_,
    "scomplex_val": np.float32, "dcomplex_val": np.float64,
}  # fmt: skip
FLOAT, INT32, STRING, INT64, BOOL, BFLOAT16, HALF = 1, 3, 7, 9, 10, 14, 19
_BY_NUMPY = {
    np.dtype(numpy): number for number, (_, numpy, _) in _TYPES.items() if number != BFLOAT16
}
MAX_RANK = 254  # of TensorFlow's TensorShape
_MOST_FILLED = 2**20  # a message of a few bytes must not ask for gigabytes


def type_name(number: int) -> str:
    """A DataType's name in TensorFlow's messages: float, string, int64."""
    return _TYPES[number][0] if number in _TYPES else f"DataType {number}"


def numpy_type(number: int) -> Any:
    """numpy's type for a DataType (object for strings), or None where there is none."""
    return _TYPES[number][1] if number in _TYPES else None


def typed_field(number: int) -> str:
    """The TensorProto's field for values of a DataType that can be read."""
    return _TYPES[number][2]


def to_numpy(proto: Any) -> np.ndarray:
    """Read a TensorProto, its content or its typed field.

    As TensorFlow does, the last value of a typed field fills what is missing, and none at all is
    zeros. The array may be read-only: it lies over the message's bytes.

    Raises:
        ValueError: the type is unknown, a dimension is negative, or there are more or fewer
            bytes or values than the shape holds.
    """
    if proto.dtype not in _TYPES:
        raise ValueError(f"its type ({type_name(proto.dtype)}) cannot be read")
    _, kind, field = _TYPES[proto.dtype]
    shape = tuple(dim.size for dim in proto.tensor_shape.dim)
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("its shape is not fully known")
    if len(shape) > MAX_RANK:
        raise ValueError(f"it has {len(shape)} dimensions, and at most {MAX_RANK} are possible")
    count = math.prod(shape)
    if proto.dtype == STRING:
        if proto.tensor_content:  # encoded as only TensorFlow's C++ does
            raise ValueError("its strings lie in tensor_content, and string_val is expected")
        return _strings(proto.string_val, count).reshape(shape)
    if proto.tensor_content:
        stored = np.uint16 if proto.dtype == BFLOAT16 else kind
        expected = count * np.dtype(stored).itemsize
        if len(proto.tensor_content) != expected:
            raise ValueError(
                f"its tensor_content has {len(proto.tensor_content)} bytes, and its shape "
                f"{list(shape)} needs {expected}"
            )
        values = np.frombuffer(proto.tensor_content, stored)
        return (_widened(values) if proto.dtype == BFLOAT16 else values).reshape(shape)
    return _filled(_typed(getattr(proto, field), proto.dtype, kind), count).reshape(shape)


def to_proto(array: np.ndarray, proto: Any, number: int | None = None) -> None:
    """Write an array into an empty TensorProto: as content, strings as string_val.

    Args:
        array: of a type that TensorFlow knows; of objects, each must be bytes.
        proto: the message to fill.
        number: the DataType, where numpy's is not it (bfloat16).

    Raises:
        ValueError: there is no such type in TensorFlow.
    """
    if number is None and array.dtype not in _BY_NUMPY:
        raise ValueError(f"arrays of {array.dtype} cannot be sent")
    proto.dtype = number or _BY_NUMPY[array.dtype]
    for size in array.shape:
        proto.tensor_shape.dim.add().size = size
    if proto.dtype == STRING:
        proto.string_val.extend(array.ravel().tolist())
    else:
        proto.tensor_content = np.ascontiguousarray(array).tobytes()


def _strings(values: Any, count: int) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return _filled(array, count, missing=b"")


def _typed(values: Any, number: int, kind: Any) -> np.ndarray:
    stored = np.array(values, _STORED[_TYPES[number][2]])
    if number in (HALF, BFLOAT16):  # the bits, in the low half of an int32
        bits = stored.astype(np.uint16)
        return bits.view(np.float16) if number == HALF else _widened(bits)
    if np.issubdtype(kind, np.complexfloating):  # real and imaginary parts in turn
        if len(stored) % 2:
            raise ValueError("its complex numbers lack an imaginary part")
        return stored.view(kind)
    return stored.astype(kind, copy=False)


def _filled(values: np.ndarray, count: int, missing: Any = 0) -> np.ndarray:
    if len(values) > count:
        raise ValueError(f"it has {len(values)} values, and its shape holds {count}")
    if len(values) < count:
        if count > _MOST_FILLED:
            raise ValueError(f"its shape holds {count} values, and it has {len(values)}")
        last = values[-1] if len(values) else missing
        # Not np.pad: it copies strings' objects one by one.
        values = np.concatenate([values, np.full(count - len(values), last, values.dtype)])
    return values


def _widened(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16's bits, which are the upper half of them."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
