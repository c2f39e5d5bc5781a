"""The same job with other settings, one run for each combination, and what came of them.

Each is a run of its own up to the Evaluator, with its own lineage; what they share is computed
once, by TFX's cache. Nothing is pushed.
"""

import copy
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..errors import ConfigError, EspalierError
from ..terminal import Screen
from .config import Config
from .runner import run

SEED = "train.seed"
_FIXED = ("name", "runs", "push", "sweep", "cluster", "version", "card", "secrets")
_MOST = 100  # runs


@dataclass(frozen=True)
class Variant:
    """One combination: its values by the keys that are swept, and the whole configuration."""

    values: dict[str, Any]
    config: Config


@dataclass(frozen=True)
class Row:
    """What came of one combination.

    Attributes:
        values: by the keys that are swept.
        run: its id; "" if it failed.
        metrics: overall.
        seconds: of the run; what came from the cache takes none.
        failure: why it failed.
    """

    values: dict[str, Any]
    run: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Group:
    """Runs that differ by their seed alone: the mean of each metric, and its standard deviation
    (None of one run)."""

    values: dict[str, Any]
    runs: int
    means: dict[str, float]
    deviations: dict[str, float | None]


@dataclass(frozen=True)
class Swept:
    """What a sweep came to; `metric` is the first of `evaluate.metrics`."""

    rows: list[Row]
    metric: str

    @property
    def groups(self) -> list[Group]:
        """All combinations, seeds aside, the best first."""
        found: dict[tuple[tuple[str, str], ...], list[Row]] = {}
        for row in self.rows:
            if not row.failure:
                key = tuple((k, repr(v)) for k, v in row.values.items() if k != SEED)
                found.setdefault(key, []).append(row)
        groups = [_group(rows) for rows in found.values()]
        known = [group for group in groups if self.metric in group.means]
        return sorted(known, key=lambda g: g.means[self.metric], reverse=self.metric != "loss")

    @property
    def exit_code(self) -> int:
        """0, or 3 where a run failed."""
        return 3 if any(row.failure for row in self.rows) else 0


def variants(config: Config) -> list[Variant]:
    """Every combination of the values in `sweep:`.

    Raises:
        ConfigError: there is no `sweep:`, a key does not exist or cannot be swept, or a value does
            not fit; says every fault.
    """
    if not config.sweep:
        raise ConfigError(
            "sweep: is missing. Name keys and lists of values: sweep: {train.seed: [1, 2, 3]}"
        )
    faults = [
        f"sweep: {key}: cannot be swept; it is the same for all runs of a sweep."
        for key in config.sweep
        if key.partition(".")[0] in _FIXED
    ]
    searched = config.tune.over if config.tune else {}
    faults += [f"sweep: {key}: tune.over searches it." for key in config.sweep if key in searched]
    count = 1
    for tried in config.sweep.values():
        count *= len(tried)
    if count > _MOST:
        faults.append(f"sweep: {count} combinations; at most {_MOST} are run. Take values out.")
    if faults:
        raise ConfigError("\n".join(faults))
    plain = {**config.model_dump(mode="json", by_alias=True), "sweep": {}}
    found: list[Variant] = []
    errors: dict[str, None] = {}
    for combination in itertools.product(*config.sweep.values()):
        values = dict(zip(config.sweep, combination, strict=True))
        try:
            found.append(Variant(values, Config(**_with(plain, values))))
        except ConfigError as error:
            errors[str(error).replace("Config:", "sweep:")] = None
    if errors:
        raise ConfigError("\n".join(errors))
    return found


def _with(plain: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(plain)
    for key, value in values.items():
        place, (*parents, last) = changed, key.split(".")
        for parent in parents:
            if not isinstance(place.get(parent), dict):
                raise ConfigError(f"sweep: {key}: there is no section {parent!r} here.")
            place = place[parent]
        place[last] = value
    return changed


def sweep(config: Config, console: Console | None = None) -> Swept:
    """Run every combination, up to the Evaluator.

    A run that fails is noted, and the next one begins. A sweep that was killed goes on where it
    was: what is done comes from the cache.

    Args:
        config: the job, with `sweep:`.
        console: where progress goes; standard output if None.

    Raises:
        ConfigError: see `variants`; or all runs fail for the same reason.
    """
    screen, rows = console or Screen(), []
    found = variants(config)
    for number, variant in enumerate(found, 1):
        words = ", ".join(f"{key} {value}" for key, value in variant.values.items())
        screen.rule(escape(f"{number} of {len(found)}: {words}"), align="left")
        rows.append(_run(variant, console))
    if len({row.failure for row in rows}) == 1 and rows[0].failure:
        raise ConfigError(f"sweep: every run failed alike: {rows[0].failure}")
    return Swept(rows, config.evaluate.measured[0])


def _run(variant: Variant, console: Console | None) -> Row:
    try:
        result = run(variant.config, to_node="Evaluator", accept=True, console=console)
    except EspalierError as error:
        return Row(variant.values, failure=str(error))
    overall = {k: v for k, v in result.metrics["overall"].items() if k != "rows" and v is not None}
    return Row(variant.values, result.run, overall, result.seconds)


def _group(rows: Sequence[Row]) -> Group:
    names = [name for name in rows[0].metrics if all(name in row.metrics for row in rows)]
    values = {name: [row.metrics[name] for row in rows] for name in names}
    return Group(
        {key: value for key, value in rows[0].values.items() if key != SEED},
        len(rows),
        {name: statistics.fmean(found) for name, found in values.items()},
        {
            name: statistics.stdev(found) if len(found) > 1 else None
            for name, found in values.items()
        },
    )


# --- how it is shown ----------------------------------------------------------------------------


def table(swept: Swept) -> Table:
    """A line for each run."""
    keys, metrics = _names(swept.rows)
    drawn = _headed([*keys, *metrics, "seconds", "run"], len(keys))
    for row in swept.rows:
        values = (str(row.values[key]) for key in keys)
        figures = (f"{row.metrics[m]:.4f}" if m in row.metrics else "-" for m in metrics)
        last = row.run or f"failed: {row.failure.splitlines()[0]}"
        drawn.add_row(*map(escape, values), *figures, f"{row.seconds:.1f}", escape(last))
    return drawn


def groups_table(swept: Swept) -> Table:
    """A line for each combination, seeds aside, the best first: the mean, and the spread."""
    groups = swept.groups
    keys = list(groups[0].values) if groups else []
    metrics = list(dict.fromkeys(name for group in groups for name in group.means))
    drawn = _headed([*keys, "runs", *metrics], len(keys))
    for group in groups:
        cells = [_spread(group, metric) for metric in metrics]
        drawn.add_row(*(escape(str(v)) for v in group.values.values()), str(group.runs), *cells)
    return drawn


def _spread(group: Group, metric: str) -> str:
    if metric not in group.means:
        return "-"
    deviation = group.deviations[metric]
    return f"{group.means[metric]:.4f}" + (f" ± {deviation:.4f}" if deviation is not None else "")


def _names(rows: Iterable[Row]) -> tuple[list[str], list[str]]:
    """The swept keys, and the metrics of any row."""
    keys: dict[str, None] = {}
    metrics: dict[str, None] = {}
    for row in rows:
        keys |= dict.fromkeys(row.values)
        metrics |= dict.fromkeys(row.metrics)
    return list(keys), list(metrics)


def _headed(names: Sequence[str], texts: int) -> Table:
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for place, name in enumerate(names):
        drawn.add_column(name, justify="left" if place < texts or name == "run" else "right")
    return drawn
