"""Weights that lie small in the file: what they come back as."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from espalier.trainer.compression import pack


def weight(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).normal(0, 0.2, (64, 48)).astype(np.float32)
    values[:, 3] = 0
    values[::2, 5] = 0
    return values


@pytest.mark.parametrize(("kind", "bound"), [("int8", 1 / 254), ("float16", 1e-3),
                                             ("bfloat16", 4e-3)])  # fmt: skip
def test_what_comes_back_is_near(kind: str, bound: float) -> None:
    values = weight()
    packed = pack.Stored(values, kind)
    back = packed.value().numpy()
    np.testing.assert_array_equal(back, pack.unpacked(values, kind))
    largest = np.abs(values).max(axis=0)
    assert (np.abs(back - values) <= bound * largest + 1e-7).all()
    assert ((back == 0) >= (values == 0)).all(), "a zero is no longer zero"
    assert packed.variables[0].dtype.name == kind


def test_few_different_values_lose_nothing() -> None:
    clusters = np.random.default_rng(1).normal(size=256).astype(np.float32)
    values = np.random.default_rng(2).choice(clusters, (100, 30))
    packed = pack.Stored(values, "int8")
    np.testing.assert_array_equal(packed.value().numpy(), values)
    assert [v.dtype for v in packed.variables] == [tf.int8, tf.float32]
    assert packed.variables[1].shape == np.unique(values).shape
    assert pack.has_few_values(values) and not pack.has_few_values(weight())


def test_two_saved_models_of_one_process_keep_apart(tmp_path: Path) -> None:
    class Holder(tf.Module):
        def __init__(self, values: np.ndarray) -> None:
            super().__init__()
            stored = pack.Stored(values, "int8")
            self.stored = stored.variables
            self.loaded = pack.Loaded(stored.value)

        @tf.function(input_signature=[])
        def total(self) -> tf.Tensor:
            return tf.reduce_sum(self.loaded.read())

    for seed in (0, 1):
        tf.saved_model.save(Holder(weight(seed)), str(tmp_path / str(seed)))
    loaded = [tf.saved_model.load(str(tmp_path / str(seed))) for seed in (0, 1)]
    for seed, model in enumerate(loaded):
        expected = pack.unpacked(weight(seed), "int8").sum()
        assert model.total().numpy() == pytest.approx(expected, abs=1e-3)
