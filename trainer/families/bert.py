"""BERT for classifying texts, or pairs of texts (Devlin et al., https://arxiv.org/abs/1810.04805).

The model is flat: keras-nlp's layers in the order, and with the names, of its BertBackbone, so
that each can be frozen, pruned, quantized or cloned by itself. Weights come from a Hugging Face
folder, from a Keras preset, or are drawn anew.

This module is the pattern for a family. It can be imported without TensorFlow and holds
`FEATURE_KIND`, `SEQUENCE_FEATURES`, `Settings`, `check`, `fingerprint`, `preprocess`,
`vocabulary_size`, `build` and `freeze`.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ...errors import CheckpointError, ConfigError
from .. import checkpoints, wordpiece

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    import tensorflow_transform as tft
    import tf_keras as keras

    Weights = dict[str, list[np.ndarray]]  # layer's name -> its arrays, in Keras's order

FEATURE_KIND = "text"
SEQUENCE_FEATURES = ("token_ids", "segment_ids")

# Layers and width of Google's published sizes, trained from scratch here: tiny to small from
# Turc et al., https://arxiv.org/abs/1908.08962, base and large from Devlin et al. Heads are 64
# wide and the feed-forward layer is four times as wide as the model in all of them.
SIZES = {"tiny": (2, 128), "mini": (4, 256), "small": (4, 512), "base": (12, 768),
         "large": (24, 1024)}
_VOCABULARY_SIZE = 8000
_MIN_LENGTH = 8
_ACTIVATIONS = {
    "gelu": "gelu",  # exact, by erf
    "gelu_new": "keras_nlp>gelu_approximate",  # by tanh
    "gelu_pytorch_tanh": "keras_nlp>gelu_approximate",
    "relu": "relu",
}


class Settings(BaseModel):
    """The `model:` section for BERT."""

    model_config = ConfigDict(extra="forbid", frozen=True)

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
        description="About how many tokens to learn from the training texts; 8000 when left out. "
        "For a new model only: a checkpoint brings its vocabulary.",
    )
    lower_case: bool | None = Field(
        None,
        description="Whether case and accents are dropped; true when left out. For a new model "
        "only: a checkpoint says for itself.",
    )
    dropout: float = Field(
        0.1, ge=0, lt=1, description="Share of activations dropped in training."
    )


@dataclass(frozen=True)
class _Plan:
    """What the settings come to: the model's shape, and where its weights are (None: nowhere)."""

    layers: int
    heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int = 512
    segments: int = 2
    activation: str = "gelu"
    epsilon: float = 1e-12
    lower: bool = True
    strip_accents: bool | None = None
    folder: Path | None = None
    preset: bool = False

    @property
    def vocabulary_file(self) -> Path:
        assert self.folder is not None
        return self.folder / ("assets/tokenizer/vocabulary.txt" if self.preset else "vocab.txt")


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
    checkpoints.read_vocabulary(plan.vocabulary_file, wordpiece.SPECIAL[:4], plan.vocabulary)
    if plan.preset:
        _check_h5(plan.folder / "model.weights.h5")
    else:
        checkpoints.check_shapes(plan.folder, _tensor_shapes(plan))


def fingerprint(settings: Settings) -> str:
    """Return a SHA-256 (hex) of what training starts from: a checkpoint's files, or a size."""
    folder = _plan(settings).folder
    if folder is None:
        return hashlib.sha256(f"bert {settings.start}".encode()).hexdigest()
    return checkpoints.digest(folder)


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
        tokens = checkpoints.read_vocabulary(
            plan.vocabulary_file, wordpiece.SPECIAL[:4], plan.vocabulary
        )
        folder = checkpoints.cache_folder() / "vocabularies"
        vocabulary = wordpiece.write_vocabulary(tokens, str(folder))
    return wordpiece.tokenize_and_pack(
        text, pair, vocabulary, plan.lower, settings.sequence_length, plan.strip_accents
    )


def vocabulary_size(settings: Settings, transform_output: "tft.TFTransformOutput") -> int:
    """Return the height of the token embedding: the checkpoint's, or the learned vocabulary's."""
    plan = _plan(settings)
    if plan.folder is not None:
        return plan.vocabulary
    return wordpiece.vocabulary_size(transform_output.transform_savedmodel_dir)


