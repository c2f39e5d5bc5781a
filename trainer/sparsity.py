"""Zeros of pruned weights: how many there are, and how training keeps them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tf_keras as keras

_SPARSE = 0.05  # a weight with this share of zeros was pruned


def zeros(values: Any) -> float:
    """The share of zeros."""
    import numpy as np

    array = np.asarray(values)
    return float(1 - np.count_nonzero(array) / max(1, array.size))


def is_sparse(values: Any) -> bool:
    """Whether a weight was pruned, and its zeros are to be kept."""
    return zeros(values) >= _SPARSE


def keep_zeros(model: "keras.Model") -> None:
    """Hold the zeros of pruned weights at zero in any training that follows.

    A Keras optimizer applies a variable's constraint after each update.
    """
    import tensorflow as tf

    for variable in model.trainable_weights:
        values = variable.numpy()
        if values.ndim > 1 and is_sparse(values):
            mask = tf.constant(values != 0, tf.float32)
            bare = getattr(variable, "_variable", variable)  # under mixed precision it is wrapped
            bare._constraint = lambda weight, mask=mask: weight * mask
