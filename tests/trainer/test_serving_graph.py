"""The serving graph: the Keras answers, from real tokens alone, or the Keras graph instead."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from espalier import cpu as machine
from espalier.errors import ComponentError, ConfigError
from espalier.serving.predictor import Predictor
from espalier.trainer import proof, warmup
from espalier.trainer.compression.job import compiled, kernels
from espalier.trainer.families import bert, inception, resnet
from espalier.trainer.serving_graph import Ops, Weights, calibrated, keras_graph

LENGTH = 24
CAN_BF16 = not machine.lacking([machine.BFLOAT16])
CAN_INT8 = not machine.lacking([machine.INT8])
DTYPE = tf.bfloat16 if CAN_BF16 else tf.float32


def texts(lengths: list[int], width: int = LENGTH, seed: int = 0) -> np.ndarray:
    """Token ids of texts that long, int32 [B, width]."""
    ids = np.random.default_rng(seed).integers(5, 60, (len(lengths), width), dtype=np.int32)
    return np.where(np.arange(width) < np.array(lengths)[:, None], ids, 0).astype(np.int32)


@pytest.fixture
def make(make_bert: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """`make(pair=False, **config)`: settings and an unrolled model with random weights."""

    def build(pair: bool = False, **config: Any) -> Any:
        folder = make_bert(tmp_path / "bert", **config)
        settings = bert.Settings(start=str(folder), sequence_length=LENGTH)
        keras.utils.set_random_seed(1)
        height = bert.read_plan(folder).vocabulary
        plain = tf.autograph.experimental.do_not_convert
        model = plain(bert.unroll)(settings, 3, bert.Learned(vocabulary_size=height, pair=pair))
        # Keras begins with biases of 0 and gains of 1, which would hide a wrong one.
        random = np.random.default_rng(2)
        model.set_weights([w + random.normal(0, 0.1, w.shape) for w in model.get_weights()])
        return settings, model

    return build


def asked(graph: Any) -> Callable[[Any], np.ndarray]:
    """features -> logits, as a graph."""
    function = compiled(graph)
    return lambda given: function(given).numpy()


def features(ids: np.ndarray, pair: bool) -> dict[str, tf.Tensor]:
    found = {"token_ids": tf.constant(ids)}
    if pair:
        found["segment_ids"] = tf.constant((np.cumsum(ids != 0, axis=1) > 4) * (ids != 0), tf.int32)
    return found


@pytest.mark.parametrize(
    ("pair", "config"),
    [
        (False, {}),
        (True, {"hidden_act": "gelu_new", "num_hidden_layers": 1}),
        (False, {"hidden_act": "relu", "num_attention_heads": 1, "intermediate_size": 48}),
    ],
)
def test_it_answers_as_the_keras_model(
    pair: bool, config: dict[str, Any], make: Callable[..., Any]
) -> None:
    settings, model = make(pair, **config)
    weights = Weights(model)
    lean = asked(bert.serving_graph(settings, Ops(weights)))
    keras_ = asked(keras_graph(weights))
    batches = [[5], [1], [LENGTH], [LENGTH] * 3, [2, 24, 7, 1, 9], list(range(1, 25)) * 14]
    for lengths in batches:
        given = features(texts(lengths), pair)
        np.testing.assert_allclose(lean(given), keras_(given), atol=2e-5)
    short = features(texts([3, 2], width=3), pair)
    np.testing.assert_allclose(lean(short), keras_(short), atol=2e-5)


def test_odd_batches_have_an_answer(make: Callable[..., Any]) -> None:
    settings, model = make()
    lean = asked(bert.serving_graph(settings, Ops(Weights(model))))
    assert lean(features(texts([]), False)).shape == (0, 3)
    padding = lean(features(texts([0, 0]), False))
    assert np.isfinite(padding).all()
    beside = lean(features(texts([5, 0]), False))
    np.testing.assert_allclose(beside[0], lean(features(texts([5]), False))[0], atol=1e-5)


def test_a_thousand_texts_of_full_length(make: Callable[..., Any]) -> None:
    settings, model = make(num_hidden_layers=1)
    lean = asked(bert.serving_graph(settings, Ops(Weights(model))))
    ids = texts([LENGTH] * 1000)
    found = lean(features(ids, False))
    np.testing.assert_allclose(found[-2:], lean(features(ids[-2:], False)), atol=1e-5)


def test_padding_is_not_computed(make: Callable[..., Any]) -> None:
    settings, model = make()
    rows = []

    class Counting(Ops):
        def dense(self, x: tf.Tensor, *args: Any, **kwargs: Any) -> tf.Tensor:
            rows.append(int(x.shape[0]))
            return super().dense(x, *args, **kwargs)

    graph = bert.serving_graph(settings, Counting(Weights(model)))
    for lengths, most in (([5, 9, 3], 24), ([1], 8), ([2, 24, 7], 40), ([20] * 32, 640)):
        rows.clear()
        graph(features(texts(lengths), False))
        assert set(rows) == {most}, "rounded up to a multiple of 8, or of 32 where there are many"


@pytest.mark.parametrize(
    ("cpu", "bound"),
    [
        pytest.param("bf16", 0.05, marks=pytest.mark.skipif(not CAN_BF16, reason="no bfloat16")),
        pytest.param("int8", 0.4, marks=pytest.mark.skipif(not CAN_INT8, reason="no int8")),
    ],
)
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu"])
def test_in_fewer_bits_it_is_near(
    cpu: str, bound: float, activation: str, make: Callable[..., Any]
) -> None:
    settings, model = make(hidden_act=activation)
    weights = Weights(model)
    given = features(texts([5, 24, 1, 11, 7, 3, 16, 9]), False)

    def write(ops: Ops) -> Any:
        return bert.serving_graph(settings, ops)

    ranges = calibrated(write, weights, [given])
    assert all(low <= 0 <= high for low, high in ranges.values())
    exact = asked(write(Ops(weights)))(given)
    near = asked(write(Ops(weights, cpu, DTYPE, ranges)))(given)
    off = np.abs(near - exact).max() / np.abs(exact).max()
    assert 0 < off < bound


def test_what_compression_made_is_what_is_read(make: Callable[..., Any]) -> None:
    settings, model = make()
    for name, variable in kernels(model).items():
        values = np.sign(variable.numpy()) * 0.125  # three values at most
        values[::2] = 0
        variable.assign(values if name != "logits" else variable.numpy())
    formats = dict.fromkeys(kernels(model), "int8")
    weights = Weights(model, formats)
    given = features(texts([5, 24, 1]), False)
    lean = asked(bert.serving_graph(settings, Ops(weights)))(given)
    np.testing.assert_allclose(lean, asked(keras_graph(weights))(given), atol=2e-5)
    np.testing.assert_allclose(lean, model(given), atol=0.05)  # but for the head's int8
    assert {v.dtype for stored in weights.tracked[1] for v in stored} == {tf.int8, tf.float32}


def sources(tmp_path: Path, lengths: list[int]) -> Any:
    """A Source of token ids, labelled by chance."""
    from espalier.trainer.input import Source

    file = tmp_path / "rows.gz"
    with tf.io.TFRecordWriter(str(file), "GZIP") as writer:
        for number, ids in enumerate(texts(lengths)):
            values = {"token_ids": ids, "label": [number % 3]}
            feature = {
                k: tf.train.Feature(int64_list=tf.train.Int64List(value=v))
                for k, v in values.items()
            }
            example = tf.train.Example(features=tf.train.Features(feature=feature))
            writer.write(example.SerializeToString())
    spec = {
        "token_ids": tf.io.FixedLenFeature([LENGTH], tf.int64),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    return Source([str(file)], spec, 3, sequence=["token_ids"])


def test_the_proof_is_kept_beside_the_graph(make: Callable[..., Any], tmp_path: Path) -> None:
    settings, model = make()
    rows = sources(tmp_path, [5, 9, 24, 2] * 10)
    found = proof.served(bert, settings, Weights(model), "any", rows, rows)
    assert (found.facts["kind"], found.facts["cpu"], found.facts["needs"]) == ("lean", "any", [])
    # 40 rows together, 16 of them alone as well.
    assert found.facts["proof"]["rows"] == found.facts["proof"]["alike"] == 56
    assert 0 <= found.facts["proof"]["difference"] < 1e-4
    assert "56 of 56 rows" in found.facts["verdict"]
    json.dumps(found.facts)
    if CAN_INT8:
        found = proof.served(bert, settings, Weights(model), "int8", rows, rows)
        if found.facts["kind"] == "lean":  # what Keras' graph or the calibration read stays out
            loaded = [one.read() for one in found.weights.tracked[0]]
            assert {one.dtype for one in loaded if one.shape.rank == 2} == {tf.int8}
        lean = found.facts["kind"] == "lean"  # random weights answer by a hair's breadth
        assert lean == ("transformer_layer_0_query" in found.facts.get("ranges", {}))


@pytest.mark.parametrize("fault", [0.01, float("nan")])
def test_a_graph_that_differs_is_not_served(
    fault: float, make: Callable[..., Any], tmp_path: Path
) -> None:
    settings, model = make()
    rows = sources(tmp_path, [5, 9, 24, 2])

    def wrong(settings: Any, ops: Ops, layers: int | None = None) -> Any:
        right = bert.serving_graph(settings, ops, layers)
        return lambda given: right(given) + fault

    family = SimpleNamespace(serving_graph=wrong, SERVED=["any"])
    found = proof.served(family, settings, Weights(model), "any", rows, rows)
    assert found.facts["kind"] == "keras" and "not the serving graph" in found.facts["verdict"]
    given = features(texts([5]), False)
    np.testing.assert_allclose(found.graph(given), model(given), atol=1e-6)


def test_weights_that_are_not_finite_are_not_exported(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    """In a row of the embedding, say, that no row of the data asks for."""
    settings, model = make()
    (embedding,) = (w for w in model.weights if "token_embedding" in w.name)
    embedding[-1].assign(tf.fill(embedding.shape[1:], np.nan))
    rows = sources(tmp_path, [5, 9])
    with pytest.raises(ComponentError, match="not finite .* in .*embedding.*: it is not exported"):
        proof.served(bert, settings, Weights(model), "any", rows, rows)


def test_a_family_without_one_is_served_by_keras(make: Callable[..., Any], tmp_path: Path) -> None:
    settings, model = make()
    rows = sources(tmp_path, [5])
    found = proof.served(SimpleNamespace(), settings, Weights(model), "auto", rows, rows)
    assert found.facts["kind"] == "keras" and "no serving graph" in found.facts["verdict"]


SAVED = """
import sys, numpy as np, tensorflow as tf
session = tf.compat.v1.Session(graph=tf.Graph())
with session.graph.as_default():
    meta = tf.compat.v1.saved_model.load(session, ["serve"], sys.argv[1])
