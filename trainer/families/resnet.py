"""ResNet for classifying pictures (He et al., https://arxiv.org/abs/1512.03385).

ResNet-20 to 110 are those of section 4.2, made for CIFAR's small pictures; ResNet-50 to 152, and
their second version (He et al., https://arxiv.org/abs/1603.05027), come from keras.applications.
The model is flat, so that each layer can be frozen, pruned or quantized by itself.
"""

import re
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ...errors import ConfigError
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
SPARED = ("stem_conv", "conv1_conv", "logits")
LAYER = re.compile(r"(stage\d_block|conv\d_block)(\d+)(_.*)")

# Depth 6n + 2, three stages of n blocks (section 4.2).
SMALL = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
# The functions of keras.applications.
LARGE = {
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50v2": "ResNet50V2",
    "resnet101v2": "ResNet101V2",
    "resnet152v2": "ResNet152V2",
}
# Their blocks in each stage (table 1).
STAGES = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}


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

    @property
    def architecture(self) -> Architecture:
        """The model that `start` names."""
        if self.start in SMALL:
            # He et al. subtract the mean of the data from CIFAR's pictures.
            return Architecture(self.start, side=32, smallest=8, by_data=True)
        return Architecture(self.start, 224, smallest=32, published=lambda: _published(self.start))


def depth(settings: Settings) -> int:
    """Return how many parts `train.freeze` can count: the stages."""
    return 3 if settings.start in SMALL else 4


def build(settings: Settings, num_classes: int, learned: Any) -> "keras.Model":
    """Return the classifier; see `images.classifier`."""
    if settings.start in SMALL:
        count = SMALL[settings.start]
        return images.classifier(settings, num_classes, learned, lambda x: _small(x, count))
    module = _module(settings)
    make = getattr(module, LARGE[settings.start])
    return images.classifier(
        settings,
        num_classes,
        learned or module.preprocess_input,
        lambda x: make(include_top=False, weights=None, input_tensor=x).output,
    )


def _module(settings: Settings) -> Any:
    import tf_keras as keras

    applications = keras.applications
    return applications.resnet_v2 if settings.start.endswith("v2") else applications.resnet


def blocks(settings: Settings) -> int:
    """Return the blocks of the longest stage: how many a student has fewer of."""
    return SMALL.get(settings.start) or max(STAGES[settings.start.removesuffix("v2")])


def unroll(
    settings: Settings, num_classes: int, learned: Any, layers: int | None = None
) -> "keras.Model":
    """Return `build`'s model with random weights and at most `layers` blocks in each stage.

    It is made of stock layers as it is.
    """
    bare = settings.model_copy(update={"weights": None})
    if layers is None:
        return build(bare, num_classes, learned)
    if settings.start in SMALL:
        return images.classifier(bare, num_classes, learned, lambda x: _small(x, layers))
    return images.classifier(
        bare,
        num_classes,
        learned or _module(settings).preprocess_input,
        lambda x: _shallower(x, settings, layers),
    )


def _shallower(x: "keras.KerasTensor", settings: Settings, layers: int) -> "keras.KerasTensor":
    """A large ResNet with at most `layers` blocks in each stage, as keras.applications makes it."""
    from tf_keras.src.applications import resnet

    version_2 = settings.start.endswith("v2")
    if version_2 and layers < 2:
        raise ConfigError(
            f"compress.steps: distill.layers is {layers}, and {settings.start} needs 2 blocks in a "
            f"stage: its first and its last differ."
        )
    stack = resnet.stack2 if version_2 else resnet.stack1
    counts = [min(layers, n) for n in STAGES[settings.start.removesuffix("v2")]]

    def stages(x: "keras.KerasTensor") -> "keras.KerasTensor":
        for place, count in enumerate(counts):
            # The second version halves the picture at a stage's end, the first at its beginning.
            halves = place < 3 if version_2 else place > 0
            stride = {"stride1": 2 if halves else 1}
            x = stack(x, 64 * 2**place, count, name=f"conv{place + 2}", **stride)
        return x

    return resnet.ResNet(stages, version_2, True, "resnet", False, None, input_tensor=x).output


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


def _published(name: str) -> keras_weights.Published:
    from tf_keras.src.applications import resnet

    file = f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5"
    return keras_weights.Published(resnet.BASE_WEIGHTS_PATH + file, resnet.WEIGHTS_HASHES[name][1])
