"""What the report says of the data: rows, anomalies, labels and features of each split."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import page, results
from .page import Block

if TYPE_CHECKING:
    from .report import Context


def section(context: "Context") -> list[Block]:
    """Its blocks."""
    blocks = []
    gate = context.nodes.get("DataGate")
    if gate and gate.state in ("done", "cached"):
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
    for split, statistics in _statistics(context).items():
        blocks += _labels(split, statistics, context.label)
        blocks.append(_features(split, statistics))
    return blocks


def _statistics(context: "Context") -> dict[str, Any]:
    """TFDV's statistics by split."""
    from tensorflow_metadata.proto.v0 import statistics_pb2

    node = context.nodes.get("StatisticsGen")
    if node is None or "statistics" not in node.outputs:
        return {}
    found = {}
    files = Path(node.outputs["statistics"].uri).glob("Split-*/FeatureStats.pb")
    for file in sorted(files, reverse=True):  # train before test before eval
        statistics = statistics_pb2.DatasetFeatureStatisticsList()
        statistics.ParseFromString(file.read_bytes())
        found[file.parent.name.removeprefix("Split-")] = statistics.datasets[0]
    return found


def _name(feature: Any) -> str:
    return str(feature.name or "/".join(feature.path.step))


def _labels(split: str, statistics: Any, label: str) -> list[Block]:
    """How many rows each label has; of numbers TFDV counts no values."""
    for feature in statistics.features:
        counts = feature.string_stats.rank_histogram.buckets
        if _name(feature) == label and counts:
            most = counts[0].sample_count
            rows = [
                (c.label, page.bar(f"{c.sample_count:,.0f}", c.sample_count / most)) for c in counts
            ]
            return [page.table(f"Labels of {split}", ("label", "rows"), rows)]
    return []


def _features(split: str, statistics: Any) -> Block:
    rows = []
    for feature in statistics.features:
        name = _name(feature)
        values = getattr(feature, feature.WhichOneof("stats"))
        missing = statistics.num_examples - values.common_stats.num_non_missing
        share = f"{missing / max(1, statistics.num_examples):.1%}"
        rows.append((name, share, *_described(values)))
    head = ("feature", "missing", "different", "mean", "least", "most", "most frequent")
    return page.table(f"Features of {split}", head, rows, range(1, 6))


def _described(values: Any) -> tuple[str, ...]:
    """different, mean, least, most, most frequent: of numbers, texts, bytes or anything else."""
    if hasattr(values, "std_dev"):
        return ("", f"{values.mean:.4g}", f"{values.min:.4g}", f"{values.max:.4g}", "")
    if hasattr(values, "avg_length"):
        tops = [v for v in values.top_values[:3] if v.frequency > 1]
        often = ", ".join(f"{v.value[:40]} ({v.frequency:,.0f})" for v in tops)
        return (f"{values.unique:,}", f"{values.avg_length:.1f} characters", "", "", often)
    if hasattr(values, "avg_num_bytes"):
        return ("", f"{values.avg_num_bytes:,.0f} bytes", "", "", "")
    return ("", "", "", "", "")
