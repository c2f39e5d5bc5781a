"""Augmentation of batches of pictures, in tf.data, for training alone.

Every random number comes from the epoch's seed and the batch's number, so a training that was
killed and goes on sees the same pictures.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .input import Augmentation
from .settings import Augment

if TYPE_CHECKING:
    import tensorflow as tf

# Zhang et al. (https://arxiv.org/abs/1710.09412) use 0.1 to 0.4 on ImageNet; Yun et al.
# (https://arxiv.org/abs/1905.04899) draw cutmix's area evenly.
_MIXUP_ALPHA, _CUTMIX_ALPHA = 0.2, 1.0
_TINY = 1e-9


def wanted(settings: Augment, pixels: Iterable[str], seed: int) -> Augmentation | None:
    """`augmentation` of the first feature with pixels; None where there is nothing to change."""
    feature = next(iter(pixels), None)
    if feature is None or settings == Augment():
        return None
    return augmentation(settings, feature, seed)


def augmentation(settings: Augment, feature: str, seed: int) -> Augmentation:
    """The function that changes a batch as the YAML's `train.augment` says.

    Args:
        settings: what to do.
        feature: the name of the pixels, float32 [B, H, W, C] of 0 to 255.
        seed: of this epoch.
    """
    import tensorflow as tf

    def change(features: "dict[str, tf.Tensor]", labels: "tf.Tensor", number: "tf.Tensor"):  # type: ignore[no-untyped-def]
        seeds = _Seeds(seed, number)
        pixels = features[feature]
        if settings.flip or settings.crop:
            pixels = _shift_and_flip(pixels, settings, seeds)
        if settings.color:
            pixels = _recolor(pixels, settings.color, seeds)
        if settings.mix == "mixup":
            share = _beta(_MIXUP_ALPHA, [tf.shape(pixels)[0]], seeds)
            pixels = _blend(pixels, share[:, None, None, None])
            labels = _blend(labels, share[:, None])
        elif settings.mix == "cutmix":
            pixels, share = _cut(pixels, seeds)
            labels = _blend(labels, share)
        return {**features, feature: pixels}, labels

    return change


class _Seeds:
    """A new seed, int32 [2], each time that one is asked for."""

    def __init__(self, seed: int, number: "tf.Tensor") -> None:
        self._seed, self._number, self._count = seed, number, 0

    def next(self) -> "tf.Tensor":
        import tensorflow as tf

        self._count += 1
        own = (self._seed * 16 + self._count) % 2**31
        return tf.stack([own, tf.cast(self._number, tf.int32)])


def _shift_and_flip(pixels: "tf.Tensor", settings: Augment, seeds: _Seeds) -> "tf.Tensor":
    """Move each picture by up to `crop` of its sides, black moving in, and mirror every other."""
    import tensorflow as tf

    count = tf.shape(pixels)[0]
    height, width = pixels.shape[1:3]
    most = round(settings.crop * height), round(settings.crop * width)
    padded = tf.pad(pixels, [[0, 0], [most[0], most[0]], [most[1], most[1]], [0, 0]])

    def places(side: int, most: int) -> "tf.Tensor":
        first = tf.random.stateless_uniform([count, 1], seeds.next(), 0, 2 * most + 1, tf.int32)
        return first + tf.range(side)  # (B, side)

    rows, columns = places(height, most[0]), places(width, most[1])
    if settings.flip:
        mirrored = tf.random.stateless_uniform([count, 1], seeds.next()) < 0.5
        columns = tf.where(mirrored, tf.reverse(columns, [1]), columns)
    return tf.gather(tf.gather(padded, rows, axis=1, batch_dims=1), columns, axis=2, batch_dims=1)


def _recolor(pixels: "tf.Tensor", strength: float, seeds: _Seeds) -> "tf.Tensor":
    """Change each picture's brightness, contrast and saturation by up to `strength`."""
    import tensorflow as tf

    shape = [tf.shape(pixels)[0], 1, 1, 1]

    def factor() -> "tf.Tensor":
        return tf.random.stateless_uniform(shape, seeds.next(), 1 - strength, 1 + strength)

    pixels = pixels * factor()
    mean = tf.reduce_mean(pixels, axis=[1, 2], keepdims=True)
    pixels = mean + (pixels - mean) * factor()
    if pixels.shape[-1] == 3:
        grey = tf.reduce_mean(pixels, axis=-1, keepdims=True)
        pixels = grey + (pixels - grey) * factor()
    return tf.clip_by_value(pixels, 0.0, 255.0)


def _beta(alpha: float, shape: "list[tf.Tensor]", seeds: _Seeds) -> "tf.Tensor":
    """Beta(alpha, alpha), as the share of one of two gamma variables."""
    import tensorflow as tf

    one, other = (tf.random.stateless_gamma(shape, seeds.next(), alpha) + _TINY for _ in "ab")
    return one / (one + other)


def _blend(values: "tf.Tensor", share: "tf.Tensor") -> "tf.Tensor":
    """`share` of each row, and the rest of its neighbour; rows come shuffled."""
    import tensorflow as tf

    return share * values + (1 - share) * tf.roll(values, 1, axis=0)


def _cut(pixels: "tf.Tensor", seeds: _Seeds) -> "tuple[tf.Tensor, tf.Tensor]":
    """Put one box of the neighbour into each picture; the share that is left of it, float32 []."""
    import tensorflow as tf

    share = _beta(_CUTMIX_ALPHA, [1], seeds)[0]

    def inside(side: int) -> "tf.Tensor":
        length = tf.sqrt(1 - share) * side
        middle = tf.random.stateless_uniform([], seeds.next(), 0, side)
        return tf.abs(tf.range(side, dtype=tf.float32) + 0.5 - middle) < length / 2

    height, width = pixels.shape[1:3]
    box = tf.logical_and(inside(height)[:, None], inside(width)[None, :])[None, :, :, None]
    mixed = tf.where(box, tf.roll(pixels, 1, axis=0), pixels)
    return mixed, 1 - tf.reduce_mean(tf.cast(box, tf.float32))
