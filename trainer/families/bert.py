"""BERT for classifying texts, or pairs of texts (Devlin et al., https://arxiv.org/abs/1810.04805).

The model is flat: keras-nlp's layers in the order, and with the names, of its BertBackbone, so
that each can be frozen, pruned, quantized or cloned by itself. Weights come from a Hugging Face
folder, from a Keras preset, or are drawn anew.

This module is the pattern for a family. It can be imported without TensorFlow and holds
`FEATURE_KIND`, `SEQUENCE_FEATURES`, `AFTER_TRANSFORM`, `Settings`, `check`, `fingerprint`,
`licence`, `depth`, `pixel_shapes`, `preprocess`, `learned`, `build` and `freeze`; for exports
`SERVED`, `unroll`, `adopt` and `serving_graph`; for the Compressor `SPARED`, `LAYER`, `blocks` and
`hints`; for explanations `EXPLAINED`, `baseline` and `pieces`.
"""

import hashlib
import re
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from pydantic import Field

from ...errors import CheckpointError, ConfigError
from .. import checkpoints, wordpiece
from ..settings import Section
from . import _bert_unrolled
from ._bert_checkpoint import (
    ACTIVATIONS,
    Plan,
    check_weights,
    read_plan,
    read_vocabulary,
    read_weights,
)

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

    from ..serving_graph import Features, Graph, Ops

FEATURE_KIND = "text"
SEQUENCE_FEATURES = ("token_ids", "segment_ids")
AFTER_TRANSFORM = ("dropout",)
SERVED = ("any", "bf16", "int8")
# What pruning and clustering leave alone: small, and costly to touch.
SPARED = ("position_embedding", "segment_embedding", "logits")
LAYER = re.compile(r"(transformer_layer_)(\d+)(_.*)")  # the middle counts the layers, from 0
EXPLAINED = "token_embedding"

# Layers and width of Google's published sizes, trained from scratch here: tiny to small from
# Turc et al., https://arxiv.org/abs/1908.08962, base and large from Devlin et al. Heads are 64
# wide and the feed-forward layer is four times as wide as the model in all of them.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
_VOCABULARY_SIZE = 8000
_MIN_LENGTH = 8


class Settings(Section):
    """The `model:` section for BERT."""

    family: Literal["bert"] = "bert"
    start: str = Field(
        description=f"What training starts from: {', '.join(SIZES)} (a new model of that size), "
        "minilm (all-MiniLM-L6-v2, fetched once), a folder with a Hugging Face BERT or a Keras "
        "preset, or a handle (hf://owner/name, kaggle://owner/model/keras/variant)."
    )
    sequence_length: int = Field(
        128, ge=_MIN_LENGTH, description="Tokens per row, at most; longer texts are cut."
    )
    vocabulary_size: int | None = Field(
        None,
        ge=100,
        description="Tokens to learn from the training texts, at most; 8000 when left out. "
        "For a new model only: a checkpoint brings its vocabulary.",
    )
    lower_case: bool | None = Field(
        None,
        description="Whether case and accents are dropped; true when left out. For a new model "
        "only: a checkpoint says for itself.",
    )
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of activations dropped in training.")


def check(settings: Settings, progress: checkpoints.Progress | None = None) -> None:
    """Find every fault of the settings and the checkpoint that needs no TensorFlow to be found.

    Fetches a checkpoint that is named or a handle and not on this machine yet; `progress` is
    called with a line about it. Raises CheckpointError or ConfigError.
    """
    plan = _plan(settings, progress)
    if settings.sequence_length > plan.positions:
        raise ConfigError(
            f"model.sequence_length is {settings.sequence_length}, and {settings.start} has "
            f"{plan.positions} positions. Give at most {plan.positions}."
        )
    if plan.folder is None:
        return
    for key in ("vocabulary_size", "lower_case"):
        if getattr(settings, key) is not None:
            raise ConfigError(
                f"model.{key} is for a new model ({', '.join(SIZES)}); {settings.start} brings "
                "its own vocabulary. Leave it out."
            )
    read_vocabulary(plan)
    check_weights(plan)


def fingerprint(settings: Settings) -> str:
    """Return a SHA-256 (hex) of what training starts from: a checkpoint's files, or a size."""
    folder = _plan(settings).folder
    if folder is None:
        return hashlib.sha256(f"bert {settings.start}".encode()).hexdigest()
    return checkpoints.digest(folder)


def licence(settings: Settings) -> str:
    """Return the licence of what training starts from; "" where nobody has said."""
    folder = _plan(settings).folder
    return checkpoints.licence(settings.start, folder) if folder else checkpoints.NO_CHECKPOINT


def depth(settings: Settings) -> int:
    """Return how many parts `train.freeze` can count: the transformer's layers."""
    return _plan(settings).layers


def pixel_shapes(settings: Settings) -> dict[str, tuple[int, int, int]]:
    """Return the shapes of the features that hold pixels: there are none."""
    return {}


