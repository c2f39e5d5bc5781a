"""InceptionV3 for classifying pictures (Szegedy et al., https://arxiv.org/abs/1512.00567)."""

from typing import TYPE_CHECKING, Any, Literal

from .. import images, keras_weights
from ..checkpoints import Progress
from ..images import Geometry, ImageSettings

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

FEATURE_KIND = "image"
SEQUENCE_FEATURES = ()
AFTER_TRANSFORM = images.AFTER_TRANSFORM
_SIDE, _SMALLEST, _BLOCKS = 299, 75, 11


class Settings(ImageSettings):
    """The `model:` section for InceptionV3."""

    family: Literal["inception"] = "inception"


def check(settings: Settings, progress: Progress | None = None) -> None:
    """Find the settings' faults; fetch or look for the weights."""
    images.check(settings, _geometry(settings), _SMALLEST)
    if settings.weights is not None:
        keras_weights.resolve(settings.weights, _published(settings), progress)


def fingerprint(settings: Settings) -> str:
    """Return a SHA-256 (hex) of what training starts from."""
    return images.fingerprint(settings, "inceptionv3", _published(settings))


def depth(settings: Settings) -> int:
    """Return how many parts `train.freeze` can count: the mixed blocks."""
    return _BLOCKS


def pixel_shapes(settings: Settings) -> dict[str, tuple[int, int, int]]:
    """Return the (height, width, channels) of the features that hold pixels."""
    return {images.FEATURE: _geometry(settings).shape}


def preprocess(inputs: "dict[str, tf.Tensor]", settings: Settings) -> "dict[str, tf.Tensor]":
    """Decode and resize; see `images.preprocess`."""
    return images.preprocess(inputs["image_bytes"], _geometry(settings), settings.keep_aspect)


def learned(settings: Settings, source: Any) -> Any:
    """Return the training pictures' mean and standard deviation, where they are asked for."""
    if settings.normalize == "data":
        return images.statistics(source.pixels(images.FEATURE))
    return None


def build(settings: Settings, num_classes: int, learned: Any) -> "keras.Model":
    """Return the classifier; see `images.classifier`."""
    from tf_keras.applications import inception_v3

    weights = None
    if settings.weights is not None:
        weights = keras_weights.read(keras_weights.resolve(settings.weights, _published(settings)))
    return images.classifier(
        _geometry(settings),
        num_classes,
        learned or inception_v3.preprocess_input,
        lambda x: inception_v3.InceptionV3(False, None, input_tensor=x).output,
        settings.dropout,
        weights,
    )


def freeze(model: "keras.Model", freeze: int | Literal["all"]) -> None:
    """Keep weights as they are: 0 none, n the stem and the first n blocks, all but the head."""
    images.freeze(model, freeze, [f"mixed{block}" for block in range(_BLOCKS)])


def _geometry(settings: Settings) -> Geometry:
    return Geometry.of(settings, _SIDE)


def _published(settings: Settings) -> keras_weights.Published | None:
    if settings.weights != keras_weights.IMAGENET:
        return None
    from tf_keras.src.applications import inception_v3

    return keras_weights.Published(
        inception_v3.WEIGHTS_PATH_NO_TOP, "bcbd6486424b2319ff4ef7d526e38f63"
    )
