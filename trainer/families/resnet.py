"""ResNet for classifying pictures (He et al., https://arxiv.org/abs/1512.03385).

ResNet-20 to 110 are those of section 4.2, made for CIFAR's small pictures; ResNet-50 to 152, and
their second version (He et al., https://arxiv.org/abs/1603.05027), come from keras.applications.
The model is flat, so that each layer can be frozen, pruned or quantized by itself.
"""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from .. import images, keras_weights
from ..checkpoints import Progress
from ..images import Geometry, ImageSettings

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

FEATURE_KIND = "image"
SEQUENCE_FEATURES = ()
AFTER_TRANSFORM = images.AFTER_TRANSFORM

# Depth 6n + 2, three stages of n blocks (section 4.2).
SMALL = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
# Blocks of the four stages (table 1), and the function of keras.applications.
LARGE = {
    "resnet50": ((3, 4, 6, 3), "ResNet50"),
    "resnet101": ((3, 4, 23, 3), "ResNet101"),
    "resnet152": ((3, 8, 36, 3), "ResNet152"),
    "resnet50v2": ((3, 4, 6, 3), "ResNet50V2"),
    "resnet101v2": ((3, 4, 23, 3), "ResNet101V2"),
    "resnet152v2": ((3, 8, 36, 3), "ResNet152V2"),
}
_SIDE = {True: 32, False: 224}
_SMALLEST = {True: 8, False: 32}


class Settings(ImageSettings):
    """The `model:` section for ResNet."""

    family: Literal["resnet"] = "resnet"
    start: Literal[
        "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet50", "resnet101",
        "resnet152", "resnet50v2", "resnet101v2", "resnet152v2",
    ] = Field(
        description="The architecture: resnet20, 32, 44, 56 or 110 for small pictures; resnet50, "
        "101 or 152, or their second version (v2), for large ones."
    )  # fmt: skip


def check(settings: Settings, progress: Progress | None = None) -> None:
    """Find the settings' faults; fetch or look for the weights.

    Raises ConfigError or CheckpointError.
    """
    images.check(settings, _geometry(settings), _SMALLEST[settings.start in SMALL])
    if settings.weights is not None:
        keras_weights.resolve(settings.weights, _published(settings), progress)


def fingerprint(settings: Settings) -> str:
    """Return a SHA-256 (hex) of what training starts from."""
    return images.fingerprint(settings, settings.start, _published(settings))


def depth(settings: Settings) -> int:
    """Return how many parts `train.freeze` can count: the stages."""
    return 3 if settings.start in SMALL else 4


def pixel_shapes(settings: Settings) -> dict[str, tuple[int, int, int]]:
    """Return the (height, width, channels) of the features that hold pixels."""
    return {images.FEATURE: _geometry(settings).shape}


def preprocess(inputs: "dict[str, tf.Tensor]", settings: Settings) -> "dict[str, tf.Tensor]":
    """Decode and resize; see `images.preprocess`."""
    return images.preprocess(inputs["image_bytes"], _geometry(settings), settings.keep_aspect)


def learned(settings: Settings, source: Any) -> Any:
    """Return the training pictures' mean and standard deviation, where they are asked for."""
    # He et al. subtract the mean of the data from CIFAR's pictures: no other convention exists.
    if settings.normalize == "data" or settings.start in SMALL:
        return images.statistics(source.pixels(images.FEATURE))
    return None


def build(settings: Settings, num_classes: int, learned: Any) -> "keras.Model":
    """Return the classifier; see `images.classifier`."""
    import tf_keras as keras

    weights = None
    if settings.weights is not None:
        file = keras_weights.resolve(settings.weights, _published(settings))
        weights = keras_weights.read(file)
    if settings.start in SMALL:
        normalization, backbone = learned, lambda x: _small(x, SMALL[settings.start])
    else:
        module = keras.applications.resnet_v2 if _is_v2(settings) else keras.applications.resnet
        make = getattr(module, LARGE[settings.start][1])
        normalization = learned or module.preprocess_input

        def backbone(x: Any) -> Any:
            return make(include_top=False, weights=None, input_tensor=x).output

    return images.classifier(
        _geometry(settings), num_classes, normalization, backbone, settings.dropout, weights
    )


def freeze(model: "keras.Model", freeze: int | Literal["all"]) -> None:
    """Keep weights as they are: 0 none, n the stem and the first n stages, all but the head."""
    ends = [layer.name for layer in model.layers if layer.name.endswith("_out")]
    # A stage's last block; their names are stage2_block3_out, or conv3_block4_out.
    last = {name.split("_")[0]: name for name in ends}
    images.freeze(model, freeze, [last[stage] for stage in sorted(last)])


def _small(x: "keras.KerasTensor", blocks: int) -> "keras.KerasTensor":
    """Section 4.2: a 3 x 3 convolution, then three stages of 16, 32 and 64 filters."""
    x = _activate(_convolve(x, 16, 3, 1, "stem"), "stem_out_relu")  # (B, H, W, 16)
    for stage, filters in enumerate((16, 32, 64), 1):
        for block in range(1, blocks + 1):
            stride = 2 if stage > 1 and block == 1 else 1
            x = _block(x, filters, stride, f"stage{stage}_block{block}")
    return x  # (B, H / 4, W / 4, 64)


def _block(x: "keras.KerasTensor", filters: int, stride: int, name: str) -> "keras.KerasTensor":
    """Two convolutions and a shortcut without weights: where the shape changes, it takes every
    second pixel and fills new channels with zeros (option A, which section 4.2 uses throughout)."""
    import tensorflow as tf
    import tf_keras as keras

    y = _activate(_convolve(x, filters, 3, stride, f"{name}_1"), f"{name}_1_relu")
    y = _convolve(y, filters, 3, 1, f"{name}_2")
    if stride > 1:
        new = filters - x.shape[-1]
        x = keras.layers.AveragePooling2D(1, stride, name=f"{name}_skip")(x)
        x = tf.pad(x, [[0, 0]] * 3 + [[new // 2, new - new // 2]], name=f"{name}_pad")
    return _activate(keras.layers.Add(name=f"{name}_add")([x, y]), f"{name}_out")


def _convolve(
    x: "keras.KerasTensor", filters: int, side: int, stride: int, name: str
) -> "keras.KerasTensor":
    import tf_keras as keras

    convolution = keras.layers.Conv2D(
        filters,
        side,
        stride,
        "same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=f"{name}_conv",
    )
    norm = keras.layers.BatchNormalization(epsilon=1e-5, name=f"{name}_bn")
    return norm(convolution(x))


def _activate(x: "keras.KerasTensor", name: str) -> "keras.KerasTensor":
    import tf_keras as keras

    return keras.layers.ReLU(name=name)(x)


def _geometry(settings: Settings) -> Geometry:
    return Geometry.of(settings, _SIDE[settings.start in SMALL])


def _is_v2(settings: Settings) -> bool:
    return settings.start.endswith("v2")


def _published(settings: Settings) -> keras_weights.Published | None:
    if settings.weights != keras_weights.IMAGENET or settings.start in SMALL:
        return None
    from tf_keras.src.applications import resnet

    name = settings.start
    file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return keras_weights.Published(resnet.BASE_WEIGHTS_PATH + file, resnet.WEIGHTS_HASHES[name][1])
