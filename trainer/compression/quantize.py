"""Quantization: weights in fewer bits, or int8 arithmetic in a model.tflite.

`weights` trains nothing: the SavedModel stores each kernel in the format (see `pack`). `full` adds
a model.tflite whose ranges come from training rows (Jacob et al.,
https://arxiv.org/abs/1712.05877). `qat` first trains with TF-MOT's fake quantization, which keeps
what pruning and clustering have made (its prune- and cluster-preserving schemes: PQAT, CQAT,
PCQAT). The SavedModel then has the same int8 weights.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ...errors import DataError
from ...files import write_whole
from ..input import batches
from ..sparsity import is_sparse, keep_zeros
from . import pack, tflite
from .job import Candidate, Job, chosen, compiled, kernels, plainly, progress, rate_of
from .settings import Quantize

if TYPE_CHECKING:
    import numpy as np
    import tf_keras as keras

_CALIBRATION = 8  # batches that give quantization-aware training its first ranges
_SAMPLES = 200  # training rows that give the ranges
_FEW_VALUES = 256


@plainly
def quantize(before: Candidate, job: Job, settings: Quantize) -> Candidate:
    """Return the model with the weights of each chosen layer in the format.

    Raises:
        DataError: there is no row to take ranges from.
    """
    names = chosen(job, before.model, "quantize", settings.exclude, all_of=True)
    if settings.how == "qat":
        trained, model = _aware(before, job, settings, set(names))
        shapes = _shapes(next(iter(_samples(job))))
        content = tflite.convert(trained, shapes, job.multi_label)
    else:
        model = job.copy(before)
    for name, variable in kernels(model).items():
        if name in names:
            variable.assign(pack.unpacked(variable.numpy(), settings.to))
    if settings.how == "full":
        samples = list(_samples(job))
        progress.info("ranges from %d training rows", len(samples))
        float_ops = tflite.FLOAT_OPS if _has_attention(model) else ()
        shapes = _shapes(samples[0])
        content = tflite.convert(before.model, shapes, job.multi_label, samples, float_ops)
    file = None
    if settings.how != "weights":
        file = job.folder / tflite.TFLITE
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    formats = dict.fromkeys(names, settings.to)
    weights = model.get_weights()
    return job.next(before, "quantize", weights, formats=formats, tflite=file)


def _samples(job: Job) -> "Iterator[Mapping[str, np.ndarray]]":
    """Single training rows, as the models take them.

    Raises:
        DataError: there are none.
    """
    empty = True
    for features, _ in batches(job.source, 1, shuffle_seed=job.train.seed, group=False).take(
        _SAMPLES
    ):
        empty = False
        yield {name: values.numpy() for name, values in features.items()}
    if empty:
        raise DataError(
            "compress.steps: quantize: there are no training rows to take ranges from. Give some."
        )


def _shapes(sample: "Mapping[str, np.ndarray]") -> dict[str, list[int | None]]:
    return {name: [None, *values.shape[1:]] for name, values in sample.items()}


def _has_attention(model: "keras.Model") -> bool:
    """Whether int8 is for the dense layers alone; see `tflite.FLOAT_OPS`."""
    return any(type(layer).__name__ == "Softmax" for layer in model.layers)


# --- quantization-aware training --------------------------------------------------------------


def _aware(
    before: Candidate, job: Job, settings: Quantize, names: set[str]
) -> "tuple[keras.Model, keras.Model]":
    """(the model with fake quantization, trained; a plain one with its quantized weights)."""
    import tensorflow_model_optimization as tfmot
    import tf_keras as keras

    model = job.copy(before)
    attention = _has_attention(model)
    annotate = _annotate_dense(names) if attention else _annotate_all(model, names)
    with tfmot.quantization.keras.quantize_scope({"OutputOnly": _output_only()}):
        annotated = keras.models.clone_model(model, clone_function=annotate)
        aware = tfmot.quantization.keras.quantize_apply(annotated, _scheme(before.model, attention))
    _calibrate(aware, before.model, job)
    keep_zeros(aware)
    for layer in aware.layers:
        # No scheme of TF-MOT keeps the clusters of an embedding.
        if isinstance(layer, keras.layers.Embedding) and pack.has_few_values(
            layer.get_weights()[0]
        ):
            layer.trainable = False
    job.tune(aware, "quantize", settings.epochs, rate_of(settings, job, 0.1))
    plain = job.build(before.layers)
    for layer in plain.layers:
        _take_over(layer, aware)
    return aware, plain


def _calibrate(aware: "keras.Model", model: "keras.Model", job: Job) -> None:
    """Begin with the ranges of a few batches: TF-MOT's own begin at 6 and move by a thousandth
    a step."""
    import numpy as np
    import tf_keras as keras

    ranges: dict[str, dict[str, Any]] = {}
    for layer in aware.layers:
        for weight in layer.weights:
            if _short(weight).endswith(("output_min", "output_max", "activation_min",
                                        "activation_max")):  # fmt: skip
                name = layer.name.removeprefix("quant_")
                ranges.setdefault(name, {})[_short(weight)[-3:]] = weight
    watched = keras.Model(model.inputs, {name: model.get_layer(name).output for name in ranges})
    ask = compiled(watched)
    lowest = dict.fromkeys(ranges, np.inf)
    highest = dict.fromkeys(ranges, -np.inf)
    for features, _ in job.batches(0).take(_CALIBRATION):
        for name, values in ask(features).items():
            lowest[name] = min(lowest[name], values.numpy().min())
            highest[name] = max(highest[name], values.numpy().max())
    for name, limits in ranges.items():
        limits["min"].assign(min(lowest[name], 0.0))  # int8's ranges contain 0
        limits["max"].assign(max(highest[name], 0.0))


def _take_over(layer: "keras.layers.Layer", aware: "keras.Model") -> None:
    """Give a plain layer what its wrapped double has learned, its kernel on int8's grid."""
    if not layer.weights:
        return
    found = next(one for one in aware.layers if one.name in (layer.name, f"quant_{layer.name}"))
    values = {_short(weight): weight.numpy() for weight in found.weights}
    for weight, quantizer, variables in getattr(found, "_weight_vars", ()):
        values[_short(weight)] = quantizer(weight, False, weights=variables).numpy()
    layer.set_weights([values[_short(weight)] for weight in layer.weights])


