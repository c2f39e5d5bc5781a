"""Versions as they are loaded: TFLite files, graphs of TensorFlow 1, answers as content."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from espalier.serving.manager import ModelConfig
from espalier.serving.servable import LoadOptions, load


def write_lite(version: Path) -> None:
    """Put a TFLite file that triples x beside a SavedModel that does something else."""
    module = tf.Module()
    spec = tf.TensorSpec([None], tf.float32, name="x")
    module.triple = tf.function(lambda x: {"y": 3.0 * x}, input_signature=[spec], autograph=False)
    saved = str(version.parent / "triple")
    tf.saved_model.save(module, saved, {"serving_default": module.triple})
    converter = tf.lite.TFLiteConverter.from_saved_model(saved)
    (version / "model.tflite").write_bytes(converter.convert())


@pytest.fixture
def lite(tmp_path: Path, half_models) -> ModelConfig:
    version = half_models(tmp_path / "half_plus_two", 1)
    write_lite(version)
    return ModelConfig("half_plus_two", tmp_path / "half_plus_two")


def test_a_tflite_file_answers_if_it_is_preferred(lite, open_door):
    door = open_door(lite, load=LoadOptions(prefer_tflite=True, tflite_interpreters=2))
    assert door.half(1, 2) == (1, [3, 6])
    assert door.half(1, 2, 5) == (1, [3, 6, 15])
    response = door.post("/v1/models/half_plus_two:predict", {"instances": [1.0]})
    assert response.json() == {"predictions": [3.0]}
    signatures = door.get("/v1/models/half_plus_two/metadata").json()["metadata"]
    assert list(signatures["signature_def"]["signature_def"]) == ["serving_default"]


def test_a_tflite_file_answers_many_at_once(lite, open_door):
    door = open_door(lite, load=LoadOptions(prefer_tflite=True, tflite_interpreters=2))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: door.half(*range(n + 1)), range(100)))
    assert found == [(1, [3.0 * i for i in range(n + 1)]) for n in range(100)]


def test_a_saved_model_answers_if_no_tflite_file_is_preferred(lite, open_door):
    assert open_door(lite).half(1) == (1, [2.5])


def test_a_tflite_file_that_is_none_is_not_served(tmp_path, half_models, open_door):
    half_models(tmp_path / "half_plus_two", 1)
    version = half_models(tmp_path / "half_plus_two", 2)
    (version / "model.tflite").write_bytes(b"no flatbuffer")
    config = ModelConfig("half_plus_two", tmp_path / "half_plus_two")
    door = open_door(config, load=LoadOptions(prefer_tflite=True))
    assert door.half(1) == (1, [2.5])


def test_two_outputs_may_be_one_tensor(tmp_path):
    v1 = tf.compat.v1
    with v1.Session(graph=tf.Graph()) as session:
        x = v1.placeholder(tf.float32, [None], "x")
        y = 2.0 * x
        signature = v1.saved_model.predict_signature_def({"x": x}, {"a": y, "b": y})
        builder = v1.saved_model.Builder(str(tmp_path / "1"))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    servable = load(tmp_path / "1", LoadOptions())
    name = servable.signatures["serving_default"].outputs["a"].name
    found = servable.run({"x:0": np.ones(2, np.float32)}, (name, name))
    assert [one.tolist() for one in found] == [[2, 2], [2, 2]]
    servable.close()


def test_answers_are_content_if_asked_for(models, open_door):
    door = open_door(ModelConfig("echo", models / "echo"), as_content=True)
    for name in ("float", "half", "bfloat16", "uint64", "bool", "complex64"):
        sent = np.array([0, 1], tf.as_dtype(name).as_numpy_dtype)
        request = door.request("echo", {"x": sent}, signature=name)
        proto = door.prediction.Predict(request).outputs["x"]
        assert proto.tensor_content == sent.tobytes()
        assert tf.make_ndarray(proto).tolist() == sent.tolist()
