"""BERT on disk: a checkpoint's shape, its check without TensorFlow, and its weights.

Both kinds of folder (see `..checkpoints`) come down to a `Plan` and to arrays by layer, in the
order in which keras-nlp's layers of `BertBackbone` keep them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from .. import checkpoints, hdf5, wordpiece

if TYPE_CHECKING:
    import numpy as np

    Weights = dict[str, list[np.ndarray]]  # a layer's name -> its arrays, in Keras's order

ACTIVATIONS = {
    "gelu": "gelu",  # exact, by erf
    "gelu_new": "keras_nlp>gelu_approximate",  # by tanh
    "gelu_pytorch_tanh": "keras_nlp>gelu_approximate",
    "relu": "relu",
}
_PRESET_WEIGHTS = "model.weights.h5"


@dataclass(frozen=True)
class Plan:
    """A BERT's shape, how its texts are cut, and where its weights are (folder None: nowhere)."""

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


def read_plan(folder: Path) -> Plan:
    """Return what the folder's JSON files say. Raises CheckpointError."""
    preset = checkpoints.is_preset(folder)
    try:
        plan = _preset_plan(folder) if preset else _huggingface_plan(folder)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(
            f"{folder}: config.json or the tokenizer's holds a value of another kind than BERT's "
            f"({str(error)[:200]}). Fetch the checkpoint again."
        ) from None
    if plan.hidden % plan.heads:
        raise CheckpointError(
            f"{folder / 'config.json'}: a width of {plan.hidden} does not divide into "
            f"{plan.heads} heads."
        )
    return plan


def read_vocabulary(plan: Plan) -> list[str]:
    """Return the checkpoint's tokens, by id. Raises CheckpointError."""
    assert plan.folder is not None
    name = "assets/tokenizer/vocabulary.txt" if plan.preset else "vocab.txt"
    special = [token for token in wordpiece.SPECIAL if token != wordpiece.MASK]
    return checkpoints.read_vocabulary(plan.folder / name, special, plan.vocabulary)


def check_weights(plan: Plan) -> None:
    """Raise CheckpointError unless every weight is there in its shape, and finite."""
    assert plan.folder is not None
    if plan.preset:
        for _ in _preset_arrays(plan):
            pass
    else:
        checkpoints.check_shapes(plan.folder, _tensor_shapes(plan))


def read_weights(plan: Plan) -> "Weights":
    """Return the arrays of every layer that has weights, float32. Raises CheckpointError."""
    check_weights(plan)
    if plan.preset:
        weights: Weights = {}
        for layer, array in _preset_arrays(plan):
            weights.setdefault(layer, []).append(array)
        return weights
    return _huggingface_weights(plan)


# === Hugging Face ===


