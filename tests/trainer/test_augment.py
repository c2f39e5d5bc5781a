"""Augmentation: what changes, what does not, and the same again for the same seed."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from espalier.trainer.augment import augmentation
from espalier.trainer.settings import Augment

ROWS, SIDE = 64, 16
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE, SIDE, 3)).astype("float32")
LABELS = np.eye(ROWS, dtype="float32")


def change(settings: dict[str, Any], seed: int = 1, number: int = 0) -> tuple[Any, Any]:
    augment = augmentation(Augment(**settings), "image", seed)
    features, labels = augment({"image": tf.constant(PIXELS)}, tf.constant(LABELS), number)
    return features["image"].numpy(), labels.numpy()


def test_flips_mirror_about_half_and_nothing_else() -> None:
    pixels, labels = change({"flip": True})
    flipped = [np.array_equal(new, old[:, ::-1]) for new, old in zip(pixels, PIXELS, strict=True)]
    same = [np.array_equal(new, old) for new, old in zip(pixels, PIXELS, strict=True)]
    assert all(a != b for a, b in zip(flipped, same, strict=True))
    assert 16 < sum(flipped) < 48
    assert np.array_equal(labels, LABELS)


def test_crops_move_by_at_most_the_share_and_bring_in_black() -> None:
    pixels, _ = change({"crop": 0.125})
    moves = set()
    for new, old in zip(pixels, PIXELS, strict=True):
        padded = np.pad(old, ((2, 2), (2, 2), (0, 0)))
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if np.array_equal(new, padded[y : y + SIDE, x : x + SIDE])
        ]
        assert found
        moves.add(found[0])
    assert len(moves) > 15  # of 25


def test_colors_change_within_their_range() -> None:
    pixels, _ = change({"color": 0.3})
    assert pixels.min() >= 0 and pixels.max() <= 255
    brightness = pixels.mean(axis=(1, 2, 3)) / PIXELS.mean(axis=(1, 2, 3))
    assert brightness.min() > 0.6 and brightness.max() < 1.4
    assert brightness.std() > 0.05
    grey = tf.repeat(PIXELS[..., :1], 3, axis=-1)
    augment = augmentation(Augment(color=0.3), "image", 1)
    changed = augment({"image": grey}, tf.constant(LABELS), 0)[0]["image"].numpy()
    assert np.allclose(changed[..., 0], changed[..., 2], atol=1e-3)  # grey stays grey


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_labels_are_mixed_as_the_pictures_are(mix: str) -> None:
    pixels, labels = change({"mix": mix})
    assert labels.sum(axis=1) == pytest.approx(np.ones(ROWS), abs=1e-5)
    own = labels[np.arange(ROWS), np.arange(ROWS)]
    neighbour = labels[np.arange(ROWS), np.arange(ROWS) - 1]
    assert own + neighbour == pytest.approx(np.ones(ROWS), abs=1e-5)
    rolled = np.roll(PIXELS, 1, axis=0)
    if mix == "mixup":
        expected = own[:, None, None, None] * PIXELS + neighbour[:, None, None, None] * rolled
        assert np.allclose(pixels, expected, atol=1e-2)
    else:
        kept = (pixels == PIXELS).all(axis=-1)
        assert np.array_equal(pixels[~kept], rolled[~kept])
        assert own == pytest.approx(kept.mean(axis=(1, 2)), abs=0.02)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_mixing_never_gives_nan(mix: str) -> None:
    for number in range(100):
        pixels, labels = change({"mix": mix}, number=number)
        assert np.isfinite(pixels).all() and np.isfinite(labels).all()


def test_a_seed_and_a_batch_number_fix_everything() -> None:
    everything = {"flip": True, "crop": 0.25, "color": 0.2, "mix": "mixup"}
    one, again = change(everything, seed=5), change(everything, seed=5)
    assert np.array_equal(one[0], again[0])
    for other in (change(everything, seed=6), change(everything, seed=5, number=1)):
        assert not np.array_equal(one[0], other[0])
    change(everything, seed=2**40)  # any seed will do
