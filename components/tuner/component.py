"""The Tuner component: TFX's own, with our executor."""

from tfx.components.tuner import component as stock
from tfx.dsl.components.base import executor_spec

from . import executor


class Tuner(stock.Tuner):
    """Searches for the settings that train best.

    Arguments, inputs and outputs are those of TFX's Tuner. `tuner_results` also holds trials.json:
    what `trainer.tuning.search.Search.found` gives.
    """

    EXECUTOR_SPEC = executor_spec.ExecutorClassSpec(executor.Executor)
