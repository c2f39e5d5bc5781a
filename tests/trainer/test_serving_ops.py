"""A SavedModel's ops are held to those that stock TensorFlow Serving has."""

from collections.abc import Callable
from pathlib import Path

import pytest

from espalier.trainer import serving_ops

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "good", "bad"]


@pytest.fixture
def saved(tmp_path: Path) -> Callable:
    """A function that saves a tokenizing function of strings as a SavedModel."""
    tf = pytest.importorskip("tensorflow")
    text = pytest.importorskip("tensorflow_text")

    def save(after: Callable) -> str:
        ids = tf.range(len(VOCABULARY), dtype=tf.int64)
        table = tf.lookup.StaticVocabularyTable(
            tf.lookup.KeyValueTensorInitializer(VOCABULARY, ids), num_oov_buckets=1
        )
        tokenizer = text.BertTokenizer(table, lower_case=True)
        module = tf.Module()
        module.tokenizer = tokenizer
        module.serve = tf.function(
            lambda texts: after(tokenizer.tokenize(texts).merge_dims(1, 2)),
            input_signature=[tf.TensorSpec([None], tf.string)],
        )
        folder = str(tmp_path / "model")
        tf.saved_model.save(module, folder, signatures={"serving_default": module.serve})
        return folder

    return save


def test_the_list_is_sorted_and_holds_core_and_text_ops() -> None:
    lines = serving_ops._LIST.read_text(encoding="utf-8").splitlines()
    assert lines == sorted(set(lines))
    assert {"MatMul", "CaseFoldUTF8", "WordpieceTokenizeWithOffsets"} <= serving_ops.load()
    newer = {"TFText>RoundRobinTrim", "TFText>RoundRobinGenerateMasks", "TFText>Utf8Binarize"}
    assert not newer & serving_ops.load()


def test_bert_tokenizer_is_known(saved: Callable) -> None:
    assert serving_ops.unknown_ops(saved(lambda ids: {"ids": ids.to_tensor()})) == []


def test_round_robin_trimmer_is_reported_by_its_op(saved: Callable) -> None:
    import tensorflow_text as text

    def trim(ids):
        (trimmed,) = text.RoundRobinTrimmer(max_seq_length=4).trim([ids])
        return {"ids": trimmed.to_tensor()}

    assert serving_ops.unknown_ops(saved(trim)) == ["TFText>RoundRobinTrim"]


def test_a_function_of_the_model_is_not_an_unknown_op(tmp_path: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    graph = model.meta_graphs.add().graph_def
    graph.node.add(name="call", op="my_function")
    function = graph.library.function.add()
    function.signature.name = "my_function"
    function.node_def.add(name="inside", op="Strange")
    (tmp_path / "saved_model.pb").write_bytes(model.SerializeToString())
    assert serving_ops.unknown_ops(str(tmp_path)) == ["Strange"]


def test_a_folder_without_a_model_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"saved_model\.pb"):
        serving_ops.unknown_ops(str(tmp_path))
