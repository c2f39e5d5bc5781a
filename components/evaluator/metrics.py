"""From the YAML's `evaluate:` section to TFMA's configuration, and from results to a verdict."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tensorflow_model_analysis as tfma

OVERALL = "overall"
# TFMA's class, and whether it looks at one class against the rest.
_CLASSES = {
    "accuracy": ("SparseCategoricalAccuracy", False),
    "loss": ("SparseCategoricalCrossentropy", False),
    "f1": ("F1Score", True),
    "precision": ("Precision", True),
    "recall": ("Recall", True),
    "specificity": ("Specificity", True),
    "auc": ("AUC", True),
}
# Instead of these, where labels do not exclude each other. The loss is Keras' own: TFMA's
# BinaryCrossEntropy is not a number once a score is 0 or 1.
_MULTI_LABEL = {"accuracy": "BinaryAccuracy", "loss": "BinaryCrossentropy"}
_BATCH = 64  # rows at once through the model: TFMA's own thousand pictures can take all memory
_SMALLER_IS_BETTER = ("loss",)


@dataclass
class Measured:
    """One model's numbers.

    Attributes:
        overall: metric name -> value over all rows, None where it is not defined (the
            precision of a model that never says yes); `rows` is their number.
        slices: "column=value" -> the same for the rows of that value.
        labels: label -> its own f1, auc and the like, against the rest; empty for two classes.
    """

    overall: dict[str, float | None] = field(default_factory=dict)
    slices: dict[str, dict[str, float | None]] = field(default_factory=dict)
    labels: dict[str, dict[str, float | None]] = field(default_factory=dict)


def eval_config(
    settings: dict[str, Any], classes: int, multi_label: bool = False
) -> tfma.EvalConfig:
    """TFMA's configuration for a classifier with that many classes.

    A limit-free configuration gets one that always holds, since TFMA gives no verdict
    without any (tensorflow/tfx#5148).
    """
    plain = [m for m in settings["metrics"] if not _CLASSES[m][1]]
    binary = [m for m in settings["metrics"] if _CLASSES[m][1]]
    specs = [tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount")])]
    if plain:
        specs.append(tfma.MetricsSpec(metrics=[_metric(m, settings, multi_label) for m in plain]))
    if binary:
        spec = tfma.MetricsSpec(metrics=[_metric(m, settings, multi_label) for m in binary])
        one = classes == 2 and not multi_label
        spec.binarize.class_ids.values.extend([1] if one else range(classes))
        if not one:
            spec.aggregate.macro_average = True
            spec.aggregate.class_weights.update(dict.fromkeys(range(classes), 1.0))
        specs.append(spec)
    model = tfma.ModelSpec(
        signature_name="serve_examples",
        label_key="label",
        prediction_key="scores",
        preprocessing_function_names=["transform_label"],
        inference_batch_size=_BATCH,
    )
    slices = [tfma.SlicingSpec(feature_keys=[column]) for column in settings["slices"]]
    return tfma.EvalConfig(
        model_specs=[model], metrics_specs=specs, slicing_specs=[tfma.SlicingSpec(), *slices]
    )


def _metric(name: str, settings: dict[str, Any], multi_label: bool) -> tfma.MetricConfig:
    lowest = settings["at_least"].get(name)
    worse = settings["worse_than_blessed_by_at_most"].get(name)
    smaller = name in _SMALLER_IS_BETTER
    threshold = tfma.MetricThreshold()
    if lowest is not None or (name == settings["metrics"][0] and not settings["at_least"]):
        bound = lowest if lowest is not None else (1e30 if smaller else -1.0)
        target = threshold.value_threshold
        (target.upper_bound if smaller else target.lower_bound).value = bound
    if worse is not None:
        threshold.change_threshold.absolute.value = worse if smaller else -worse
        threshold.change_threshold.direction = (
            tfma.MetricDirection.LOWER_IS_BETTER
            if smaller
            else tfma.MetricDirection.HIGHER_IS_BETTER
        )
    class_name = _MULTI_LABEL.get(name) if multi_label else None
    config = tfma.MetricConfig(
        class_name=class_name or _CLASSES[name][0], config=f'"name": "{name}"'
    )
    if threshold.ListFields():
        config.threshold.CopyFrom(threshold)
    return config


def read(
    folder: str, names: Sequence[str], labels: Sequence[str] = (), model_name: str = ""
) -> Measured:
    """One model's numbers out of TFMA's output folder; `labels` in the order of their ids."""
    result = tfma.load_eval_result(folder, model_name=model_name or None)
    measured = Measured()
    for key, by_output in result.slicing_metrics:
        (by_class,) = by_output.values()
        values: dict[str, float | None] = {}
        for place, metrics in by_class.items():
            if one := _CLASS_ID.match(place):
                found = _values(metrics, names)
                if not key and labels and found and len(by_class) > 2:
                    measured.labels[labels[int(one[1])]] = found
                if len(by_class) > 2:
                    continue  # the mean over all classes stands beside them
            values |= _values(metrics, names)
        if key:
            measured.slices[", ".join(f"{column}={value}" for column, value in key)] = values
        else:
            measured.overall = values
    measured.slices = dict(sorted(measured.slices.items()))
    return measured


_CLASS_ID = re.compile(r"classId:(\d+)$")


def _values(metrics: Mapping[str, Any], names: Sequence[str]) -> dict[str, float | None]:
    values: dict[str, float | None] = {}
    for full_name, value in metrics.items():
        name = full_name.rsplit("\n_", 1)[-1]  # TFMA calls a mean "macro_average: true\n_f1"
        if name == "example_count":
            values["rows"] = int(value["doubleValue"])
        elif name in names and "doubleValue" in value:
            number = float(value["doubleValue"])
            values[name] = number if math.isfinite(number) else None
    return values


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
