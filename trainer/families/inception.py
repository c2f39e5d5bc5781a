"""InceptionV3 for classifying pictures (Szegedy et al., https://arxiv.org/abs/1512.00567)."""

from typing import TYPE_CHECKING, Any, Literal

from .. import images, keras_weights
from ..images import Architecture, ImageSettings

if TYPE_CHECKING:
    import tf_keras as keras

FEATURE_KIND = "image"
SEQUENCE_FEATURES = ()
AFTER_TRANSFORM, SERVED = images.AFTER_TRANSFORM, images.SERVED
check, fingerprint, pixel_shapes = images.check, images.fingerprint, images.pixel_shapes
licence, resume = images.licence, images.resume
preprocess, learned = images.preprocess, images.learned
adopt, hints, serving_graph = images.adopt, images.hints, images.serving_graph
EXPLAINED, baseline = images.EXPLAINED, images.baseline
SPARED = ("conv2d", "logits")
LAYER = None  # its blocks differ: no student has fewer of them
_BLOCKS = 11


class Settings(ImageSettings):
    """The `model:` section for InceptionV3."""

    family: Literal["inception"] = "inception"

    @property
    def architecture(self) -> Architecture:
        """InceptionV3, the one there is."""
        return Architecture("inceptionv3", side=299, smallest=75, published=_published)


def depth(settings: Settings) -> int:
    """Return how many parts `train.freeze` can count: the mixed blocks."""
    return _BLOCKS


def build(settings: Settings, num_classes: int, learned: Any) -> "keras.Model":
    """Return the classifier; see `images.classifier`."""
    from tf_keras.applications import inception_v3

    return images.classifier(
        settings,
        num_classes,
        learned or inception_v3.preprocess_input,
        lambda x: inception_v3.InceptionV3(False, None, input_tensor=x).output,
    )


def unroll(
    settings: Settings, num_classes: int, learned: Any, layers: int | None = None
) -> "keras.Model":
    """Return `build`'s model with random weights; it is made of stock layers as it is."""
    import tf_keras as keras

    # keras.applications leaves names to a counter: a copy's layers must have the same ones.
    keras.backend.reset_uids()
    return build(settings.model_copy(update={"weights": None}), num_classes, learned)


def freeze(model: "keras.Model", freeze: int | Literal["all"]) -> None:
    """Keep weights as they are: 0 none, n the stem and the first n blocks, all but the head."""
    images.freeze(model, freeze, [f"mixed{block}" for block in range(_BLOCKS)])


def _published() -> keras_weights.Published:
    from tf_keras.src.applications import inception_v3

    return keras_weights.Published(
        inception_v3.WEIGHTS_PATH_NO_TOP, "bcbd6486424b2319ff4ef7d526e38f63"
    )
