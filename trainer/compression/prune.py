"""Pruning: the smallest weights of each layer become zero while training goes on, by TF-MOT.

Zhu and Gupta, https://arxiv.org/abs/1710.01878, whose cubic schedule TF-MOT's PolynomialDecay is.
Unstructured zeros make the gzipped file smaller; no dense kernel runs faster with them
(tensorflow/model-optimization#173, #391, #611).
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from ..sparsity import zeros
from .job import Candidate, Job, chosen, kernels, plainly, rate_of
from .settings import Prune
from .teach import learn

if TYPE_CHECKING:
    import tf_keras as keras

_BLOCK = (4, 4)
_RISE = 2 / 3  # of the steps; the rest trains what is left
# How often the masks are set anew: TF-MOT sorts all weights each time, which takes as long as
# several steps. Every 100 steps, its own default, or less often; in short runs more often.
_FREQUENCY, _MOST, _FEWEST = 100, 30, 6


@plainly
def prune(before: Candidate, job: Job, settings: Prune) -> Candidate:
    """Return the model with `settings.sparsity` of zeros in each chosen layer.

    Raises:
        ConfigError: a layer cannot be pruned in this pattern; it is named.
    """
    import tensorflow_model_optimization as tfmot

    with job.precision():
        model = job.copy(before)
    pruned = pruning(model, job, settings)
    learn(
        pruned,
        job,
        before.layers,
        "prune",
        settings.epochs,
        rate_of(settings, job, 0.5),
        callbacks=[tfmot.sparsity.keras.UpdatePruningStep()],
    )
    weights = tfmot.sparsity.keras.strip_pruning(pruned).get_weights()
    after = job.next(before, "prune", weights)
    reached = _reached(after.model, _names(after.model, job, settings))
    return replace(after, facts={"zeros": reached})


def pruning(model: "keras.Model", job: Job, settings: Prune) -> "keras.Model":
    """The model in TF-MOT's wrappers, which prune it while it is trained."""
    import tensorflow_model_optimization as tfmot

    names = set(_names(model, job, settings))
    # The wrappers multiply float32 weights by float32 masks, whatever their layers compute in.
    return tfmot.sparsity.keras.prune_low_magnitude(
        model, pruning_policy=_policy(names), **_pattern(settings, job)
    )


def _names(model: "keras.Model", job: Job, settings: Prune) -> list[str]:
    """The layers to prune: kernels that multiply. An embedding is looked up; sorting it would more
    than double what pruning costs a step (clustering makes it small).

    TF-MOT's blocks need two dimensions; its 2:4 goes along the inputs, padded to fours.
    """
    names = chosen(job, model, "prune", settings.exclude, all_of=False)
    names = [name for name in names if type(model.get_layer(name)).__name__ != "Embedding"]
    variables = kernels(model)
    for name in names:
        shape = variables[name].shape
        if settings.pattern == "block" and len(shape) != 2:
            raise ConfigError(
                f"compress.steps: prune: pattern block needs weights of two dimensions, and the "
                f"layer {name} has {list(shape)}. Exclude it, or take unstructured."
            )
    return names


def _policy(names: set[str]) -> Any:
    import tensorflow_model_optimization as tfmot

    class Chosen(tfmot.sparsity.keras.PruningPolicy):
        def allow_pruning(self, layer: "keras.layers.Layer") -> bool:
            return layer.name in names

        def ensure_model_supports_pruning(self, model: "keras.Model") -> None:
            """Our models do: they are functional and built."""

    return Chosen()


def _pattern(settings: Prune, job: Job) -> dict[str, Any]:
    """TF-MOT's arguments. Its 2:4 mask is set in the first step, whatever the schedule."""
    import tensorflow_model_optimization as tfmot

    rise = _RISE * settings.epochs * job.steps_per_epoch
    frequency = max(1, round(max(rise / _MOST, min(_FREQUENCY, rise / _FEWEST))))
    if settings.schedule == "constant" or settings.pattern == "2:4":
        schedule = tfmot.sparsity.keras.ConstantSparsity(settings.sparsity, 0, 1, 1)
    else:
        end = max(1, round(rise / frequency)) * frequency
        schedule = tfmot.sparsity.keras.PolynomialDecay(
            0.0, settings.sparsity, 0, end, frequency=frequency
        )
    found: dict[str, Any] = {"pruning_schedule": schedule}
    if settings.pattern == "2:4":
        found["sparsity_m_by_n"] = (2, 4)
    elif settings.pattern == "block":
        found |= {"block_size": _BLOCK, "block_pooling_type": "AVG"}
    return found


def _reached(model: "keras.Model", names: list[str]) -> float:
    """The share of zeros over the chosen layers together."""
    import numpy as np

    variables = kernels(model)
    arrays = [variables[name].numpy().ravel() for name in names]
    return zeros(np.concatenate(arrays)) if arrays else 0.0
