"""Batches of rows that have a bound in bytes, for StatisticsGen, Transform and the Evaluator.

TFX lets Beam find the size of a batch by the time it takes, up to 1,000 rows of any size: with
photographs Transform took gigabytes. No argument of the three reaches that.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tfx.components.statistics_gen import component as statistics_gen
from tfx.components.statistics_gen import executor as statistics_gen_executor
from tfx.components.transform import component as transform
from tfx.components.transform import executor as transform_executor
from tfx.dsl.components.base import executor_spec
from tfx.types import standard_component_specs
from tfx_bsl.coders import batch_util

from ..trainer import families

_BYTES = 20 << 20  # what tfx_bsl takes where its experimental flag has it count bytes
_ROWS = 1000  # tfx_bsl's own bound


@contextlib.contextmanager
def bounded(row_bytes: int = 0) -> Iterator[None]:
    """Pipelines that are made inside read batches of 20 MiB of Examples and 1,000 rows at most.

    Args:
        row_bytes: what becomes of a row, which counts where it is more than the row itself.
    """
    least, stock = max(_BYTES // _ROWS, row_bytes), batch_util.GetBatchElementsKwargs

    def sized(batch_size: int | None, size: Callable[[Any], int] = len) -> dict[str, Any]:
        bound = {
            "min_batch_size": min(least, _BYTES),
            "max_batch_size": _BYTES,
            "element_size_fn": lambda row: max(size(row), least),
        }
        return stock(batch_size, size) | ({} if batch_size else bound)

    batch_util.GetBatchElementsKwargs = sized
    try:
        yield
    finally:
        batch_util.GetBatchElementsKwargs = stock


def pixels(shapes: Mapping[str, Sequence[int]]) -> int:
    """Bytes of a row's pixels in such shapes, as Transform packs them; 0 if there are none."""
    return sum(map(math.prod, shapes.values()))


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
        with bounded(pixels(family.pixel_shapes(family.Settings(**model)))):
            super().Do(input_dict, output_dict, exec_properties)


class StatisticsGen(statistics_gen.StatisticsGen):
    """TFX's StatisticsGen, with bounded batches: see there."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(StatisticsGenExecutor)


class Transform(transform.Transform):
    """TFX's Transform, with bounded batches: see there."""

    EXECUTOR_SPEC = executor_spec.BeamExecutorSpec(TransformExecutor)