signature = meta.signature_def["serving_default"]
ids = np.load(sys.argv[2])
np.save(sys.argv[3], session.run(signature.outputs["logits"].name,
                                 {signature.inputs["token_ids"].name: ids}))
"""


def save(graph: Any, weights: Weights, folder: Path) -> None:
    module = tf.Module()
    spec = tf.TensorSpec([None, None], tf.int32, name="token_ids")
    plain = tf.autograph.experimental.do_not_convert
    module.serve = tf.function(plain(lambda token_ids: {"logits": graph({"token_ids": token_ids})}),
                               input_signature=[spec])  # fmt: skip
    module.serve.get_concrete_function()
    module.stored = weights.tracked
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.serve})


@pytest.mark.parametrize("switch", [{}, {"TF_ENABLE_ONEDNN_OPTS": "0"},
                                    {"ONEDNN_MAX_CPU_ISA": "AVX2"}])  # fmt: skip
def test_any_machine_gives_the_same_answers(
    switch: dict[str, str], make: Callable[..., Any], tmp_path: Path
) -> None:
    settings, model = make()
    weights = Weights(model, dict.fromkeys(kernels(model), "int8"))
    save(bert.serving_graph(settings, Ops(weights)), weights, tmp_path / "saved")
    ids = texts([5, 24, 1, 9])
    np.save(tmp_path / "ids.npy", ids)
    paths = [str(tmp_path / name) for name in ("saved", "ids.npy", "out.npy")]
    environment = {"PATH": "/usr/bin", "TF_CPP_MIN_LOG_LEVEL": "3", **switch}
    subprocess.run([sys.executable, "-I", "-c", SAVED, *paths], env=environment, check=True)
    expected = asked(keras_graph(weights))(features(ids, False))
    np.testing.assert_allclose(np.load(paths[2]), expected, atol=2e-5)


# --- what the machine must have ----------------------------------------------------------------


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`cpu("avx512_vnni")`: a machine with these instructions and nothing set."""

    def pretend(*flags: str) -> None:
        monkeypatch.setattr(machine, "_cpu_flags", lambda: set(flags))
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
        monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)

    return pretend


