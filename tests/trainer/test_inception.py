"""InceptionV3: its published size, its output, and what is frozen."""

import numpy as np
import pytest
import tf_keras as keras

from espalier import ConfigError
from espalier.trainer.families import inception


@pytest.fixture(scope="module")
def model() -> keras.Model:
    return inception.build(inception.Settings(size=75), 3, None)


def test_it_is_keras_applications_with_a_head_of_our_own(model: keras.Model) -> None:
    head = 2048 * 3 + 3
    assert model.count_params() - head == 21_802_784  # Keras' table says 21.8 million, no top
    pixels = np.random.default_rng(0).integers(0, 256, (2, 75, 75, 3)).astype("float32")
    assert model({"image": pixels}).shape == (2, 3)


def test_freezing_goes_block_by_block(model: keras.Model) -> None:
    counts = []
    for part in (*range(inception.depth(inception.Settings()) + 1), "all"):
        inception.freeze(model, part)
        counts.append(sum(int(np.prod(weight.shape)) for weight in model.trainable_weights))
    assert counts[-1] == counts[-2] == 2048 * 3 + 3
    assert counts[:-1] == sorted(set(counts), reverse=True)


def test_small_sizes_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs 75 x 75"):
        inception.check(inception.Settings(size=64))


def test_a_copy_has_the_same_names_so_that_recipes_find_its_layers(model: keras.Model) -> None:
    settings = inception.Settings(size=75)
    names = [[layer.name for layer in inception.unroll(settings, 3, None).layers] for _ in range(2)]
    assert names[0] == names[1]
    assert set(inception.SPARED) <= set(names[0])
