"""WordPiece: words as Hugging Face parts them, rows packed by the rule, the same in serving."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow.core.protobuf import saved_model_pb2

from espalier.trainer import wordpiece
from espalier.trainer.families import bert
from espalier.trainer.input import Source

# TF Text's ops that TensorFlow Serving 2.13 to 2.19 does not know (it embeds TF Text 2.12.1).
FORBIDDEN = {"TFText>RoundRobinTrim", "TFText>RoundRobinGenerateMasks", "TFText>Utf8Binarize"}
# What transformers 5.23's BertTokenizer makes of hard texts, uncased and cased.
WORDS = [
    ("Ça déjà vu!", "ca deja vu !", "Ça déjà vu !"),
    ("北京大学 is", "北 京 大 学 is", "北 京 大 学 is"),
    ("ΣΊΣΥΦΟΣ İstanbul", "σισυφοσ istanbul", "ΣΊΣΥΦΟΣ İstanbul"),
    ("a\u00a0b\u3000c\u200bd\te\r\nf", "a b cd e f", "a b cd e f"),
    ("don't — “q” $5 a_b", "don ' t — “ q ” $ 5 a _ b", "don ' t — “ q ” $ 5 a _ b"),
    ("ﬁne ™ ½", "ﬁne ™ ½", "ﬁne ™ ½"),
    ("\x00bell\x07 \ufffd", "bell", "bell"),
    ("   ", "", ""),
    ("", "", ""),
    ("x" * 100, "x" * 100, "x" * 100),
    ("x" * 101, "[UNK]", "[UNK]"),
]


@pytest.mark.parametrize("lower", [True, False])
def test_words_are_parted_as_hugging_face_does(lower: bool) -> None:
    parted = wordpiece.words(tf.constant([text for text, _, _ in WORDS]), lower)
    joined = tf.strings.reduce_join(parted, 1, separator=" ").numpy()
    assert [row.decode() for row in joined] == [row[1 if lower else 2] for row in WORDS]


def test_pieces_are_the_longest_known(tmp_path: Path) -> None:
    tokens = [*wordpiece.SPECIAL, "un", "##aff", "##able", "ü", "##ü", "##ber", "a"]
    file = wordpiece.write_vocabulary(tokens, str(tmp_path))
    texts = tf.constant(["Unaffable über", "unaffables", "a " * 9])
    rows = wordpiece.tokenize_and_pack(texts, None, file, True, 6, strip_accents=False)
    assert rows["token_ids"].numpy().tolist() == [
        [2, 5, 6, 7, 8, 3],  # cut after ü: no room for ##ber
        [2, 1, 3, 0, 0, 0],  # one unknown piece makes the word unknown
        [2, 11, 11, 11, 11, 3],
    ]


def test_a_cached_vocabulary_that_was_cut_short_is_written_anew(tmp_path: Path) -> None:
    tokens = [*wordpiece.SPECIAL, "one", "two"]
    file = Path(wordpiece.write_vocabulary(tokens, str(tmp_path)))
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    assert wordpiece.write_vocabulary(tokens, str(tmp_path)) == str(file)
    assert file.read_bytes() == whole


def trim(first: list[int], second: list[int], budget: int) -> tuple[list[int], list[int]]:
    """Drop the last token of the longer list, of the second if they are equal, until both fit."""
    while len(first) + len(second) > budget:
        if len(first) > len(second):
            first = first[:-1]
        else:
            second = second[:-1]
    return first, second


@pytest.mark.parametrize("length", [8, 9, 20])
def test_pairs_are_trimmed_token_by_token(length: int) -> None:
    sizes = [(a, b) for a in range(0, 2 * length, 3) for b in range(2 * length)]
    pairs = [([10] * a, [20] * b) for a, b in sizes]
    start, end = tf.constant(2, tf.int64), tf.constant(3, tf.int64)
    firsts, seconds = (
        tf.RaggedTensor.from_row_lengths(
            tf.constant([token for row in side for token in row], tf.int64),
            [len(row) for row in side],
        )
        for side in zip(*pairs, strict=True)
    )
    packed = wordpiece.pack_pair(firsts, seconds, start, end, length)
    for row, (first, second) in enumerate(pairs):
        first, second = trim(first, second, length - 3)
        ids = [2, *first, 3, *second, 3]
        segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
        padding = [0] * (length - len(ids))
        assert packed["token_ids"][row].numpy().tolist() == ids + padding
        assert packed["segment_ids"][row].numpy().tolist() == segments + padding
    single = wordpiece.pack(firsts, start, end, length).numpy()
    assert single.shape == (len(pairs), length)
    for row, (first, _) in zip(single.tolist(), pairs, strict=True):
        ids = [2, *first[: length - 2], 3]
        assert row == ids + [0] * (length - len(ids))


def test_a_vocabulary_is_learned_alike_in_any_order() -> None:
    counts = {"low": 50, "lower": 20, "lowest": 10, "new": 60, "newer": 30, "q": 1, "zz": 1}
    shuffled = list(counts.items())
    random.Random(1).shuffle(shuffled)
    tokens = wordpiece.learn_from_counts(counts, 100)
    assert tokens == wordpiece.learn_from_counts(dict(shuffled), 100)
    assert tokens[:5] == list(wordpiece.SPECIAL)
    assert {"low", "new", "q", "##z"} < set(tokens)
    assert "zz" not in tokens  # once is too rare
    assert wordpiece.learn_from_counts({}, 100) == list(wordpiece.SPECIAL)


def test_a_vocabulary_too_large_loses_its_rarest_pieces_but_no_letter() -> None:
    counts = {f"{a}{b}{c}": 2 + ord(c) - 97 for a in "abcde" for b in "abc" for c in "abcde"}
    whole, less = (wordpiece.learn_from_counts(counts, size) for size in (1000, 40))
    assert len(less) == 40 < len(whole)
    assert {*"abcde", *(f"##{letter}" for letter in "abcde")} <= set(less)


def ops_of(saved_model: Path) -> set[str]:
    model = saved_model_pb2.SavedModel.FromString((saved_model / "saved_model.pb").read_bytes())
    graphs = [meta.graph_def for meta in model.meta_graphs]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for f in graph.library.function for node in f.node_def]
    return {node.op for node in nodes}


Transform = Callable[[bert.Settings], tuple[list[dict], tft.TFTransformOutput]]
ROWS = [
    {"text": "a warm , funny film " * 3, "text_pair": "Dull !"},
    {"text": "", "text_pair": "never dull , never long"},
    {"text": "not good", "text_pair": ""},
]


@pytest.fixture
def transform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Transform:
    """Run TF Transform over ROWS with a family's preprocessing, as the pipeline does."""
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))

    def run(settings: bert.Settings) -> tuple[list[dict], tft.TFTransformOutput]:
        spec = {name: tf.io.FixedLenFeature([], tf.string) for name in ROWS[0]}
        data = ROWS, tft.DatasetMetadata.from_feature_spec(spec)
        with tft_beam.Context(temp_dir=str(tmp_path)):
            (rows, _), function = data | tft_beam.AnalyzeAndTransformDataset(
                lambda inputs: bert.preprocess(inputs, settings)
            )
            function | tft_beam.WriteTransformFn(str(tmp_path / "out"))
        return rows, tft.TFTransformOutput(str(tmp_path / "out"))

    return run


