"""What a run came to: a plain record, stored as JSON, and the table a person reads."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..errors import ConfigError
from ..files import write_whole
from ..masking import masked
from ..trainer.tuning.settings import words
from .store import Node, Output, Store

_GONE = "(its files are gone)"
T = TypeVar("T")
Status = Literal["pushed", "not_blessed", "partial", "failed"]


class Component(BaseModel):
    """One component: its state, how long it took in seconds, what it produced in words."""

    name: str
    state: str
    seconds: float
    produced: str = ""


class RunResult(BaseModel):
    """A run's results.

    Attributes:
        status: pushed; not_blessed (refused, the blessed model stays); partial (the run was
            told to stop before the Pusher); failed.
        failure: why it failed.
        key: hash of everything the results depend on.
        cached: whether nothing had to run at all.
        seconds: from start to end.
        rows: per split.
        skipped: pictures that could not be used and were left out.
        metrics: {"overall": {metric: value}, "slices": {"column=value": {...}}, "labels": {label:
            {...}}}.
        baseline: the blessed model's, where it was compared.
        predictions: [{"text": ..., "label": ..., "score": ...}]; a picture's text is its path.
        model_bytes: size of the SavedModel.
        graph: what is served, in a sentence.
        compression: the Compressor's report (see `trainer.compression.recipe.run`).
        pushed: the version's folder.
        config: the resolved YAML.
        data: hash of the data's content.
        start: hash of what training started from.
        log: TFX's and TensorFlow's own output.
        versions: of the packages that made it.
        report: the page that shows all of it.
    """

    model_config = ConfigDict(protected_namespaces=())

    name: str
    run: str = ""
    status: Status
    failure: str = ""
    verdict: str = ""
    key: str = ""
    cached: bool = False
    seconds: float = 0.0
    components: list[Component] = []
    rows: dict[str, int] = {}
    skipped: int = 0
    metrics: dict[str, Any] = {}
    baseline: dict[str, Any] | None = None
    predictions: list[dict[str, Any]] = []
    model_bytes: int = 0
    graph: str = ""
    compression: dict[str, Any] | None = None
    pushed: str | None = None
    config: str = ""
    data: str = ""
    start: str = ""
    log: str = ""
    versions: dict[str, str] = {}
    report: str = ""

    @property
    def exit_code(self) -> int:
        """0, or 4 for a refused model."""
        return 4 if self.status == "not_blessed" else 0

    @property
    def finished(self) -> set[str]:
        """The components whose results stand."""
        return {c.name for c in self.components if c.state in ("done", "cached")}

    def save(self, folder: Path) -> Path:
        """Write `RUN.json` and, after a whole run, `latest.json`, each atomically."""
        folder.mkdir(parents=True, exist_ok=True)
        names = [_file_name(self.run)]
        if self.key:
            names.append("latest.json")
        for name in names:
            write_whole(folder / name, masked(self.model_dump_json(indent=1)))
        return folder / names[0]


def latest(folder: Path) -> RunResult | None:
    """The last whole run's results, if they can be read."""
    return _read(folder / "latest.json")


def of_run(folder: Path, run: str) -> RunResult | None:
    """One run's results, if they can be read."""
    return _read(folder / _file_name(run))


def find_run(
    home: Path, runs: Sequence[str], asked: str, pushed_by: Callable[[str], str | None]
) -> str:
    """The run that somebody means by its id, the beginning of it, or the version it pushed.

    Args:
        home: the pipeline's folder, for the message.
        runs: their ids, the last one last.
        asked: what was said.
        pushed_by: the run of a version.

    Raises:
        ConfigError: there is none, or more than one.
    """
    found = [run for run in runs if run.startswith(asked.replace(" ", "T"))]
    if not found and (run := pushed_by(asked)):
        return run
    if len(found) != 1:
        many = "several runs begin with" if found else "no run"
        shown = ", ".join((found or runs)[-5:]) or "none"
        raise ConfigError(f"{home}: {many} {asked}. The last ones are: {shown}.")
    return found[0]


