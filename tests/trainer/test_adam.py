"""One pass over the weights gives the same weights as Keras' own Adam and AdamW."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from espalier.trainer.adam import Adam


def weights_after(optimizer: keras.optimizers.Optimizer) -> list[np.ndarray]:
    """A small model's after five steps; its embedding has sparse gradients."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.layers.Embedding(50, 8, name="embedding"),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(4, "relu"),
            keras.layers.Dense(1),
        ]
    )
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    model.compile(optimizer, "mse")
    rows = np.random.default_rng(0)
    ids, labels = rows.integers(0, 50, (20, 6)), rows.normal(size=(20, 1))
    model.fit(ids, labels, batch_size=4, verbose=0, shuffle=False)
    assert int(optimizer.iterations) == 5
    return [weight.numpy() for weight in model.weights]


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        return 0.02 / (1.0 + tf.cast(step, tf.float32))


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_the_same_weights_as_keras(decay: float) -> None:
    theirs = (
        keras.optimizers.AdamW(Falling(), weight_decay=decay)
        if decay
        else keras.optimizers.Adam(Falling())
    )
    for one, other in zip(
        weights_after(Adam(Falling(), decay)), weights_after(theirs), strict=True
    ):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_biases_do_not_decay() -> None:
    optimizer = Adam(0.1, decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    kernel, bias = tf.Variable([1.0], name="kernel"), tf.Variable([1.0], name="bias")
    optimizer.apply_gradients([(tf.zeros(1), kernel), (tf.zeros(1), bias)])
    assert kernel.numpy() == pytest.approx([0.95])
    assert bias.numpy() == [1.0]


def test_moments_come_back_from_a_checkpoint(tmp_path: str) -> None:
    def stepped(times: int, start: str = "", keep: str = "") -> float:
        weight = tf.Variable([1.0], name="kernel")
        optimizer = Adam(0.1)
        checkpoint = tf.train.Checkpoint(weight=weight, optimizer=optimizer)
        optimizer.build([weight])
        if start:
            checkpoint.read(start).assert_consumed()
        for _ in range(times):
            optimizer.apply_gradients([(2 * weight, weight)])
        if keep:
            checkpoint.write(keep)
        return float(weight[0])

    file = f"{tmp_path}/state"
    stepped(3, keep=file)
    assert stepped(4, start=file) == stepped(7)
