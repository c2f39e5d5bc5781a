"""The BERT family: its numbers against a plain numpy BERT, its shapes, precision and freezing."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import keras_nlp
import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from scipy.special import erf

from espalier.errors import CheckpointError
from espalier.trainer import checkpoints
from espalier.trainer.families import bert

IDS = np.array([[2, 5, 9, 30, 31, 3, 7, 40, 3], [2, 12, 3, 0, 0, 0, 0, 0, 0]])
SEGMENTS = np.array([[0, 0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0]])
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x * (1 + erf(x / np.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


plainly = tf.autograph.experimental.do_not_convert  # AutoGraph would take most of the time


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    yield
    keras.mixed_precision.set_global_policy("float32")


def reference(folder: Path, ids: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """BERT in numpy, as Devlin et al. describe it: the last hidden states [B, T, H]."""
    config = json.loads((folder / "config.json").read_text())
    w = checkpoints.read_tensors(folder, checkpoints.read_headers(folder))
    heads, epsilon = config["num_attention_heads"], config["layer_norm_eps"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
        return x * w[name + ".weight"] + w[name + ".bias"]

    def split(x: np.ndarray) -> np.ndarray:  # (B, T, H) -> (B, heads, T, H / heads)
        return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][segments], "embeddings.LayerNorm")
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}."
        q, k, v = (split(dense(x, f"{layer}attention.self.{n}")) for n in ("query", "key", "value"))
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        scores = np.where((ids != 0)[:, None, None], scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (shares / shares.sum(-1, keepdims=True)) @ v  # (B, heads, T, H / heads)
        mixed = mixed.swapaxes(1, 2).reshape(x.shape)
        x = norm(
            x + dense(mixed, layer + "attention.output.dense"), layer + "attention.output.LayerNorm"
        )
        inner = ACTIVATIONS[config["hidden_act"]](dense(x, layer + "intermediate.dense"))
        x = norm(x + dense(inner, layer + "output.dense"), layer + "output.LayerNorm")
    return x


def build(start: Path | str, pair: bool = False, classes: int = 3) -> keras.Model:
    settings = bert.Settings(start=str(start), sequence_length=64)
    size = 70 if start in bert.SIZES else bert.read_plan(Path(start)).vocabulary
    return bert.build(settings, classes, bert.Learned(vocabulary_size=size, pair=pair))


def hidden(model: keras.Model, ids: np.ndarray, segments: np.ndarray | None = None) -> np.ndarray:
    last = [layer for layer in model.layers if layer.name.startswith("transformer_layer_")][-1]
    inputs = {"token_ids": ids} | ({} if segments is None else {"segment_ids": segments})
    return keras.Model(model.inputs, last.output)(inputs).numpy()


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"hidden_act": "gelu_new", "num_hidden_layers": 1, "layer_norm_eps": 1e-2},
        {"hidden_act": "relu", "num_attention_heads": 1, "intermediate_size": 48},
    ],
)
def test_hidden_states_are_those_of_the_paper(
    make_bert: Callable[..., Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    folder = make_bert(tmp_path / "bert", **config)
    real = IDS != 0
    for segments in (SEGMENTS, None):
        ours = hidden(build(folder, pair=segments is not None), IDS, segments)
        expected = reference(folder, IDS, SEGMENTS * 0 if segments is None else segments)
        assert np.abs(ours - expected)[real].max() < 1e-4


@pytest.mark.parametrize("config", [{}, {"hidden_act": "relu", "num_attention_heads": 1}])
@pytest.mark.parametrize("pair", [False, True])
def test_in_stock_layers_it_is_the_same_function(
    make_bert: Callable[..., Path], tmp_path: Path, config: dict[str, Any], pair: bool
) -> None:
    model = build(make_bert(tmp_path / "bert", **config), pair)
    settings = bert.Settings(start=str(tmp_path / "bert"), sequence_length=64)
    height = model.get_layer("token_embedding").get_weights()[0].shape[0]
    unrolled = bert.unroll(settings, 3, bert.Learned(vocabulary_size=height, pair=pair))
    bert.adopt(model, unrolled)
    inputs = {"token_ids": IDS} | ({"segment_ids": SEGMENTS} if pair else {})
    np.testing.assert_allclose(unrolled(inputs), model(inputs), atol=1e-6)
    other = build(make_bert(tmp_path / "bert", **config, seed=7), pair)
    bert.resume(other, unrolled)
    for mine, theirs in zip(other.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    shallow = bert.unroll(settings, 3, bert.Learned(vocabulary_size=height, pair=pair), layers=1)
    names = [layer.name for layer in shallow.layers if layer.weights]
    assert "transformer_layer_0_query" in names and "transformer_layer_1_query" not in names


@pytest.fixture
def preset(small_bert: Path, tmp_path: Path) -> tuple[Path, keras.Model]:
    """A folder with a preset as keras-nlp saves it, and the backbone that is in it."""
    tokens = (small_bert / "vocab.txt").read_bytes()
    config = {
        "vocabulary_size": tokens.count(b"\n"),
        "num_layers": 2,
        "num_heads": 4,
        "hidden_dim": 32,
        "intermediate_dim": 64,
        "max_sequence_length": 128,
        "num_segments": 2,
    }
    backbone = plainly(keras_nlp.models.BertBackbone)(**config)
    random = np.random.default_rng(0)
    backbone.set_weights([random.normal(0, 0.3, w.shape) for w in backbone.get_weights()])
    folder = tmp_path / "preset"
    (folder / "assets" / "tokenizer").mkdir(parents=True)
    (folder / "assets" / "tokenizer" / "vocabulary.txt").write_bytes(tokens)
    content = {"registered_name": "keras_nlp>BertBackbone", "config": config}
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text('{"config": {"lowercase": true}}')
    backbone.save_weights(str(folder / "model.weights.h5"))
    return folder, backbone


def test_a_keras_preset_answers_as_keras_nlp_does(preset: tuple[Path, keras.Model]) -> None:
    folder, backbone = preset
    bert.check(bert.Settings(start=str(folder)))
    inputs = {"token_ids": IDS, "segment_ids": IDS * 0, "padding_mask": IDS != 0}
    expected = backbone(inputs)["sequence_output"]
    assert np.allclose(hidden(build(folder), IDS), expected, atol=1e-5)
    with h5py.File(folder / "model.weights.h5", "a") as file:  # as newer Keras writes it
        for layer in ("transformer_encoder", "transformer_encoder_1"):
            attention = file[f"layers/{layer}/_self_attention_layer"]
            for name in ("query", "key", "value", "output"):
                attention.move(f"_{name}_dense", f"{name}_dense")
    assert np.allclose(hidden(build(folder), IDS), expected, atol=1e-5)


def test_a_bad_preset_is_refused(preset: tuple[Path, keras.Model]) -> None:
    folder, _ = preset
    weights, config = folder / "model.weights.h5", folder / "config.json"

    def refuse(*fragments: str) -> None:
        with pytest.raises(CheckpointError) as caught:
            bert.check(bert.Settings(start=str(folder)))
        assert all(fragment in str(caught.value) for fragment in fragments), caught.value

    whole = config.read_text()
    config.write_text(whole.replace('"num_layers": 2', '"num_layers": 3'))
    refuse(str(weights), "transformer_encoder_2", "is missing")
    config.write_text(whole.replace('"intermediate_dim": 64', '"intermediate_dim": 32'))
    refuse("_feedforward_intermediate_dense", "[32, 64]", "calls for [32, 32]")
    config.write_text(whole.replace("BertBackbone", "GemmaBackbone"))
    refuse("is of GemmaBackbone, expected BertBackbone")
    config.write_text(whole)
    weights.write_bytes(weights.read_bytes()[:5000])
    refuse(str(weights), "cannot be read as HDF5")
    (folder / "tokenizer.json").unlink()
    refuse("tokenizer.json is missing")


def test_logits_do_not_depend_on_the_padding(small_bert: Path) -> None:
    model = build(small_bert, pair=True)
    inputs = {"token_ids": IDS, "segment_ids": SEGMENTS}
    longer = {name: np.pad(value, [(0, 0), (0, 20)]) for name, value in inputs.items()}
    alone = {name: value[1:, :3] for name, value in inputs.items()}
    logits = model(inputs).numpy()
    assert model.output_names == ["logits"]
    assert logits.shape == (2, 3) and logits.dtype == np.float32
    assert np.allclose(logits, model(longer), atol=1e-5)
    assert np.allclose(logits[1:], model(alone), atol=1e-5)


def test_bfloat16_computes_like_float32_and_answers_in_float32(small_bert: Path) -> None:
    exact = hidden(build(small_bert), IDS)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model = build(small_bert)
    assert {weight.dtype.name for weight in model.weights} == {"float32"}
    assert model(IDS).dtype.name == "float32"
    assert np.abs(hidden(model, IDS).astype(np.float32) - exact)[IDS != 0].max() < 0.2


def test_a_new_model_of_a_published_size_learns() -> None:
    keras.utils.set_random_seed(0)
    model = build("tiny", classes=2)
    layers, wide = bert.SIZES["tiny"]
    assert sum(layer.name.startswith("transformer_layer_") for layer in model.layers) == layers
    assert model.get_layer("token_embedding").get_weights()[0].shape == (70, wide)
    ids = np.random.default_rng(0).integers(5, 70, (32, 6))
    labels = (ids[:, 0] > 37).astype(int)
    model.compile(
        keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.train_step = plainly(model.train_step)
    losses = model.fit(ids, labels, epochs=12, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 3


def test_a_clone_and_a_saved_model_keep_the_exact_gelu(small_bert: Path, tmp_path: Path) -> None:
    model = build(small_bert)
    clone = plainly(keras.models.clone_model)(model)
    clone.set_weights(model.get_weights())
    assert np.array_equal(clone(IDS), model(IDS))
    model.save(tmp_path / "model.keras")
    loaded = plainly(keras.models.load_model)(tmp_path / "model.keras")
    assert np.allclose(loaded(IDS), model(IDS))


def test_freezing(small_bert: Path) -> None:
    def trainable(freeze: Any) -> set[str]:
        model = build(small_bert)
        bert.freeze(model, freeze)
        return {weight.name.split("/")[0] for weight in model.trainable_weights}

    first, second, head = "transformer_layer_0", "transformer_layer_1", "logits"
    assert {"token_embedding", "embeddings_layer_norm", first, second, head} < trainable(0)
    assert trainable(1) == {second, head}
    assert trainable("all") == trainable(2) == {head}
    assert bert.depth(bert.Settings(start=str(small_bert))) == 2


def test_one_segment_takes_no_pairs(make_bert: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_bert(tmp_path / "bert", type_vocab_size=1)
    with pytest.raises(CheckpointError, match="knows one text a row; data.text names two"):
        build(folder, pair=True)
    assert build(folder)(IDS).shape == (2, 3)
