"""SavedModels that would do more than compute: told by their ops, before anything of them runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from espalier import ConfigError, Predictor, reach
from espalier.trainer.restore import restore


def writes(folder: Path) -> tf.Module:
    """Writes a file when it is loaded."""

    class Writes(tf.saved_model.experimental.TrackableResource):
        def _create_resource(self) -> tf.Tensor:
            return tf.raw_ops.MutableHashTableV2(
                key_dtype=tf.string, value_dtype=tf.int64, shared_name="t"
            )  # fmt: skip

        def _initialize(self) -> None:
            tf.io.write_file(str(folder / "written"), "by a stranger")

    module = tf.Module()
    module.table = Writes()
    return module


ANSWERS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "ReadFile": lambda text: text + tf.io.read_file("/etc/hostname"),
    "MatchingFiles": lambda text: text + tf.io.matching_files("/etc/host*")[0],
    "EagerPyFunc": lambda text: tf.py_function(lambda one: one, [text], tf.string),
    "PyFunc": lambda text: tf.numpy_function(lambda one: one, [text], tf.string),
    "PrintV2": lambda text: _printed(text),
    "TextLineDataset": lambda text: text + next_line(),
}


def _printed(text: tf.Tensor) -> tf.Tensor:
    tf.print(text, output_stream="file:///tmp/espalier-printed")
    return text


def next_line() -> tf.Tensor:
    lines = tf.data.TextLineDataset("/etc/hostname")
    return lines.reduce(tf.constant(""), lambda _, line: line)


def save(module: tf.Module, version: Path, answer: Callable[[tf.Tensor], tf.Tensor]) -> Path:
    """A version with the description and the signature of a model of Espalier's."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
    def serve(text: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"label": answer(text), "scores": tf.ones([tf.size(text), 1])}

    tf.saved_model.save(module, str(version), signatures={"serving_default": serve})
    (version / "assets.extra").mkdir()
    facts = {
        "graph": {"for": "any"}, "model": {"family": "bert"}, "labels": ["a"], "learned": {},
        "kind": "text", "inputs": ["text"], "label_column": "label", "multi_label": False,
    }  # fmt: skip
    (version / "assets.extra" / "espalier.json").write_text(json.dumps(facts))
    return version


@pytest.mark.parametrize("op", ANSWERS)
def test_an_op_that_reaches_further_is_found_and_refused(op: str, tmp_path: Path) -> None:
    version = save(tf.Module(), tmp_path / "1", ANSWERS[op])
    assert op in reach.found(version)
    for call in (Predictor, lambda folder: restore(str(folder))):
        with pytest.raises(ConfigError, match=f"not loaded, since it uses .*{op}"):
            call(version)


# Arguments by which an op is told a place.
PLACES = re.compile(
    r"(file|dump|chunk|snapshot)_?(name|path|pattern|dir)s?$|.*_(file|dir|path)$|.*prefix(es)?$"
    r"|filename|memory_region_name|address$|.*_urls?$|snapshot_path$"
)
# What every SavedModel has: variables and vocabularies. The rest names no files.
HARMLESS = {
    "SaveV2", "RestoreV2", "MergeV2Checkpoints", "ShardedFilename",
    "InitializeTableFromTextFile", "InitializeTableFromTextFileV2",
    "SetStatsAggregatorDataset", "ExperimentalSetStatsAggregatorDataset",
}  # fmt: skip


def test_every_op_that_is_told_a_place_is_known() -> None:
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session as session

    content = session.TF_GetBuffer(session.TF_GetAllOpList())
    ops = {op.name: op for op in op_def_pb2.OpList.FromString(content).op}
    told = {
        name
        for name, op in ops.items()
        if any(PLACES.match(one.name) for one in (*op.input_arg, *op.attr))
    }
    assert {"ReadFile", "SaveV2", "TFRecordDataset"} <= told
    assert {name for name in told - HARMLESS if not reach._OPS.match(name)} == set()


def test_what_would_run_at_loading_does_not(tmp_path: Path) -> None:
    version = save(writes(tmp_path), tmp_path / "1", tf.identity)
    for call in (Predictor, lambda folder: restore(str(folder))):
        with pytest.raises(ConfigError, match="uses WriteFile"):
            call(version)
    assert not (tmp_path / "written").exists()
    tf.saved_model.load(str(version))  # TensorFlow itself would have
    assert (tmp_path / "written").exists()


def test_a_model_as_espalier_writes_it_reaches_nothing(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a\nb\n")
    module = tf.Module()
    module.table = tf.lookup.StaticVocabularyTable(
        tf.lookup.TextFileInitializer(
            str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        ), 1,
    )  # fmt: skip
    module.weight = tf.Variable([1.0])
    version = save(module, tmp_path / "1", lambda text: tf.as_string(module.table.lookup(text)))
    assert reach.found(version) == ""
    assert Predictor(version).predict(["b"])[0].label == "1"


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    version = save(tf.Module(), tmp_path / "1", tf.identity)
    file = version / "saved_model.pb"
    file.write_bytes(b"junk")
    for call in (Predictor, lambda folder: restore(str(folder)), reach.found):
        with pytest.raises(ConfigError, match=r"saved_model\.pb: is no SavedModel, or a damaged"):
            call(version)
    file.rename(file.with_suffix(".pbtxt"))
    with pytest.raises(ConfigError, match=r"saved_model\.pbtxt:1:1 : .* A SavedModel as text"):
        reach.found(version)


def test_an_asset_outside_the_folder(tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    version = save(tf.Module(), tmp_path / "1", tf.identity)
    model = saved_model_pb2.SavedModel.FromString((version / "saved_model.pb").read_bytes())
    model.meta_graphs[0].asset_file_def.add(filename="../../../etc/passwd")
    (version / "saved_model.pb").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match=r"the asset '\.\./\.\./\.\./etc/passwd'"):
        Predictor(version)


@pytest.mark.parametrize("name", ["saved_model.pb"])
@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"no model"])
def test_what_is_no_saved_model(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / name).write_bytes(content)
    with pytest.raises(ConfigError, match="cannot be loaded as a model"):
        Predictor(tmp_path / "1")


@pytest.mark.parametrize("facts", ["[" * 100_000, "[]", "3", '{"graph": "any"}', '{"graph": {}}',
                                   '{"graph": {}, "model": []}',
                                   '{"graph": {}, "model": {"family": "../os"}}'])  # fmt: skip
def test_a_description_of_a_stranger(facts: str, tmp_path: Path) -> None:
    version = save(tf.Module(), tmp_path / "1", tf.identity)
    (version / "assets.extra" / "espalier.json").write_text(facts)
    with pytest.raises(ConfigError):
        restore(str(version))
    assert Predictor(version).predict(["a"])[0].label == "a"
