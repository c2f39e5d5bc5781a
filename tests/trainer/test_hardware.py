"""Batches dealt out to devices count as they would on one."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from espalier.trainer import hardware


class Devices:
    """A strategy's devices, on so many machines, that only note what they are given."""

    def __init__(self, machines: int, each: int) -> None:
        self.num_replicas_in_sync = machines * each
        self._machines, self._each = machines, each

    def distribute_datasets_from_function(self, make: Any) -> list[list[Any]]:
        """By step, what each device gets."""
        by_machine = [
            list(make(SimpleNamespace(input_pipeline_id=n, num_input_pipelines=self._machines)))
            for n in range(self._machines)
        ]
        steps = len(by_machine[0]) // self._each
        return [
            [part for parts in by_machine for part in parts[step * self._each :][: self._each]]
            for step in range(steps)
        ]


def batches(rows: int, size: int) -> "tf.data.Dataset":
    values = np.arange(rows, dtype=np.float32)
    return tf.data.Dataset.from_tensor_slices(({"x": values}, values[:, None])).batch(size)


@pytest.mark.parametrize(("machines", "each"), [(2, 1), (1, 3), (3, 2)])
@pytest.mark.parametrize("rows", [1, 2, 5, 8, 13])
def test_the_mean_of_the_devices_is_the_batchs(machines: int, each: int, rows: int) -> None:
    steps: Any = hardware.share(batches(rows, 8), Devices(machines, each), training=True)  # type: ignore[arg-type]
    for step, (features, _) in zip(steps, batches(rows, 8), strict=True):
        assert len(step) == machines * each
        means = [tf.reduce_mean(part[0]["x"] * part[2]) for part in step]  # as Keras takes it
        assert float(np.mean(means)) == pytest.approx(float(tf.reduce_mean(features["x"])))
        assert all(len(part[1]) for part in step), "no device is without rows"


def test_each_eval_row_comes_once() -> None:
    steps: Any = hardware.share(batches(13, 8), Devices(3, 2), training=False)  # type: ignore[arg-type]
    found = [float(x) for step in steps for part in step for x in part[0]["x"]]
    assert sorted(found) == list(range(13))
    assert all(len(part) == 2 for step in steps for part in step)


def test_one_device_gets_the_batches_as_they_are() -> None:
    data = batches(4, 2)
    assert hardware.share(data, Devices(1, 1), training=True) is data  # type: ignore[arg-type]
