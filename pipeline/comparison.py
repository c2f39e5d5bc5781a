"""Two runs side by side, as one page."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from . import diff, page, report
from .drawing import plot
from .page import Block
from .report import Context
from .results import file_stem

_NAMES = ("A", "B")


def write(home: Path, first: str, second: str | None) -> Path:
    """Draw the page that compares two runs.

    Args:
        home: the pipeline's folder.
        first: a run's id, or as of `report.write`: A.
        second: another's, B; the last one if None.

    Returns:
        The page, `home/reports/A..B.html`.

    Raises:
        ConfigError: there is no such run, or the page cannot be written.
    """
    runs = [report.context(home, run) for run in (first, second)]
    html = page.render(
        f"{home.name}: two runs side by side",
        "; ".join(f"{name} is the run {c.run}" for name, c in zip(_NAMES, runs, strict=True)),
        "",
        " ".join(f"{n}: {report.verdict(c)[1]}" for n, c in zip(_NAMES, runs, strict=True)),
        [page.section(title, partial(draw, runs)) for title, draw in _SECTIONS],
    )
    name = "..".join(file_stem(context.run) for context in runs)
    return page.save(html, home / "reports" / f"{name}.html")


def _metrics(runs: Sequence[Context]) -> list[Block]:
    """All metrics, overall and by slice, that both runs have; the largest change first."""
    rows = [
        (m.where, m.name, page.number(m.old), page.number(m.new), f"{m.change:+.4f}", m.chance)
        for m in diff.metrics(*(run.result for run in runs))
    ]
    head = ("rows", "metric", *_NAMES, "change", "")
    return [page.table("", head, rows, range(2, 5))] if rows else []


def _training(runs: Sequence[Context]) -> list[Block]:
    lines = {}
    for name, run in zip(_NAMES, runs, strict=True):
        history = run.read("Trainer", "model_run", "history.json")
        if history:
            losses = [epoch["val_loss"] for epoch in history["epochs"]]
            lines[name] = [(float(n), loss) for n, loss in enumerate(losses, 1)]
    if not lines:
        return []
    drawn = plot("Eval loss by epoch", lines, x="epoch", y="eval loss", whole=True)
    return [page.picture(drawn)]


def _differences(runs: Sequence[Context]) -> list[Block]:
    one, other = (run.result for run in runs)
    changed = list(diff.settings(one, other))
    rest = [*diff.data(*runs), *diff.packages(one, other)]
    blocks = [_changes("Settings", changed)] if changed else []
    blocks += [_changes("Data and packages", rest)] if rest else []
    return blocks if changed else [*blocks, page.text("The settings are the same.")]


def _changes(title: str, changes: Sequence[diff.Change]) -> Block:
    rows = [(one.what, diff.value(one.old), diff.value(one.new)) for one in changes]
    return page.table(title, ("what", *_NAMES), rows, 3)


def _sizes(runs: Sequence[Context]) -> list[Block]:
    sizes = [dict(diff.sizes_of(run.result)) for run in runs]
    names = dict.fromkeys(name for one in sizes for name in one)
    rows = [(name, *(diff.value(one.get(name)) for one in sizes)) for name in names]
    rows.append(("seconds", *(f"{run.result.seconds:.1f}" for run in runs)))
    for name in dict.fromkeys(name for run in runs for name in run.nodes):
        nodes = [run.nodes.get(name) for run in runs]
        rows.append((name, *(f"{n.seconds:.1f} s, {n.state}" if n else "–" for n in nodes)))
    return [page.table("", ("what", *_NAMES), rows)]


_SECTIONS = (
    ("Metrics", _metrics),
    ("Training", _training),
    ("What differs", _differences),
    ("Sizes and times", _sizes),
)
