"""The run report: one page of HTML, drawn from what a run left behind, that needs no network.

A report never fails a run. What cannot be read or drawn becomes a sentence in its place, and a run
that failed half way has a page that says where and why.
"""

import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..components.intervals import wilson
from ..errors import ConfigError
from . import curves, page, results
from .drawing import Span, flow, plot, timeline
from .page import Block
from .results import RunResult
from .store import Node, database, opened

_PACKAGES = ("espalier", "tensorflow", "tf-keras", "keras-nlp", "tfx", "apache-beam",
             "tensorflow-model-optimization")  # fmt: skip
_MOST_CURVES = 6
_MOST_CLASSES = 15  # of a confusion matrix; more are a list of pairs


@dataclass
class Context:
    """What the sections are drawn from."""

    home: Path
    run: str
    result: RunResult
    nodes: dict[str, Node]

    def read(self, node: str, output: str, name: str) -> Any:
        """A JSON file that a component left, or None."""
        found = self.nodes.get(node)
        return found.outputs[output].read_json(name) if found and output in found.outputs else None

    @property
    def label(self) -> str:
        """The label's column."""
        data = (YAML(typ="safe").load(self.result.config) or {}).get("data", {})
        return str(data.get("label") or "label")


def write(home: Path, run: str | None = None) -> Path:
    """Draw a run's report.

    Args:
        home: the pipeline's folder.
        run: the run's id, or the beginning of it, or the version that it pushed; the last run if
            None.

    Returns:
        The page, `home/reports/RUN.html`.

    Raises:
        ConfigError: there is no such run, or the page cannot be written.
    """
    found = context(home, run)
    return page.save(render(found), home / "reports" / f"{results.file_stem(found.run)}.html")


def context(home: Path, run: str | None) -> Context:
    """What a run's report is drawn from; arguments and errors as of `write`."""
    store = opened(home, "this pipeline")
    run = _find(home, store.runs(), run)
    nodes = {node.name: node for node in store.nodes(run)}
    result = results.of_run(home / "results", run)
    if result is None:
        result = RunResult(name=home.name, run=run, status="partial")
    return Context(home, run, result, nodes)


def _find(home: Path, runs: list[str], asked: str | None) -> str:
    """The run that somebody means by its id, the beginning of it, or the version it pushed."""
    if runs and asked is None:
        return runs[-1]
    found = [run for run in runs if asked and run.startswith(asked.replace(" ", "T"))]
    if not found:
        kept = results.all_results(home / "results")
        found = [r.run for r in kept if r.pushed and Path(r.pushed).name == asked][:1]
    if len(found) != 1:
        many = "several runs begin with" if found else "no run"
        shown = ", ".join((found or runs)[-5:]) or "none"
        raise ConfigError(f"{home}: {many} {asked}. The last ones are: {shown}.")
    return found[0]


def render(context: Context) -> str:
    """The page."""
    return page.render(
        f"{context.result.name}: what the run came to",
        _subtitle(context),
        *verdict(context),
        [page.section(title, partial(draw, context)) for title, draw in _SECTIONS],
    )


# The head.


def verdict(context: Context) -> tuple[str, str]:
    """Its mood (good, bad or neither), and the sentence."""
    result = context.result
    if result.failure:
        return "bad", f"The run did not end. {result.failure}"
    if result.status == "pushed":
        return "good", f"{result.verdict} It is served as version {Path(str(result.pushed)).name}."
    if result.status == "not_blessed":
        return "bad", f"{result.verdict} What was pushed before stays."
    unfinished = [n for n in context.nodes.values() if n.state not in ("done", "cached")]
    if unfinished:
        return "bad", f"The run did not end: {unfinished[-1].name} {unfinished[-1].state}."
    return "", "The run was told to stop before the Pusher; nothing was pushed."


def _subtitle(context: Context) -> str:
    starts = [node.started for node in context.nodes.values()]
    when = datetime.fromtimestamp(min(starts), timezone.utc) if starts else None
    took = f", {context.result.seconds:.1f} s" if context.result.seconds else ""
    return f"run {context.run}" + (f", begun {when:%Y-%m-%d %H:%M} UTC" if when else "") + took


# The sections.


def _what_ran(context: Context) -> list[Block]:
    nodes = list(context.nodes.values())
    if not nodes:
        return [page.problem("No component has begun.")]
    spans = [Span(node.name, node.started, node.seconds, node.state) for node in nodes]
    inside = f"{context.home}/"
    rows = [
        (n.name, n.state, f"{n.seconds:.1f}", results.produced(n).replace(inside, ""))
        for n in nodes
    ]
    table = page.table("", ("component", "state", "seconds", "made"), rows, range(2, 3))
    made_with = ", ".join(" ".join(item) for item in context.result.versions.items())
    return [
        page.picture(timeline("When each component ran", spans)),
        table,
        page.text(f"With {made_with}." if made_with else "Packages' versions were not recorded."),
        page.folded("All settings", context.result.config),
    ]


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _data(context: Context) -> list[Block]:
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
    for split, statistics in statistics_of(context).items():
        blocks += _labels(split, statistics, context.label)
        blocks.append(_features(split, statistics))
    return blocks


