"""What differs between two runs: settings, data, metrics, sizes, packages; as Markdown too."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from ..components.intervals import wilson
from . import report, report_data, versions
from .config import Config
from .formats import migrate
from .report import Context
from .results import RunResult

MAY_BE_CHANCE, NO_CHANCE = "may be chance", "more than chance"
_MOST = 40  # rows of a table in Markdown; JSON has all


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        run: its id.
        version: what it pushed; "" if nothing.
        verdict: of its report, in a sentence or two.
    """

    run: str
    version: str
    verdict: str


@dataclass(frozen=True)
class Change:
    """Something that differs; None where a side has no such thing."""

    what: str
    old: Any
    new: Any


@dataclass(frozen=True)
class Metric:
    """One metric of both, whether it differs or not.

    Attributes:
        where: "overall" or a slice.
        name: the metric's.
        old, new: its values.
        chance: of an accuracy that differs, whether the 95 % intervals of the two (Wilson 1927)
            overlap: "may be chance" or "more than chance"; "" of other metrics, of which no
            interval is known.
    """

    where: str
    name: str
    old: float
    new: float
    chance: str

    @property
    def change(self) -> float:
        """What the second has more."""
        return self.new - self.old


@dataclass(frozen=True)
class Diff:
    """What differs between two runs of a pipeline; every list holds only what does, but metrics."""

    name: str
    first: Side
    second: Side
    settings: Sequence[Change]
    data: Sequence[Change]
    metrics: Sequence[Metric]
    sizes: Sequence[Change]
    packages: Sequence[Change]


def compare(config: Config, first: str, second: str | None = None) -> Diff:
    """Set two runs side by side.

    Args:
        config: the pipeline.
        first, second: a run's id, the beginning of it, or a version; None is the last run.

    Raises:
        ConfigError: there is no run yet, or no such run.
    """
    known = versions.read(config).versions
    asked = (known[one].run if one in known else one for one in (first, second))
    a, b = (report.context(config.home, one) for one in asked)
    return Diff(
        config.name,
        _side(a),
        _side(b),
        list(settings(a.result, b.result)),
        list(data(a, b)),
        metrics(a.result, b.result),
        list(sizes(a.result, b.result)),
        list(packages(a.result, b.result)),
    )


def _side(context: Context) -> Side:
    version = (context.result.pushed or "").rpartition("/")[2]
    return Side(context.run, version, context.result.verdict or report.verdict(context)[1].strip())


def settings(a: RunResult, b: RunResult) -> Iterator[Change]:
    """The keys that differ, by their paths: `train.epochs`, `compress.steps.0.prune.sparsity`."""
    trees = [YAML(typ="safe").load(one.config) or {} for one in (a, b)]
    for tree, one in zip(trees, (a, b), strict=True):
        migrate(tree, f"the run of {one.run}")
    return _changes(*(dict(_leaves(tree)) for tree in trees))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(path, value) of all that is no section; a list of plain values is one value."""
    sections = isinstance(tree, list) and any(isinstance(one, dict | list) for one in tree)
    if not (isinstance(tree, dict) or sections):
        yield path, tree
        return
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield from _leaves(value, f"{path}.{key}" if path else str(key))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[Change]:
    for what in dict.fromkeys([*old, *new]):
        if old.get(what) != new.get(what):
            yield Change(what, old.get(what), new.get(what))


def data(a: Context, b: Context) -> Iterator[Change]:
    """The data's hash, rows, labels' shares and TFDV's statistics, of each split."""
    yield from _changes(*(dict(_rows(one.result)) for one in (a, b)))
    old, new = (dict(_statistics(one)) for one in (a, b))
    if old and new:
        yield from _changes(old, new)
    elif old or new:
        yield Change("TFDV's statistics", *("there" if one else "gone" for one in (old, new)))


def _rows(result: RunResult) -> Iterator[tuple[str, Any]]:
    yield "hash of the content", result.data[:12] or None
    for split, count in result.rows.items():
        yield f"{split}: rows", count


def _statistics(context: Context) -> Iterator[tuple[str, Any]]:
    for split, found in report_data.statistics_of(context.nodes).items():
        statistics = found.datasets[0]
        for feature in statistics.features:
            name = report_data.feature_name(feature)
            values = getattr(feature, feature.WhichOneof("stats"))
            missing = statistics.num_examples - values.common_stats.num_non_missing
            yield f"{split}: {name}, missing", _share(missing, statistics.num_examples)
            counts = feature.string_stats.rank_histogram.buckets
            if name == context.label and counts:
                whole = sum(one.sample_count for one in counts)
                for one in counts:
                    yield f"{split}: {name} {one.label}", _share(one.sample_count, whole)
            for words, field in _FIELDS.items():
                if hasattr(values, field):
                    yield f"{split}: {name}, {words}", float(f"{getattr(values, field):.4g}")


_FIELDS = {
    "mean": "mean",
    "standard deviation": "std_dev",
    "least": "min",
    "most": "max",
    "different values": "unique",
    "mean characters": "avg_length",
    "mean bytes": "avg_num_bytes",
}


