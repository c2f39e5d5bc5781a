"""What the report says of the data: rows, anomalies, labels and features of each split, and how far
the rows that were trained on are from those of the version before."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import drift, page, results, versions
from .drawing import histogram
from .page import Block
from .store import Node, opened

if TYPE_CHECKING:
    from .report import Context

Statistics = Any  # a DatasetFeatureStatisticsList
_ENDED = ("done", "cached")
_EQUALLY_WIDE, _QUANTILES = 0, 1  # of statistics_pb2.Histogram; TFDV names the first STANDARD


def section(context: "Context") -> list[Block]:
    """Its blocks."""
    blocks = []
    gate = context.nodes.get("DataGate")
    if gate and gate.state in _ENDED:
        report = results.gate_report(gate)
        rows = [(split, f"{count:,}") for split, count in report.get("rows", {}).items()]
        blocks.append(page.table("Rows", ("split", "rows"), rows))
        found = [
            [one[key] for key in ("split", "feature", "severity", "long")]
            for one in report["anomalies"]
        ]
        blocks.append(
            page.table("Anomalies", ("split", "feature", "severity", "what"), found, 4)
            if found
            else page.text("No anomalies were found.")
        )
    statistics = statistics_of(context.nodes)
    if "train" in statistics:
        blocks += page.attempt(partial(_changes, context, statistics["train"]))
    for split, found_in in statistics.items():
        blocks += _labels(split, found_in, context.label)
        blocks.append(_features(split, found_in))
    return blocks


def statistics_of(nodes: Mapping[str, Node]) -> dict[str, Statistics]:
    """TFDV's statistics by split, and in them as further features what TFDV leaves out."""
    from tensorflow_metadata.proto.v0 import statistics_pb2

    node = nodes.get("StatisticsGen")
    if node is None or "statistics" not in node.outputs:
        return {}
    found, sizes = {}, _sizes(nodes)
    files = Path(node.outputs["statistics"].uri).glob("Split-*/FeatureStats.pb")
    for file in sorted(files, reverse=True):  # train before test before eval
        statistics = statistics_pb2.DatasetFeatureStatisticsList()
        statistics.ParseFromString(file.read_bytes())
        split = file.parent.name.removeprefix("Split-")
        for name, one in sizes.get(split, {}).items():
            _add(statistics, name, one)
        found[split] = statistics
    return found


def _sizes(nodes: Mapping[str, Node]) -> dict[str, dict[str, Any]]:
    """By split: lengths of texts, which the DataGate counts, and sizes of pictures; a
    `Sizes.to_json` by the name that `drift` has for it."""
    found: dict[str, dict[str, Any]] = {}
    gate, examples = nodes.get("DataGate"), nodes.get("ExampleGen")
    if gate and gate.state in _ENDED:
        for split, lengths in results.gate_report(gate).get("lengths", {}).items():
            found[split] = {f"{name}: characters": one for name, one in lengths.items()}
    if examples and "examples" in examples.outputs:
        sides = examples.outputs["examples"].read_json("sizes.json") or {}
        for split, sizes in sides.items():
            found.setdefault(split, {}).update({f"image: {k}": one for k, one in sizes.items()})
    return found


def _add(statistics: Statistics, name: str, sizes: Mapping[str, Any]) -> None:
    """One more feature, of numbers."""
    feature = statistics.datasets[0].features.add(type=0)  # INT
    feature.path.step.append(name)
    numbers = feature.num_stats
    numbers.common_stats.num_non_missing = sizes["rows"]
    numbers.mean, numbers.min, numbers.max = (sizes[key] for key in ("mean", "least", "most"))
    buckets = numbers.histograms.add(type=_EQUALLY_WIDE).buckets
    for low, high, rows in sizes["buckets"]:
        buckets.add(low_value=low, high_value=high, sample_count=rows)


def feature_name(feature: Any) -> str:
    """TFDV names a feature by its name, or by its path."""
    return str(feature.name or "/".join(feature.path.step))


def _by_name(statistics: Statistics) -> dict[str, Any]:
    return {feature_name(feature): feature for feature in statistics.datasets[0].features}


# Against the version before.


def _changes(context: "Context", now: Statistics) -> list[Block]:
    """TFDV's distances between the rows trained on and those of the model compared with."""
    history = versions.history(opened(context.home, "this pipeline"))
    earlier = versions.compared_with(history, context.run)
    if earlier is None:
        return [page.text("There is no earlier version whose data these could be compared with.")]
    nodes, of = history.runs[earlier.run], f"version {earlier.version}"
    record = results.of_run(context.home / "results", earlier.run)
    same = record and record.data and record.data == context.result.data
    if same or _made(nodes) == _made(context.nodes):
        return [page.text(f"The data are the same as those of {of}.")]
    before = statistics_of(nodes).get("train")
    if before is None:
        return [page.problem(f"The statistics of {of} are gone; its data cannot be compared.")]
    counted = {name for one in (nodes, context.nodes) for name in _sizes(one).get("train", {})}
    return _compared(of, before, now, counted)


def _made(nodes: Mapping[str, Node]) -> int | None:
    """The id of the statistics' artifact."""
    output = nodes["StatisticsGen"].outputs.get("statistics") if "StatisticsGen" in nodes else None
    return output.id if output else None


