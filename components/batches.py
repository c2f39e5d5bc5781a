"""TFX's StatisticsGen and Transform, whose batches of rows have a bound in bytes.

TFX lets Beam find a batch's size, up to 1,000 rows, of whatever size those are: with photographs
Transform took gigabytes. tfx_bsl can count bytes instead (20 MiB a batch); a flag of absl's turns
that on, which no argument of the two reaches.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

from absl import flags
from tfx.components.statistics_gen import component as statistics_gen
from tfx.components.statistics_gen import executor as statistics_gen_executor
from tfx.components.transform import component as transform
from tfx.components.transform import executor as transform_executor
from tfx.dsl.components.base import executor_spec
from tfx.types import standard_component_specs
from tfx_bsl.coders import batch_util

from ..trainer import families

_BYTES = batch_util._TARGET_BATCH_BYTES_SIZE
_MOST_ROWS = batch_util._BATCH_SIZE_CAP  # tfx_bsl's own, where it does not count bytes
_FLAG = "tfxio_use_byte_size_batching"


@contextlib.contextmanager
def bounded(row_bytes: int = 0) -> Iterator[None]:
    """Pipelines that are made inside read batches of 20 MiB of Examples and 1,000 rows at most.

    Args:
        row_bytes: what becomes of a row, which counts where it is more than the row itself.
    """
    rows = max(1, min(_MOST_ROWS, _BYTES // max(row_bytes, 1)))
    flags.FLAGS.set_default(_FLAG, True)
    try:
        with mock.patch.object(batch_util, "_BATCH_SIZE_CAP_WITH_BYTE_TARGET", rows):
            yield
    finally:
        flags.FLAGS.set_default(_FLAG, False)  # TFMA finds better ones by time: a model is slow


class StatisticsGenExecutor(statistics_gen_executor.Executor):
    """TFX's, with bounded batches."""

    def Do(self, *given: Any) -> None:
        """See TFX's StatisticsGen."""
        with bounded():
            super().Do(*given)


class TransformExecutor(transform_executor.Executor):
    """TFX's, with bounded batches."""

    def Do(
        self,
        input_dict: dict[str, list[Any]],
        output_dict: dict[str, list[Any]],
        exec_properties: dict[str, Any],
    ) -> None:
        """See TFX's Transform."""
        key = standard_component_specs.CUSTOM_CONFIG_KEY
        model = json.loads(exec_properties[key])["model"]
        family = families.load(model["family"])
        shapes = family.pixel_shapes(family.Settings(**model)).values()
        with bounded(sum(map(math.prod, shapes))):
            super().Do(input_dict, output_dict, exec_properties)


class StatisticsGen(statistics_gen.StatisticsGen):
    """TFX's StatisticsGen, with bounded batches: see there."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(StatisticsGenExecutor)


class Transform(transform.Transform):
    """TFX's Transform, with bounded batches: see there."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(TransformExecutor)
