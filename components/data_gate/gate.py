"""Judges statistics and anomalies, and words what a user has to mend."""

import json
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

from tensorflow_metadata.proto.v0 import anomalies_pb2, path_pb2, statistics_pb2

from ...errors import DataError

ERROR = "ERROR"
DATASET = "(whole split)"
# StatisticsGen names the statistics of all rows so when it also makes some of slices.
_ALL_ROWS = ("", "All Examples")

# What to do, by TFDV's names for what it found; the rest get the last line.
_ADVICE = {
    "ENUM_TYPE_UNEXPECTED_STRING_VALUES": "correct the values, or add them to the schema's domain",
    "SCHEMA_MISSING_COLUMN": "put the column back into the data, or take it out of the schema",
    "FEATURE_TYPE_NOT_PRESENT": "put the column back into the data, or take it out of the schema",
    "SCHEMA_NEW_COLUMN": "take the column out of the data, or add it to the schema",
    "FEATURE_TYPE_LOW_FRACTION_PRESENT": "fill the empty fields, or lower min_fraction there",
    "UNEXPECTED_DATA_TYPE": "correct the values, or the feature's type in the schema",
    "DATASET_LOW_NUM_EXAMPLES": "give more rows, or lower min_examples_count in the schema",
}
_ADVICE_DRIFT = "see what changed in the data, or raise the threshold in the schema"
_ADVICE_LABEL = "correct the labels; a new label needs rows in train and a place in the schema"
_ADVICE_ELSE = "correct the data, or change the schema"
_WIDEST = (24, 14, 40, 36)  # Columns of the table, in characters.