def _short(weight: Any) -> str:
    name: str = weight.name
    return name.split(":")[0].split("/")[-1]


def _annotate_dense(names: set[str]) -> "Callable[[keras.layers.Layer], keras.layers.Layer]":
    """For models with attention: dense layers compute in int8, from inputs that are quantized
    where they are made; norms, gelu, softmax and sums stay float32, or accuracy collapses."""
    import tensorflow_model_optimization as tfmot

    annotated = tfmot.quantization.keras.quantize_annotate_layer
    output = _output_only()

    def annotate(layer: "keras.layers.Layer") -> "keras.layers.Layer":
        if type(layer).__name__ == "Dense" and layer.name in names and layer.name != "logits":
            return annotated(layer)
        # The name alone would also fit sums, whose layers bear their inputs' names.
        makes_inputs = type(layer).__name__ in ("LayerNormalization", "Activation")
        feeds_dense = makes_inputs and layer.name.endswith(("_norm", "_activation", "_join"))
        return annotated(layer, quantize_config=output()) if feeds_dense else layer

    return annotate


def _annotate_all(
    model: "keras.Model", names: set[str]
) -> "Callable[[keras.layers.Layer], keras.layers.Layer]":
    """For convolutional models: everything that TF-MOT knows, a norm behind its convolution."""
    import tensorflow_model_optimization as tfmot

    annotated = tfmot.quantization.keras.quantize_annotate_layer
    output = _output_only()
    whole = ("ReLU", "Add", "GlobalAveragePooling2D", "AveragePooling2D")

    def annotate(layer: "keras.layers.Layer") -> "keras.layers.Layer":
        kind = type(layer).__name__
        if kind in ("Conv2D", "Dense"):
            return annotated(layer) if layer.name in names else layer
        if kind == "BatchNormalization":
            # Alone, TF-MOT does not know it.
            before = layer.inbound_nodes[0].inbound_layers
            return annotated(layer) if before.name in names else layer
        if kind in ("Rescaling", "ZeroPadding2D"):
            return annotated(layer, quantize_config=output())
        return annotated(layer) if kind in whole else layer

    return annotate