def test_what_is_lacking_is_said(cpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    both = [machine.INT8, machine.BFLOAT16]
    cpu("avx2")
    assert machine.lacking([]) == ""
    assert "avx512_bf16" in machine.lacking([machine.BFLOAT16])
    cpu("avx512_vnni")
    assert machine.lacking([machine.INT8]) == "" and machine.needs("int8") == [machine.INT8]
    assert "bfloat16" in machine.lacking(both)
    cpu("avx512_vnni", "avx512_bf16")
    assert machine.lacking(both) == "" and machine.needs("int8") == both
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
    assert machine.lacking([machine.INT8]) == ""
    assert "ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI" in machine.lacking([machine.BFLOAT16])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "ALL")
    assert machine.lacking(both) == ""
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert "TF_ENABLE_ONEDNN_OPTS" in machine.lacking([machine.INT8])


def test_the_arithmetic_is_chosen_or_refused(cpu: Callable[..., None]) -> None:
    every = bert.SERVED
    cpu("avx2")
    assert machine.choose("any", every) == machine.choose("auto", every) == "any"
    for wanted in ("bf16", "int8"):
        with pytest.raises(ConfigError, match=f"export.cpu is {wanted}, and this machine lacks"):
            machine.choose(wanted, every)
    cpu("avx512_bf16", "avx512_vnni")
    assert machine.choose("auto", every) == "bf16" and machine.choose("int8", every) == "int8"
    assert machine.choose("auto", ["any"]) == "any"
    with pytest.raises(ConfigError, match="exported for any, bf16, or auto"):
        machine.choose("int8", resnet.SERVED)


