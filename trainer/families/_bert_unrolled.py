"""BERT in stock Keras layers, one for each operation: the same function from the same weights.

keras-nlp's TransformerEncoder hides six kernels in one layer. TF-MOT prunes, clusters and
quantizes layers, and knows Dense and Embedding; here each kernel has a layer, and a name, of its
own: token_embedding, transformer_layer_0_query, ..., logits.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import tf_keras as keras

    from ._bert_checkpoint import Plan

# In the order of TransformerEncoder's weights.
_PARTS = (
    "query", "key", "value", "attention_output", "attention_output_layer_norm",
    "output_layer_norm", "intermediate", "output",
)  # fmt: skip


def build(
    plan: "Plan",
    layers: int,
    vocabulary_size: int,
    num_classes: int,
    *,
    pair: bool,
    dropout: float,
    activation: Any,
) -> "keras.Model":
    """Return the classifier with `layers` transformer layers and weights drawn at random.

    Inputs and output as `bert.build`: token_ids and for pairs segment_ids int32 [B, T] -> logits
    float32 [B, num_classes].
    """
    import tensorflow as tf
    import tf_keras as keras

    # === Layers ===
    def embedding(height: int, name: str) -> "keras.layers.Layer":
        return keras.layers.Embedding(height, plan.hidden, name=f"{name}_embedding")

    norm = keras.layers.LayerNormalization(epsilon=plan.epsilon, name="embeddings_layer_norm")
    pooling = keras.layers.GlobalAveragePooling1D(name="mean_pooling", dtype="float32")
    drop = keras.layers.Dropout(dropout, name="head_dropout", dtype="float32")
    logits = keras.layers.Dense(num_classes, name="logits", dtype="float32")

    # === Functional model ===
    inputs = {"token_ids": keras.Input((None,), dtype="int32", name="token_ids")}
    if pair:
        inputs["segment_ids"] = keras.Input((None,), dtype="int32", name="segment_ids")
    token_ids = inputs["token_ids"]
    segments = inputs["segment_ids"] if pair else tf.zeros_like(token_ids)
    mask = tf.not_equal(token_ids, 0)  # (B, T)
    length = tf.shape(token_ids)[1]
    x = embedding(vocabulary_size, "token")(token_ids)  # (B, T, H)
    places = embedding(plan.positions, "position")(tf.range(length))  # (T, H)
    x = norm(x + places + embedding(plan.segments, "segment")(segments))
    x = keras.layers.Dropout(dropout, name="embeddings_dropout")(x)
    # As Keras' own softmax masks. In float32, as numbers are when a model is cloned.
    bias = (1.0 - tf.cast(mask, tf.float32)[:, tf.newaxis, tf.newaxis, :]) * -1e9
    attention = _Attention(
        plan.heads,
        tf.stack([-1, length, plan.heads, plan.hidden // plan.heads]),
        tf.cast(bias, x.dtype),  # (B, 1, 1, T)
        dropout,
    )
    # A token a row, N = B * T of them: on rank 2 a dense layer is one product and one sum, which
    # is what int8 kernels are made for.
    x = tf.reshape(x, (-1, plan.hidden))
    for index in range(layers):
        x = _layer(x, attention, f"transformer_layer_{index}", plan, activation)
    x = tf.reshape(x, tf.stack([-1, length, plan.hidden]))
    x = pooling(x, mask=mask)  # (B, H)
    return keras.Model(inputs, logits(drop(x)), name="bert_unrolled")


class _Attention(NamedTuple):
    """What the attention of all layers shares: heads, the shape [B, T, heads, size] as a tensor,
    the mask as a bias, dropout."""

    heads: int
    shape: "keras.KerasTensor"
    bias: "keras.KerasTensor"
    dropout: float


def _layer(
    x: "keras.KerasTensor", attention: _Attention, name: str, plan: "Plan", activation: Any
) -> "keras.KerasTensor":
    """One transformer layer, its norms behind the residual sums as in BERT: (N, H) -> (N, H)."""
    import tensorflow as tf
    import tf_keras as keras

    size = plan.hidden // plan.heads

    def dense(width: int, part: str) -> "keras.layers.Layer":
        return keras.layers.Dense(width, name=f"{name}_{part}")

    def heads(part: str) -> "keras.KerasTensor":
        turned = keras.layers.Permute((2, 1, 3), name=f"{name}_{part}_heads")
        return turned(tf.reshape(dense(plan.hidden, part)(x), attention.shape))  # (B, h, T, size)

    def add_and_norm(x: "keras.KerasTensor", y: "keras.KerasTensor", part: str) -> Any:
        y = keras.layers.Dropout(attention.dropout, name=f"{name}_{part}_dropout")(y)
        y = keras.layers.Add(name=f"{name}_{part}_add")([y, x])
        norm = keras.layers.LayerNormalization(
            epsilon=plan.epsilon, name=f"{name}_{part}_layer_norm"
        )
        return norm(y)

    query = keras.layers.Rescaling(size**-0.5, name=f"{name}_scale")(heads("query"))
    scores = tf.matmul(query, heads("key"), transpose_b=True) + attention.bias  # (B, h, T, T)
    scores = keras.layers.Softmax(name=f"{name}_attention")(scores)
    scores = keras.layers.Dropout(attention.dropout, name=f"{name}_attention_dropout")(scores)
    y = keras.layers.Permute((2, 1, 3), name=f"{name}_turn")(tf.matmul(scores, heads("value")))
    # A layer, for quantization to find: what goes into the next product.
    y = keras.layers.Activation("linear", name=f"{name}_join")(tf.reshape(y, (-1, plan.hidden)))
    x = add_and_norm(x, dense(plan.hidden, "attention_output")(y), "attention_output")
    y = keras.layers.Activation(activation, name=f"{name}_activation")(
        dense(plan.intermediate, "intermediate")(x)
    )
    return add_and_norm(x, dense(plan.hidden, "output")(y), "output")


def copy_weights(model: "keras.Model", unrolled: "keras.Model") -> None:
    """Give `unrolled` the weights of `bert.build`'s model of as many layers."""
    for layer in model.layers:
        if layer.name.startswith("transformer_layer_"):
            arrays = iter(layer.get_weights())
            for part in _PARTS:
                target = unrolled.get_layer(f"{layer.name}_{part}")
                target.set_weights([next(arrays).reshape(w.shape) for w in target.weights])
        elif layer.weights:
            unrolled.get_layer(layer.name).set_weights(layer.get_weights())


def give_back(model: "keras.Model", unrolled: "keras.Model") -> None:
    """Give `bert.build`'s model the weights of `unrolled`, which has as many layers."""
    for layer in model.layers:
        if layer.name.startswith("transformer_layer_"):
            parts = [unrolled.get_layer(f"{layer.name}_{part}") for part in _PARTS]
            arrays = [array for part in parts for array in part.get_weights()]
            shaped = zip(arrays, layer.get_weights(), strict=True)
            layer.set_weights([array.reshape(old.shape) for array, old in shaped])
        elif layer.weights:
            layer.set_weights(unrolled.get_layer(layer.name).get_weights())
