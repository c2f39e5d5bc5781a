"""From a pushed version back to the Keras model that was exported."""

import os
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from . import families
from .export import COMPRESSION, TRANSFORM, describe

if TYPE_CHECKING:
    import tensorflow_transform as tft
    import tf_keras as keras


@dataclass(frozen=True)
class Restored:
    """A version's model, and what it was made of.

    Attributes:
        facts: the version's description.
        family, settings, learned: see the family's module.
        model: `family.unroll`'s, float32, with the version's weights.
        transform: its preprocessing.
    """

    facts: dict[str, Any]
    family: ModuleType
    settings: Any
    learned: Any
    model: "keras.Model"
    transform: "tft.TFTransformOutput"


def trained_facts(version: str) -> dict[str, Any]:
    """The description of a version that no compression has changed.

    Raises:
        ConfigError: it is not a version of ours, or one that was compressed.
    """
    try:
        facts = describe(version)
    except (OSError, ValueError):
        raise ConfigError(
            f"{version}: no version of a model that Espalier pushed (its assets.extra/"
            f"espalier.json cannot be read)."
        ) from None
    if COMPRESSION in facts or "graph" not in facts:
        raise ConfigError(
            f"{version}: this version was compressed already, or exported by an older Espalier. "
            f"Begin with the trained one: run without `compress:`, or take the Trainer's "
            f"artifact."
        )
    return facts


def restore(version: str, transform_graph: str | None = None) -> Restored:
    """Rebuild the model of a version that no compression has changed.

    Args:
        version: the SavedModel's folder.
        transform_graph: Transform's output; None takes the copy in the version.

    Raises:
        ConfigError: it is not a version of ours, or one that was compressed.
    """
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 - registers the tokenizer's ops
    import tensorflow_transform as tft

    facts = trained_facts(version)
    family = families.load(facts["model"]["family"])
    settings = family.Settings(**facts["model"])
    plain = tf.autograph.experimental.do_not_convert
    model = plain(family.unroll)(settings, len(facts["labels"]), facts["learned"])
    *_, weights = tf.saved_model.load(version).stored  # in the model's own order
    model.set_weights([variable.numpy() for variable in weights])
    transform = tft.TFTransformOutput(transform_graph or os.path.join(version, TRANSFORM))
    return Restored(facts, family, settings, facts["learned"], model, transform)