def _output_only() -> Any:
    """A configuration for layers that compute in float32 and feed one that does not."""
    import tensorflow_model_optimization as tfmot

    quantizers = tfmot.quantization.keras.quantizers

    class OutputOnly(tfmot.quantization.keras.QuantizeConfig):
        def get_weights_and_quantizers(self, layer: Any) -> list[Any]:
            return []

        def get_activations_and_quantizers(self, layer: Any) -> list[Any]:
            return []

        def set_quantize_weights(self, layer: Any, quantize_weights: Any) -> None: ...

        def set_quantize_activations(self, layer: Any, quantize_activations: Any) -> None: ...

        def get_output_quantizers(self, layer: Any) -> list[Any]:
            return [
                quantizers.MovingAverageQuantizer(
                    num_bits=8, per_axis=False, symmetric=False, narrow_range=False
                )
            ]

        def get_config(self) -> dict[str, Any]:
            return {}

    return OutputOnly


def _scheme(model: "keras.Model", attention: bool) -> Any:
    """TF-MOT's scheme that keeps what this model's weights have: zeros, clusters, or both."""
    import tensorflow_model_optimization as tfmot

    experimental = tfmot.experimental.combine
    arrays = [variable.numpy() for variable in kernels(model).values()]
    sparse = any(is_sparse(array) for array in arrays)
    clustered = any(pack.has_few_values(array) for array in arrays if array.size > 4 * _FEW_VALUES)
    if clustered:
        scheme = experimental.Default8BitClusterPreserveQuantizeScheme(preserve_sparsity=sparse)
    elif sparse:
        scheme = experimental.Default8BitPrunePreserveQuantizeScheme()
    else:
        scheme = tfmot.quantization.keras.default_8bit.Default8BitQuantizeScheme()
    known = _Known(scheme.get_quantize_registry(), attention)
    scheme.get_quantize_registry = lambda: known
    if attention:
        # The stock transform puts a quantizer behind integer inputs, which fails.
        scheme.get_layout_transformer = _Unchanged
    return scheme


class _Known:
    """A scheme's registry that claims no more than it can do, and for attention only what should
    be int8: TF-MOT quantizes whatever it knows in front of an annotated layer."""

    def __init__(self, registry: Any, attention: bool) -> None:
        import tensorflow_model_optimization as tfmot

        self._registry, self._attention = registry, attention
        self._default = tfmot.quantization.keras.default_8bit.Default8BitQuantizeRegistry()

    def supports(self, layer: "keras.layers.Layer") -> bool:
        """See TF-MOT's QuantizeRegistry."""
        if self._attention and type(layer).__name__ != "Dense":
            return False
        return bool(self._default.supports(layer))

    def get_quantize_config(self, layer: "keras.layers.Layer") -> Any:
        """See TF-MOT's QuantizeRegistry."""
        return self._registry.get_quantize_config(layer)


class _Unchanged:
    """A layout transform that changes nothing."""

    def apply(self, model: "keras.Model", layer_quantize_map: Any) -> tuple[Any, Any]:
        """See TF-MOT's QuantizeLayoutTransform."""
        return model, layer_quantize_map