def _compared(of: str, before: Statistics, now: Statistics, counted: set[str]) -> list[Block]:
    """`counted` are features of ours, which the steps that a run left out would have added."""
    old, new = (
        {name: measure for name, one in _by_name(all_).items() if (measure := _measure(one))}
        for all_ in (before, now)
    )
    measures = {name: measure for name, measure in new.items() if old.get(name) == measure}
    distances = _distances(measures, before, now) if measures else {}
    ordered = sorted(distances.items(), key=lambda item: -item[1])
    rows = [
        (name, measures[name], f"{value:.3f}", f"{drift.THRESHOLD:g}",
         "alarm" if value > drift.THRESHOLD else "ok")
        for name, value in ordered
    ]  # fmt: skip
    alarms = [name for name, value in ordered if value > drift.THRESHOLD]
    counts = [f"{one.datasets[0].num_examples:,}" for one in (now, before)]
    said = f"Alarm: they differ in {', '.join(alarms)}." if alarms else "They are alike."
    blocks = [
        page.text(f"The train split has {counts[0]} rows; that of {of} has {counts[1]}. {said}")
    ]
    changed = (set(_by_name(before)) ^ set(_by_name(now))) - counted
    if changed:
        blocks.append(page.problem(f"Only one of the two has {', '.join(sorted(changed))}."))
    head = ("feature", "measure", "distance", "threshold", "verdict")
    return [*blocks, page.table(f"Drift from the data of {of}", head, rows, range(2, 4))]


def _distances(
    measures: Mapping[str, str], before: Statistics, now: Statistics
) -> dict[str, float]:
    """TFDV's distances; of numbers the smaller one of two.

    TFDV compares ten buckets that are equally wide. Of prices and the like a single one holds
    nearly all, and the farthest row decides how wide it is: 100,000 lognormal numbers were 0.16
    from 50,000 drawn alike. Buckets that are equally full do not mind (0.02), but see a change in
    a handful of integers where there is none (0.16).
    """
    wide = drift.distances(measures, before, now)
    full = drift.distances(measures, _equally_full(before), _equally_full(now))
    return {name: min(value, full[name]) for name, value in wide.items()}


def _equally_full(statistics: Statistics) -> Statistics:
    """A copy in which TFDV's two histograms of a number, these and the quantiles, change places."""
    copied = type(statistics).FromString(statistics.SerializeToString())
    for feature in copied.datasets[0].features:
        if len(feature.num_stats.histograms) > 1:
            for one in feature.num_stats.histograms:
                one.type = _QUANTILES if one.type == _EQUALLY_WIDE else _EQUALLY_WIDE
    return copied


def _measure(feature: Any) -> str:
    """How TFDV can compare it; nothing for texts and the like, where every row has its own."""
    numbers, strings = feature.num_stats, feature.string_stats
    if numbers.histograms and numbers.common_stats.num_non_missing:
        return drift.NUMBERS
    values = strings.common_stats.tot_num_values
    ranked = strings.rank_histogram.buckets and 2 * strings.unique <= values
    return drift.NAMES if ranked else ""


# Labels and features.


def _labels(split: str, statistics: Statistics, label: str) -> list[Block]:
    """How many rows each label has; of numbers TFDV counts no values."""
    feature = _by_name(statistics).get(label)
    counts = feature.string_stats.rank_histogram.buckets if feature else ()
    if not counts:
        return []
    most = counts[0].sample_count
    rows = [(c.label, page.bar(f"{c.sample_count:,.0f}", c.sample_count / most)) for c in counts]
    return [page.table(f"Labels of {split}", ("label", "rows"), rows)]


def _features(split: str, statistics: Statistics) -> Block:
    rows, total = [], statistics.datasets[0].num_examples
    for name, feature in _by_name(statistics).items():
        values = getattr(feature, feature.WhichOneof("stats"))
        missing = total - values.common_stats.num_non_missing
        rows.append((name, f"{missing / max(1, total):.1%}", *_described(name, values)))
    head = ("feature", "missing", "different", "mean", "least", "most", "spread", "most frequent")
    return page.table(f"Features of {split}", head, rows, range(1, 6))


def _described(name: str, values: Any) -> tuple[Any, ...]:
    """different, mean, least, most, spread, most frequent: of numbers, texts, bytes or others."""
    if hasattr(values, "std_dev"):
        numbers = (f"{one:.4g}" for one in (values.mean, values.min, values.max))
        return ("", *numbers, _spread(name, values), "")
    if hasattr(values, "avg_length"):
        tops = [v for v in values.top_values[:3] if v.frequency > 1]
        often = ", ".join(f"{v.value[:40]} ({v.frequency:,.0f})" for v in tops)
        return (f"{values.unique:,}", f"{values.avg_length:.1f} bytes", "", "", "", often)
    if hasattr(values, "avg_num_bytes"):
        return ("", f"{values.avg_num_bytes:,.0f} bytes", "", "", "", "")
    return ("", "", "", "", "", "")


def _spread(name: str, values: Any) -> Any:
    """A histogram, of buckets that TFDV made equally wide, or `Sizes` ever wider."""
    buckets = [b for one in values.histograms if one.type == _EQUALLY_WIDE for b in one.buckets]
    bars = [(b.low_value, b.high_value, b.sample_count) for b in buckets]
    if not bars or not all(math.isfinite(number) for bar in bars for number in bar):
        return ""
    return page.drawn(histogram(f"{name}: rows from {values.min:.4g} to {values.max:.4g}", bars))
