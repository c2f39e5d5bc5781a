"""Training that keeps the zeros it began with."""

import numpy as np
import pytest

from espalier.trainer.sparsity import keep_zeros, zeros


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_zeros_stay_zero_in_training(policy: str) -> None:
    import tf_keras as keras

    layer = keras.layers.Dense(16, dtype=keras.mixed_precision.Policy(policy))
    dense = keras.layers.Dense(1, dtype="float32")
    model = keras.Sequential([keras.Input((8,)), layer, dense])
    kernel = layer.get_weights()[0]
    kernel[::2] = 0
    layer.set_weights([kernel, layer.get_weights()[1]])
    keep_zeros(model)
    model.compile(optimizer=keras.optimizers.AdamW(0.1), loss="mse")
    random = np.random.default_rng(0)
    model.fit(random.normal(size=(64, 8)), random.normal(size=64), epochs=3, verbose=0)
    after = layer.get_weights()[0]
    assert zeros(after[::2]) == 1 and zeros(after[1::2]) == 0
    assert zeros(dense.get_weights()[0]) == 0, "a dense layer is left as it is"
    assert not np.allclose(after[1::2], kernel[1::2])
