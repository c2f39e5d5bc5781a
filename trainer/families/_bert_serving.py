"""BERT as a server computes it: no padding.

The texts' real tokens stand one below the other in a matrix: embeddings, dense layers and norms
are computed for them alone. Only attention needs texts side by side: before it, rows are gathered
to [batch, heads, longest text], and after it back. What is computed for each real token is what
`_bert_unrolled` computes.

    texts   I liked it . PAD PAD        tokens  I          attention  I liked it .
            Bad .        PAD PAD PAD            liked                 Bad . - -
                                                it  .  Bad  .
"""

from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from ..serving_graph import Features, Graph, Ops

if TYPE_CHECKING:
    from ._bert_checkpoint import Plan

# Rows and lengths are rounded up: kernels like multiples of 8, and few shapes.
_LENGTH_STEP = 8
_FEW_ROWS, _STEP_OF_FEW, _STEP_OF_MANY = 256, 8, 32


def write(ops: Ops, plan: "Plan", layers: int) -> Graph:
    """Return token_ids, and for pairs segment_ids, int32 [B, L] -> logits float32 [B, C].

    Args:
        ops: what it is written with.
        plan: the model's shape.
        layers: how many there are.
    """

    def logits(features: Features) -> tf.Tensor:
        ids = features["token_ids"]
        count = tf.shape(ids)[0]
        # An empty batch is computed as one row of padding, and answered by no row.
        some = [[0, tf.cast(count == 0, tf.int32)], [0, 0]]
        ids = tf.pad(ids, some)
        rows = _pack(ids, plan.heads)
        segments = (
            _taken(tf.pad(features["segment_ids"], some), rows) if "segment_ids" in features else 0
        )
        x = ops.embed("token_embedding", _taken(ids, rows))  # (N, H)
        x += ops.embed("position_embedding", rows.place)
        x += ops.embed("segment_embedding", segments)
        x = ops.norm(tf.cast(x, ops.dtype), "embeddings_layer_norm")
        for index in range(layers):
            x = _layer(ops, x, rows, f"transformer_layer_{index}", plan)
        x = tf.cast(x, tf.float32)
        total = tf.math.unsorted_segment_sum(x, rows.text, tf.shape(ids)[0])  # (B, H)
        mean = tf.math.divide_no_nan(total, rows.length[:, tf.newaxis])
        return ops.logits(mean, "logits")[:count]

    return logits


class _Rows(NamedTuple):
    """Where N tokens stand in B texts of T places.

    index: int32 [N] into the flat texts; text: [N], -1 for rows that fill up; place: [N].
    length: float32 [B]. bias: float32 [B, 1, 1, T], what attention adds to padding.
    spread: [3, B, heads, T] into [N * 3 * heads]: from the rows of query, key and value to texts.
    gather: [N, heads] into [B * heads * T]: from attention's result back to rows.
    """

    index: tf.Tensor
    text: tf.Tensor
    place: tf.Tensor
    length: tf.Tensor
    bias: tf.Tensor
    spread: tf.Tensor
    gather: tf.Tensor


def _pack(ids: tf.Tensor, heads: int) -> _Rows:
    """token_ids int32 [B, L], padded with 0 -> rows of the real ones, of T <= L places."""
    most = tf.shape(ids)[1]
    real = tf.not_equal(ids, 0)
    ends = tf.where(real, tf.range(most) + 1, 0)
    longest = tf.maximum(tf.reduce_max(ends), 1)
    width = tf.minimum(-(-longest // _LENGTH_STEP) * _LENGTH_STEP, most)
    real = real[:, :width]
    flat = tf.reshape(real, [-1])
    index = tf.cast(tf.where(flat)[:, 0], tf.int32)
    found = tf.size(index)
    step = tf.where(found < _FEW_ROWS, _STEP_OF_FEW, _STEP_OF_MANY)
    rows = tf.maximum(-(-found // step), 1) * step
    index = tf.pad(index, [[0, rows - found]])
    text, place = index // width, index % width
    row = tf.maximum(tf.cumsum(tf.cast(flat, tf.int32)) - 1, 0)
    row = tf.reshape(row, tf.shape(real))[tf.newaxis, :, tf.newaxis, :]  # (1, B, 1, T)
    head = tf.range(heads)
    kind = tf.range(3)[:, tf.newaxis, tf.newaxis, tf.newaxis]
    return _Rows(
        index=text * most + place,
        text=tf.where(tf.range(rows) < found, text, -1),
        place=place,
        length=tf.reduce_sum(tf.cast(real, tf.float32), axis=1),
        bias=(1.0 - tf.cast(real, tf.float32))[:, tf.newaxis, tf.newaxis, :] * -1e9,
        spread=(row * 3 + kind) * heads + head[:, tf.newaxis],
        gather=(text[:, tf.newaxis] * heads + head) * width + place[:, tf.newaxis],
    )


def _taken(values: tf.Tensor, rows: _Rows) -> tf.Tensor:
    """[B, L] -> [N]."""
    return tf.gather(tf.reshape(values, [-1]), rows.index)


def _layer(ops: Ops, x: tf.Tensor, rows: _Rows, name: str, plan: "Plan") -> tf.Tensor:
    """One transformer layer: (N, H) -> (N, H)."""
    size = plan.hidden // plan.heads
    parts = [f"{name}_{part}" for part in ("query", "key", "value")]
    # Attention divides by the square root of the size: half by query's weights, half by key's,
    # so that in int8, where all three have one scale, neither becomes coarse.
    y = ops.dense(x, parts, scales=(size**-0.25, size**-0.25, 1.0))  # (N, 3 * H)
    y = tf.gather(tf.reshape(y, [-1, size]), rows.spread)  # (3, B, heads, T, size)
    scores = tf.matmul(y[0], y[1], transpose_b=True) + tf.cast(rows.bias, ops.dtype)
    y = tf.matmul(tf.nn.softmax(scores), y[2])  # (B, heads, T, size)
    y = tf.gather(tf.reshape(y, [-1, size]), rows.gather)  # (N, heads, size)
    y = ops.dense(tf.reshape(y, [-1, plan.hidden]), f"{name}_attention_output")
    x = ops.norm(x + y, f"{name}_attention_output_layer_norm")
    y = ops.dense(x, f"{name}_intermediate", activation=f"{name}_activation")
    return ops.norm(x + ops.dense(y, f"{name}_output"), f"{name}_output_layer_norm")