def statistics_of(context: Context) -> dict[str, Any]:
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


def feature_name(feature: Any) -> str:
    """TFDV names a feature by its name or by its path."""
    return str(feature.name or "/".join(feature.path.step))


def _labels(split: str, statistics: Any, label: str) -> list[Block]:
    """How many rows each label has; of numbers TFDV counts no values."""
    for feature in statistics.features:
        counts = feature.string_stats.rank_histogram.buckets
        if feature_name(feature) == label and counts:
            most = counts[0].sample_count
            rows = [
                (c.label, page.bar(f"{c.sample_count:,.0f}", c.sample_count / most)) for c in counts
            ]
            return [page.table(f"Labels of {split}", ("label", "rows"), rows)]
    return []


def _features(split: str, statistics: Any) -> Block:
    rows = []
    for feature in statistics.features:
        name = feature_name(feature)
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


def _training(context: Context) -> list[Block]:
    history = context.read("Trainer", "model_run", "history.json")
    if not history:
        return []
    epochs, best = history["epochs"], history["best_epoch"]

    def line(name: str) -> list[tuple[float, float]]:
        return [(n, e[name]) for n, e in enumerate(epochs, 1) if name in e]

    ends = (0.5, len(epochs) + 0.5)
    loss = {"training rows": line("loss"), "eval rows": line("val_loss")}
    accuracy = {"training rows": line("accuracy"), "eval rows": line("val_accuracy")}

    def drawn(title: str, series: dict[str, Any], y: str) -> Block:
        return page.picture(plot(title, series, x="epoch", y=y, x_range=ends, whole=True))

    kept = f"Epoch {best} of {len(epochs)} was kept: it had the lowest eval loss."
    blocks = [page.text(kept), drawn("Loss by epoch", loss, "loss")]
    blocks.append(drawn("Accuracy by epoch", accuracy, "accuracy"))
    if rates := line("learning_rate"):
        blocks.append(drawn("Learning rate by epoch", {"rate": rates}, "learning rate at its end"))
    return blocks


def _evaluation(context: Context) -> list[Block]:
    facts = context.read("Evaluator", "evaluation", "metrics.json")
    if not facts:
        return []
    candidate, baseline = facts["candidate"], facts["baseline"]
    shares = bool(candidate.get("confusion"))  # else accuracy is one of labels, not of rows
    overall = _overall(candidate["overall"], baseline, shares)
    blocks = [page.text(facts["verdict"]), overall]
    if candidate["slices"]:
        blocks.append(_slices(candidate, shares))
    if candidate["labels"]:
        names = list(next(iter(candidate["labels"].values())))
        rows = [(label, *map(page.number, v.values())) for label, v in candidate["labels"].items()]
        blocks.append(page.table("Each label against the rest", ("label", *names), rows))
    if matrix := candidate.get("confusion"):
        blocks.append(_confusion(matrix))
    closer = context.read("Evaluator", "evaluation", "closer.json") or {"scores": {}}
    return blocks + _curves(closer["scores"])


def _overall(overall: Mapping[str, float | None], baseline: Any, shares: bool) -> Block:
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


def _slices(candidate: Mapping[str, Any], shares: bool) -> Block:
    names = [name for name in candidate["overall"] if name != "rows"]
    first = names[0]
    smaller = first == "loss"

    def badness(entry: tuple[str, Any]) -> float:
        value = entry[1].get(first)
        return math.inf if value is None else value if not smaller else -value

    ordered = sorted(candidate["slices"].items(), key=badness)
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


def _curves(scores: Mapping[str, Mapping[str, list[int]]]) -> list[Block]:
    """ROC, precision and recall, calibration of a label; of many, those with the least area."""
    # Where all rows have a label, or none, there is no curve.
    told = {label: v for label, v in scores.items() if any(v["without"]) and any(v["with"])}
    if len(scores) == len(told) == 2:  # the other one is its mirror image
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


