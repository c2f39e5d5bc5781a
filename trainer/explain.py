"""Why a model says what it says: integrated gradients, by token or by pixel.

Sundararajan, Taly, Yan, https://arxiv.org/abs/1703.01365: the difference between a row's score and
that of a baseline, which says nothing, is divided among the row's parts. What each part adds is
its difference from the baseline times the mean gradient along the straight line between them. The
integral is taken at Gauss and Legendre's points; there are twice as many of them until the parts'
sum and the difference agree.

A family says from where on its model is smooth (`EXPLAINED`), what its baseline is (`baseline`),
and, for texts, how the places read (`pieces`).
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras
from PIL import Image

from ..errors import ConfigError, reason
from .input import model_inputs
from .restore import restore

TOLERANCE = 0.01  # of a score, which lies between 0 and 1
_POINTS = 16
_AT_ONCE = 8  # points: their activations are held until the gradient is known
_FOR, _AGAINST = (0, 90, 200), (220, 100, 0)  # RGB
_DRAWN = 192  # pixels of a drawn picture's longer side, about

Features = Mapping[str, tf.Tensor]


@dataclass(frozen=True)
class Explanation:
    """Why a row has a label's score.

    Attributes:
        label: the one that is explained.
        score: the row's, of that label.
        baseline: the score of the row that says nothing.
        parts: what is added to the baseline's score; float64 [words], or [height, width].
        words: of a text, as the model reads it; empty for a picture.
        pixels: of a picture, as the model reads it, uint8 [height, width, channels]; or None.
    """

    label: str
    score: float
    baseline: float
    parts: np.ndarray
    words: tuple[str, ...] = ()
    pixels: np.ndarray | None = None

    @property
    def gap(self) -> float:
        """How far the parts' sum is from the difference of the scores; TOLERANCE, at most, is the
        aim."""
        return abs(self.score - self.baseline - float(self.parts.sum()))


class Explainer:
    """A version's model, and what reads raw rows for it.

    It computes in float32, whatever the version's serving graph does.

    Args:
        version: the SavedModel's folder.
        most_points: where the parts do not add up sooner.

    Raises:
        ConfigError: see `restore`.
    """

    def __init__(self, version: str, most_points: int = 256) -> None:
        self._version, self._restored = version, restore(version)
        self._most_points = most_points
        self.labels: list[str] = self._restored.facts["labels"]
        model, family = self._restored.model, self._restored.family
        layer = model.get_layer(family.EXPLAINED)
        plain = tf.autograph.experimental.do_not_convert
        self._tap = plain(keras.Model)(model.input, layer.output)
        # What the rest reads beside that; pictures are explained as they come in, so nothing.
        self._others = {n: tensor for n, tensor in model.input.items() if n != layer.name}
        self._rest = plain(keras.Model)([layer.output, self._others], model.output)

    def __call__(self, example: bytes, label: str | None = None) -> Explanation:
        """Explain one row.

        Args:
            example: a serialized tf.Example with the raw columns that the model reads.
            label: whose score; the likeliest if None.

        Raises:
            ConfigError: the model has no such label, or cannot read the row.
        """
        features = self._read(example)
        inner = self._tap(features)  # [1, ...]
        if label is None:
            place = int(np.argmax(self._scores(inner, features)[0]))
        elif label in self.labels:
            place = self.labels.index(label)
        else:
            known = ", ".join(self.labels[:20])
            raise ConfigError(f"{label!r} is no label of this model. Its labels are: {known}.")
        base = self._tap(self._restored.family.baseline(features))
        ends = self._scores(tf.concat([base, inner], 0), features).numpy()[:, place]
        parts = self._integrated(inner, base, features, place, float(ends[1] - ends[0]))
        said, score, baseline = self.labels[place], float(ends[1]), float(ends[0])
        if self._restored.family.FEATURE_KIND == "image":
            pixels = np.clip(next(iter(features.values()))[0].numpy(), 0, 255).astype(np.uint8)
            return Explanation(said, score, baseline, parts, pixels=pixels)
        pieces = self._restored.family.pieces(self._version, features)
        words, sums = _joined(pieces, parts)
        return Explanation(said, score, baseline, sums, words)

    def _read(self, example: bytes) -> Features:
        transform = self._restored.loaded.signatures["transform_features"]
        shapes = self._restored.family.pixel_shapes(self._restored.settings)
        try:
            return model_inputs(transform(examples=tf.constant([example])), shapes)
        except tf.errors.InvalidArgumentError as error:
            raise ConfigError(f"The model cannot read the row: {reason(error.message)}") from None

    def _scores(self, inner: tf.Tensor, features: Features) -> tf.Tensor:
        """[P, ...] -> [P, C], of P variants of one row."""
        count = int(inner.shape[0])
        others = {name: tf.repeat(features[name], count, axis=0) for name in self._others}
        logits = self._rest([inner, others], training=False)
        multi_label = self._restored.facts["multi_label"]
        return tf.sigmoid(logits) if multi_label else tf.nn.softmax(logits)

    def _integrated(
        self, inner: tf.Tensor, base: tf.Tensor, features: Features, place: int, difference: float
    ) -> np.ndarray:
        """[T] of texts, [H, W] of pictures: summed over the last axis."""
        count = _POINTS
        while True:
            gradient = self._mean_gradient(inner, base, features, place, count)
            parts = ((inner - base)[0].numpy().astype(np.float64) * gradient).sum(axis=-1)
            if count >= self._most_points or abs(parts.sum() - difference) <= TOLERANCE:
                return parts
            count *= 2

    def _mean_gradient(
        self, inner: tf.Tensor, base: tf.Tensor, features: Features, place: int, count: int
    ) -> np.ndarray:
        places, weights = np.polynomial.legendre.leggauss(count)  # from -1 to 1, summing to 2
        total = np.zeros(inner.shape[1:])
        for start in range(0, count, _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            shape = [-1] + [1] * (len(inner.shape) - 1)
            along = tf.constant((places[some] + 1) / 2, inner.dtype)
            points = base + tf.reshape(along, shape) * (inner - base)
            with tf.GradientTape(watch_accessed_variables=False) as tape:  # a tenth faster
                tape.watch(points)
                score = self._scores(points, features)[:, place]
            found = tape.gradient(score, points).numpy().astype(np.float64)
            total += np.tensordot(weights[some] / 2, found, axes=1)
        return total


def _joined(pieces: Sequence[str], parts: np.ndarray) -> tuple[tuple[str, ...], np.ndarray]:
    """Pieces of words put together, and what they add; what a model puts around a text is left
    out, for it is the same in the baseline."""
    words: list[str] = []
    sums: list[float] = []
    for piece, part in zip(pieces, parts, strict=False):  # what lies behind is padding
        if not piece:
            continue
        if piece.startswith("##") and words:
            words[-1] += piece[2:]
            sums[-1] += float(part)
        else:
            words.append(piece)
            sums.append(float(part))
    return tuple(words), np.array(sums)


def heat(found: Explanation) -> bytes:
    """A PNG of a picture in grey, blue where a pixel speaks for the label, orange where against."""
    assert found.pixels is not None
    grey = np.repeat(found.pixels.mean(axis=-1, keepdims=True), 3, axis=-1)
    # A few pixels stand out in most pictures: the others would be seen no more beside them.
    largest = np.percentile(np.abs(found.parts), 99) or np.abs(found.parts).max() or 1.0
    strength = np.clip(found.parts / largest, -1, 1)[:, :, np.newaxis]
    colour = np.where(strength > 0, _FOR, _AGAINST)
    mixed = 0.6 * grey + 0.4 * 255  # pale, so that both colours are seen on black and on white
    mixed += np.abs(strength) * (colour - mixed)
    image = Image.fromarray(mixed.astype(np.uint8))
    times = max(1, _DRAWN // max(image.size))
    image = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image.thumbnail((_DRAWN, _DRAWN))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def facts(found: Explanation) -> dict[str, Any]:
    """JSON-ready: the scores, and each word with what it adds; of a picture the drawing alone."""
    told: dict[str, Any] = {
        "label": found.label, "score": found.score, "baseline": found.baseline, "gap": found.gap,
    }  # fmt: skip
    if found.pixels is not None:
        return {**told, "image": base64.b64encode(heat(found)).decode()}
    return {**told, "words": [list(one) for one in zip(found.words, found.parts, strict=True)]}
