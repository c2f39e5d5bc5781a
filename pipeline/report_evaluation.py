"""What the report says of the evaluation: metrics, slices, confusion and curves."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..components.intervals import wilson
from . import curves, page
from .drawing import plot
from .page import Block

if TYPE_CHECKING:
    from .report import Context

Metrics = Mapping[str, Any]  # name -> float or None

_MOST_CURVES = 6
_MOST_CLASSES = 15  # of a confusion matrix; more are a list of pairs


def section(context: "Context") -> list[Block]:
    """Its blocks."""
    facts = context.read("Evaluator", "evaluation", "metrics.json")
    if not facts:
        return []
    candidate, baseline = facts["candidate"], facts["baseline"]
    shares = bool(candidate.get("confusion"))  # else a row may have several labels
    overall = _overall(candidate["overall"], baseline, shares)
    blocks = [page.text(facts["verdict"]), overall]
    if candidate["slices"]:
        blocks.append(_slices(candidate, shares))
    if candidate["labels"]:
        blocks.append(_each_label(candidate["labels"]))
    if matrix := candidate.get("confusion"):
        blocks.append(_confusion(matrix))
    closer = context.read("Evaluator", "evaluation", "closer.json") or {"scores": {}}
    return blocks + _curves(closer["scores"], mirrored=shares)


def _overall(overall: Metrics, baseline: Any, shares: bool) -> Block:
    head = ["metric", "value", *(["95 % of samples"] if shares else [])]
    head += ["blessed before", "change"] if baseline else []
    rows = []
    for name, value in overall.items():
        if name == "rows":
            continue
        row = [name, page.number(value)]
        row += [_interval(name, value, overall["rows"])] if shares else []
        if baseline:
            before = baseline["overall"].get(name)
            both = value is not None and before is not None
            row += [page.number(before), f"{value - before:+.4f}" if both else "–"]
        rows.append(row)
    return page.table(f"On {overall['rows']:,} rows", head, rows)


def _interval(name: str, value: float | None, rows: float | None) -> str:
    """Wilson's interval (1927) of a share of rows; other metrics are no shares."""
    if name != "accuracy" or value is None or not rows:
        return ""
    low, high = wilson(value, int(rows))
    return f"{low:.4f} to {high:.4f}"


def _worst_first(entries: Mapping[str, Metrics], metric: str) -> list[tuple[str, Metrics]]:
    """Sorted by a metric, those without it last."""

    def badness(entry: tuple[str, Metrics]) -> float:
        value = entry[1].get(metric)
        return math.inf if value is None else -value if metric == "loss" else value

    return sorted(entries.items(), key=badness)


def _each_label(labels: Mapping[str, Metrics]) -> Block:
    """In their own order, unless there are more than a table shows."""
    names = list(next(iter(labels.values())))
    title, ordered = "Each label against the rest", list(labels.items())
    if len(labels) > page.MOST:
        title, ordered = f"{title}, the worst first", _worst_first(labels, names[0])
    rows = [(label, *map(page.number, values.values())) for label, values in ordered]
    return page.table(title, ("label", *names), rows)


def _slices(candidate: Mapping[str, Any], shares: bool) -> Block:
    names = [name for name in candidate["overall"] if name != "rows"]
    ordered = _worst_first(candidate["slices"], names[0])
    shown = "accuracy" in names and shares
    rows = [
        (name, f"{v['rows']:,}", *map(page.number, (v.get(n) for n in names)),
         *([_interval("accuracy", v.get("accuracy"), v["rows"])] if shown else []))
        for name, v in ordered
    ]  # fmt: skip
    head = ("slice", "rows", *names, *(["95 % of samples of accuracy"] if shown else []))
    return page.table("Slices, the worst first", head, rows)


def _confusion(matrix: Mapping[str, Mapping[str, int]]) -> Block:
    """A table of actual by said labels, or of the pairs that are confused most."""
    labels = list(matrix)
    if len(labels) > _MOST_CLASSES:
        pairs = sorted(
            ((n, a, s) for a, row in matrix.items() for s, n in row.items() if a != s and n),
            reverse=True,
        )
        return page.table("Confused most", ("is", "was said", "rows"),
                      [(a, s, f"{n:,}") for n, a, s in pairs], 2)  # fmt: skip
    rows = []
    for actual in labels:
        row, total = matrix[actual], sum(matrix[actual].values()) or 1
        cells = [{"text": f"{row.get(s, 0):,}", "shade": round(100 * row.get(s, 0) / total)}
                 for s in labels]  # fmt: skip
        rows.append((actual, *cells))
    head = ["is, by row; was said, by column", *labels]
    return page.table("Confusion", head, rows)


def _curves(scores: Mapping[str, Mapping[str, list[int]]], mirrored: bool) -> list[Block]:
    """ROC, precision and recall, calibration of a label; of many, those with the least area.

    `mirrored`: of two labels one is the other's mirror image.
    """
    # Where all rows have a label, or none, there is no curve.
    told = {label: v for label, v in scores.items() if any(v["without"]) and any(v["with"])}
    if mirrored and len(scores) == len(told) == 2:
        told.pop(next(iter(told)))
    if not told:
        return []
    rocs = {label: curves.roc(v["without"], v["with"]) for label, v in told.items()}
    rocs = dict(sorted(rocs.items(), key=lambda item: curves.area(item[1]))[:_MOST_CURVES])
    parts = {label: (scores[label]["without"], scores[label]["with"]) for label in rocs}
    recalls = {label: curves.precision_recall(*part) for label, part in parts.items()}
    groups = {label: curves.calibration(*part) for label, part in parts.items()}
    calibrated = {label: [(s, share) for s, share, _ in found] for label, found in groups.items()}
    areas = ", ".join(f"{label} {curves.area(line):.3f}" for label, line in rocs.items())
    errors = ", ".join(f"{label} {curves.calibration_error(g):.3f}" for label, g in groups.items())
    square: dict[str, Any] = {"x_range": (0.0, 1.0), "y_range": (0.0, 1.02)}
    drawn = plot(
        "ROC", rocs, x="false positive rate", y="true positive rate", **square, diagonal=True
    )
    recall = plot("Precision by recall", recalls, x="recall", y="precision", **square)
    shares = plot(
        "Calibration", calibrated, x="score", y="share that has the label", **square, diagonal=True
    )
    return [
        page.picture(drawn, f"ROC; the area below it: {areas}."),
        page.picture(recall, "Precision by recall."),
        page.picture(shares, f"Calibration, by tenths of the scores; expected error: {errors}."),
    ]  # fmt: skip
