"""What every step of a recipe is given: the model it begins with, the data, a way to train."""

import fnmatch
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from ...errors import ConfigError
from .. import augment as augment_
from .. import hardware
from ..fit import fit, stopping
from ..input import Source, batches
from ..settings import Train
from ..sparsity import zeros

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf
    import tf_keras as keras

progress = logging.getLogger("espalier.progress")

Exclude = list[str] | Literal["auto"]

# The attribute that holds what may be compressed, by the layer's class.
_KERNELS = {"Dense": "kernel", "Conv2D": "kernel", "Embedding": "embeddings"}


@dataclass(frozen=True)
class Candidate:
    """A model between two steps.

    Attributes:
        name: of the step that made it.
        model: the family's unrolled model, float32.
        layers: how many it has, where a student has fewer; None is all.
        formats: layer name -> the format in which the SavedModel stores its weights.
        tflite: a file that computes in int8, if a step made one.
        facts: what the step has to report.
    """

    name: str
    model: "keras.Model"
    layers: int | None = None
    formats: Mapping[str, str] = field(default_factory=dict)
    tflite: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Job:
    """One recipe's surroundings.

    Attributes:
        family, settings: the model's family, and its section of the YAML.
        classes: how many labels there are.
        learned: what the data decided about the model (the family's).
        train: how the model was trained; a step's own epochs and rate replace its.
        source, evaluation: transformed rows.
        rows: how many rows `source` has.
        multi_label: whether labels do not exclude each other.
        folder: scratch, in which a killed run finds what it had.
        attempt: tells a step's trainings apart, where it is tried again with other settings.
        deadline: `time.monotonic()` at which steps end, or None.
        share: of an epoch's batches that are trained on, to try a recipe out.
        teacher: the trained model, from which students, pruning and clustering learn.
    """

    family: ModuleType
    settings: Any
    classes: int
    learned: Any
    train: Train
    source: Source
    evaluation: Source
    rows: int
    multi_label: bool
    folder: Path
    attempt: str = ""
    deadline: float | None = None
    share: float = 1.0
    teacher: Candidate | None = None

    def build(self, layers: int | None = None, weights: "list[np.ndarray] | None" = None) -> Any:
        """A fresh unrolled model, under the precision policy that is set now."""
        import tensorflow as tf

        plain = tf.autograph.experimental.do_not_convert
        model = plain(self.family.unroll)(self.settings, self.classes, self.learned, layers)
        if weights is not None:
            model.set_weights(weights)
        return model

    def copy(self, candidate: Candidate) -> "keras.Model":
        """The candidate's model again, with variables of its own."""
        return self.build(candidate.layers, candidate.model.get_weights())

    def next(self, before: Candidate, name: str, weights: Any, **changes: Any) -> Candidate:
        """The candidate that a step has made of the one before it; its facts are its own."""
        model = self.build(changes.get("layers", before.layers), weights)
        return replace(before, name=name, model=model, **{"facts": {}, **changes})

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training rows, or over the share of them."""
        return math.ceil(self.share * -(-self.rows // self.train.batch_size))

    def batches(self, epoch: int) -> "tf.data.Dataset":
        """The training rows in the order of this epoch."""
        seed = self.train.seed * 1000 + epoch + 1
        augment = augment_.wanted(self.train.augment, self.source.pixel_shapes, seed)
        found = batches(self.source, self.train.batch_size, shuffle_seed=seed, augment=augment)
        return found if self.share == 1 else found.take(self.steps_per_epoch)

    @property
    def out_of_time(self) -> bool:
        """Whether the time limit has passed."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def tune(
        self,
        model: "keras.Model",
        step: str,
        epochs: int,
        rate: float,
        *,
        data: "Callable[[int], tf.data.Dataset] | None" = None,
        callbacks: Sequence[Any] = (),
        keep: str = "last",
        steps_per_epoch: int = 0,
    ) -> None:
        """Train a step's model in place, with progress, until the end or the time limit.

        Args:
            model: features -> logits.
            step: the step's name; its state lies under it and survives a kill.
            epochs: passes over the training rows.
            rate: the highest learning rate.
            data: the batches of an epoch; the training rows if None.
            callbacks: more of Keras'.
            keep: which epoch's weights stay, the last's or the best's.
            steps_per_epoch: batches in an epoch of `data`; 0 is that of the training rows.

        Raises:
            ConfigError: the loss is no longer a number; it names the step.
        """
        settings = self.train.model_copy(
            update={
                "epochs": epochs, "learning_rate": rate, "stages": [], "patience": None,
                "time_limit": None,
            }
        )  # fmt: skip
        clock = [stopping(lambda: self.out_of_time)] if self.deadline else []
        state = self.folder / f"{step}{self.attempt}"
        try:
            fit(
                model,
                data or self.batches,
                batches(self.evaluation, self.train.batch_size),
                settings,
                steps_per_epoch=steps_per_epoch or self.steps_per_epoch,
                state_dir=state,
                log_dir=str(state / "tensorboard"),
                freeze=lambda model, what: None,
                multi_label=self.multi_label,
                callbacks=[*callbacks, *clock],
                keep=keep,
            )
        except ConfigError as error:
            raise ConfigError(
                f"compress.steps: {step}: {error} In this step: {step}.learning_rate, {rate:g} "
                f"now. The trained model is kept."
            ) from None

    def precision(self) -> Any:
        """The policy that training computes in, as a context."""
        return hardware.precision(self.train.precision)


