"""Batches: every row once, little padding, the same order for the same seed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from espalier.trainer.input import Source, batches, label_counts, one_hot, weighted

LENGTH, ROWS = 32, 203


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Rows whose first id is their number + 1, of 2 to 31 ids."""
    path = tmp_path_factory.mktemp("rows") / "part-0.gz"
    with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
        for number in range(ROWS):
            ids = np.zeros(LENGTH, np.int64)
            ids[: 2 + number * 7 % 30] = number + 1
            writer.write(_example(ids, number % 3))
    spec = {
        "token_ids": tf.io.FixedLenFeature([LENGTH], tf.int64),
        "label": tf.io.FixedLenFeature([], tf.int64),
    }
    return Source([str(path)], spec, 3, ["token_ids"])


def _example(ids: Any, label: int) -> bytes:
    def integers(values: Any) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    features = tf.train.Features(feature={"token_ids": integers(ids), "label": integers([label])})
    return tf.train.Example(features=features).SerializeToString()


def _rows(dataset: Any) -> list[int]:
    return [int(row) for features, _ in dataset for row in features["token_ids"][:, 0]]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("group", [True, False])
def test_every_row_comes_once(source: Source, seed: int | None, group: bool) -> None:
    found = _rows(batches(source, 16, shuffle_seed=seed, group=group))
    assert sorted(found) == list(range(1, ROWS + 1))


def test_grouping_trims_the_padding_and_nothing_else(source: Source) -> None:
    padded = total = 0
    for features, _ in batches(source, 16, shuffle_seed=1):
        ids = features["token_ids"].numpy()
        assert ids.shape[1] % 4 == 0
        lengths = (ids != 0).sum(axis=1)
        expected = [2 + (row - 1) * 7 % 30 for row in ids[:, 0]]
        assert lengths.tolist() == expected
        padded += int((ids == 0).sum())
        total += ids.size
    assert padded / total < 0.2  # 0.48 of all ids are padding at full length


def test_a_seed_fixes_the_order_and_another_changes_it(source: Source) -> None:
    one, again, other = (_rows(batches(source, 16, shuffle_seed=s)) for s in (5, 5, 6))
    assert one == again
    assert one != other


def test_labels_stay_with_their_rows(source: Source) -> None:
    for features, labels in batches(source, 16, shuffle_seed=2):
        rows = features["token_ids"].numpy()[:, 0] - 1
        assert (rows % 3 == labels.numpy().argmax(axis=1)).all()
        assert (labels.numpy().sum(axis=1) == 1).all()


def test_label_counts(source: Source) -> None:
    assert label_counts(source) == (203, {0: 68, 1: 68, 2: 67})


def test_files_are_read_in_a_fixed_order(source: Source, tmp_path: Path) -> None:
    import shutil

    names = [str(tmp_path / name) for name in ("b.gz", "a.gz")]
    for name in names:
        shutil.copy(source.files[0], name)
    twice = Source(names, source.spec, 3, source.sequence)
    turned = Source(names[::-1], source.spec, 3, source.sequence)
    assert _rows(batches(twice, 16)) == _rows(batches(turned, 16))


def test_labels_become_ones_and_no_label_is_all_zeros() -> None:
    assert one_hot(tf.constant([1, -1, 0]), 2).numpy().tolist() == [[0, 1], [0, 0], [1, 0]]
    some = tf.sparse.SparseTensor(
        [[0, 0], [0, 1], [2, 0]], tf.constant([0, 2, 1], tf.int64), [3, 2]
    )
    assert one_hot(some, 3).numpy().tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    none = tf.sparse.SparseTensor(tf.zeros([0, 2], tf.int64), tf.zeros([0], tf.int64), [3, 0])
    assert one_hot(none, 2).numpy().tolist() == [[0, 0]] * 3


def test_weights_go_by_the_rows_label(source: Source) -> None:
    for features, labels, weights in weighted(batches(source, 16), {0: 0.5}, source.classes):
        assert len(features["token_ids"]) == len(weights)
        expected = [0.5 if label == 0 else 1.0 for label in labels.numpy().argmax(axis=1)]
        assert weights.numpy().tolist() == expected


def test_an_epochs_order_is_the_same_each_time_it_begins(source: Source) -> None:
    found = batches(source, 16, shuffle_seed=1)
    assert _rows(found) == _rows(found)
    assert _rows(found) != _rows(batches(source, 16, shuffle_seed=2))