# --- pictures -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "start"),
    [(resnet, "resnet20"), (resnet, "resnet50"), (resnet, "resnet50v2"), (inception, "")],
)
def test_folded_norms_give_the_same_answers(family: Any, start: str) -> None:
    size = {"resnet20": 16, "": 75}.get(start, 32)
    settings = family.Settings(size=size, **({"start": start} if start else {}))
    keras.utils.set_random_seed(1)
    means = ([120.0] * 3, [60.0] * 3)
    model = family.unroll(settings, 4, means if start == "resnet20" else None)
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    weights = Weights(model, dict.fromkeys(list(kernels(model))[1:3], "int8"))
    given = {"image": tf.constant(random.uniform(0, 255, (3, size, size, 3)), tf.float32)}
    exact = asked(keras_graph(weights))(given)
    lean = asked(family.serving_graph(settings, Ops(weights)))(given)
    np.testing.assert_allclose(lean, exact, atol=1e-4 * max(1, np.abs(exact).max()))
    if CAN_BF16:
        near = asked(family.serving_graph(settings, Ops(Weights(model), "bf16", DTYPE)))
        assert 0 < np.abs(near(given) - exact).max() < 0.1 * np.abs(exact).max()


def test_a_predictor_says_what_is_lacking(tmp_path: Path, cpu: Callable[..., None]) -> None:
    cpu("avx2")
    (tmp_path / "saved_model.pb").write_bytes(b"")
    (tmp_path / "assets.extra").mkdir()
    facts = {"graph": {"cpu": "bf16", "needs": [machine.BFLOAT16]}}
    (tmp_path / "assets.extra" / "espalier.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="export.cpu bf16, and this machine lacks bfloat16"):
        Predictor(tmp_path)


# --- warm-up ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "shapes", "count"),
    [(["text"], {}, 6), (["text", "text_pair"], {}, 6), (["image_bytes"], {"image": (9, 7, 3)}, 2)],
)
def test_warm_up_records_are_what_tensorflow_serving_reads(
    inputs: list[str], shapes: dict[str, Any], count: int, tmp_path: Path
) -> None:
    from tensorflow_serving.apis import prediction_log_pb2

    warmup.write(str(tmp_path), inputs, shapes)
    file = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    records = list(tf.data.TFRecordDataset(str(file)).as_numpy_iterator())
    sizes = set()
    for record in records:
        log = prediction_log_pb2.PredictionLog.FromString(record)
        request = log.predict_log.request
        assert request.model_spec.signature_name == "serving_default"
        assert sorted(request.inputs) == sorted(inputs)
        arrays = [tf.make_ndarray(request.inputs[name]) for name in inputs]
        sizes.add(len(arrays[0]))
        if shapes:
            assert tf.io.decode_png(arrays[0][0]).shape == (9, 7, 3)
    assert len(records) == count and sizes == {1, 32}


def facts(**changes: Any) -> dict[str, Any]:
    return {"rows": 200, "difference": 0.001, "largest_logit": 1.0, "alike": 200,
            "right": [190, 190], **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "cpu", "why"),
    [
        ({"difference": None}, "any", "no numbers"),
        ({}, "any", "logits differ by 0.001, 0.0001 is allowed"),
        ({}, "bf16", ""),
        ({"right": [190, 189]}, "bf16", ""),  # one row
        ({"right": [190, 188]}, "bf16", "2 of 200 rows less right, 1 are allowed"),
        ({"alike": 198}, "bf16", ""),
        ({"alike": 197}, "bf16", "3 of 200 rows otherwise, 2 are allowed"),
        ({"difference": 0.2}, "bf16", "logits differ"),
        ({"alike": 180, "right": [190, 188], "difference": 0.4}, "int8", ""),
        ({"alike": 179}, "int8", "21 of 200 rows otherwise, 20 are allowed"),
        ({"right": [3, 2], "rows": 3, "alike": 2}, "bf16", ""),
    ],
)
def test_the_bounds_of_the_proof(changes: dict[str, Any], cpu: str, why: str) -> None:
    said = proof._fault(facts(**changes), cpu)
    assert (said == "") if why == "" else (why in said)
