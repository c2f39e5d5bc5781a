"""WordPiece in the Transform graph: a vocabulary learned or given, tokens, packed rows.

The same graph runs in training and in serving, so only core ops and those of TF Text 2.12.1
(which TensorFlow Serving up to 2.19 embeds) may stand in it: texts are trimmed and packed with
core ops, not with TF Text's trimmers. TensorFlow is imported by the calls that need it.
"""

import contextlib
import hashlib
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

PAD, UNKNOWN, START, END, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# BERT's rule for words (Hugging Face's BertTokenizer is the reference): white space parts them,
# and each punctuation mark and each CJK character is a word of its own.
_MARKS = (
    r"[!-/:-@\[-`{-~\p{P}\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}"
    r"\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}\x{2B820}-\x{2CEAF}\x{F900}-\x{FAFF}"
    r"\x{2F800}-\x{2FA1F}]"
)
_LONGEST_WORD = 100  # characters; a longer word is unknown
_PREFIX = "wordpiece-"
_LEAST_COUNT = 2  # a piece seen once is no piece
_MOST_WORDS = 100_000  # rarer words teach little, and the learner's time grows with them


def words(text: "tf.Tensor", lower: bool, strip_accents: bool | None = None) -> "tf.RaggedTensor":
    """Split texts (string [B]) into words (string [B, words]) by BERT's rule.

    `strip_accents` None follows `lower`, as BERT does.
    """
    import tensorflow as tf
    import tensorflow_text

    text = tf.strings.regex_replace(text, r"[\t\n\r\p{Z}]", " ")
    text = tf.strings.regex_replace(text, r"[\p{Cc}\p{Cf}\p{Co}\x{FFFD}]", "")
    if lower if strip_accents is None else strip_accents:
        text = tensorflow_text.normalize_utf8(text, "NFD")
        text = tf.strings.regex_replace(text, r"\p{Mn}", "")
    if lower:
        # Letter by letter, as the reference does: a final sigma is no exception. TF Text's case
        # folding would also turn a ligature or a trade mark into letters.
        text = tf.strings.regex_replace(text, "Σ", "σ")
        text = tf.strings.lower(text, encoding="utf-8")
    # Not TF Text's regex_split, whose 14 ragged assertions cost 0.5 s each time that it is traced.
    parts = tf.strings.split(tf.strings.regex_replace(text, _MARKS, r" \0 "))
    long = tf.strings.length(parts.flat_values, unit="UTF8_CHAR") > _LONGEST_WORD
    return parts.with_flat_values(tf.where(long, UNKNOWN, parts.flat_values))


def learn(text: "tf.Tensor", size: int, lower: bool) -> "tf.Tensor":
    """Learn a vocabulary from all texts (string [B]) that pass through TF Transform.

    Returns the vocabulary as TF Transform hands assets around: a scalar string tensor, the name
    of a file with one token a line; the same for the same texts in any order.
    """
    import apache_beam as beam
    import tensorflow as tf
    import tensorflow_transform as tft
    import tensorflow_transform.beam as tft_beam

    class Learn(tft_beam.experimental.PTransformAnalyzer):
        def expand(self, batches: beam.PCollection) -> beam.PCollection:
            return (
                batches
                | "CountWords" >> beam.FlatMap(_count)
                | "SumCounts" >> beam.CombinePerKey(sum)  # type: ignore[arg-type]
                | "AllCounts" >> beam.combiners.ToList()
                | "Learn" >> beam.Map(_learn_file, size, self.base_temp_dir)
            )

    (vocabulary,) = tft.experimental.ptransform_analyzer(
        [words(text, lower).flat_values],
        Learn(),
        [tf.string],
        [[]],
        ["\n".join(SPECIAL).encode()],  # stands in for the file until the texts were seen
    )
    return vocabulary


def _count(batch: "tuple[np.ndarray, ...]") -> Iterator[tuple[bytes, int]]:
    yield from Counter(batch[0].tolist()).items()


def _learn_file(counts: list[tuple[bytes, int]], size: int, folder: str) -> str:
    tokens = learn_from_counts({word.decode("utf-8", "replace"): n for word, n in counts}, size)
    return write_vocabulary(tokens, folder)


