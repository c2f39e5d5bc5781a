"""Two runs side by side, as one page."""

import difflib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import page, report
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
    one, other = (_flat(run.result.metrics) for run in runs)
    both = [key for key in one if key in other]
    both.sort(key=lambda key: (key[0] != "overall", -abs(other[key] - one[key])))
    rows = [
        (*key, page.number(one[key]), page.number(other[key]), f"{other[key] - one[key]:+.4f}")
        for key in both
    ]
    return [page.table("", ("rows", "metric", *_NAMES, "change"), rows, 2)] if rows else []


def _flat(metrics: dict[str, Any]) -> dict[tuple[str, str], float]:
    places = {"overall": metrics.get("overall", {}), **metrics.get("slices", {})}
    return {
        (where, name): value
        for where, values in places.items()
        for name, value in values.items()
        if name != "rows" and value is not None
    }


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
    results = [run.result for run in runs]
    packages = sorted({name for result in results for name in result.versions})
    rows = [
        ("data", *(result.data[:12] for result in results)),
        ("start", *(result.start[:12] for result in results)),
        *((name, *(result.versions.get(name, "") for result in results)) for name in packages),
    ]
    rows = [row for row in rows if row[1] != row[2]]
    blocks = [page.table("", ("what", *_NAMES), rows, 3)] if rows else []
    before, after = (result.config.splitlines() for result in results)
    changed = "\n".join(difflib.unified_diff(before, after, *_NAMES, lineterm="", n=1))
    if changed:
        return [*blocks, page.folded("What the settings differ in", changed, opened=True)]
    return [*blocks, page.text("The settings are the same.")]


def _sizes(runs: Sequence[Context]) -> list[Block]:
    results = [run.result for run in runs]
    rows = [("model, MB", *(f"{result.model_bytes / 1e6:.2f}" for result in results))]
    splits = dict.fromkeys(split for result in results for split in result.rows)
    rows += [(f"{s} rows", *(f"{result.rows.get(s, 0):,}" for result in results)) for s in splits]
    rows.append(("seconds", *(f"{result.seconds:.1f}" for result in results)))
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