def plainly(step: Any) -> Any:
    """Run a step without AutoGraph, which rewrites what Keras and TF-MOT build, to no effect."""

    @functools.wraps(step)
    def run(*args: Any) -> Any:
        import tensorflow as tf

        return tf.autograph.experimental.do_not_convert(step)(*args)

    return run


def compiled(model: Callable[[Any], Any]) -> Any:
    """features -> outputs, as a graph; AutoGraph would take seconds to rewrite it as it is."""
    import tensorflow as tf

    plain = tf.autograph.experimental.do_not_convert(lambda features: model(features))
    return tf.function(plain, reduce_retracing=True)


def kernels(model: "keras.Model") -> dict[str, "tf.Variable"]:
    """The weights that steps may change, by the layer's name, in the model's order."""
    found = {}
    for layer in model.layers:
        attribute = _KERNELS.get(type(layer).__name__)
        if attribute:
            found[layer.name] = getattr(layer, attribute)
    return found


def kernel_attribute(layer: "keras.layers.Layer") -> str:
    """The name of the layer's attribute that `kernels` takes."""
    return _KERNELS[type(layer).__name__]


def chosen(
    job: Job, model: "keras.Model", step: str, exclude: Exclude, *, all_of: bool
) -> list[str]:
    """The layers that a step works on: all with a kernel, or without those the family spares.

    Raises:
        ConfigError: a name or glob of `exclude` fits none.
    """
    names = [n for n in kernels(model) if all_of or n not in job.family.SPARED]
    exclude = [] if exclude == "auto" else exclude  # the first attempt of it leaves none out
    for pattern in exclude:
        if not fnmatch.filter(kernels(model), pattern):
            raise ConfigError(
                f"compress.steps: {step}.exclude: {pattern!r} fits no layer. The layers are: "
                f"{', '.join(kernels(model))}."
            )
    return [n for n in names if not any(fnmatch.fnmatch(n, pattern) for pattern in exclude)]


def layer_report(candidate: Candidate) -> list[dict[str, Any]]:
    """Each kernel: its layer, shape, share of zeros, number of different values and format."""
    import numpy as np

    return [
        {
            "layer": name,
            "shape": list(variable.shape),
            "zeros": zeros(values := variable.numpy()),
            "values": int(np.unique(values).size),
            "format": candidate.formats.get(name, "float32"),
        }
        for name, variable in kernels(candidate.model).items()
    ]


def rate_of(settings: Any, job: Job, share: float) -> float:
    """The step's own learning rate, or a share of the training's."""
    return float(settings.learning_rate or share * job.train.learning_rate)
