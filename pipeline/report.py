"""The run report: one page of HTML, drawn from what a run left behind, that needs no network.

A report never fails a run. What cannot be read or drawn becomes a sentence in its place, and a run
that failed half way, or before its first component, has a page that says where and why.
"""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from ..errors import ConfigError
from ..trainer.tuning.settings import word
from . import page, report_data, report_evaluation, results
from .drawing import Span, flow, plot, timeline
from .page import Block
from .results import RunResult
from .store import Node, Store, database, opened

_PACKAGES = ("espalier", "tensorflow", "tf-keras", "keras-nlp", "tfx", "apache-beam",
             "tensorflow-model-optimization")  # fmt: skip


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
    store, begun, why = _metadata(home)
    unbegun = results.unbegun(home / "results", begun)
    if not begun and not unbegun:
        raise ConfigError(why)
    ordered = results.in_order(zip(begun, begun, strict=True), zip(unbegun, unbegun, strict=True))
    run = _find(home, ordered, run)
    nodes = {node.name: node for node in store.nodes(run)} if store else {}
    result = results.of_run(home / "results", run)
    if result is None:
        result = RunResult(name=home.name, run=run, status="partial")
    return Context(home, run, result, nodes)


def _metadata(home: Path) -> tuple[Store | None, list[str], str]:
    """The pipeline's metadata and the runs in there; or none, and why: a run may have failed
    because of it."""
    try:
        store = opened(home, "this pipeline")
        return store, store.runs(), f"{home}: no run of this pipeline yet."
    except ConfigError as error:
        return None, [], str(error)
    except Exception as error:  # of ML Metadata there are many kinds
        return None, [], f"{database(home)}: cannot be read: {str(error).splitlines()[0][:200]}."


def _find(home: Path, runs: list[str], asked: str | None) -> str:
    """The run that somebody means; the last one if None."""

    def pushed_by(version: str) -> str | None:
        kept = results.all_results(home / "results")
        return next((r.run for r in kept if r.pushed and Path(r.pushed).name == version), None)

    return runs[-1] if asked is None else results.find_run(home, runs, asked, pushed_by)


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
        how = "end" if result.components or context.nodes else "begin"
        return "bad", f"The run did not {how}. {result.failure}"
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
    made_with = ", ".join(" ".join(item) for item in context.result.versions.items())
    settings = [
        page.text(f"With {made_with}." if made_with else "Packages' versions were not recorded."),
        page.folded("All settings", context.result.config),
    ]
    if not nodes:
        why = (
            "its metadata is gone or cannot be read"
            if context.result.components
            else "it failed before the first one"
        )
        return [page.problem(f"No component of this run can be shown: {why}."), *settings]
    spans = [Span(node.name, node.started, node.seconds, node.state) for node in nodes]
    inside = f"{context.home}/"
    rows = [
        (n.name, n.state, f"{n.seconds:.1f}", results.produced(n).replace(inside, ""))
        for n in nodes
    ]
    table = page.table("", ("component", "state", "seconds", "made"), rows, range(2, 3))
    return [page.picture(timeline("When each component ran", spans)), table, *settings]


def versions() -> dict[str, str]:
    """Of Python and of the packages that results depend on."""
    found = {"Python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _tuning(context: Context) -> list[Block]:
    found = context.read("Tuner", "tuner_results", "trials.json")
    if not found:
        return []
    tried, failed = [[t for t in found["trials"] if bool(t["failure"]) == x] for x in (False, True)]
    best = next(one for one in tried if one["trial"] == found["best"])
    keys = list(best["values"])
    rows = [
        (f"{t['trial']}, best" if t is best else t["trial"],
         *(word(t["values"][key]) for key in keys),
         "failed" if t["failure"] else f"{t['epochs']}, cut short" if t["cut"] else t["epochs"],
         page.number(t["loss"]), page.number(t["accuracy"]), f"{t['seconds']:.1f}")
        for t in found["trials"]
    ]  # fmt: skip
    head = ("trial", *keys, "epochs", "eval loss", "eval accuracy", "seconds")
    chosen = f"Trial {best['trial']} was chosen for the training: it had the lowest eval loss."
    losses = [(float(t["trial"]), t["loss"]) for t in tried]
    lowest = [(n, min(loss for m, loss in losses if m <= n)) for n, _ in losses]
    series = {"each trial": losses, "lowest so far": lowest}
    ends = (0.5, len(found["trials"]) + 0.5)
    drawn = plot("Eval loss by trial", series, x="trial", y="eval loss", x_range=ends, whole=True)
    return [
        page.text(chosen),
        *(page.problem(f"Trial {t['trial']} failed: {t['failure']}") for t in failed),
        page.table("", head, rows),
        page.picture(drawn),
        *(picture for key in keys for picture in _by_value(key, tried, best)),
    ]


def _by_value(key: str, tried: list[dict[str, Any]], best: dict[str, Any]) -> list[Block]:
    """Eval loss by a number that was searched."""
    points = {id(t): (t["values"][key], t["loss"]) for t in tried}
    values = {value for value, _ in points.values()}
    if len(values) < 2 or not all(type(value) in (int, float) for value in values):
        return []
    series = {"": [p for one, p in points.items() if one != id(best)], "best": [points[id(best)]]}
    far = min(values) > 0 and max(values) > 10 * min(values)
    title = f"Eval loss by {key}"
    return [page.picture(plot(title, series, x=key, y="eval loss", marked=True, log=far))]


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
    if not nodes:
        return []
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
    ("Data", report_data.section),
    ("Tuning", _tuning),
    ("Training", _training),
    ("Evaluation", report_evaluation.section),
    ("Most wrong", _mistakes),
    ("Compression", _compression),
    ("Serving check", _serving),
    ("Lineage", _lineage),
)
