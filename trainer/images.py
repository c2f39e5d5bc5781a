"""What all image families share: the decoding graph, normalisation, the head, what is frozen.

The Transform graph turns encoded bytes into pixels of one size, once; they are kept as bytes
(uint8), a quarter of what float32 takes. Normalisation is the model's first layer, so training
and serving cannot disagree about it. This module can be imported without TensorFlow.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from ..errors import ConfigError, reason
from . import keras_weights
from .checkpoints import NO_CHECKPOINT, Progress, sha256
from .settings import Section

if TYPE_CHECKING:
    import tensorflow as tf
    import tf_keras as keras

    from .serving_graph import Features, Graph, Ops

FEATURE = "image"
SERVED = ("any", "bf16")
AFTER_TRANSFORM = ("dropout", "normalize", "weights")  # settings that preprocess() does not read
# Larger pictures are refused, in the data and in requests: a small file can unfold to gigabytes.
MAX_PIXELS = 50_000_000
# Keras' own 0.99 needs hundreds of steps to reach the data's mean and variance: with few, a
# model that fits its training rows guesses in evaluation.
_MOMENTUM = 0.9

Side = Annotated[int, Field(ge=8, le=4096)]


class ImageSettings(Section):
    """The keys of `model:` that every image family has."""

    size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)] | None = Field(
        None,
        description="Pixels that every picture is resized to: a side, or [height, width]; null is "
        "the family's own (resnet20 to 110: 32, other ResNets 224, Inception 299).",
    )
    keep_aspect: bool = Field(
        False, description="true fills up with black what is missing, false stretches."
    )
    color: Literal["rgb", "grey"] = Field(
        "rgb",
        description="Channels of the model: three (a grey picture has three alike), or one.",
    )
    normalize: Literal["family", "data"] = Field(
        "family",
        description="family: as the family's published weights expect it (resnet20 to 110 have "
        "none: by the data); data: by the mean and standard deviation of each channel over the "
        "training pictures.",
    )
    weights: str | None = Field(
        None,
        description="What training starts from: imagenet (fetched once), or a local .h5 or .keras "
        "file of the same architecture; its head is left out. null draws weights anew.",
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of features dropped in training.")

    @property
    def architecture(self) -> "Architecture":
        """The family's model that these settings name."""
        raise NotImplementedError


@dataclass(frozen=True)
class Architecture:
    """What tells one image model from another, its layers aside.

    Attributes:
        name: of this model.
        side: pixels of a side where `size` is left out.
        smallest: pixels that a side must have.
        published: where its ImageNet weights are, if there are any.
        by_data: whether there is no normalisation but by the data.
    """

    name: str
    side: int
    smallest: int
    published: Callable[[], keras_weights.Published] | None = None
    by_data: bool = False


@dataclass(frozen=True)
class Geometry:
    """The pixels a model takes: height, width, channels."""

    height: int
    width: int
    channels: int

    @classmethod
    def of(cls, settings: ImageSettings) -> "Geometry":
        """From the settings, or the architecture's own."""
        size = settings.size or settings.architecture.side
        height, width = (size, size) if isinstance(size, int) else size
        return cls(height, width, 1 if settings.color == "grey" else 3)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def bytes(self) -> int:
        """The length of one picture's pixels."""
        return self.height * self.width * self.channels


# --- what a family's module takes over as it is --------------------------------------------------


def check(settings: ImageSettings, progress: Progress | None = None) -> None:
    """Find the settings' faults; fetch or look for the weights.

    Raises ConfigError or CheckpointError.
    """
    geometry, smallest = Geometry.of(settings), settings.architecture.smallest
    if min(geometry.height, geometry.width) < smallest:
        raise ConfigError(
            f"model.size is {geometry.height} x {geometry.width}, and this model needs "
            f"{smallest} x {smallest} at least. Give a larger size (small pictures are enlarged), "
            f"or take `family: resnet` with `start: resnet20`, made for small ones."
        )
    if settings.weights == keras_weights.IMAGENET and settings.color == "grey":
        raise ConfigError(
            "model.color is grey, and ImageNet's weights have three channels. Leave color out: "
            "grey pictures are then given three channels that are alike."
        )
    if settings.weights == keras_weights.IMAGENET and settings.normalize == "data":
        raise ConfigError(
            "model.normalize is data, and ImageNet's weights expect the family's normalisation. "
            "Leave normalize out."
        )
    _weights_file(settings, progress)


