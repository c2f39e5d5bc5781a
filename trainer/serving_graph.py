"""What a server computes: the function of a trained Keras model, in few ops.

A SavedModel need not hold the graph that was trained. A family that defines `serving_graph` writes
its function with the ops of `Ops`, which read the unrolled model's weights and multiply them in the
arithmetic of the host's CPU; other families are served by their Keras graph. Weights lie in the
file once, under the names and in the shapes of the unrolled model; what a graph wants otherwise
(joined, scaled, in fewer bits) it has computed once, when the SavedModel is loaded.

For `any` CPU the graph has plain ops alone. For `bf16` and `int8` it has oneDNN's own, made by
hand, because TensorFlow prepacks the weights of a product only if they are constants of the graph
(tensorflow/core/common_runtime/mkl_layout_pass.cc, 2.16), which would put them into it a second
time.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from .compression.job import kernel_attribute, kernels
from .compression.pack import Loaded, Stored

if TYPE_CHECKING:
    import tf_keras as keras

Features = Mapping[str, tf.Tensor]
Graph = Callable[[Features], tf.Tensor]  # features -> logits float32 [B, C]
Ranges = dict[str, tuple[float, float]]  # lowest and highest input, by a dense layer's name

_FUSED = {"gelu": "GeluExact", "gelu_approximate": "GeluApproximate", "relu": "Relu"}
_LARGEST = 127
_NARROWEST = 0.01  # QuantizeV2's ensure_minimum_range


class Weights:
    """The weights of an unrolled model, in the formats in which the SavedModel stores them.

    Args:
        model: the model; it is not changed.
        formats: layer name -> format of `compression.pack`; float32 where it has none.
    """

    def __init__(self, model: "keras.Model", formats: Mapping[str, str] | None = None) -> None:
        self.model, self.formats = model, dict(formats or {})
        kernels_ = kernels(model)
        self._stored = {
            name: Stored(kernels_[name].numpy(), kind) for name, kind in self.formats.items()
        }
        self._loaded: dict[Hashable, Loaded] = {}
        packed = {id(kernels_[name]) for name in self._stored}
        self._plain = [weight for weight in model.weights if id(weight) not in packed]

    @property
    def tracked(self) -> list[Any]:
        """What a SavedModel must hold. A resource's own variables are not found through it."""
        stored = [stored.variables for stored in self._stored.values()]
        return [list(self._loaded.values()), stored, self._plain]

    def broken(self) -> str:
        """The name of a weight that is not finite, or ""."""
        finite = (
            (weight.name, tf.reduce_all(tf.math.is_finite(weight)))
            for weight in self.model.weights
            if weight.dtype.is_floating
        )
        return next((name for name, fine in finite if not fine), "")

    def value(self, layer: str, place: int = 0) -> tf.Tensor:
        """One weight of a layer, 0 the kernel, unpacked where it is asked for."""
        if place == 0 and layer in self._stored:
            return self._stored[layer].value()
        return self.model.get_layer(layer).weights[place].read_value()

    def read(self, layer: str, place: int = 0) -> tf.Tensor:
        """One weight of a layer, float32, unpacked once."""
        if place == 0 and layer in self._stored:
            return self.once(layer, lambda: self.value(layer))
        return self.value(layer, place)

    def once(self, key: Hashable, compute: Callable[[], tf.Tensor]) -> tf.Tensor:
        """What `compute` makes of some weights' values, computed at load."""
        if key not in self._loaded:
            with tf.init_scope():  # outside of the graph that is being traced
                self._loaded[key] = Loaded(compute)
        return self._loaded[key].read()


@dataclass(frozen=True)
class Served:
    """A model as it is exported.

    Attributes:
        graph: features -> logits.
        weights: what it reads.
        facts: JSON-ready; the version's description holds them as `graph` (see `proof.served`).
    """

    graph: Graph
    weights: Weights
    facts: dict[str, Any]


def keras_graph(weights: Weights) -> Graph:
    """The unrolled Keras model, its kernels read from where they were unpacked to."""
    model = weights.model
    for name in weights.formats:
        weights.read(name)  # before an export asks what is tracked

    def logits(features: Features) -> tf.Tensor:
        before = {}
        for name in weights.formats:
            layer = model.get_layer(name)
            attribute = kernel_attribute(layer)
            before[layer, attribute] = getattr(layer, attribute)
            # Not by Keras' own way of setting it, which would forget the variable.
            object.__setattr__(layer, attribute, weights.read(name))
        try:
            return model(features, training=False)
        finally:
            for (layer, attribute), variable in before.items():
                object.__setattr__(layer, attribute, variable)

    return logits


