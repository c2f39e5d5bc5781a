"""What this machine can compute in, and on how many devices."""

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .. import cpu
from ..errors import ConfigError

if TYPE_CHECKING:
    import tensorflow as tf


def strategy(distribute: str = "auto") -> "tf.distribute.Strategy":
    """What trains together: this machine's GPUs, several machines, or a TPU.

    Args:
        distribute: the YAML's `train.distribute`. auto is all GPUs of this machine where there
            are several, else the one device there is.

    Raises:
        ConfigError: there is no such hardware here.
    """
    import tensorflow as tf

    if distribute == "multi_worker":
        return join()
    if distribute == "tpu":
        return _tpu()
    gpus = len(tf.config.list_logical_devices("GPU"))
    if distribute == "mirrored" and gpus < 2:
        raise ConfigError(
            f"train.distribute is mirrored, and this machine has {gpus} GPUs that TensorFlow sees. "
            f"Expected 2 or more; leave train.distribute out to take what there is."
        )
    return tf.distribute.MirroredStrategy() if gpus > 1 else tf.distribute.get_strategy()


@functools.cache
def join() -> "tf.distribute.Strategy":
    """TF_CONFIG's workers, once all are there. To be called before TensorFlow does anything."""
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy()


def _tpu() -> "tf.distribute.Strategy":
    import tensorflow as tf

    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
    except (ValueError, tf.errors.OpError) as error:
        raise ConfigError(
            f"train.distribute is tpu, and none was found: {str(error).splitlines()[0][:300]}. "
            f"TPU_NAME names one on Google Cloud."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def share(dataset: "tf.data.Dataset", strategy: "tf.distribute.Strategy", *, training: bool) -> Any:
    """Each batch dealt out to the strategy's devices, so that together they see what one would.

    Args:
        dataset: batches of all devices together, (features, labels, if need be weights), each
            part [B, ...].
        strategy: whose devices.
        training: a batch of fewer rows than devices is filled up with rows it has already, and
            rows are weighed so that the mean of the devices' means is that of the batch.
    """
    import tensorflow as tf

    devices = strategy.num_replicas_in_sync
    if devices == 1:
        return dataset

    def of_this_machine(context: "tf.distribute.InputContext") -> "tf.data.Dataset":
        here = devices // context.num_input_pipelines
        first = context.input_pipeline_id * here

        def deal(*batch: Any) -> "tf.data.Dataset":
            rows = tf.shape(batch[1])[0]
            order = tf.range(tf.maximum(rows, devices) if training else rows) % rows

            def part(device: "tf.Tensor") -> Any:
                places = order[first + device :: devices]
                found = tf.nest.map_structure(lambda values: tf.gather(values, places), batch)
                if not training:
                    return found
                copies = (tf.size(order) - 1 - places) // rows + 1
                share = tf.size(places) * devices / (rows * copies)
                even = tf.cast(share, tf.float32)
                return (*found[:2], found[2] * even if len(found) > 2 else even)

            return tf.data.Dataset.range(here, output_type=tf.int32).map(part)

        return dataset.flat_map(deal).prefetch(2 * here)

    return strategy.distribute_datasets_from_function(of_this_machine)


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