def preprocess(inputs: "dict[str, tf.Tensor]", settings: Settings) -> "dict[str, tf.Tensor]":
    """Turn texts into token ids, in the Transform graph.

    inputs: "text" string [B], and for pairs "text_pair" string [B]. Returns token_ids int64
    [B, sequence_length], padded with 0, and for pairs segment_ids of the same shape.
    """
    import tensorflow as tf

    plan = _plan(settings)
    text, pair = inputs["text"], inputs.get("text_pair")
    if plan.folder is None:
        texts = text if pair is None else tf.concat([text, pair], 0)
        size = settings.vocabulary_size or _VOCABULARY_SIZE
        vocabulary = wordpiece.learn(texts, size, plan.lower)
    else:
        folder = checkpoints.writable_cache() / "vocabularies"
        vocabulary = wordpiece.write_vocabulary(read_vocabulary(plan), str(folder))
    return wordpiece.tokenize_and_pack(
        text, pair, vocabulary, plan.lower, settings.sequence_length, plan.strip_accents
    )


class Learned(TypedDict):
    """What the data decides: the height of the token embedding, and whether rows are pairs."""

    vocabulary_size: int
    pair: bool


def learned(settings: Settings, source: Any) -> Learned:
    """Return the vocabulary's size (the checkpoint's, or the learned one's), and pairs or not."""
    plan = _plan(settings)
    size = plan.vocabulary
    if plan.folder is None:
        size = wordpiece.vocabulary_size(source.transform.transform_savedmodel_dir)
    return Learned(vocabulary_size=size, pair="segment_ids" in source.spec)


def build(settings: Settings, num_classes: int, learned: Learned) -> "keras.Model":
    """Return the classifier, with the checkpoint's weights where there is one.

    Inputs: token_ids int32 [B, T] and for pairs segment_ids int32 [B, T], with any T up to
    sequence_length; 0 is padding and is masked. Output: logits float32 [B, num_classes], under
    any precision policy that the caller has set.
    """
    import tensorflow as tf

    # AutoGraph would rewrite keras-nlp's layers for eight seconds, to no other effect.
    return tf.autograph.experimental.do_not_convert(_build)(settings, num_classes, learned)


def _build(settings: Settings, num_classes: int, learned: Learned) -> "keras.Model":
    import keras_nlp
    import tensorflow as tf
    import tf_keras as keras

    if not issubclass(keras_nlp.layers.TransformerEncoder, keras.layers.Layer):
        raise ConfigError(
            "keras-nlp runs on Keras 3, and Keras 2 is needed. Set TF_USE_LEGACY_KERAS=1 before "
            "TensorFlow is imported; `import espalier` does so when it comes first."
        )
    plan, pair = _plan(settings), learned["pair"]
    if pair and plan.segments < 2:
        raise CheckpointError(f"{settings.start} knows one text a row; data.text names two.")

    # === Layers ===
    layers = _encoder_layers(plan, learned["vocabulary_size"], settings.dropout)
    # The mean over the real tokens, as all-MiniLM was trained: it serves every BERT and needs no
    # pooler, which many checkpoints lack. SST-2 test accuracy after one epoch at 1e-4: the mean
    # 0.884, the start token 0.884, its pooler 0.879, a new pooler 0.880; apart by chance alone.
    pooling = keras.layers.GlobalAveragePooling1D(name="mean_pooling", dtype="float32")
    dropout = keras.layers.Dropout(settings.dropout, name="head_dropout", dtype="float32")
    logits = keras.layers.Dense(
        num_classes, kernel_initializer=_initializer(), name="logits", dtype="float32"
    )

    # === Functional model ===
    inputs = {"token_ids": keras.Input((None,), dtype="int32", name="token_ids")}
    if pair:
        inputs["segment_ids"] = keras.Input((None,), dtype="int32", name="segment_ids")
    token_ids = inputs["token_ids"]
    segments = inputs["segment_ids"] if pair else tf.zeros_like(token_ids)
    mask = tf.not_equal(token_ids, 0)
    x = layers["token_embedding"](token_ids)  # (B, T, H)
    x = layers["embeddings_add"](
        (x, layers["position_embedding"](x), layers["segment_embedding"](segments))
    )
    x = layers["embeddings_dropout"](layers["embeddings_layer_norm"](x))
    for index in range(plan.layers):
        x = layers[f"transformer_layer_{index}"](x, padding_mask=mask)
    x = pooling(x, mask=mask)  # (B, H)
    model = keras.Model(inputs, logits(dropout(x)), name="bert_classifier")

    # === Weights ===
    if plan.folder is not None:
        for name, arrays in read_weights(plan).items():
            layers[name].set_weights(arrays)
    return model


