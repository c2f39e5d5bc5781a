"""model.tflite: a model that computes in int8, from its features to scores.

TensorFlow Lite knows neither TF Text's ops nor those that decode pictures, so the file takes what
the Transform graph gives: token_ids int32 [B, sequence_length] (and segment_ids), or image float32
[B, H, W, C] with pixels of 0 to 255. It returns `scores` float32 [B, C], by the signature
serving_default; TensorFlow Serving reads the file with --prefer_tflite_model.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

TFLITE = "model.tflite"  # the name that --prefer_tflite_model looks for

if TYPE_CHECKING:
    import numpy as np
    import tf_keras as keras

# What collapses in int8 and stays float32 in models with attention: norms (made of these), gelu,
# softmax and the sums of the residual branches. Only the dense layers are int8 then.
FLOAT_OPS = (
    "ADD", "SUB", "MUL", "MEAN", "RSQRT", "SQUARED_DIFFERENCE", "SOFTMAX", "TANH", "GELU", "POW",
    "BATCH_MATMUL", "SUM", "DIV", "TRANSPOSE", "RESHAPE", "CONCATENATION", "SQUARE",
)  # fmt: skip


def convert(
    model: "keras.Model",
    shapes: Mapping[str, Sequence[int | None]],
    multi_label: bool,
    samples: "Sequence[Mapping[str, np.ndarray]]" = (),
    float_ops: Sequence[str] = (),
) -> bytes:
    """The model as a TFLite file.

    Args:
        model: features -> logits float32 [B, C]; with TF-MOT's fake quantization, or plain.
        shapes: feature -> shape of a batch, whose first side is None.
        multi_label: whether scores are a sigmoid, not a softmax.
        samples: for a plain model, features of single rows that give the ranges.
        float_ops: TensorFlow Lite's names of ops that stay float32 then.
    """
    import tensorflow as tf

    with tempfile.TemporaryDirectory() as folder:
        _save(model, shapes, multi_label, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if not samples:
            return bytes(converter.convert())
        converter.representative_dataset = lambda: _signed(samples)
        if not float_ops:
            return bytes(converter.convert())
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=list(float_ops))
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=lambda: _signed(samples[:1]), debug_options=options
        )
        return bytes(debugger.get_nondebug_quantized_model())


def _signed(samples: "Sequence[Mapping[str, np.ndarray]]") -> "Iterator[dict[str, np.ndarray]]":
    yield from (dict(sample) for sample in samples)


def _save(
    model: "keras.Model", shapes: Mapping[str, Sequence[int | None]], multi_label: bool, to: str
) -> None:
    import tensorflow as tf
    import tf_keras as keras

    def scores(**features: "tf.Tensor") -> dict[str, "tf.Tensor"]:
        logits = model(features, training=False)
        return {"scores": tf.sigmoid(logits) if multi_label else tf.nn.softmax(logits)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    specs = {
        name: tf.TensorSpec(shape, tf.float32 if name == "image" else tf.int32, name=name)
        for name, shape in shapes.items()
    }
    function = tf.function(tf.autograph.experimental.do_not_convert(scores))
    function.get_concrete_function(**specs)
    archive.add_endpoint("serving_default", function)
    archive.write_out(to)


def scorer(file: Path) -> "Callable[[Mapping[str, np.ndarray]], np.ndarray]":
    """A function from a batch of features to scores, float32 [B, C]."""
    import numpy as np
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(file), num_threads=2)
    run = interpreter.get_signature_runner("serving_default")
    names = set(run.get_input_details())

    def score(features: "Mapping[str, np.ndarray]") -> "np.ndarray":
        given = {name: values for name, values in features.items() if name in names}
        return np.asarray(run(**given)["scores"])

    return score