def all_results(folder: Path) -> list[RunResult]:
    """Every run's results that can be read, oldest first."""
    files = [file for file in folder.glob("[!.]*.json") if file.name != "latest.json"]
    files.sort(key=lambda file: file.stat().st_mtime_ns)
    return [result for file in files if (result := _read(file))]


def in_order(known: Iterable[tuple[str, T]], others: Iterable[tuple[str, T]]) -> list[T]:
    """Things by their times (ISO), the oldest first. Those whose order is known stay in it, even
    where a clock was set back between them, as it is each autumn."""
    latest, timed = "", list(others)
    for when, one in known:
        latest = max(latest, when)
        timed.append((latest, one))
    return [one for _, one in sorted(timed, key=lambda pair: pair[0])]


def unbegun(folder: Path, begun: Collection[str]) -> list[str]:
    """The runs that have results and are not among those that have begun a component."""
    stems = {"latest", *map(file_stem, begun)}
    files = [file for file in folder.glob("[!.]*.json") if file.stem not in stems]
    return [result.run for file in files if (result := _read(file))]


def file_stem(run: str) -> str:
    """A run's id as the name of a file."""
    return run.replace(":", "-")


def _file_name(run: str) -> str:
    return f"{file_stem(run)}.json"


def _read(file: Path) -> RunResult | None:
    try:
        return RunResult.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def collect(name: str, store: Store, run: str) -> RunResult:
    """Read a run's results out of its metadata and artifacts."""
    nodes = {node.name: node for node in store.nodes(run)}
    result = RunResult(name=name, run=run, status="partial")
    result.components = components(list(nodes.values()))
    if examples := nodes.get("ExampleGen"):
        result.skipped = _skipped(examples)
    if gate := nodes.get("DataGate"):
        result.rows = gate_report(gate).get("rows", {})
    if compressor := nodes.get("Compressor"):
        result.compression = compressor.outputs["report"].read_json("report.json")
    if evaluator := nodes.get("Evaluator"):
        facts = evaluator.outputs["evaluation"].read_json("metrics.json")
        result.metrics, result.baseline = facts["candidate"], facts["baseline"]
        result.verdict = facts["verdict"]
        result.status = "partial" if facts["blessed"] else "not_blessed"
    if check := nodes.get("ServingCheck"):
        facts = _serving_facts(check)
        result.predictions = facts.get("predictions", [])
        result.model_bytes = facts.get("size_bytes", 0)
        result.graph = facts.get("graph", "")
        if _refused_by_check(nodes):
            result.status = "not_blessed"
            result.verdict = check.outputs["blessing"].properties["verdict"]
    if pusher := nodes.get("Pusher"):
        marks = pusher.outputs["pushed_model"].properties
        result.status = "pushed" if marks.get("pushed") else "not_blessed"
        result.pushed = marks.get("pushed_destination")
    return result


def failed(name: str, nodes: list[Node], run: str, failure: str) -> RunResult:
    """What is known of a run that failed; `nodes` are those that it had begun."""
    made = components(nodes)
    return RunResult(name=name, run=run, status="failed", failure=failure, components=made)


def components(nodes: list[Node]) -> list[Component]:
    """What is known of each, in words."""
    return [
        Component(name=n.name, state=n.state, seconds=n.seconds, produced=produced(n))
        for n in nodes
    ]


def _refused_by_check(nodes: dict[str, Node]) -> bool:
    return not nodes["ServingCheck"].outputs["blessing"].properties.get("blessed")


def gate_report(node: Node) -> dict[str, Any]:
    """What the DataGate has written: rows by split, and anomalies."""
    value = Path(node.outputs["report"].uri)
    return json.loads((value / "value" if value.is_dir() else value).read_text(encoding="utf-8"))


