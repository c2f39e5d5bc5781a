"""Weights of Keras models: published ones, fetched once, and local .h5 or .keras files.

Weights are matched with a model's layers by their order and shapes, as Keras itself loads an
.h5 file, because some of keras.applications' layers have other names each time they are built.
"""

import json
import logging
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from . import hdf5
from .checkpoints import Progress

if TYPE_CHECKING:
    import numpy as np
    import tf_keras as keras

IMAGENET = "imagenet"
_MOST_CONFIG = 10_000_000  # bytes of a .keras file's config.json that are read
_DENSEST = 20  # how many times larger a part of a .keras file may be than it is stored
_DEEPEST = 20  # models within models
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
            f"Connect this machine to the network once, or give a local .h5 or .keras file.",
            passing=True,
        ) from None


def read(file: Path) -> "list[list[np.ndarray]]":
    """Return the arrays of each layer that has any, in the layers' order.

    Raises CheckpointError if Keras 2 cannot read the file, or a number in it is not finite.
    """
    import numpy as np

    try:
        found = _read_keras(file) if file.suffix == ".keras" else _read_h5(file)
        finite = all(np.isfinite(array).all() for arrays in found for array in arrays)
    except (*_FAULTS, zipfile.BadZipFile, zlib.error) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{file} cannot be read as Keras weights: {first[:200]}. Give a file that "
            f"`model.save_weights(...)` or `model.save(...)` of Keras 2 has written."
        ) from None
    if not finite:
        raise CheckpointError(
            f"{file} holds numbers that are not finite (NaN or infinite). Give the weights of a "
            f"training that went well."
        )
    return found


# What h5py, zipfile and json raise for bytes of any kind.
_FAULTS = (OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, RuntimeError,
           RecursionError, MemoryError, NotImplementedError, OverflowError)  # fmt: skip


def _read_h5(file: Path) -> "list[list[np.ndarray]]":
    import h5py

    hdf5.check_heaps(file)
    with h5py.File(file, "r") as root:
        group: Any = hdf5.member(root, "model_weights") or root
        found = []
        for layer in hdf5.names(group, "layer_names"):
            part = hdf5.member(group, layer)
            if part is None:
                raise ValueError(f"the layer {layer[:100]} is missing")
            if names := hdf5.names(part, "weight_names"):
                found.append([hdf5.array(group, f"{layer}/{name}") for name in names])
        return found


def _read_keras(file: Path) -> "list[list[np.ndarray]]":
    """Keras' own loader would build the model that config.json describes, and for that import
    whatever modules it names and call what it finds there, safe_mode or not (CVE-2025-1550 is
    Keras 3's number for it). So the JSON says here only in which order the weights come."""
    import h5py

    with zipfile.ZipFile(file) as archive:
        layers = json.loads(_part(archive, "config.json").read(_MOST_CONFIG))["config"]["layers"]
        with h5py.File(_part(archive, "model.weights.h5"), "r") as root:
            return [_arrays(root, place) for place in _places(root, layers, "layers", 0)]


def _part(archive: zipfile.ZipFile, name: str) -> Any:
    part = archive.getinfo(name)
    if part.file_size > _DENSEST * max(part.compress_size, 1000):
        raise ValueError(f"{name} unpacks to {part.file_size:,} bytes, of {part.compress_size:,}")
    return archive.open(part)


def _places(root: Any, layers: "list[Any]", prefix: str, depth: int) -> "Iterator[str]":
    """Where the layers that have weights keep them, in the model's order; those of a model within
    the model in its place. Source: tf_keras, saving/saving_lib.py, `_save_container_state`."""
    if depth > _DEEPEST:
        raise ValueError(f"models within models, more than {_DEEPEST} deep")
    seen: Counter[str] = Counter()
    for layer in layers:
        kind = _snake_case(layer["class_name"])
        place = f"{prefix}/{kind}_{seen[kind]}" if seen[kind] else f"{prefix}/{kind}"
        if hdf5.member(root, place) is None:
            continue  # a Sequential model does not count its input among its layers
        seen[kind] += 1
        config = layer.get("config")
        if isinstance(config, dict) and isinstance(config.get("layers"), list):
            yield from _places(root, config["layers"], f"{place}/layers", depth + 1)
        elif len(hdf5.member(root, f"{place}/vars") or ()):
            yield place


def _arrays(root: Any, place: str) -> "list[np.ndarray]":
    count = len(hdf5.member(root, f"{place}/vars"))
    return [hdf5.array(root, f"{place}/vars/{number}") for number in range(count)]


def _snake_case(name: str) -> str:
    """As Keras does (utils/generic_utils.py, `to_snake_case`)."""
    name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()


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
