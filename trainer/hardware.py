"""What this machine can compute in, and on how many devices."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .. import cpu

if TYPE_CHECKING:
    import tensorflow as tf


def strategy() -> "tf.distribute.Strategy":
    """All GPUs of this machine where there are several, else the one device there is."""
    import tensorflow as tf

    many = len(tf.config.list_logical_devices("GPU")) > 1
    return tf.distribute.MirroredStrategy() if many else tf.distribute.get_strategy()


@contextlib.contextmanager
def precision(wanted: str) -> Iterator[None]:
    """Keras's global policy for models built inside: float32 or mixed_bfloat16.

    Args:
        wanted: auto, float32 or bfloat16.
    """
    import tf_keras as keras

    bfloat16 = wanted == "bfloat16" or (wanted == "auto" and has_bfloat16())
    before = keras.mixed_precision.global_policy()
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if bfloat16 else "float32")
    try:
        yield
    finally:
        keras.mixed_precision.set_global_policy(before)


def has_bfloat16() -> bool:
    """Whether the GPUs (compute capability 8.0 on), or else the CPU, multiply in bfloat16."""
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = (tf.config.experimental.get_device_details(gpu) for gpu in gpus)
        return all(d.get("compute_capability", (0, 0)) >= (8, 0) for d in details)
    return cpu.lacking([cpu.BFLOAT16]) == ""
