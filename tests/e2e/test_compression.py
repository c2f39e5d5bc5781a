"""A recipe in a pipeline: what is pushed is small, and is what the steps have made."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from espalier import Config, ConfigError, Predictor, RunResult, run
from espalier.pipeline.explain import explain
from espalier.trainer import families
from espalier.trainer.explain import TOLERANCE
from espalier.trainer.export import describe
from espalier.trainer.input import model_inputs

COMPRESS = {
    "steps": [
        {"distill": {"layers": 1, "epochs": 2}},
        {"prune": {"sparsity": 0.5, "epochs": 2}},
        {"cluster": {"clusters": 16}},
        {"quantize": {"how": "qat"}},
    ],
    "budget": {"accuracy_drop": 0.3, "size": 0.9},
}
CLIENT = """
import json, sys
import tensorflow as tf
import tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
print(json.dumps(serve(text=tf.constant(json.loads(sys.argv[2])))["scores"].numpy().tolist()))
assert not [m for m in sys.modules if m.split(".")[0] in ("espalier", "tfx")]
"""
TEXTS = ["the soup was lovely, order 7", "the soup was awful, order 8", "", "a"]


@pytest.fixture(scope="module")
def config(
    make_job: Callable[..., Any], small_bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> Config:
    job = make_job(tmp_path_factory.mktemp("compressed"), small_bert)
    given = job.config.model_dump(mode="json", by_alias=True)
    return Config(**{**given, "compress": COMPRESS})


@pytest.fixture(scope="module")
def result(config: Config) -> RunResult:
    return run(config)


@pytest.fixture(scope="module")
def version(result: RunResult) -> Path:
    return Path(str(result.pushed))


def test_each_step_is_measured_beside_the_trained_model(result: RunResult) -> None:
    assert result.status == "pushed", result.verdict
    report = result.compression
    assert report is not None and report["kept"] and report["stopped"] == []
    names = [one["name"] for one in report["candidates"]]
    assert names == ["trained", "distill", "prune", "cluster", "quantize"]
    assert sorted(report["ranked"]) == sorted(names[1:])
    figures = {one["name"]: one["figures"] for one in report["candidates"]}
    assert figures["trained"]["agreement"] == 1
    for one in figures.values():
        assert one["rows"] == result.rows["eval"]
        assert 0 < one["gzipped"] < one["bytes"] and one["memory_bytes"] > 0
        assert 0 < one["latency_ms"]["1"]["median"] <= one["latency_ms"]["1"]["p99"]
    assert figures["distill"]["parameters"] < figures["trained"]["parameters"]
    assert figures["prune"]["nonzero"] < 0.8 * figures["distill"]["nonzero"]
    assert figures["cluster"]["gzipped"] < figures["prune"]["gzipped"]
    assert figures["quantize"]["tflite"]["agreement"] > 0.7


def test_the_signature_is_the_trained_models(result: RunResult, config: Config) -> None:
    trained = next(config.home.glob("artifacts/Trainer/model/*/Format-Serving"))
    shapes = []
    for folder in (trained, Path(str(result.pushed))):
        serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
        shapes.append((serve.structured_input_signature, serve.structured_outputs))
    assert shapes[0] == shapes[1]


def unpacked(version: Path) -> list[np.ndarray]:
    """The kernels, float32, out of what lies in the file."""
    found = []
    for stored, other in tf.saved_model.load(str(version)).stored[1]:
        assert stored.dtype == tf.int8
        values = stored.numpy().astype(np.int32)
        if other.name.startswith("table"):
            found.append(other.numpy()[values + 128])
        else:
            found.append(values.astype(np.float32) * other.numpy())
    return found


def test_int8_zeros_and_clusters_are_in_the_file(version: Path) -> None:
    reader = tf.train.load_checkpoint(str(version / "variables" / "variables"))
    kinds = [kind.name for kind in reader.get_variable_to_dtype_map().values()]
    assert kinds.count("int8") == len(unpacked(version)) == 10
    large = [kernel for kernel in unpacked(version) if kernel.size >= 1024]
    # All but the embedding of positions, which pruning and clustering spare.
    made = [kernel for kernel in large if np.unique(kernel).size <= 16]
    assert len(made) == len(large) - 1 == 7
    products = [kernel for kernel in made if kernel.shape[0] in (32, 64)]
    assert len(products) == 6  # the seventh is the embedding of tokens, which is not pruned
    for kernel in products:
        assert (kernel == 0).mean() >= 0.48
    assert (version / "model.tflite").stat().st_size > 10_000


def test_a_clean_process_answers_as_the_weights_in_the_file_say(
    version: Path, config: Config
) -> None:
    client = [sys.executable, "-I", "-c", CLIENT, str(version), json.dumps(TEXTS)]
    done = subprocess.run(client, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = tf.saved_model.load(str(version))
    # Keras' model, rebuilt: kernels out of int8, the rest as it is.
    family = families.load("bert")
    pair = {"vocabulary_size": unpacked(version)[0].shape[0], "pair": False}
    model = family.unroll(config.model, 2, pair, describe(str(version))["compression"]["layers"])
    kernels = {array.shape: [] for array in unpacked(version)}
    for array in unpacked(version):
        kernels[array.shape].append(array)
    rest = [variable.numpy() for variable in loaded.stored[2]]
    weights = []
    for weight in model.weights:
        is_kernel = weight.name.split("/")[-1].startswith(("kernel", "embeddings"))
        weights.append(kernels[tuple(weight.shape)].pop(0) if is_kernel else rest.pop(0))
    model.set_weights(weights)
    rows = [
        tf.train.Example(
            features=tf.train.Features(
                feature={
                    name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
                    for name, value in (("text", text.encode()), ("label", b"positive"))
                }
            )
        ).SerializeToString()
        for text in TEXTS
    ]
    features = loaded.signatures["transform_features"](examples=tf.constant(rows))
    scores = tf.nn.softmax(model(model_inputs(features, {}), training=False)).numpy()
    np.testing.assert_allclose(json.loads(done.stdout), scores, atol=1e-5)


def test_what_was_made_small_is_restored_and_explained(version: Path) -> None:
    facts = describe(str(version))["compression"]
    assert set(facts["formats"].values()) == {"int8"} and facts["layers"] == 1
    for text in TEXTS:
        found = explain(version, texts=[text]).found
        (served,) = Predictor(version).predict([text])
        assert found.label == served.label
        assert found.score == pytest.approx(served.score, abs=1e-4)
        assert found.gap <= TOLERANCE


def test_an_unchanged_rerun_is_cached(result: RunResult, config: Config) -> None:
    again = run(config)
    assert again.cached and again.pushed == result.pushed
    assert again.compression == result.compression


def test_a_part_of_the_line_knows_of_the_compressor(config: Config) -> None:
    changed = config.model_copy(
        update={"compress": type(config.compress)(steps=[{"quantize": {}}])}
    )
    with pytest.raises(ConfigError, match="Evaluator: compress has changed.*Begin at Compressor"):
        run(changed, from_node="Evaluator")
    with pytest.raises(ConfigError, match="no `compress:` section"):
        run(config.model_copy(update={"compress": None}), from_node="Compressor")