def _huggingface_plan(folder: Path) -> Plan:
    file = folder / "config.json"
    config = checkpoints.read_config(folder, "bert")
    act, kind = config.get("hidden_act", "gelu"), config.get("position_embedding_type", "absolute")
    if act not in ACTIVATIONS or kind != "absolute":
        raise CheckpointError(
            f"{file}: hidden_act is {act!r} and position_embedding_type {kind!r}; expected one of "
            f"{', '.join(ACTIVATIONS)}, and 'absolute'. Choose another checkpoint."
        )
    return Plan(
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


def _casing(folder: Path) -> dict[str, Any]:
    """Return whether texts are lower-cased and lose their accents; BERT's default is to do so."""
    file = folder / "tokenizer_config.json"
    config = checkpoints.read_json(file) if file.exists() else {}
    if config.get("tokenize_chinese_chars", True) is not True:
        raise CheckpointError(
            f"{file}: tokenize_chinese_chars is false, and the graph of this family parts Chinese "
            "characters. Choose another checkpoint."
        )
    lower = config.get("do_lower_case", True) is not False
    return {"lower": lower, "strip_accents": config.get("strip_accents")}


def _tensor_shapes(plan: Plan) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every tensor that is read."""
    wide, inner = plan.hidden, plan.intermediate
    yield "embeddings.word_embeddings.weight", (plan.vocabulary, wide)
    yield "embeddings.position_embeddings.weight", (plan.positions, wide)
    yield "embeddings.token_type_embeddings.weight", (plan.segments, wide)
    yield from _both("embeddings.LayerNorm", (wide,))
    for index in range(plan.layers):
        layer = f"encoder.layer.{index}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            yield from _both(f"{layer}attention.{name}", (wide, wide))
        yield from _both(layer + "attention.output.LayerNorm", (wide,))
        yield from _both(layer + "intermediate.dense", (inner, wide))
        yield from _both(layer + "output.dense", (wide, inner))
        yield from _both(layer + "output.LayerNorm", (wide,))


def _both(name: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """A module's weight and its bias."""
    yield name + ".weight", shape
    yield name + ".bias", shape[:1]


def _huggingface_weights(plan: Plan) -> "Weights":
    """Turn PyTorch's tensors into Keras's: kernels are transposed, heads are an axis."""
    assert plan.folder is not None
    tensors = checkpoints.read_tensors(plan.folder, [name for name, _ in _tensor_shapes(plan)])
    heads = (plan.heads, plan.hidden // plan.heads)

    def module(name: str) -> "list[np.ndarray]":
        return [tensors[name + ".weight"].T, tensors[name + ".bias"]]

    weights = {
        "token_embedding": [tensors["embeddings.word_embeddings.weight"]],
        "position_embedding": [tensors["embeddings.position_embeddings.weight"]],
        "segment_embedding": [tensors["embeddings.token_type_embeddings.weight"]],
        "embeddings_layer_norm": module("embeddings.LayerNorm"),
    }
    for index in range(plan.layers):
        layer = f"encoder.layer.{index}."
        arrays: list[np.ndarray] = []
        for name in ("query", "key", "value"):
            kernel, bias = module(f"{layer}attention.self.{name}")
            arrays += [kernel.reshape(plan.hidden, *heads), bias.reshape(heads)]
        kernel, bias = module(layer + "attention.output.dense")
        arrays += [kernel.reshape(*heads, plan.hidden), bias]
        arrays += module(layer + "attention.output.LayerNorm") + module(layer + "output.LayerNorm")
        arrays += module(layer + "intermediate.dense") + module(layer + "output.dense")
        weights[f"transformer_layer_{index}"] = arrays
    return weights


# === Keras presets ===


def _preset_plan(folder: Path) -> Plan:
    file = folder / "config.json"
    content = checkpoints.read_json(file)
    name = str(content["registered_name"]).split(">")[-1]
    if name != "BertBackbone":
        raise CheckpointError(
            f"{file} is of {name}, expected BertBackbone. Choose another checkpoint or family."
        )
    config = content.get("config", {})
    tokenizer = checkpoints.read_json(folder / "tokenizer.json").get("config", {})
    return Plan(
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


def _preset_paths(plan: Plan) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Yield a layer's name, and the place in the HDF5 file and the shape of each of its arrays.

    keras-nlp 0.12's own loader runs on Keras 2 here and cannot read the attention weights that
    Keras 3.4 and later write: they lost the underscore of their names.
    """
    wide, inner, heads = plan.hidden, plan.intermediate, (plan.heads, plan.hidden // plan.heads)
    yield "token_embedding", "reversible_embedding/vars/0", (plan.vocabulary, wide)
    yield "position_embedding", "position_embedding/vars/0", (plan.positions, wide)
    yield "segment_embedding", "embedding/vars/0", (plan.segments, wide)
    for number in (0, 1):
        yield "embeddings_layer_norm", f"layer_normalization/vars/{number}", (wide,)
    attention, vector = "_self_attention_layer/_", (wide,)
    parts: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
        attention + "query_dense": ((wide, *heads), heads),
        attention + "key_dense": ((wide, *heads), heads),
        attention + "value_dense": ((wide, *heads), heads),
        attention + "output_dense": ((*heads, wide), vector),
        "_self_attention_layer_norm": (vector, vector),
        "_feedforward_layer_norm": (vector, vector),
        "_feedforward_intermediate_dense": ((wide, inner), (inner,)),
        "_feedforward_output_dense": ((inner, wide), vector),
    }
    for index in range(plan.layers):
        place = "transformer_encoder" + (f"_{index}" if index else "")
        for part, shapes in parts.items():
            for number, shape in enumerate(shapes):
                yield f"transformer_layer_{index}", f"{place}/{part}/vars/{number}", shape


def _preset_arrays(plan: Plan) -> Iterator[tuple[str, Any]]:
    """Yield each layer's name and array. Raises CheckpointError."""
    import h5py
    import numpy as np

    assert plan.folder is not None
    file = plan.folder / _PRESET_WEIGHTS
    try:
        with h5py.File(file, "r") as content:
            for layer, place, shape in _preset_paths(plan):
                path = f"layers/{place}"
                array = hdf5.member(content, path)
                if array is None:
                    array = hdf5.member(content, path.replace("_layer/_", "_layer/"))
                found = None if array is None else hdf5.shape(array, path)
                if found != shape:
                    raise CheckpointError(
                        f"{file}: {path} is {list(found) if found else 'missing'}, and "
                        f"config.json calls for {list(shape)}. The two are not of one model."
                    )
                values = np.asarray(array, np.float32)
                if not np.isfinite(values).all():
                    raise CheckpointError(
                        f"{file}: {path} holds numbers that are not finite (NaN or infinite). "
                        f"Fetch the preset again, or choose another."
                    )
                yield layer, values
    except (OSError, RuntimeError, KeyError, ValueError, MemoryError) as error:
        raise CheckpointError(
            f"{file} cannot be read as HDF5 ({str(error)[:300]}). Fetch the preset again."
        ) from None


def _integer(file: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value < 1 << 31:
        raise CheckpointError(f"{file}: {key} is {repr(value)[:100]}, expected a number from 1 up.")
    return value