def _compression(context: Context) -> list[Block]:
    report = context.result.compression or context.read("Compressor", "report", "report.json")
    if not report:
        return []
    trained = report["candidates"][0]["figures"]
    rows, points = [], {}
    for one in report["candidates"]:
        figures, size = one["figures"], one["figures"]["bytes"] / 1e6
        latency = [figures["latency_ms"][rows_]["median"] for rows_ in ("1", "32")]
        rows.append((
            one["name"] + (", kept" if one["name"] == report["chosen"] else ""),
            f"{figures['accuracy']:.4f}", f"{figures['agreement']:.3f}",
            f"{size:.2f}", f"{trained['bytes'] / figures['bytes']:.1f}",
            f"{trained['gzipped'] / figures['gzipped']:.1f}", *(f"{ms:.2f}" for ms in latency),
        ))  # fmt: skip
        points[one["name"]] = [(size, figures["accuracy"])]
    head = ("after", "accuracy", "agrees", "MB", "times smaller", "gzipped", "1 row, ms", "32, ms")
    drawn = plot("Accuracy by size", points, x="MB", y="accuracy", marked=True)
    chosen = next(c for c in report["candidates"] if c["name"] == report["chosen"])
    layers = [
        (one["layer"], " x ".join(map(str, one["shape"])), one["format"], f"{one['values']:,}",
         page.bar(f"{one['zeros']:.0%}", one["zeros"]))
        for one in chosen["layers"]
    ]  # fmt: skip
    names = ("layer", "shape", "kept as", "different values", "zeros")
    table = page.table(f"Layers of {chosen['name']}", names, layers, 3)
    return [page.table("", head, rows), page.picture(drawn), table]


def _mistakes(context: Context) -> list[Block]:
    facts = context.read("Evaluator", "evaluation", "closer.json")
    if not facts or not facts["mistakes"]:
        return []
    rows = [
        (page.image(m["image"], m["text"]) if m.get("image") else m["text"],
         m["is"], m["said"], f"{m['score']:.3f}")
        for m in facts["mistakes"]
    ]  # fmt: skip
    table = page.table("", ("row", "is", "was said", "with the score"), rows, 3)
    return [page.text("The rows of which the model was surest, and wrong."), table, *_why(context)]


def _why(context: Context) -> list[Block]:
    """What made the model say what it said of the worst ones."""
    facts = context.read("Evaluator", "evaluation", "why.json")
    if not facts:
        return []
    if facts["problem"]:
        return [page.problem(f"Why it said so could not be found out: {facts['problem']}")]
    rows = [
        (page.why(one), one["label"], f"{one['score']:.3f}", f"{one['baseline']:.3f}")
        for one in facts["explanations"]
    ]
    head = ("blue speaks for what was said, orange against it", "was said", "score", "of nothing")
    note = "By integrated gradients; `espalier explain` does the same for any row."
    return [page.table("Why it said so", head, rows, 2), page.text(note)]


def _serving(context: Context) -> list[Block]:
    node = context.nodes.get("ServingCheck")
    facts = context.read("ServingCheck", "blessing", "serving_check.json")
    if not node or not facts:
        return []
    rows = [
        (results.text(p["text"]), p["label"], f"{p['score']:.3f}")
        for p in facts.get("predictions", [])
    ]
    blocks = [page.text(facts["verdict"]), page.text(facts.get("graph", ""))]
    blocks += [page.problem(str(failure)) for failure in facts.get("failures", [])]
    return [b for b in blocks if b["text"]] + [
        page.table("What it answered", ("row", "label", "score"), rows, 2)
    ]


def _lineage(context: Context) -> list[Block]:
    result, nodes = context.result, context.nodes
    done = {name for name, node in nodes.items() if node.state in ("done", "cached")}
    made = [("model", "of the Trainer")] if "Trainer" in done else []
    if "Compressor" in done:
        made = [("small model", "of the Compressor")]
    columns = [
        [("data", result.data[:12] or "not recorded"), ("start", result.start[:12] or "none"),
         ("code", result.versions.get("espalier", "not recorded"))],
        [("Transform", "one graph")] if "Transform" in done else [],
        made,
        [(result.status.replace("_", " "), Path(result.pushed).name if result.pushed else "")],
    ]  # fmt: skip
    drawn = flow("What gave this model", [column for column in columns if column])
    return [
        page.picture(drawn, "Hashes of the data's content and of what training started from."),
        page.text(f"Artifacts: {context.home}/artifacts; metadata: {database(context.home)}."),
        *_card(result.pushed),
    ]


def _card(pushed: str | None) -> list[Block]:
    """What the pushed version's model card says, if it is still there."""
    file = Path(pushed or "", "assets.extra", "MODEL_CARD.md")
    if not pushed or not file.is_file():
        return []
    return [page.folded(f"Model card: {file}", file.read_text(encoding="utf-8"))]


_SECTIONS: tuple[tuple[str, Callable[[Context], list[Block]]], ...] = (
    ("What ran", _what_ran),
    ("Data", _data),
    ("Training", _training),
    ("Evaluation", _evaluation),
    ("Most wrong", _mistakes),
    ("Compression", _compression),
    ("Serving check", _serving),
    ("Lineage", _lineage),
)
