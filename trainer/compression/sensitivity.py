"""Which layer costs what: each one alone pruned, clustered or quantized, without training."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..input import batches
from . import pack
from .cluster import kmeans, nearest
from .job import Job, compiled, kernels, progress
from .settings import Cluster, Entry, Prune, Quantize

if TYPE_CHECKING:
    import tf_keras as keras

ROWS = 512  # eval rows that decide
_BLOCK = 4


class _Rows:
    """Eval rows in memory, and a compiled model to ask about them."""

    def __init__(self, job: Job, model: "keras.Model", most: int) -> None:
        size = 32
        found = batches(job.evaluation, size).take(-(-most // size))
        self._batches = [(features, labels.numpy()) for features, labels in found]
        self._multi_label = job.multi_label
        self._ask = compiled(model)

    def quality(self) -> tuple[float, float]:
        """(accuracy, loss) of the model as it is now."""
        right, loss, rows = 0.0, 0.0, 0
        for features, labels in self._batches:
            logits = self._ask(features).numpy().astype(np.float64)
            if self._multi_label:
                right += float(((logits > 0) == labels).mean(axis=1).sum())
                each = np.logaddexp(0, logits) - labels * logits
                loss += float(each.mean(axis=1).sum())
            else:
                right += float((logits.argmax(1) == labels.argmax(1)).sum())
                top = logits.max(1)
                total = top + np.log(np.exp(logits - top[:, None]).sum(1))
                loss += float((total - (logits * labels).sum(1)).sum())
            rows += len(labels)
        return right / rows, loss / rows


def accuracy(job: Job, model: "keras.Model") -> float:
    """Over all eval rows."""
    return _Rows(job, model, 10**9).quality()[0]


def sensitivity(
    job: Job, model: "keras.Model", entries: Sequence[Entry], most_rows: int = ROWS
) -> list[dict[str, Any]]:
    """Each layer's losses under each step, applied to it alone; the model is left as it was.

    Args:
        job: its eval rows decide.
        model: an unrolled model, float32.
        entries: prune, cluster or quantize steps.
        most_rows: how many eval rows are asked.

    Returns:
        [{"layer", "parameters", "steps": {kind: {"accuracy_drop", "loss_rise"}}}], in the model's
        order.
    """
    rows = _Rows(job, model, most_rows)
    before = rows.quality()
    found = []
    variables = kernels(model)
    for number, (name, variable) in enumerate(variables.items(), start=1):
        values, steps = variable.numpy(), {}
        for entry in entries:
            variable.assign(one_shot(values, entry))
            now = rows.quality()
            steps[entry.kind] = {
                "accuracy_drop": before[0] - now[0], "loss_rise": now[1] - before[1],
            }  # fmt: skip
        variable.assign(values)
        progress.debug("layer %s", name, extra={"done": number, "total": len(variables)})
        found.append({"layer": name, "parameters": values.size, "steps": steps})
    return found


def costliest(job: Job, model: "keras.Model", entry: Entry) -> list[str]:
    """The layers by what the step costs them alone, the costliest first."""
    progress.info("which layer costs what under %s", entry.kind)
    found = sensitivity(job, model, [entry])
    found.sort(key=lambda one: -one["steps"][entry.kind]["loss_rise"])
    return [one["layer"] for one in found]


def one_shot(values: np.ndarray, entry: Entry) -> np.ndarray:
    """A weight after a step without any training, float32 of the same shape."""
    settings = entry.settings
    if isinstance(settings, Prune):
        return values * _mask(values, settings)
    if isinstance(settings, Cluster):
        centroids = np.sort(kmeans(values, settings.clusters))
        return centroids[nearest(centroids, values)]
    if isinstance(settings, Quantize):
        return pack.unpacked(values, settings.to)
    raise ValueError(f"{entry.kind} changes no single layer")


def _mask(values: np.ndarray, settings: Prune) -> np.ndarray:
    """1 for what pruning leaves."""
    size = np.abs(values)
    if settings.pattern == "2:4" and values.shape[-2] % 4 == 0:
        fours = np.moveaxis(size, -2, -1).reshape(-1, 4)
        order = fours.argsort(axis=1).argsort(axis=1)
        mask = (order >= 2).reshape(np.moveaxis(size, -2, -1).shape)
        return np.moveaxis(mask, -1, -2).astype(np.float32)
    if settings.pattern == "block" and values.ndim == 2:
        sides = [-(-side // _BLOCK) * _BLOCK for side in values.shape]
        padded = np.zeros(sides, np.float32)
        padded[: values.shape[0], : values.shape[1]] = size
        grid = padded.reshape(sides[0] // _BLOCK, _BLOCK, sides[1] // _BLOCK, _BLOCK).mean((1, 3))
        keep = grid > np.quantile(grid, settings.sparsity)
        size = np.kron(keep, np.ones((_BLOCK, _BLOCK)))[: values.shape[0], : values.shape[1]]
        return size.astype(np.float32)
    return (size > np.quantile(size, settings.sparsity)).astype(np.float32)