class Ops:
    """The ops that serving graphs are written with.

    Args:
        weights: the unrolled model's.
        cpu: any, bf16 or int8.
        dtype: what activations are kept in, float32 or bfloat16.
        ranges: for int8, the inputs of every `dense`.
    """

    def __init__(
        self,
        weights: Weights,
        cpu: str = "any",
        dtype: tf.DType = tf.float32,
        ranges: Ranges | None = None,
    ) -> None:
        self._weights, self._cpu, self._ranges = weights, cpu, ranges or {}
        self.dtype = dtype

    @property
    def model(self) -> "keras.Model":
        """The unrolled model."""
        return self._weights.model

    def embed(self, layer: str, ids: tf.Tensor) -> tf.Tensor:
        """Rows of an embedding, float32 [..., H]."""
        return tf.gather(self._weights.read(layer), ids)

    def norm(self, x: tf.Tensor, layer: str) -> tf.Tensor:
        """Layer normalization over the last axis: [N, H] -> [N, H]."""
        gamma, beta = (self._weights.read(layer, place) for place in (0, 1))
        epsilon = self.model.get_layer(layer).epsilon
        if self._cpu == "any":
            centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
            variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
            return centred * (tf.math.rsqrt(variance + epsilon) * gamma) + beta
        inputs = [x, tf.cast(gamma, self.dtype), tf.cast(beta, self.dtype)]
        return _onednn("_MklLayerNorm", inputs, self.dtype, T=self.dtype, epsilon=epsilon)

    def dense(
        self,
        x: tf.Tensor,
        layers: str | Sequence[str],
        activation: str | None = None,
        scales: Sequence[float] = (),
    ) -> tf.Tensor:
        """Dense layers of the same input, side by side: [N, K] -> [N, sum of their widths].

        Args:
            x: their input.
            layers: their names.
            activation: the name of the Activation layer behind them.
            scales: numbers by which the layers' outputs are multiplied.
        """
        layers = [layers] if isinstance(layers, str) else list(layers)
        function = self.model.get_layer(activation).activation if activation else None
        fused = _FUSED.get(getattr(function, "__name__", ""))
        if self._cpu == "int8":
            y = tf.cast(self._dense_int8(x, layers, scales), self.dtype)
        elif self._cpu == "bf16":
            y = _fused_product(x, *self._joined(layers, scales), fused)
            function = None if fused else function
        else:
            kernel, bias = self._joined(layers, scales)
            y = tf.nn.bias_add(tf.matmul(x, kernel), bias)
        return function(y) if function else y

    def convolution(self, x: tf.Tensor, layer: str, norm: str | None = None) -> tf.Tensor:
        """A Conv2D and the batch norm behind it: [B, H, W, C] -> [B, h, w, D]."""
        found = self.model.get_layer(layer)

        def kernel() -> tf.Tensor:
            scale = self._affine(norm)[0] if norm else 1.0
            return tf.cast(self._weights.value(layer) * scale, self.dtype)

        def bias() -> tf.Tensor:
            own = self._weights.value(layer, 1) if found.use_bias else tf.zeros(found.filters)
            scale, offset = self._affine(norm) if norm else (1.0, 0.0)
            return tf.cast(own * scale + offset, self.dtype)

        y = tf.nn.conv2d(
            tf.cast(x, self.dtype),
            self._weights.once((layer, "kernel", self.dtype), kernel),
            found.strides,
            found.padding.upper(),
            dilations=found.dilation_rate,
        )
        y = tf.nn.bias_add(y, self._weights.once((layer, "bias", self.dtype), bias))
        return found.activation(y)

    def affine(self, x: tf.Tensor, norm: str) -> tf.Tensor:
        """A batch norm by itself, over the last axis."""

        def once(place: int) -> tf.Tensor:
            return self._weights.once(
                (norm, place, self.dtype), lambda: tf.cast(self._affine(norm)[place], self.dtype)
            )

        scale, offset = once(0), once(1)
        return tf.cast(x, self.dtype) * scale + offset

    def _affine(self, norm: str) -> tuple[tf.Tensor, tf.Tensor]:
        """What a batch norm multiplies by and adds, float32 [C]."""
        layer = self.model.get_layer(norm)
        weights = {w.name.split("/")[-1].split(":")[0]: w.read_value() for w in layer.weights}
        scale = tf.math.rsqrt(weights["moving_variance"] + layer.epsilon)
        scale *= weights.get("gamma", 1.0)
        return scale, weights.get("beta", 0.0) - weights["moving_mean"] * scale

    def logits(self, x: tf.Tensor, layer: str) -> tf.Tensor:
        """The last dense layer, always float32: [B, H] -> [B, C]."""
        kernel, bias = (self._weights.read(layer, place) for place in (0, 1))
        return tf.nn.bias_add(tf.matmul(tf.cast(x, tf.float32), kernel), bias)

    def _joined(self, layers: list[str], scales: Sequence[float]) -> tuple[tf.Tensor, tf.Tensor]:
        """Kernels [K, N] and biases [N] in the graph's arithmetic."""
        weights = self._weights
        if len(layers) == 1 and not scales and self._cpu == "any":
            return weights.read(layers[0]), weights.read(layers[0], 1)

        def join(place: int) -> tf.Tensor:
            return weights.once(
                (*layers, *scales, place, self.dtype),
                lambda: tf.cast(self._join(layers, scales, place), self.dtype),
            )

        return join(0), join(1)

    def _join(self, layers: list[str], scales: Sequence[float], place: int) -> tf.Tensor:
        """Kernels (0) or biases (1), float32, each multiplied, side by side."""
        parts = [self._weights.value(name, place) for name in layers]
        if scales:
            parts = [part * scale for part, scale in zip(parts, scales, strict=True)]
        return tf.concat(parts, axis=-1)

    def _dense_int8(self, x: tf.Tensor, layers: list[str], scales: Sequence[float]) -> tf.Tensor:
        """A product in int8 with an output in float32.

        Activations are quint8 over their range, weights qint8 with one scale. What the range's
        lowest value adds is in the bias: oneDNN's mode for that (MIN_FIRST) is wrong where the
        bias is float32, in TensorFlow 2.16.2.
        """
        low, high = self._ranges[layers[0]]
        high = max(high, low + _NARROWEST * max(1.0, -low, high))  # as QuantizeV2 widens it
        with tf.init_scope():
            largest = float(tf.reduce_max(tf.abs(self._join(layers, scales, 0)))) or 1.0
        step = largest / _LARGEST

        def kernel() -> tf.Tensor:
            return tf.cast(tf.round(self._join(layers, scales, 0) / step), tf.int8)

        def bias() -> tf.Tensor:
            added = low * tf.reduce_sum(tf.cast(kernel(), tf.float32) * step, axis=0)
            return self._join(layers, scales, 1) + added

        key = (*layers, *scales)
        w = tf.bitcast(self._weights.once((key, "int8"), kernel), tf.qint8)
        b = self._weights.once((key, "bias"), bias)
        a = tf.raw_ops.QuantizeV2(
            input=tf.cast(x, tf.float32), min_range=low, max_range=high, T=tf.quint8
        ).output
        # The last two are not read: the output is float32.
        limits = [tf.constant(v, tf.float32) for v in (0, high - low, -largest, largest, 0, 1)]
        return _onednn(
            "_MklQuantizedMatMulWithBiasAndDequantize",
            [a, w, b, *limits],
            tf.float32,
            T1=tf.quint8, T2=tf.qint8, Tbias=tf.float32, Toutput=tf.float32, T=tf.quint8,
            transpose_a=False, transpose_b=False, input_quant_mode="SCALED",
            is_weight_const=True, is_bias_const=True, _kernel="QuantizedMklOp",
        )  # fmt: skip