def _skipped(node: Node) -> int:
    return int(node.outputs["examples"].properties.get("skipped", 0))


def _serving_facts(node: Node) -> dict[str, Any]:
    return node.outputs["blessing"].read_json("serving_check.json") or {}


def produced(node: Node) -> str:
    """What a component made, in a few words."""
    if node.state not in ("done", "cached"):
        return ""
    speak = _SPEAKERS.get(node.name)
    try:
        return speak(node) if speak else ", ".join(map(_place, node.outputs.values()))
    except (OSError, TypeError, KeyError, ValueError):
        return _GONE


def _place(output: Output) -> str:
    return output.uri if output.live else _GONE


def _say_examples(node: Node) -> str:
    skipped = _skipped(node)
    place = _place(node.outputs["examples"])
    return f"{place}; {skipped:,} bad images skipped" if skipped else place


def _say_gate(node: Node) -> str:
    report = gate_report(node)
    rows = ", ".join(f"{count:,} {split}" for split, count in report["rows"].items())
    found = len(report["anomalies"])
    return f"{rows}; " + (f"{found} warnings" if found else "no anomalies")


def trials(node: Node) -> dict[str, Any]:
    """What the Tuner has found; see `trainer.tuning.search.Search.found`."""
    return dict(node.outputs["tuner_results"].read_json("trials.json"))


def _say_tuner(node: Node) -> str:
    found = trials(node)
    best = next(one for one in found["trials"] if one["trial"] == found["best"])
    count = len(found["trials"])
    tried = "1 trial" if count == 1 else f"{count} trials"
    return f"{tried}; best: {words(best['values'])}, eval loss {best['loss']:.4f}"


def _say_trainer(node: Node) -> str:
    history = node.outputs["model_run"].read_json("history.json")
    best = history["epochs"][history["best_epoch"] - 1]
    return f"best epoch {history['best_epoch']}, eval accuracy {best['val_accuracy']:.4f}"


def _say_compressor(node: Node) -> str:
    return str(node.outputs["report"].properties.get("verdict", ""))


def _say_verdict(node: Node) -> str:
    return str(node.outputs["blessing"].properties.get("verdict", ""))


def _say_pusher(node: Node) -> str:
    marks = node.outputs["pushed_model"].properties
    return str(marks.get("pushed_destination") or marks.get("reason") or "")


def _say_baseline(node: Node) -> str:
    found = node.outputs.get("pushed_model")
    return f"version {found.properties['pushed_version']}" if found else "none yet"


def _say_transform(node: Node) -> str:
    return _place(node.outputs["transform_graph"])


_SPEAKERS = {
    "ExampleGen": _say_examples,
    "Transform": _say_transform,
    "DataGate": _say_gate,
    "Tuner": _say_tuner,
    "Trainer": _say_trainer,
    "Compressor": _say_compressor,
    "Evaluator": _say_verdict,
    "ServingCheck": _say_verdict,
    "Pusher": _say_pusher,
    "LatestBlessed": _say_baseline,
}


def table(result: RunResult) -> Group:
    """The closing tables of a run."""
    parts: list[RenderableType] = []
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    if result.rows:
        rows = ", ".join(f"{count:,} {split}" for split, count in result.rows.items())
        facts.add_row("rows", rows)
    if result.skipped:
        facts.add_row("skipped", f"{result.skipped:,} images; skipped.jsonl beside them says why")
    if result.model_bytes:
        facts.add_row("model", f"{result.model_bytes / 1e6:.1f} MB")
    if result.graph:
        facts.add_row("graph", escape(result.graph))
    if result.verdict:
        facts.add_row("verdict", escape(result.verdict))
    if result.status == "pushed":
        facts.add_row("pushed", f"[green]{escape(str(result.pushed))}[/]")
    elif result.status == "not_blessed":
        facts.add_row("pushed", "[red]no[/]; what was pushed before stays")
    if result.report:
        facts.add_row("report", escape(result.report))
    facts.add_row("time", f"{result.seconds:.1f} s" + (" (all cached)" if result.cached else ""))
    parts.append(facts)
    if result.metrics:
        parts += [Text(""), _metrics(result)]
        if labels := result.metrics.get("labels"):
            parts += [Text(""), _label_metrics(labels)]
    if result.compression:
        parts += [Text(""), compression_table(result.compression)]
    if result.predictions:
        parts += [Text(""), _predictions(result)]
    return Group(Text(""), *parts)


