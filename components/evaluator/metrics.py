"""From the YAML's `evaluate:` section to TFMA's configuration, and from results to a verdict."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow_model_analysis as tfma

from ...trainer.export import FOR_TFMA

# TFMA's class of each metric over all classes: for one label a row, and for any number. The loss
# of the latter is Keras' own: TFMA's is not a number once a score is 0 or 1.
_OVER_ALL = {
    "accuracy": ("SparseCategoricalAccuracy", "BinaryAccuracy"),
    "loss": ("SparseCategoricalCrossentropy", "BinaryCrossentropy"),
}
_SMALLER_IS_BETTER = ("loss",)
_MATRIX = "matrix"
_COUNTS = ("TruePositives", "FalsePositives", "FalseNegatives", "TrueNegatives")
_MANY, _STEPS = 10, 1000  # classes; thresholds of an AUC then, which takes TFMA's time
_BATCH = 64  # pictures at once: TFMA's own thousand of them can take all memory


@dataclass
class Measured:
    """One model's numbers.

    Attributes:
        overall: metric name -> value over all rows, None where it is not defined (the
            precision of a model that never says yes); `rows` is their number.
        slices: "column=value" -> the same for the rows of that value.
        labels: label -> its own f1, auc and the like, against the rest; empty for two classes.
        confusion: label that a row has -> label that was said -> how many rows; empty where a row
            may have several.
    """

    overall: dict[str, float | None] = field(default_factory=dict)
    slices: dict[str, dict[str, float | None]] = field(default_factory=dict)
    labels: dict[str, dict[str, float | None]] = field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass
class Counts:
    """How often a label was said and right, said and wrong, missed, and rightly not said."""

    hits: float = 0.0
    false_alarms: float = 0.0
    misses: float = 0.0
    rejections: float = 0.0

    def values(self) -> dict[str, float | None]:
        """f1, precision, recall and specificity, None where there is nothing to divide by."""

        def share(part: float, whole: float) -> float | None:
            return part / whole if whole else None

        wrong = self.false_alarms + self.misses
        return {
            "f1": share(2 * self.hits, 2 * self.hits + wrong),
            "precision": share(self.hits, self.hits + self.false_alarms),
            "recall": share(self.hits, self.hits + self.misses),
            "specificity": share(self.rejections, self.rejections + self.false_alarms),
        }

    @property
    def one_sided(self) -> bool:
        """Whether all rows have the label, or none: an AUC is not defined then."""
        return not (self.hits + self.misses) or not (self.rejections + self.false_alarms)


def eval_config(
    settings: dict[str, Any], classes: int, multi_label: bool = False, images: bool = False
) -> tfma.EvalConfig:
    """TFMA's configuration for a classifier with that many classes.

    TFMA's f1, precision and the like take a class for found where its score is above one half,
    which of many classes the likeliest need not be: they are computed here, from what was said
    and what was right. For the verdict TFMA is given limits that always hold, since it gives none
    without any (tensorflow/tfx#5148) and leaves out a baseline that nothing is compared with.
    """
    names = settings["metrics"]
    plain = [_metric(_OVER_ALL[name][multi_label], name) for name in names if name in _OVER_ALL]
    binary = [_metric("AUC", "auc", classes)] if "auc" in names else []
    if multi_label:
        binary += [_metric(count, count) for count in _COUNTS]
    else:
        matrix = "MultiClassConfusionMatrixAtThresholds"
        config = json.dumps({"name": _MATRIX, "thresholds": [0.0]})
        plain.append(tfma.MetricConfig(class_name=matrix, config=config))
    specs = [tfma.MetricsSpec(metrics=[_count(settings), *plain])]
    if binary:
        specs.append(tfma.MetricsSpec(metrics=binary))
        one = classes == 2 and not multi_label
        specs[-1].binarize.class_ids.values.extend([1] if one else range(classes))
    model = tfma.ModelSpec(
        signature_name="serve_examples",
        label_key=FOR_TFMA,
        prediction_key="scores",
        preprocessing_function_names=["transform_label"],
    )
    if images:
        model.inference_batch_size = _BATCH
    slices = [tfma.SlicingSpec(feature_keys=[column]) for column in settings["slices"]]
    return tfma.EvalConfig(
        model_specs=[model], metrics_specs=specs, slicing_specs=[tfma.SlicingSpec(), *slices]
    )


def _metric(class_name: str, name: str, classes: int = 0) -> tfma.MetricConfig:
    options = {"name": name, **({"num_thresholds": _STEPS} if classes > _MANY else {})}
    return tfma.MetricConfig(class_name=class_name, config=json.dumps(options))


def _count(settings: dict[str, Any]) -> tfma.MetricConfig:
    """The number of rows, with limits that always hold."""
    config = tfma.MetricConfig(class_name="ExampleCount")
    config.threshold.value_threshold.lower_bound.value = -1.0
    if settings["worse_than_blessed_by_at_most"]:
        config.threshold.change_threshold.absolute.value = -1e30
        config.threshold.change_threshold.direction = tfma.MetricDirection.HIGHER_IS_BETTER
    return config


def read(
    folder: str,
    names: Sequence[str],
    labels: Sequence[str],
    multi_label: bool = False,
    model_name: str = "",
) -> Measured:
    """One model's numbers out of TFMA's output folder; `labels` in the order of their ids."""
    result = tfma.load_eval_result(folder, model_name=model_name or None)
    measured = Measured()
    for key, by_output in result.slicing_metrics:
        (by_class,) = by_output.values()
        each = _each_label(by_class, len(labels), multi_label)
        values = _numbers(by_class[""])
        values["rows"] = int(values.pop("example_count") or 0)
        if len(labels) == 2 and not multi_label:
            values |= each[1]
        else:
            values |= {name: _mean([one.get(name) for one in each]) for name in each[0]}
        shown = {name: values[name] for name in ("rows", *names)}
        if key:
            measured.slices[", ".join(f"{column}={value}" for column, value in key)] = shown
            continue
        measured.overall = shown
        if not multi_label:
            measured.confusion = _confusion(by_class[""][_MATRIX], labels)
        if len(labels) > 2 or multi_label:
            own = [name for name in names if name in each[0]]
            measured.labels = {
                label: {name: one[name] for name in own}
                for label, one in zip(labels, each, strict=True)
                if own
            }
    measured.slices = dict(sorted(measured.slices.items()))
    return measured


def _each_label(
    by_class: Mapping[str, Any], classes: int, multi_label: bool
) -> list[dict[str, float | None]]:
    """Each label's own metrics, against the rest."""
    numbers = [_numbers(by_class.get(f"classId:{place}", {})) for place in range(classes)]
    if multi_label:
        counts = [Counts(*(one[name] or 0.0 for name in _COUNTS)) for one in numbers]
    else:
        counts = _from_matrix(by_class[""][_MATRIX], classes)
    return [
        {**count.values(), "auc": None if count.one_sided else one.get("auc")}
        for count, one in zip(counts, numbers, strict=True)
    ]


def _entries(value: Mapping[str, Any]) -> Iterator[tuple[int, int, float]]:
    """(actual class, predicted class, rows) out of TFMA's matrix."""
    (matrix,) = value["multiClassConfusionMatrixAtThresholds"]["matrices"]
    for entry in matrix.get("entries", []):
        actual, said = (int(entry.get(f"{kind}ClassId", 0)) for kind in ("actual", "predicted"))
        yield actual, said, float(entry["numWeightedExamples"])


def _confusion(value: Mapping[str, Any], labels: Sequence[str]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {label: {} for label in labels}
    for actual, said, count in _entries(value):
        if actual >= 0:  # else a label that training did not see
            found[labels[actual]][labels[said]] = int(count)
    return found


def _from_matrix(value: Mapping[str, Any], classes: int) -> list[Counts]:
    """Counts of each class out of TFMA's matrix of actual and predicted ones."""
    found, total = [Counts() for _ in range(classes)], 0.0
    for actual, said, count in _entries(value):
        total += count
        if actual == said:
            found[actual].hits += count
            continue
        found[said].false_alarms += count
        if actual >= 0:  # else a label that training did not see
            found[actual].misses += count
    for one in found:
        one.rejections = total - one.hits - one.false_alarms - one.misses
    return found


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    values = {name: v["doubleValue"] for name, v in metrics.items() if "doubleValue" in v}
    return {n: float(v) if math.isfinite(float(v)) else None for n, v in values.items()}


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean of those that are defined."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None


def verdict(
    settings: dict[str, Any], candidate: Measured, baseline: Measured | None
) -> tuple[bool, str]:
    """(blessed, the sentence that says why), from the same limits that TFMA was given."""
    passed: list[str] = []
    failed: list[str] = []
    for name, limit in settings["at_least"].items():
        value, smaller = candidate.overall[name], name in _SMALLER_IS_BETTER
        good = value is not None and (value <= limit if smaller else value >= limit)
        bound = "at most" if smaller else "at least"
        words = f"{name} {_number(value)}, {bound} {limit:g} needed"
        (passed if good else failed).append(words)
    for name, allowed in settings["worse_than_blessed_by_at_most"].items():
        if baseline is None:
            continue
        value, before = candidate.overall[name], baseline.overall[name]
        words = f"{name} {_number(value)}, the blessed model has {_number(before)}"
        words += f" (may be worse by {allowed:g})" if allowed else " (may not be worse)"
        (passed if _close(name, value, before, allowed) else failed).append(words)
    first = settings["metrics"][0]
    if failed:
        return False, f"Not blessed: {'; '.join(failed)}."
    if settings.get("accepted"):
        alone = "taken without a comparison (--accept)"
    elif baseline is None and settings["worse_than_blessed_by_at_most"]:
        alone = "there is no earlier model to compare with"
    else:
        alone = ""
    if not passed:
        passed = [f"{first} {_number(candidate.overall[first])}, no lowest value is set"]
    return True, f"Blessed: {'; '.join([*passed, *([alone] if alone else [])])}."


def _close(name: str, value: float | None, before: float | None, allowed: float) -> bool:
    if value is None or before is None:
        return value is not None
    return (value - before if name in _SMALLER_IS_BETTER else before - value) <= allowed


def _number(value: float | None) -> str:
    return "(not defined)" if value is None else f"{value:.4f}"
