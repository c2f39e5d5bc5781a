"""A convolutional model as a server computes it: norms folded into convolutions.

A batch norm that follows a convolution multiplies and adds the same numbers for every picture; the
convolution's kernel and bias take them in when the SavedModel is loaded (Jacob et al.,
https://arxiv.org/abs/1712.05877, section 3.2). A norm elsewhere becomes one product and one sum.
What lies between the first convolution and the pooling is in the graph's arithmetic.
"""

from typing import Any

import tensorflow as tf
import tf_keras as keras

from ..errors import ComponentError
from .serving_graph import Features, Graph, Ops

_HEAD = ("pooling", "head_dropout", "logits")


def write(ops: Ops) -> Graph:
    """Return image float32 [B, H, W, C] -> logits float32 [B, classes]."""
    model = ops.model
    folded = _folded(model)
    into = {norm: convolution for convolution, norm in folded.items()}
    layers = [layer.name for layer in model.layers]
    first = next(n for n, layer in enumerate(model.layers) if _is_convolution(layer))
    inner = {name for name in layers[first:] if name not in _HEAD}

    def rewrite(layer: keras.layers.Layer) -> keras.layers.Layer:
        name = layer.name
        if _is_convolution(layer):
            return _Computed(name, lambda x: ops.convolution(x, name, folded.get(name)))
        if isinstance(layer, keras.layers.BatchNormalization):
            done = name in into
            return _Computed(name, (lambda x: x) if done else (lambda x: ops.affine(x, name)))
        if name == "logits":
            return _Computed(name, lambda x: ops.logits(x, name))
        if layer.weights:
            raise ComponentError(
                f"The layer {name} ({type(layer).__name__}) has weights that image_serving does "
                f"not read. Write it there, or leave serving_graph out of the family."
            )
        config = layer.get_config()
        config["dtype"] = ops.dtype.name if name in inner else "float32"
        return layer.__class__.from_config(config)

    plain = tf.autograph.experimental.do_not_convert
    rewritten = plain(keras.models.clone_model)(model, clone_function=rewrite)

    def logits(features: Features) -> tf.Tensor:
        return rewritten(features, training=False)

    return logits


def _is_convolution(layer: keras.layers.Layer) -> bool:
    return type(layer) is keras.layers.Conv2D  # not what is derived from it


def _folded(model: keras.Model) -> dict[str, str]:
    """Convolution -> the norm that alone follows it."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            before = layer.inbound_nodes[0].inbound_layers
            alone = _is_convolution(before) and len(before.outbound_nodes) == 1
            if alone and before.activation is keras.activations.linear:
                found[before.name] = layer.name
    return found


class _Computed(keras.layers.Layer):
    """A layer that only calls a function."""

    def __init__(self, name: str, function: Any) -> None:
        super().__init__(name=name, dtype="float32", autocast=False)
        self._function = function

    def call(self, x: Any) -> Any:
        """What the function gives."""
        return self._function(x)