def _metrics(result: RunResult) -> Table:
    overall = result.metrics["overall"]
    rows: list[tuple[str, dict[str, Any]]] = [("overall", overall)]
    rows += [(escape(title), values) for title, values in result.metrics["slices"].items()]
    if result.baseline:
        rows.append(("[dim]blessed before[/]", result.baseline["overall"]))
    return _numbers("metrics", "slice", ["rows", *(n for n in overall if n != "rows")], rows)


def compression_table(report: dict[str, Any]) -> Table:
    """The candidates side by side, and how many times smaller or faster than the trained model.

    Narrow enough for a terminal of 80 columns; the report has F1, memory, parameters and p99.
    """
    table = Table(title="compression", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("after")
    for name in ("accuracy", "agrees", "MB", "gzipped", "1 row, ms", "32 rows"):
        table.add_column(name, justify="right")
    trained = report["candidates"][0]["figures"]
    for candidate in report["candidates"]:
        figures, name = candidate["figures"], candidate["name"]
        style = "green" if name == report["chosen"] else None
        table.add_row(name, *_compression_cells(figures, trained), style=style)
        if lite := figures["tflite"]:
            size = _times(lite["bytes"] / 1e6, trained["bytes"] / 1e6)
            agrees = f"{lite['agreement']:.3f}"
            table.add_row(".tflite", f"{lite['accuracy']:.4f}", agrees, size, style=style)
    return table


def _compression_cells(figures: dict[str, Any], trained: dict[str, Any]) -> list[str]:
    def latency(batch: str) -> str:
        return _times(*(one["latency_ms"][batch]["median"] for one in (figures, trained)))

    return [
        f"{figures['accuracy']:.4f}",
        f"{figures['agreement']:.3f}",
        _times(figures["bytes"] / 1e6, trained["bytes"] / 1e6),
        _times(figures["gzipped"] / 1e6, trained["gzipped"] / 1e6),
        latency("1"),
        latency("32"),
    ]


def _times(value: float, of: float) -> str:
    digits = 1 if value >= 10 else 2
    return f"{value:.{digits}f} {of / value:.1f}x"


_MOST_LABELS = 20  # shown; results/ and metrics.json have all


def _label_metrics(labels: dict[str, dict[str, float | None]]) -> Table:
    rows = [(escape(label), values) for label, values in labels.items()]
    table = _numbers("each label", "label", list(rows[0][1]), rows[:_MOST_LABELS])
    if len(rows) > _MOST_LABELS:
        table.add_row(f"... {len(rows) - _MOST_LABELS} more")
    return table


def _numbers(
    title: str, first: str, names: list[str], rows: list[tuple[str, dict[str, Any]]]
) -> Table:
    """A table with a name in front of each row's numbers."""
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column(first)
    for name in names:
        table.add_column(name, justify="right")
    for row, values in rows:
        cells = (
            f"{values.get(name, 0):,}" if name == "rows" else _number(values.get(name))
            for name in names
        )
        table.add_row(row, *cells)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _predictions(result: RunResult) -> Table:
    table = Table(title="predictions", title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("text")
    table.add_column("label")
    table.add_column("score", justify="right")
    for row in result.predictions[:2]:
        table.add_row(escape(text(row["text"])), escape(row["label"]), f"{row['score']:.3f}")
    return table


def text(text: str | list[str]) -> str:
    """A row's text, or its two."""
    return text if isinstance(text, str) else " | ".join(text)