def fingerprint(settings: ImageSettings) -> str:
    """Return a SHA-256 (hex) of what training starts from: a weights file, or an architecture."""
    file = _weights_file(settings)
    return sha256(file) if file else hashlib.sha256(settings.architecture.name.encode()).hexdigest()


def licence(settings: ImageSettings) -> str:
    """Return the licence of what training starts from; "" where nobody has said: of weights."""
    return NO_CHECKPOINT if settings.weights is None else ""


def pixel_shapes(settings: ImageSettings) -> dict[str, tuple[int, int, int]]:
    """Return the (height, width, channels) of the features that hold pixels."""
    return {FEATURE: Geometry.of(settings).shape}


def preprocess(inputs: "dict[str, tf.Tensor]", settings: ImageSettings) -> "dict[str, tf.Tensor]":
    """Decode and resize `image_bytes`, in the Transform graph; see `pack`."""
    return {FEATURE: pack(inputs["image_bytes"], Geometry.of(settings), settings.keep_aspect)}


def learned(settings: ImageSettings, source: Any) -> "tuple[list[float], list[float]] | None":
    """Return the training pictures' mean and standard deviation, where they are asked for."""
    if settings.normalize == "data" or settings.architecture.by_data:
        return statistics(source.pixels(FEATURE))
    return None


def _weights_file(settings: ImageSettings, progress: Progress | None = None) -> Path | None:
    if settings.weights is None:
        return None
    find = settings.architecture.published
    published = find() if find and settings.weights == keras_weights.IMAGENET else None
    return keras_weights.resolve(settings.weights, published, progress)


def try_weights(family: ModuleType, settings: ImageSettings) -> None:
    """Raise CheckpointError unless the weights fit the architecture, by building it once."""
    if settings.weights is not None:
        channels = Geometry.of(settings).channels
        family.build(settings, 2, ([0.0] * channels, [1.0] * channels))


# --- in the Transform graph -------------------------------------------------------------------


def pack(contents: "tf.Tensor", geometry: Geometry, keep_aspect: bool) -> "tf.Tensor":
    """Decode and resize encoded pictures.

    contents: string [B], each JPEG, PNG, GIF (the first frame) or BMP. Returns string [B], the
    pixels' bytes (uint8, height x width x channels, row by row). What is no picture, or has more
    than MAX_PIXELS, is an InvalidArgumentError, which TensorFlow Serving answers with
    INVALID_ARGUMENT.
    """
    import tensorflow as tf

    def one(data: "tf.Tensor") -> "tf.Tensor":
        image = decode(_guarded(data), geometry.channels)
        return tf.io.serialize_tensor(_resize(image, geometry, keep_aspect))

    packed = tf.map_fn(one, contents, fn_output_signature=tf.string)
    # A serialized tensor ends with its content; the header before it says the same in each row.
    return tf.strings.substr(packed, -geometry.bytes, geometry.bytes)


def decode(data: "tf.Tensor", channels: int) -> "tf.Tensor":
    """One encoded picture, string [], as uint8 [height, width, channels]; no EXIF turning."""
    import tensorflow as tf

    def bitmap() -> "tf.Tensor":
        # DecodeImage does not convert a bitmap's channels: one, three or four as the file has.
        image = tf.image.decode_bmp(data)
        return tf.cond(
            tf.shape(image)[2] == 1,
            lambda: tf.repeat(image[:, :, :1], 3, axis=2),
            lambda: image[:, :, :3],
        )

    def other() -> "tf.Tensor":
        return tf.io.decode_image(data, channels=3, expand_animations=False)

    image = tf.cond(tf.strings.substr(data, 0, 2) == b"BM", bitmap, other)
    image = tf.ensure_shape(image, [None, None, 3])
    return tf.image.rgb_to_grayscale(image) if channels == 1 else image