@pytest.mark.parametrize("learned", [True, False])
def test_serving_sees_what_training_saw(
    transform: Transform, small_bert: Path, learned: bool
) -> None:
    start = "tiny" if learned else str(small_bert)
    settings = bert.Settings(start=start, sequence_length=16)
    rows, output = transform(settings)
    ids = np.array([row["token_ids"] for row in rows])
    segments = np.array([row["segment_ids"] for row in rows])
    assert ids.shape == segments.shape == (3, 16)
    assert ids.dtype == segments.dtype == np.int64
    assert ids[:, 0].tolist() == [2, 2, 2] and (ids == 3).sum(axis=1).tolist() == [2, 2, 2]
    assert (segments[ids == 0] == 0).all()
    source = Source([], output.transformed_feature_spec(), 2, transform=output)
    found = bert.learned(settings, source)
    size = found["vocabulary_size"]
    assert found["pair"]
    assert ids.max() < size
    if not learned:
        assert size == len((small_bert / "vocab.txt").read_text().splitlines())

    served = output.transform_features_layer()(
        {k: tf.constant([r[k] for r in ROWS]) for k in ROWS[0]}
    )
    assert np.array_equal(served["token_ids"], ids)
    assert np.array_equal(served["segment_ids"], segments)

    folder = Path(output.transform_savedmodel_dir)
    ops = ops_of(folder)
    assert "WordpieceTokenizeWithOffsets" in ops and not ops & FORBIDDEN
    assert not {op for op in ops if "RoundRobin" in op or "Binarize" in op}
    (asset,) = (folder / "assets").iterdir()
    assert asset.name.startswith("wordpiece-")