def _share(part: float, whole: float) -> str:
    return f"{part / max(1, whole):.1%}"


def metrics(a: RunResult, b: RunResult) -> list[Metric]:
    """Those that both runs have, overall and then by slice; the largest change first."""
    old, new = _flat(a.metrics), _flat(b.metrics)
    shares = all(one.metrics.get("confusion") for one in (a, b))  # else accuracy is one of labels
    found = []
    for where, name in old.keys() & new.keys():
        (before, rows), (after, rows_after) = old[where, name], new[where, name]
        chance = ""
        if name == "accuracy" and before != after and shares and rows and rows_after:
            chance = _chance(wilson(before, rows), wilson(after, rows_after))
        found.append(Metric(where, name, before, after, chance))
    return sorted(found, key=lambda m: (m.where != "overall", -abs(m.change), m.where, m.name))


def _flat(measured: Mapping[str, Any]) -> dict[tuple[str, str], tuple[float, int]]:
    """Value and rows by (slice, metric)."""
    places = {"overall": measured.get("overall", {}), **measured.get("slices", {})}
    return {
        (where, name): (value, int(values.get("rows") or 0))
        for where, values in places.items()
        for name, value in values.items()
        if name != "rows" and value is not None
    }


def _chance(old: tuple[float, float], new: tuple[float, float]) -> str:
    apart = old[1] < new[0] or new[1] < old[0]
    return NO_CHANCE if apart else MAY_BE_CHANCE


def sizes(a: RunResult, b: RunResult) -> Iterator[Change]:
    """The served model's size, and what the Compressor measured of it."""
    return _changes(*(dict(sizes_of(one)) for one in (a, b)))


def sizes_of(result: RunResult) -> Iterator[tuple[str, Any]]:
    """What of one run's model `sizes` compares, by its name."""
    yield "model, MB", round(result.model_bytes / 1e6, 2) or None
    if report_ := result.compression:
        chosen = next(c for c in report_["candidates"] if c["name"] == report_["chosen"])
        figures = chosen["figures"]
        yield "compressed by", chosen["name"]
        yield "gzipped, MB", round(figures["gzipped"] / 1e6, 2)
        yield "accuracy after compression", round(figures["accuracy"], 4)
        yield "agrees with the trained model", round(figures["agreement"], 4)
        for rows, words in (("1", "1 row"), ("32", "32 rows")):
            yield f"{words}, ms", round(figures["latency_ms"][rows]["median"], 2)


def packages(a: RunResult, b: RunResult) -> Iterator[Change]:
    """What training started from, by its hash, and the packages' versions."""
    start = Change("start", a.start[:12] or None, b.start[:12] or None)
    yield from [start] if start.old != start.new else []
    yield from _changes(a.versions, b.versions)


# --- Markdown -----------------------------------------------------------------------------------


def markdown(diff: Diff) -> str:
    """The whole as GitHub shows it in a pull request."""
    lines = [f"## {diff.name}: A and B", ""]
    for name, side in zip("AB", (diff.first, diff.second), strict=True):
        version = f", version {side.version}" if side.version else ""
        lines.append(f"- {name}: the run {side.run}{version}. {_cell(side.verdict)}")
    lines += _section("Settings", diff.settings, "The settings are the same.")
    lines += _section("Data", diff.data, "The data is the same.")
    lines += _metrics(diff.metrics)
    lines += _section("Size and speed", diff.sizes, "Nothing measured differs.")
    lines += _section("Packages", diff.packages, "The packages are the same.")
    return "\n".join(lines) + "\n"


def _section(title: str, changes: Sequence[Change], without: str) -> list[str]:
    rows = [(f"`{one.what}`", value(one.old), value(one.new)) for one in changes]
    return ["", f"### {title}", "", *(_table(("what", "A", "B"), rows) if rows else [without])]


def _metrics(found: Sequence[Metric]) -> list[str]:
    rows = [
        (one.where, one.name, f"{one.old:.4f}", f"{one.new:.4f}", f"{one.change:+.4f}", one.chance)
        for one in found
        if one.change or one.where == "overall"
    ]
    if not rows:
        return ["", "### Metrics", "", "There is none that both have."]
    lines = ["", "### Metrics", "", *_table(("rows", "metric", "A", "B", "change", ""), rows)]
    if same := len(found) - len(rows):
        lines += ["", f"{same} more, of slices, are the same."]
    if any(one.chance for one in found):
        lines += ["", f'"{MAY_BE_CHANCE.capitalize()}": the 95 % intervals of the two overlap.']
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows[:_MOST])]
    more = len(rows) - _MOST
    return [*lines, "", f"... and {more} more; `--json` has all."] if more > 0 else lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def value(of: Any) -> str:
    """One side of a change, for people to read."""
    if of is None:
        return "–"
    if isinstance(of, int) and not isinstance(of, bool):
        return f"{of:,}"
    return str(of).removesuffix(".0") if isinstance(of, float) else str(of)
