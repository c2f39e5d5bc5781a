"""Requests that TensorFlow Serving sends to a version itself, before it sends users' to it.

It reads `assets.extra/tf_serving_warmup_requests`, TFRecords of PredictionLog. The first call of a
signature optimizes its graph, which takes seconds; without these, a user would wait for them.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .input import Shape

if TYPE_CHECKING:
    from tensorflow_serving.apis import predict_pb2

FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
# Short and long texts, alone and together: what a serving graph's kernels depend on.
_BATCHES = (1, 32)
_WORDS = (1, 16, 512)


def write(version: str, inputs: Sequence[str], pixel_shapes: Mapping[str, Shape]) -> None:
    """Write the requests of a version, which hold none of the user's data.

    Args:
        version: the SavedModel's folder.
        inputs: the names of serving_default's inputs.
        pixel_shapes: of a model of pictures, what it takes.
    """
    import tensorflow as tf
    from tensorflow_serving.apis import prediction_log_pb2

    file = os.path.join(version, FILE)
    tf.io.gfile.makedirs(os.path.dirname(file))
    with tf.io.TFRecordWriter(file) as writer:
        for request in requests(inputs, pixel_shapes):
            log = prediction_log_pb2.PredictLog(request=request)
            record = prediction_log_pb2.PredictionLog(predict_log=log)
            writer.write(record.SerializeToString())


def requests(
    inputs: Sequence[str], pixel_shapes: Mapping[str, Shape]
) -> "Iterator[predict_pb2.PredictRequest]":
    """Requests to serving_default in each shape that matters; see `write`."""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    if pixel_shapes:
        contents = [picture(pixel_shapes)]
    else:
        contents = [b" ".join([b"word"] * words) for words in _WORDS]
    for batch in _BATCHES:
        for content in contents:
            request = predict_pb2.PredictRequest()
            request.model_spec.signature_name = "serving_default"
            for name in inputs:
                request.inputs[name].CopyFrom(tf.make_tensor_proto([content] * batch))
            yield request


def picture(pixel_shapes: Mapping[str, Shape]) -> bytes:
    """A grey PNG of the size that a model of pictures takes."""
    import tensorflow as tf

    ((height, width, channels),) = pixel_shapes.values()
    grey = tf.fill((height, width, channels), tf.constant(128, tf.uint8))
    return tf.io.encode_png(grey).numpy()