@dataclass(frozen=True)
class Anomaly:
    """One thing that TFDV found, in its words. `kinds` are names of AnomalyInfo.Type."""

    split: str
    feature: str
    severity: str
    short: str
    long: str
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """Rows of each split, every anomaly whatever its severity, and how long texts are.

    `lengths` are in characters: {split: {column: `Sizes.to_json`}}.
    """

    rows: dict[str, int]
    anomalies: list[Anomaly]
    lengths: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """{"rows": {split: int}, "anomalies": [{split, feature, severity, short, long, kinds}],
        "lengths": ...}."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)


def judge(
    statistics: Mapping[str, statistics_pb2.DatasetFeatureStatisticsList],
    anomalies: Mapping[str, anomalies_pb2.Anomalies],
) -> Report:
    """Gathers what was counted and found, by split; raises nothing."""
    rows = {split: count_rows(found) for split, found in statistics.items()}
    listed = [item for split, found in anomalies.items() for item in _anomalies(split, found)]
    return Report(rows, sorted(listed, key=lambda item: (item.feature, item.split)))


def count_rows(statistics: statistics_pb2.DatasetFeatureStatisticsList) -> int:
    """Rows of a split; 0 where StatisticsGen saw none."""
    whole = [dataset for dataset in statistics.datasets if dataset.name in _ALL_ROWS]
    return int((whole or list(statistics.datasets))[0].num_examples) if statistics.datasets else 0


def raise_if_refused(report: Report, label: str) -> None:
    """Raises DataError for empty splits and anomalies of severity ERROR, all in one message."""
    empty = [split for split, rows in report.rows.items() if rows == 0]
    # An empty split misses every column: to say it once is enough.
    errors = [a for a in report.anomalies if a.severity == ERROR and a.split not in empty]
    parts = []
    if empty:
        counts = ", ".join(f"{split} {rows}" for split, rows in report.rows.items())
        names = " and ".join(empty)
        parts.append(
            f"No rows in {names} (rows: {counts}). Add rows to the data, or name "
            "separate files for train, eval and test under `data`."
        )
    if errors:
        count = "1 error" if len(errors) == 1 else f"{len(errors)} errors"
        parts.append(
            f"The data does not fit its schema: {count}. Correct the data, or edit the curated "
            f"schema (`data.schema`).\n\n{table(errors, label)}"
        )
    if parts:
        raise DataError("\n\n".join(parts))


def raise_if_unseen(labels: Mapping[str, Mapping[str, int]], label: str) -> None:
    """Raises DataError if eval or test rows have a label of no train row: nothing could learn
    it, and metrics over such rows would mislead."""
    lines = [
        f"  {value!r}: {rows} rows in {split}, none in train"
        for split, counts in labels.items()
        for value, rows in counts.items()
        if value not in labels["train"]
    ]
    if lines:
        raise DataError(
            f"The column {label!r} has labels that training does not see:\n"
            + "\n".join(lines[:20])
            + "\nGive more rows of them, take their rows out, or name separate files for train, "
            "eval and test under `data`."
        )


def table(anomalies: list[Anomaly], label: str) -> str:
    """The anomalies as plain text: feature, split, what was found, what to do."""
    rows: list[tuple[str, ...]] = [("feature", "split", "what was found", "what to do")]
    for item in anomalies:
        feature = f"{item.feature} (the label)" if item.feature == label else item.feature
        rows.append((feature, item.split, item.long or item.short, _advice(item, label)))
    longest = [max(map(len, column)) for column in zip(*rows, strict=True)]
    widths = [min(pair) for pair in zip(longest, _WIDEST, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join(line for row in rows for line in _lines(row, widths))


def _lines(row: tuple[str, ...], widths: list[int]) -> list[str]:
    """A row's lines of text: as many as its fullest cell needs."""
    cells = [textwrap.wrap(cell, width) for cell, width in zip(row, widths, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in zip_longest(*cells, fillvalue="")
    ]


def _advice(item: Anomaly, label: str) -> str:
    advice = []
    for kind in item.kinds:
        if kind == "ENUM_TYPE_UNEXPECTED_STRING_VALUES" and item.feature == label:
            advice.append(_ADVICE_LABEL)
        elif kind.startswith("COMPARATOR_"):
            advice.append(_ADVICE_DRIFT)
        else:
            advice.append(_ADVICE.get(kind, _ADVICE_ELSE))
    return "; ".join(dict.fromkeys(advice)) or _ADVICE_ELSE


def _anomalies(split: str, found: anomalies_pb2.Anomalies) -> Iterator[Anomaly]:
    for name, info in found.anomaly_info.items():
        yield _anomaly(split, _path(info.path) or name, info)
    if found.HasField("dataset_anomaly_info"):
        yield _anomaly(split, DATASET, found.dataset_anomaly_info)
    # TFDV repeats a measurement over its threshold as an anomaly of the feature; take those
    # that it did not repeat, so that none is lost and none comes twice.
    told = {_path(info.path) or name for name, info in found.anomaly_info.items()}
    for drift in found.drift_skew_info:
        feature = _path(drift.path)
        if feature not in told:
            yield from _drifts(split, feature, drift)


def _anomaly(split: str, feature: str, info: anomalies_pb2.AnomalyInfo) -> Anomaly:
    kinds = tuple(anomalies_pb2.AnomalyInfo.Type.Name(reason.type) for reason in info.reason)
    severity = anomalies_pb2.AnomalyInfo.Severity.Name(info.severity)
    return Anomaly(split, feature, severity, info.short_description, info.description, kinds)


def _drifts(split: str, feature: str, drift: anomalies_pb2.DriftSkewInfo) -> Iterator[Anomaly]:
    measured = [("drift", m) for m in drift.drift_measurements]
    measured += [("skew", m) for m in drift.skew_measurements]
    for what, m in measured:
        if m.value > m.threshold:
            kind = anomalies_pb2.DriftSkewInfo.Measurement.Type.Name(m.type)
            long = f"{what} {m.value:.4g} ({kind}) is above the threshold {m.threshold:.4g}"
            yield Anomaly(split, feature, ERROR, f"High {what}", long, (f"COMPARATOR_{kind}",))


def _path(path: path_pb2.Path) -> str:
    return ".".join(path.step)