def build(
    settings: Settings, num_classes: int, vocabulary_size: int, pair: bool
) -> "keras.Model":
    """Return the classifier, with the checkpoint's weights where there is one.

    Inputs: token_ids int32 [B, T] and for pairs segment_ids int32 [B, T], with any T up to
    sequence_length; 0 is padding and is masked. Output: logits float32 [B, num_classes], under
    any precision policy that the caller has set.
    """
    import keras_nlp  # noqa: F401  (registers gelu_approximate)
    import tensorflow as tf
    import tf_keras as keras

    plan = _plan(settings)
    if pair and plan.segments < 2:
        raise CheckpointError(f"{settings.start} knows one text a row; data.text names two.")

    # === Layers ===
    def initializer() -> keras.initializers.Initializer:
        return keras.initializers.TruncatedNormal(stddev=0.02)

    layers = _encoder_layers(plan, vocabulary_size, settings.dropout)
    pooling = keras.layers.GlobalAveragePooling1D(name="mean_pooling", dtype="float32")
    dropout = keras.layers.Dropout(settings.dropout, name="head_dropout", dtype="float32")
    logits = keras.layers.Dense(
        num_classes, kernel_initializer=initializer(), name="logits", dtype="float32"
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
        weights = _preset_weights(plan) if plan.preset else _tensor_weights(plan)
        for name, arrays in weights.items():
            layers[name].set_weights(arrays)
    return model


def _encoder_layers(
    plan: _Plan, vocabulary_size: int, dropout: float
) -> "dict[str, keras.layers.Layer]":
    import keras_nlp
    import tf_keras as keras

    def initializer() -> keras.initializers.Initializer:
        return keras.initializers.TruncatedNormal(stddev=0.02)

    activation = _ACTIVATIONS[plan.activation]
    if ">" in activation:
        activation = keras.saving.get_registered_object(activation)
    layers = [
        keras_nlp.layers.ReversibleEmbedding(
            vocabulary_size, plan.hidden, embeddings_initializer=initializer(),
            name="token_embedding",
        ),
        keras_nlp.layers.PositionEmbedding(
            plan.positions, initializer=initializer(), name="position_embedding"
        ),
        keras.layers.Embedding(
            plan.segments, plan.hidden, embeddings_initializer=initializer(),
            name="segment_embedding",
        ),
        keras.layers.Add(name="embeddings_add"),
        keras.layers.LayerNormalization(epsilon=plan.epsilon, name="embeddings_layer_norm"),
        keras.layers.Dropout(dropout, name="embeddings_dropout"),
    ]
    layers += [
        keras_nlp.layers.TransformerEncoder(
            intermediate_dim=plan.intermediate, num_heads=plan.heads, dropout=dropout,
            activation=activation, layer_norm_epsilon=plan.epsilon,
            kernel_initializer=initializer(), name=f"transformer_layer_{index}",
        )
        for index in range(plan.layers)
    ]
    return {layer.name: layer for layer in layers}


def freeze(model: "keras.Model", freeze: int | Literal["all"]) -> None:
    """Keep weights as they are: 0 none, n the embeddings and the first n layers, all but the head.

    Raises ConfigError if the model has fewer layers.
    """
    encoders = [layer for layer in model.layers if layer.name.startswith("transformer_layer_")]
    count = len(encoders) if freeze == "all" else freeze
    if count > len(encoders):
        raise ConfigError(
            f"train.freeze is {count}, and the model has {len(encoders)} layers. Give at most "
            f"{len(encoders)}, or all."
        )
    if count:
        embeddings = [layer for layer in model.layers if "embedding" in layer.name]
        for layer in embeddings + encoders[:count]:
            layer.trainable = False


# === Where the weights come from ===


def _plan(settings: Settings, progress: checkpoints.Progress | None = None) -> _Plan:
    if settings.start in SIZES:
        layers, hidden = SIZES[settings.start]
        lower = settings.lower_case is not False
        return _Plan(layers, hidden // 64, hidden, 4 * hidden, 0, lower=lower)
    folder = checkpoints.resolve(settings.start, progress=progress, others=SIZES)
    return _preset_plan(folder) if checkpoints.is_preset(folder) else _huggingface_plan(folder)


def _huggingface_plan(folder: Path) -> _Plan:
    file = folder / "config.json"
    config = checkpoints.read_config(folder, "bert")
    act, kind = config.get("hidden_act", "gelu"), config.get("position_embedding_type", "absolute")
    if act not in _ACTIVATIONS or kind != "absolute":
        raise CheckpointError(
            f"{file}: hidden_act is {act!r} and position_embedding_type {kind!r}; expected one of "
            f"{', '.join(_ACTIVATIONS)}, and 'absolute'. Choose another checkpoint."
        )
    plan = _Plan(
        layers=_integer(file, config, "num_hidden_layers"),
        heads=_integer(file, config, "num_attention_heads"),
        hidden=_integer(file, config, "hidden_size"),
        intermediate=_integer(file, config, "intermediate_size"),
        vocabulary=_integer(file, config, "vocab_size"),
        positions=_integer(file, config, "max_position_embeddings"),
        segments=_integer(file, config, "type_vocab_size"),
        activation=act,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
        folder=folder,
        **_casing(folder),
    )
    return _whole_heads(file, plan)


def _casing(folder: Path) -> dict[str, Any]:
    """Return whether texts are lower-cased and lose their accents; BERT's default is to do so."""
    file = folder / "tokenizer_config.json"
    config = checkpoints.read_json(file) if file.exists() else {}
    if config.get("tokenize_chinese_chars", True) is not True:
        raise CheckpointError(
            f"{file}: tokenize_chinese_chars is false, and this family's graph parts them. "
            "Choose another checkpoint."
        )
    return {"lower": config.get("do_lower_case", True) is not False,
            "strip_accents": config.get("strip_accents")}


def _preset_plan(folder: Path) -> _Plan:
    file = folder / "config.json"
    content = checkpoints.read_json(file)
    name = str(content["registered_name"]).split(">")[-1]
    if name != "BertBackbone":
        raise CheckpointError(
            f"{file} is of {name}, expected BertBackbone. Choose another checkpoint or family."
        )
    config = content.get("config", {})
    tokenizer = checkpoints.read_json(folder / "tokenizer.json").get("config", {})
    plan = _Plan(
        layers=_integer(file, config, "num_layers"),
        heads=_integer(file, config, "num_heads"),
        hidden=_integer(file, config, "hidden_dim"),
        intermediate=_integer(file, config, "intermediate_dim"),
        vocabulary=_integer(file, config, "vocabulary_size"),
        positions=_integer(file, config, "max_sequence_length"),
        segments=_integer(file, config, "num_segments"),
        activation="gelu_new",
        lower=bool(tokenizer.get("lowercase", False)),
        folder=folder,
        preset=True,
    )
    return _whole_heads(file, plan)


def _integer(file: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise CheckpointError(f"{file}: {key} is {value!r}, expected a number from 1 up.")
    return value


def _whole_heads(file: Path, plan: _Plan) -> _Plan:
    if plan.hidden % plan.heads:
        raise CheckpointError(
            f"{file}: a width of {plan.hidden} does not divide into {plan.heads} heads."
        )
    return plan


def _tensor_shapes(plan: _Plan) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that is read from a Hugging Face folder."""
    wide, inner = plan.hidden, plan.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (plan.vocabulary, wide),
        "embeddings.position_embeddings.weight": (plan.positions, wide),
        "embeddings.token_type_embeddings.weight": (plan.segments, wide),
    }
    norms, dense = ["embeddings.LayerNorm"], {}
    for index in range(plan.layers):
        layer = f"encoder.layer.{index}."
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            dense[f"{layer}attention.{name}"] = (wide, wide)
        dense[layer + "intermediate.dense"] = (inner, wide)
        dense[layer + "output.dense"] = (wide, inner)
    for name in norms:
        shapes |= {name + ".weight": (wide,), name + ".bias": (wide,)}
    for name, shape in dense.items():
        shapes |= {name + ".weight": shape, name + ".bias": shape[:1]}
    return shapes


def _tensor_weights(plan: _Plan) -> "Weights":
    """Read a Hugging Face folder into the layers' arrays; PyTorch keeps kernels transposed."""
    assert plan.folder is not None
    checkpoints.check_shapes(plan.folder, _tensor_shapes(plan))
    tensors = checkpoints.read_tensors(plan.folder, _tensor_shapes(plan))
    heads = (plan.heads, plan.hidden // plan.heads)

    def pair(name: str) -> "list[np.ndarray]":
        return [tensors[name + ".weight"].T, tensors[name + ".bias"]]

    weights = {
        "token_embedding": [tensors["embeddings.word_embeddings.weight"]],
        "position_embedding": [tensors["embeddings.position_embeddings.weight"]],
        "segment_embedding": [tensors["embeddings.token_type_embeddings.weight"]],
        "embeddings_layer_norm": pair("embeddings.LayerNorm"),
    }
    for index in range(plan.layers):
        layer = f"encoder.layer.{index}."
        arrays: list[np.ndarray] = []
        for name in ("query", "key", "value"):
            kernel, bias = pair(f"{layer}attention.self.{name}")
            arrays += [kernel.reshape(plan.hidden, *heads), bias.reshape(heads)]
        kernel, bias = pair(layer + "attention.output.dense")
        arrays += [kernel.reshape(*heads, plan.hidden), bias]
        for name in ("attention.output.LayerNorm", "output.LayerNorm", "intermediate.dense",
                     "output.dense"):
            arrays += pair(layer + name)
        weights[f"transformer_layer_{index}"] = arrays
    return weights


def _check_h5(file: Path) -> None:
    import h5py

    try:
        with h5py.File(file, "r"):
            pass
    except OSError as error:
        raise CheckpointError(
            f"{file} cannot be read as HDF5 ({error}). Fetch the preset again."
        ) from None


def _preset_weights(plan: _Plan) -> "Weights":
    """Read a Keras preset through keras-nlp's own backbone, whose layers bear the same names."""
    import keras_nlp

    assert plan.folder is not None
    backbone = keras_nlp.models.BertBackbone(
        plan.vocabulary, plan.layers, plan.heads, plan.hidden, plan.intermediate,
        max_sequence_length=plan.positions, num_segments=plan.segments,
    )
    file = plan.folder / "model.weights.h5"
    try:
        backbone.load_weights(str(file))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{file} does not hold the weights that config.json speaks of ({error})."
        ) from None
    arrays = {layer.name: layer.get_weights() for layer in backbone.layers}
    return {name: a for name, a in arrays.items() if a and name != "pooled_dense"}