def learn_from_counts(counts: dict[str, int], size: int) -> list[str]:
    """Return a vocabulary of at most `size` tokens (if the letters alone are not more) for words.

    The special tokens come first. Few texts give a smaller vocabulary: no piece is seen once.

    The learner is TF Text's (https://www.tensorflow.org/text/guide/subwords_tokenizer).
    """
    from tensorflow_text.tools.wordpiece_vocab import wordpiece_tokenizer_learner_lib as learner

    if not counts:
        return list(SPECIAL)
    # The learner halves the range of the least count until the size fits, at seconds a step. By
    # Zipf's law the size-th piece is far rarer than this share of all letters.
    letters = sum(len(word) * count for word, count in counts.items())
    tokens = learner.learn(
        sorted(counts.items()),  # in a fixed order, so that ties always fall the same way
        size,
        list(SPECIAL),
        lower_thresh=_LEAST_COUNT,
        upper_thresh=max(_LEAST_COUNT, letters // (4 * size)),
        max_input_tokens=_MOST_WORDS,
        max_unique_chars=min(1000, max(1, size // 4)),  # each stands twice, as c and as ##c
    )
    # It may miss the size by a little. Pieces come by falling count: the last go, but no letter,
    # for a word with an unknown letter is an unknown word.
    surplus = len(tokens) - size
    pieces = [place for place, token in enumerate(tokens) if len(token.removeprefix("##")) > 1]
    dropped = set(pieces[len(SPECIAL) :][-surplus:]) if surplus > 0 else set()
    return [token for place, token in enumerate(tokens) if place not in dropped]


def write_vocabulary(tokens: Iterable[str], folder: str, prefix: str = _PREFIX) -> str:
    """Write tokens, one a line, to a file in `folder` named by its content; return its path.

    Lookup tables are shared in a process by their file's name: were two models' vocabularies
    named alike, the model loaded second would answer with the first one's tokens.
    """
    import tensorflow as tf

    content = "".join(f"{token}\n" for token in tokens).encode()
    name = f"{prefix}{hashlib.sha256(content).hexdigest()[:16]}.txt"
    file = os.path.join(folder, name)
    if not _holds(file, content):
        tf.io.gfile.makedirs(folder)
        part = os.path.join(folder, f".{uuid.uuid4().hex}")
        with tf.io.gfile.GFile(part, "wb") as stream:
            stream.write(content)
        tf.io.gfile.rename(part, file, overwrite=True)
    return file


def _holds(file: str, content: bytes) -> bool:
    """Whether the file has this content: one that was cut short since bears its name all the
    same."""
    import tensorflow as tf

    if not tf.io.gfile.exists(file):
        return False
    with tf.io.gfile.GFile(file, "rb") as stream:
        return bool(stream.read() == content)


def vocabulary_size(transform_folder: str) -> int:
    """Return the size of the vocabulary in a transform graph's saved model (its folder)."""
    return len(read_vocabulary(transform_folder))


def read_vocabulary(saved_model: str) -> list[str]:
    """Return the tokens, in the order of their ids, out of a SavedModel's assets (its folder)."""
    import tensorflow as tf

    (file,) = tf.io.gfile.glob(f"{saved_model}/assets/{_PREFIX}*.txt")
    with tf.io.gfile.GFile(file, "rb") as stream:
        return str(stream.read().decode()).removesuffix("\n").split("\n")


def tokenize_and_pack(
    text: "tf.Tensor",
    text_pair: "tf.Tensor | None",
    vocabulary: "tf.Tensor | str",
    lower: bool,
    length: int,
    strip_accents: bool | None = None,
) -> "dict[str, tf.Tensor]":
    """Turn texts into rows of token ids, in TF Transform's preprocessing function or eagerly.

    text, text_pair: string [B]. vocabulary: as `learn` returns it, or a file's name. Returns
    token_ids int64 [B, length]: `[CLS] text [SEP]`, or `[CLS] text [SEP] text_pair [SEP]`, then
    zeros; of pairs also segment_ids int64 [B, length], 1 for text_pair and its [SEP]. Too long
    a row loses the ends of its texts, of the longer one first.
    """
    import tensorflow as tf
    import tensorflow_transform as tft

    special = []

    def lookup(parts: tf.RaggedTensor, file: tf.Tensor) -> tuple[tf.RaggedTensor, tf.Tensor]:
        table = _table(file)
        special.append(table.lookup(tf.constant([START, END])))
        return _pieces(parts, table), table.size()

    texts = text if text_pair is None else tf.concat([text, text_pair], 0)
    parts = words(texts, lower, strip_accents)
    if tf.executing_eagerly():
        # Outside TF Transform, whose call would leave a trace that breaks its next graph.
        ids, _ = lookup(parts, vocabulary)
    else:
        ids = tft.apply_vocabulary(parts, vocabulary, lookup_fn=lookup)
    start, end = tf.unstack(special[0])
    if text_pair is None:
        return {"token_ids": pack(ids, start, end, length)}
    rows = tf.shape(text)[0]
    return pack_pair(ids[:rows], ids[rows:], start, end, length)


def _table(file: "tf.Tensor") -> "tf.lookup.StaticHashTable":
    import tensorflow as tf

    with contextlib.ExitStack() as stack:
        if tf.inside_function() and (isinstance(file, str) or hasattr(file, "numpy")):
            # Out of the graph, or the table would be filled anew for every batch.
            stack.enter_context(tf.init_scope())
        line, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        content = tf.lookup.TextFileInitializer(file, tf.string, line, tf.int64, number)
        return tf.lookup.StaticHashTable(content, default_value=-1)


def _pieces(parts: "tf.RaggedTensor", table: "tf.lookup.StaticHashTable") -> "tf.RaggedTensor":
    """Cut words [B, words] into pieces, int64 [B, pieces]."""
    import tensorflow_text

    tokenizer = tensorflow_text.WordpieceTokenizer(
        table, unknown_token=UNKNOWN, max_bytes_per_word=4 * _LONGEST_WORD
    )
    return tokenizer.tokenize(parts).merge_dims(-2, -1)


def pack(ids: "tf.RaggedTensor", start: "tf.Tensor", end: "tf.Tensor", length: int) -> "tf.Tensor":
    """Return `start ids end`, trimmed and padded with zeros to int64 [B, length]."""
    import tensorflow as tf

    rows = [[1, 0], [0, 0]]
    kept = ids[:, : length - 2].to_tensor(shape=[None, length - 2])  # (B, length - 2)
    count = tf.minimum(ids.row_lengths(), length - 2)[:, tf.newaxis]  # (B, 1)
    place = tf.range(length, dtype=tf.int64)[tf.newaxis]  # (1, length)
    row = tf.pad(kept, [rows[1], [1, 1]])
    row = tf.where(place == 0, start, row)
    return tf.where(place == count + 1, end, row)


def pack_pair(
    first: "tf.RaggedTensor",
    second: "tf.RaggedTensor",
    start: "tf.Tensor",
    end: "tf.Tensor",
    length: int,
) -> "dict[str, tf.Tensor]":
    """Return `start first end second end`, trimmed and padded, and its segment ids.

    Trimming takes from the end of the longer text, token by token; in closed form, because TF
    Text's trimmer is not in TensorFlow Serving.
    """
    import tensorflow as tf

    budget = tf.constant(length - 3, tf.int64)
    lengths = first.row_lengths(), second.row_lengths()
    keep_first = tf.minimum(lengths[0], tf.maximum((budget + 1) // 2, budget - lengths[1]))
    keep_second = tf.minimum(lengths[1], budget - keep_first)
    ones = tf.ones([tf.size(keep_first), 1], tf.int64)
    row = tf.concat(
        [
            ones * start,
            _head(first, keep_first),
            ones * end,
            _head(second, keep_second),
            ones * end,
        ],
        1,
    ).to_tensor(shape=[None, length])
    place = tf.range(length, dtype=tf.int64)[tf.newaxis]  # (1, length)
    begin = keep_first[:, tf.newaxis] + 2  # (B, 1)
    inside = (place >= begin) & (place <= begin + keep_second[:, tf.newaxis])
    return {"token_ids": row, "segment_ids": tf.cast(inside, tf.int64)}


def _head(ids: "tf.RaggedTensor", count: "tf.Tensor") -> "tf.RaggedTensor":
    """Keep the first `count` [B] ids of each row."""
    import tensorflow as tf

    place = tf.ragged.range(ids.row_lengths())
    keep = place.flat_values < tf.repeat(count, ids.row_lengths())
    return tf.ragged.boolean_mask(ids, place.with_flat_values(keep))