def _encoder_layers(
    plan: Plan, vocabulary_size: int, dropout: float
) -> "dict[str, keras.layers.Layer]":
    import keras_nlp
    import tf_keras as keras

    activation = _activation(plan)
    layers = [
        keras_nlp.layers.ReversibleEmbedding(
            vocabulary_size,
            plan.hidden,
            embeddings_initializer=_initializer(),
            name="token_embedding",
        ),
        keras_nlp.layers.PositionEmbedding(
            plan.positions, initializer=_initializer(), name="position_embedding"
        ),
        keras.layers.Embedding(
            plan.segments,
            plan.hidden,
            embeddings_initializer=_initializer(),
            name="segment_embedding",
        ),
        keras.layers.Add(name="embeddings_add"),
        keras.layers.LayerNormalization(epsilon=plan.epsilon, name="embeddings_layer_norm"),
        keras.layers.Dropout(dropout, name="embeddings_dropout"),
    ]
    layers += [
        keras_nlp.layers.TransformerEncoder(
            intermediate_dim=plan.intermediate,
            num_heads=plan.heads,
            dropout=dropout,
            activation=activation,
            layer_norm_epsilon=plan.epsilon,
            kernel_initializer=_initializer(),
            name=f"transformer_layer_{index}",
        )
        for index in range(plan.layers)
    ]
    return {layer.name: layer for layer in layers}


def _activation(plan: Plan) -> Any:
    import tf_keras as keras

    name = ACTIVATIONS[plan.activation]
    return keras.saving.get_registered_object(name) if ">" in name else name


def _initializer() -> "keras.initializers.Initializer":
    import tf_keras as keras

    return keras.initializers.TruncatedNormal(stddev=0.02)


def freeze(model: "keras.Model", freeze: int | Literal["all"]) -> None:
    """Keep weights as they are: 0 none, n the embeddings and n layers, all but the head."""
    encoders = [layer for layer in model.layers if layer.name.startswith("transformer_layer_")]
    embeddings = [layer for layer in model.layers if "embedding" in layer.name]
    for layer in model.layers:
        layer.trainable = True
    count = len(encoders) if freeze == "all" else freeze
    for layer in [*embeddings, *encoders[:count]] if count else []:
        layer.trainable = False


# --- for exports and the Compressor -------------------------------------------------------------


def blocks(settings: Settings) -> int:
    """Return how many layers a student has fewer of."""
    return _plan(settings).layers


def unroll(
    settings: Settings, num_classes: int, learned: Learned, layers: int | None = None
) -> "keras.Model":
    """Return `build`'s model in stock layers that TF-MOT knows, with random weights.

    `layers` makes it shallower. Inputs and output are `build`'s; see `_bert_unrolled`.
    """
    plan = _plan(settings)
    return _bert_unrolled.build(
        plan,
        layers or plan.layers,
        learned["vocabulary_size"],
        num_classes,
        pair=learned["pair"],
        dropout=settings.dropout,
        activation=_activation(plan),
    )


adopt, resume = _bert_unrolled.copy_weights, _bert_unrolled.give_back


def serving_graph(settings: Settings, ops: "Ops", layers: int | None = None) -> "Graph":
    """Return what a server computes, the function of the unrolled model; see `_bert_serving`."""
    from . import _bert_serving

    plan = _plan(settings)
    return _bert_serving.write(ops, plan, layers or plan.layers)


def hints(layers: int) -> dict[str, list[str]]:
    """Return the layers of an unrolled model whose outputs a student's should be like.

    hidden: [B * T, H], TinyBERT's (Jiao et al., https://arxiv.org/abs/1909.10351, equation 8).
    attention: [B, heads, T, T] distributions of the last layer, MiniLM's (Wang et al.,
    https://arxiv.org/abs/2002.10957, section 3.1).
    """
    return {
        "hidden": [f"transformer_layer_{i}_output_layer_norm" for i in range(layers)],
        "attention": [f"transformer_layer_{layers - 1}_attention"],
    }


# --- for explanations ---------------------------------------------------------------------------


def baseline(features: "Features") -> "Features":
    """Return a text of as many tokens that says nothing: padding, between the tokens that mark its
    ends, as Captum's tutorial on BERT has it (https://captum.ai/tutorials/Bert_SQUAD_Interpret)."""
    import tensorflow as tf

    ids = features["token_ids"]
    return {**features, "token_ids": tf.where(_marks(ids), ids, 0)}


def pieces(version: str, features: "Features") -> list[str]:
    """Return the tokens of the first text, "" for those that mark its ends."""
    known = wordpiece.read_vocabulary(version)
    ids, marks = features["token_ids"][:1], _marks(features["token_ids"][:1])
    return [
        "" if mark or place == 0 else known[place]
        for place, mark in zip(ids[0].numpy(), marks[0].numpy(), strict=True)
    ]


def _marks(ids: "tf.Tensor") -> "tf.Tensor":
    """Where [CLS] and [SEP] stand: the first token, and all that are like the last one."""
    import tensorflow as tf

    last = tf.gather(ids, tf.math.count_nonzero(ids, axis=1, keepdims=True) - 1, batch_dims=1)
    return tf.logical_or(ids == ids[:, :1], ids == last)


def _plan(settings: Settings, progress: checkpoints.Progress | None = None) -> Plan:
    if settings.start in SIZES:
        layers, hidden = SIZES[settings.start]
        lower = settings.lower_case is not False
        return Plan(layers, hidden // 64, hidden, 4 * hidden, vocabulary=0, lower=lower)
    return read_plan(checkpoints.resolve(settings.start, progress=progress, others=SIZES))