def _guarded(data: "tf.Tensor") -> "tf.Tensor":
    """The same bytes, after a look at the size that their header claims."""
    import tensorflow as tf

    height, width = _claimed_size(data)
    small = tf.debugging.Assert(
        tf.logical_and(height * width <= MAX_PIXELS, tf.maximum(height, width) <= MAX_PIXELS),
        [f"image_bytes: more than {MAX_PIXELS} pixels; height and width are", height, width],
    )
    with tf.control_dependencies([small]):
        return tf.identity(data)


def _claimed_size(data: "tf.Tensor") -> "tuple[tf.Tensor, tf.Tensor]":
    """(height, width) int64 by the header of a PNG, GIF, BMP or JPEG; 0, 0 for anything else."""
    import tensorflow as tf

    start = tf.strings.substr(data, 0, 26)
    padded = tf.strings.substr(tf.strings.join([start, b"\0" * 26]), 0, 26)
    head = tf.cast(tf.io.decode_raw(padded, tf.uint8), tf.int64)  # [26]

    def number(place: int, length: int, big_endian: bool = False) -> "tf.Tensor":
        powers = [256**i for i in range(length)]
        weights = tf.constant(powers[::-1] if big_endian else powers, tf.int64)
        return tf.reduce_sum(head[place : place + length] * weights)

    def bitmap_side(place: int) -> "tf.Tensor":
        side = number(place, 4)  # a negative height says that the rows go down
        return tf.where(side >= 2**31, 2**32 - side, side)

    def jpeg() -> "tuple[tf.Tensor, tf.Tensor]":
        shape = tf.image.extract_jpeg_shape(data, tf.int64)
        return shape[0], shape[1]

    zero = tf.constant(0, tf.int64)

    def begins(mark: bytes) -> "tf.Tensor":
        return tf.strings.substr(padded, 0, len(mark)) == mark

    return tf.case(
        [
            (begins(b"\x89PNG"), lambda: (number(20, 4, True), number(16, 4, True))),
            (begins(b"GIF8"), lambda: (number(8, 2), number(6, 2))),
            (begins(b"BM"), lambda: (bitmap_side(22), bitmap_side(18))),
            (begins(b"\xff\xd8\xff"), jpeg),
        ],
        default=lambda: (zero, zero),
        exclusive=False,
    )


def _resize(image: "tf.Tensor", geometry: Geometry, keep_aspect: bool) -> "tf.Tensor":
    import tensorflow as tf

    size = (geometry.height, geometry.width)

    def resized() -> "tf.Tensor":
        inner = _fitting(tf.shape(image)[:2], geometry) if keep_aspect else tf.constant(size)
        floats = tf.image.resize(image, inner, antialias=True)
        if keep_aspect:
            above, left = tf.unstack((tf.constant(size) - inner) // 2)
            floats = tf.image.pad_to_bounding_box(floats, above, left, *size)
        return tf.cast(tf.clip_by_value(tf.round(floats), 0, 255), tf.uint8)

    same = tf.reduce_all(tf.shape(image)[:2] == tf.constant(size))
    return tf.ensure_shape(tf.cond(same, lambda: image, resized), geometry.shape)


def _fitting(sides: "tf.Tensor", geometry: Geometry) -> "tf.Tensor":
    """(height, width) int32 [2] of the largest picture of that shape that fits, 1 at least:
    tf.image.resize_with_pad rounds the short side of a long picture down to 0, and fails."""
    import tensorflow as tf

    most = tf.constant([geometry.height, geometry.width])
    scale = tf.reduce_min(most / sides)
    inner = tf.round(tf.cast(sides, scale.dtype) * scale)
    return tf.clip_by_value(tf.cast(inner, tf.int32), 1, most)


def undecodable(files: Sequence[str], most: int = 5) -> list[tuple[str, str]]:
    """(path, reason) of pictures in raw Examples that TensorFlow cannot decode, the first few.

    The look at headers before a run finds all but a few kinds of damage; this decodes everything
    and is for the run that failed.
    """
    import tensorflow as tf

    found = []
    for record in tf.data.TFRecordDataset(list(files), "GZIP").as_numpy_iterator():
        features = tf.train.Example.FromString(record).features.feature
        try:
            decode(features[FEATURE].bytes_list.value[0], 3)
        except tf.errors.OpError as error:
            found.append((features["path"].bytes_list.value[0].decode(), reason(error.message)))
            if len(found) == most:
                break
    return found


# --- the model --------------------------------------------------------------------------------


def statistics(batches: "tf.data.Dataset") -> "tuple[list[float], list[float]]":
    """Mean and standard deviation of each channel, over batches of pixels [B, H, W, C]."""
    import numpy as np

    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for batch in batches.as_numpy_iterator():
        pixels = batch.reshape(-1, batch.shape[-1]).astype(np.float64)
        count += len(pixels)
        total = total + pixels.sum(axis=0)
        squares = squares + np.square(pixels).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 1.0))
    return mean.tolist(), deviation.tolist()