class _Watching(Ops):
    """Plain ops that note the range of every dense layer's input."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.seen: Ranges = {}

    def dense(self, x: tf.Tensor, layers: Any, *args: Any, **kwargs: Any) -> tf.Tensor:
        name = layers if isinstance(layers, str) else layers[0]
        low, high = self.seen.get(name, (0.0, 0.0))  # a range holds 0
        lowest, highest = float(tf.reduce_min(x)), float(tf.reduce_max(x))
        self.seen[name] = (min(low, lowest), max(high, highest))
        return super().dense(x, layers, *args, **kwargs)


def calibrated(
    write: Callable[[Ops], Graph], weights: Weights, batches: Iterable[Features]
) -> Ranges:
    """The ranges of the dense layers' inputs over some batches.

    Args:
        write: makes a graph with these ops.
        weights: the model's.
        batches: features.
    """
    ops = _Watching(weights)
    graph = write(ops)
    for features in batches:
        graph(features)
    return ops.seen


def _fused_product(
    x: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor, activation: str | None
) -> tf.Tensor:
    return _onednn(
        "_MklNativeFusedMatMul",
        [x, kernel, bias],
        x.dtype,
        T=x.dtype, num_args=1, fused_ops=["BiasAdd", *([activation] if activation else [])],
        is_filter_const=True, transpose_a=False, transpose_b=False, epsilon=1e-4,
        leakyrelu_alpha=0.2, _kernel="MklNameChangeOp",
    )  # fmt: skip


def _onednn(op: str, inputs: list[tf.Tensor], dtype: tf.DType, **attributes: Any) -> tf.Tensor:
    """A node of an op that has no function in Python. Its weights are told to be constant."""
    from tensorflow.core.framework import attr_value_pb2

    def as_proto(value: Any) -> attr_value_pb2.AttrValue:
        proto = attr_value_pb2.AttrValue()
        if isinstance(value, tf.DType):
            proto.type = value.as_datatype_enum
        elif isinstance(value, bool):
            proto.b = value
        elif isinstance(value, int):
            proto.i = value
        elif isinstance(value, float):
            proto.f = value
        elif isinstance(value, str):
            proto.s = value.encode()
        else:
            proto.list.s.extend(one.encode() for one in value)
        return proto

    graph = tf.compat.v1.get_default_graph()
    attrs = {name: as_proto(value) for name, value in attributes.items()}
    node = graph.create_op(op, inputs, [dtype], name=op.strip("_"), attrs=attrs)
    (output,) = node.outputs
    output.set_shape([None, inputs[1].shape[-1]])
    return output
