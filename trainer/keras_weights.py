"""Weights of Keras models: published ones, fetched once, and local .h5 or .keras files.

Weights are matched with a model's layers by their order and shapes, as Keras itself loads an
.h5 file, because some of keras.applications' layers have other names each time they are built.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .checkpoints import Progress

if TYPE_CHECKING:
    import numpy as np
    import tf_keras as keras

IMAGENET = "imagenet"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Published:
    """A file of ImageNet weights without the head: its address, and its MD5 as Keras knows it."""

    url: str
    md5: str


def resolve(weights: str, published: Published | None, progress: Progress | None = None) -> Path:
    """Return the file that `model.weights` names; published weights are fetched once.

    Raises CheckpointError: there is no such file, or nothing is published, or it cannot be had.
    """
    if weights == IMAGENET:
        return _fetch(published, progress)
    file = Path(weights).expanduser()
    if not file.is_file():
        raise CheckpointError(
            f"model.weights: no file {weights!r} in {Path.cwd()}. Give an .h5 or .keras file, or "
            f"{IMAGENET}."
        )
    if file.suffix not in (".h5", ".keras"):
        raise CheckpointError(
            f"model.weights: {weights!r} should end in .h5 or .keras, and ends in {file.suffix!r}."
        )
    return file


def _fetch(published: Published | None, progress: Progress | None) -> Path:
    if published is None:
        raise CheckpointError(
            "model.weights: there are no ImageNet weights for this architecture (it is made for "
            "small pictures). Leave weights out, or start from resnet50."
        )
    import tf_keras as keras

    name = published.url.rsplit("/", 1)[-1]
    kept = Path.home() / ".keras" / "models" / name
    if not kept.exists():
        (progress or _log.info)(f"Fetching {name} (once) ...")
    try:
        return Path(
            keras.utils.get_file(
                name, published.url, cache_subdir="models", file_hash=published.md5
            )
        )
    except Exception as error:  # urllib's, and Keras' own without a class
        raise CheckpointError(
            f"model.weights: {name} could not be fetched: {str(error).splitlines()[0][:200]}. "
            f"Connect this machine to the network once, or give a local .h5 or .keras file."
        ) from None


def read(file: Path) -> "list[list[np.ndarray]]":
    """Return the arrays of each layer that has any, in the layers' order.

    Raises CheckpointError if Keras 2 cannot read the file, or a number in it is not finite.
    """
    import numpy as np

    try:
        found = _read_keras(file) if file.suffix == ".keras" else _read_h5(file)
    except (OSError, KeyError, ValueError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file} cannot be read as Keras weights: {first[:200]}. Give a file that "
            f"`model.save_weights(...)` or `model.save(...)` of Keras 2 has written."
        ) from None
    if not all(np.isfinite(array).all() for arrays in found for array in arrays):
        raise CheckpointError(
            f"{file} holds numbers that are not finite (NaN or infinite). Give the weights of a "
            f"training that went well."
        )
    return found


def _read_h5(file: Path) -> "list[list[np.ndarray]]":
    import h5py
    import numpy as np

    with h5py.File(file, "r") as root:
        group: Any = root.get("model_weights", root)
        found = []
        for layer in group.attrs["layer_names"]:
            names = group[layer].attrs["weight_names"]
            if len(names):
                found.append([np.asarray(group[layer][name]) for name in names])
        return found


def _read_keras(file: Path) -> "list[list[np.ndarray]]":
    import tf_keras as keras

    # safe_mode: a stranger's file must not bring code along (Lambda layers).
    model = keras.models.load_model(file, compile=False, safe_mode=True)
    return [layer.get_weights() for layer in _leaves(model) if layer.weights]


def _leaves(model: "keras.Model") -> "Iterator[keras.layers.Layer]":
    """The layers in order, those of a model within the model in its place."""
    import tf_keras as keras

    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaves(layer)
        else:
            yield layer


def assign(backbone: "keras.Model", weights: "Sequence[Sequence[np.ndarray]]") -> None:
    """Give the backbone's layers these weights; what the file has beyond them was its head.

    Raises CheckpointError, with the first layer that differs.
    """
    layers = [layer for layer in backbone.layers if layer.weights]
    if len(weights) < len(layers):
        raise CheckpointError(
            f"model.weights: the file has {len(weights)} layers with weights, and this "
            f"architecture has {len(layers)}. Is it the same one (model.start)?"
        )
    for number, (layer, arrays) in enumerate(zip(layers, weights, strict=False), 1):
        expected = [tuple(weight.shape) for weight in layer.weights]
        found = [array.shape for array in arrays]
        if found != expected:
            raise CheckpointError(
                f"model.weights: layer {number} ({layer.name}) has the shapes {expected}, and the "
                f"file has {found}. Is it the same architecture (model.start)?"
            )
        layer.set_weights(arrays)
