"""From a pushed version back to the Keras model that was exported."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from .. import reach
from ..errors import ConfigError
from . import families
from .export import COMPRESSION, describe

if TYPE_CHECKING:
    import tf_keras as keras


@dataclass(frozen=True)
class Restored:
    """A version's model, and what it was made of.

    Attributes:
        facts: the version's description.
        family, settings, learned: see the family's module.
        model: `family.unroll`'s, float32, with the version's weights.
        loaded: the SavedModel, for its signatures.
    """

    facts: dict[str, Any]
    family: ModuleType
    settings: Any
    learned: Any
    model: "keras.Model"
    loaded: Any


class Description(BaseModel):
    """What is read of a version's description before its model is."""

    kind: Literal["text", "image"]
    inputs: list[str]
    label_column: str
    labels: list[str]
    multi_label: bool
    graph: dict[str, Any]
    model: dict[str, Any]


def described(version: str) -> dict[str, Any]:
    """The description of a version.

    Raises:
        ConfigError: it is not a version of ours, or one of an older Espalier.
    """
    try:
        facts = describe(version)
    except (OSError, ValueError, RecursionError):
        raise ConfigError(
            f"{version}: no version of a model that Espalier pushed (its assets.extra/"
            f"espalier.json cannot be read)."
        ) from None
    if not isinstance(facts, dict) or "graph" not in facts:
        raise ConfigError(
            f"{version}: this version was exported by an older Espalier. Run its configuration "
            f"again."
        )
    try:
        Description.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        raise _strange(version, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return facts


def _strange(version: str, why: str) -> ConfigError:
    return ConfigError(
        f"{version}: its assets.extra/espalier.json is not as Espalier writes it ({why}). Take "
        f"another version."
    )


def trained_facts(version: str) -> dict[str, Any]:
    """The description of a version that no compression has changed.

    Raises:
        ConfigError: it is not a version of ours, or one that was compressed.
    """
    facts = described(version)
    if COMPRESSION in facts:
        raise ConfigError(
            f"{version}: this version was compressed already. Begin with the trained one: run "
            f"without `compress:`, or take the Trainer's artifact."
        )
    return facts


def restore(version: str) -> Restored:
    """Rebuild the model of a version, a compressed one too.

    Args:
        version: the SavedModel's folder.

    Raises:
        ConfigError: it is not a version of ours, or one of an older Espalier.
    """
    import tensorflow as tf
    import tensorflow_text  # noqa: F401 - registers the tokenizer's ops

    facts = described(version)
    if reached := reach.found(Path(version)):
        raise ConfigError(reach.refusal(version, reached))
    changed = facts.get(COMPRESSION, {})
    if changed and "formats" not in changed:
        raise ConfigError(
            f"{version}: this version was compressed by an older Espalier. Compress it again."
        )
    try:
        family = families.load(facts["model"]["family"])
        settings = family.Settings(**facts["model"])
        learned, classes = facts["learned"], len(facts["labels"])
    except (KeyError, TypeError, ValueError) as error:
        raise _strange(version, str(error).splitlines()[0][:200]) from None
    plain = tf.autograph.experimental.do_not_convert
    model = plain(family.unroll)(settings, classes, learned, changed.get("layers"))
    loaded = tf.saved_model.load(version)
    _assign(model, loaded.stored, changed.get("formats", {}))
    return Restored(facts, family, settings, learned, model, loaded)


def _assign(model: "keras.Model", stored: Any, formats: dict[str, str]) -> None:
    """Give the model what `serving_graph.Weights.tracked` stored, in the model's own order."""
    from .compression.job import kernels
    from .compression.pack import unpack

    *_, packed, plain = stored
    found = kernels(model)
    small = [found[name] for name in formats]
    for weight, variables in zip(small, packed, strict=True):
        weight.assign(unpack(variables))
    rest = [weight for weight in model.weights if not any(weight is one for one in small)]
    for weight, variable in zip(rest, plain, strict=True):
        weight.assign(variable)
