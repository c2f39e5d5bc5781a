"""Weights that lie small in a SavedModel and are unpacked once, when a server loads it.

A weight is stored as int8 with a float32 scale for each output channel, as float16 or as bfloat16;
one with few different values as int8 places in a table of them, which loses nothing.
The SavedModel's own initializer, which TensorFlow Serving runs after it has restored the variables,
turns it into what the graph multiplies: requests then cost what they cost before. All ops are
stock ones.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

FORMATS = ("int8", "float16", "bfloat16")
_LARGEST = 127  # symmetric: -128 is not used, and 0 stays 0
_LOWEST, _PLACES, _TABLE = -128, 256, "table"


class Stored:
    """A weight as it lies in the file.

    Args:
        values: float32, any shape; the last axis is that of the output channels.
        kind: one of FORMATS.
    """

    def __init__(self, values: np.ndarray, kind: str) -> None:
        self.variables = _parts(values, kind)  # what lies in the file

    def value(self) -> tf.Tensor:
        """The weight, float32, unpacked where it is asked for."""
        return unpack(self.variables)


class Loaded(tf.saved_model.experimental.TrackableResource):
    """A tensor that is computed once, when the SavedModel is loaded, and only read after that.

    Args:
        compute: makes it out of variables.
    """

    def __init__(self, compute: Callable[[], tf.Tensor]) -> None:
        super().__init__()
        self._compute = compute
        value = compute()
        self._shape, self._dtype = value.shape, value.dtype
        # Resources of one name are one: two models of a process share what is equal, no more.
        digest = hashlib.sha256(tf.io.serialize_tensor(value).numpy()).hexdigest()
        self._name = f"espalier_{digest}"
        self._initialize()  # now, outside of any graph that reads it

    def _create_resource(self) -> tf.Tensor:
        return tf.raw_ops.VarHandleOp(
            dtype=self._dtype, shape=self._shape, shared_name=self._name, container=""
        )

    def _initialize(self) -> None:
        tf.raw_ops.AssignVariableOp(resource=self.resource_handle, value=self._compute())

    def read(self) -> tf.Tensor:
        """The tensor."""
        value = tf.raw_ops.ReadVariableOp(resource=self.resource_handle, dtype=self._dtype)
        return tf.ensure_shape(value, self._shape)


def unpack(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """The weight, float32, that lies in a `Stored`'s variables."""
    stored, *others = variables
    if not others:
        return tf.cast(stored, tf.float32)
    if others[0].name.startswith(_TABLE):
        return tf.gather(others[0], tf.cast(stored, tf.int32) - _LOWEST)
    return tf.cast(stored, tf.float32) * others[0]


def _parts(values: np.ndarray, kind: str) -> list[tf.Variable]:
    """What is stored; and its scale, or the table that it holds places of."""

    def variable(array: Any, name: str) -> tf.Variable:
        return tf.Variable(array, trainable=False, name=name)

    if kind != "int8":
        return [variable(tf.cast(values, kind), kind)]
    if (table := _table(values)) is not None:
        places = np.searchsorted(table, values) + _LOWEST
        return [variable(places.astype(np.int8), kind), variable(table, _TABLE)]
    stored, scale = quantized(values)
    return [variable(stored, kind), variable(scale, "scale")]


def has_few_values(values: np.ndarray) -> bool:
    """Whether a table holds them all: a clustered weight."""
    return _table(values) is not None


def _table(values: np.ndarray) -> np.ndarray | None:
    """The sorted different values, float32 [n]; None if there are more than int8 can number."""
    if np.unique(values.ravel()[: 64 * _PLACES]).size > _PLACES:
        return None  # without a look at all of them
    found = np.unique(values)
    return found if found.size <= _PLACES else None


def quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 of the same shape, float32 scale per channel of the last axis), symmetric.

    As TFLite's weights are (https://arxiv.org/abs/1712.05877, section 2.1, with a zero point of 0).
    """
    largest = np.abs(values).max(axis=tuple(range(values.ndim - 1)))
    scale = np.where(largest > 0, largest / _LARGEST, 1.0).astype(np.float32)
    return np.round(values / scale).astype(np.int8), scale


def unpacked(values: np.ndarray, kind: str) -> np.ndarray:
    """What a weight is after it went through a format: float32 of the same shape."""
    if kind != "int8":
        return tf.cast(tf.cast(values, kind), tf.float32).numpy()
    if _table(values) is not None:
        return values
    stored, scale = quantized(values)
    return stored.astype(np.float32) * scale