def classifier(
    settings: ImageSettings,
    num_classes: int,
    normalization: "Callable[[keras.KerasTensor], keras.KerasTensor] | Sequence[list[float]]",
    backbone: "Callable[[keras.KerasTensor], keras.KerasTensor]",
) -> "keras.Model":
    """A flat classifier around a backbone, with the weights that the settings name.

    Input `image`: float32 [B, H, W, C], pixels of 0 to 255. Output: logits float32
    [B, num_classes], under any precision policy. `normalization` is a function, or the mean and
    the standard deviation of each channel.
    """
    import tf_keras as keras

    # === Layers ===
    pooling = keras.layers.GlobalAveragePooling2D(name="pooling", dtype="float32")
    drop = keras.layers.Dropout(settings.dropout, name="head_dropout", dtype="float32")
    logits = keras.layers.Dense(num_classes, name="logits", dtype="float32")

    # === Functional model ===
    image = keras.Input(Geometry.of(settings).shape, name=FEATURE, dtype="float32")
    normalize = _rescaling(*normalization) if isinstance(normalization, Sequence) else normalization
    features = backbone(normalize(image))  # (B, h, w, F)
    model = keras.Model({FEATURE: image}, logits(drop(pooling(features))), name="image_classifier")
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = _MOMENTUM

    # === Weights ===
    if file := _weights_file(settings):
        keras_weights.assign(keras.Model(image, features), keras_weights.read(file))
    return model


def _rescaling(mean: list[float], deviation: list[float]) -> "keras.layers.Layer":
    import tf_keras as keras

    scale = [1 / value for value in deviation]
    offset = [-m / d for m, d in zip(mean, deviation, strict=True)]
    return keras.layers.Rescaling(scale, offset, name="normalization", dtype="float32")


def freeze(model: "keras.Model", freeze: int | Literal["all"], stage_ends: Sequence[str]) -> None:
    """Keep weights as they are: 0 none, n up to the end of stage n, all but the head."""
    for layer in model.layers:
        layer.trainable = True
    if freeze == 0:
        return
    names = [layer.name for layer in model.layers]
    last = "logits" if freeze == "all" else stage_ends[freeze - 1]
    end = names.index(last) + (freeze != "all")
    for layer in model.layers[:end]:
        layer.trainable = False


# --- for exports and the Compressor -------------------------------------------------------------


def adopt(model: "keras.Model", unrolled: "keras.Model") -> None:
    """Give `unrolled` the weights of `build`'s model, which has the same layers in that order."""
    unrolled.set_weights(model.get_weights())


def resume(model: "keras.Model", unrolled: "keras.Model") -> None:
    """Give `build`'s model the weights of `unrolled`: the reverse of `adopt`."""
    model.set_weights(unrolled.get_weights())


def serving_graph(settings: ImageSettings, ops: "Ops", layers: int | None = None) -> "Graph":
    """Return what a server computes, the function of the unrolled model; see `image_serving`."""
    from . import image_serving  # imports TensorFlow

    return image_serving.write(ops)


def hints(layers: int) -> dict[str, list[str]]:
    """Return the layers whose outputs a student's should be like: the pooled features [B, F]
    (Romero et al., https://arxiv.org/abs/1412.6550, call them hints)."""
    return {"hidden": ["pooling"]}


# --- for explanations ---------------------------------------------------------------------------

EXPLAINED = FEATURE  # the input itself


def baseline(features: "Features") -> "Features":
    """Return a picture that shows nothing: a black one, as in the paper on integrated gradients."""
    import tensorflow as tf

    return {name: tf.zeros_like(values) for name, values in features.items()}
