"""Which recipe suits a model: successive halving over a few of them.

Every recipe is tried on a share of the training steps, the better half of them on more, and so on
(Jamieson and Talwalkar, https://arxiv.org/abs/1502.07943, section 3). Each round trains anew: a
step's schedule, such as pruning's rising share of zeros, belongs to the steps that it has.

A recipe ranks before another if it exceeds the budget by less (as `budget.rank` counts); then if
it loses less accuracy; then if its gzipped bytes times its latency are less. Losses count as equal
where the budget allows them, and without a limit where they round to the same point. Latency is
taken as a share of the trained model's in the same measurement, for the machine has moods.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ...errors import ConfigError
from ...files import write_whole
from .. import states
from . import budget as budgets
from .job import Job, progress
from .measure import Figures
from .settings import Budget, Compress

SHARES = (0.25, 0.5, 1.0)
_NOISE = 20  # latencies are told apart in twentieths of the trained model's

# Runs a recipe with a job, and gives `recipe.run`'s report.
Run = Callable[[Job, Compress], Mapping[str, Any]]


@dataclass(frozen=True)
class Point:
    """One recipe, measured.

    Attributes:
        name: what it does.
        share: of the training steps it had.
        figures, trained: what it leaves, and the trained model beside it.
        excess: how far over the budget it is; 0 within.
    """

    name: str
    share: float
    figures: Figures
    trained: Figures
    excess: float

    @property
    def loss(self) -> float:
        """Accuracy lost."""
        return self.trained.accuracy - self.figures.accuracy

    @property
    def latency(self) -> float:
        """Median time of a row, as a share of the trained model's."""
        now, before = (one.latency_ms["1"]["median"] for one in (self.figures, self.trained))
        return now / before


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        points: each recipe as it was last measured, the best first.
        front: the names of those that no other beats in accuracy, gzipped size and latency.
        best: the first one's recipe.
        left_out: name -> why it could not be tried.
    """

    points: list[Point]
    front: list[str]
    best: Compress
    left_out: dict[str, str]


def search(job: Job, budget: Budget, run: Run, time_limit: float | None = None) -> Found:
    """Try out the recipes that the family can do; what a killed search has measured is kept.

    Args:
        job: see `recipe.run`.
        budget: what the model may cost; empty where nothing is limited.
        run: runs a recipe.
        time_limit: minutes for all of it; then the best so far is taken.

    Raises:
        ConfigError: no recipe can be tried, or none was through in time.
    """
    blocks = job.family.blocks(job.settings) if job.family.LAYER else 0
    known, left_out = candidates(budget, blocks)
    job = replace(
        job, deadline=time.monotonic() + 60 * time_limit if time_limit is not None else None
    )
    latest: dict[str, Point] = {}
    names = list(known)
    for number, share in enumerate(SHARES, start=1):
        progress.info("round %d of %d: %d recipes", number, len(SHARES), len(names))
        here = replace(job, share=share, folder=job.folder / f"round-{number}")
        found = _round(here, {name: known[name] for name in names}, budget, run, left_out)
        latest |= {point.name: point for point in found}
        if job.out_of_time:
            progress.info("the time limit has passed")
            break
        names = [point.name for point in ranked(found, budget)]
        if number < len(SHARES):
            names = names[: math.ceil(len(names) / 2)]
    if not latest:
        raise ConfigError(_nothing(left_out, time_limit))
    first = ranked([latest[name] for name in names if name in latest], budget)
    others = [point for point in latest.values() if point not in first]
    points = [*first, *ranked(others, budget)]
    return Found(points, front(points), known[points[0].name], left_out)


def candidates(budget: Budget, blocks: int) -> tuple[dict[str, Compress], dict[str, str]]:
    """Recipes by name, and why others cannot keep to the budget, whatever they are trained.

    Args:
        budget: what the model may cost.
        blocks: layers that a student has fewer of; 0 where there is no student.
    """
    int8: dict[str, Any] = {"quantize": {"to": "int8"}}
    cluster: dict[str, Any] = {"cluster": {"clusters": 32}}

    def prune(sparsity: float) -> dict[str, Any]:
        return {"prune": {"sparsity": sparsity}}

    steps = [[int8], [prune(0.5), int8], [prune(0.7), int8], [prune(0.5), cluster, int8]]
    if blocks > 1:
        half, third = ({"distill": {"layers": max(1, blocks // n)}} for n in (2, 3))
        steps += [[half, int8], [third, int8], [third, prune(0.5), cluster, int8]]
    found, left_out = {}, {}
    for each in steps:  # with two layers half of them is a third, too: the name is the same
        name = ", ".join(_words(step) for step in each)
        try:
            found[name] = Compress.model_validate(
                {"steps": each, "budget": budget.model_dump(exclude_none=True)}
            )
        except ValidationError as error:
            left_out[name] = error.errors()[0]["msg"].removeprefix("Value error, ")
    return found, left_out


def _words(step: Mapping[str, Mapping[str, Any]]) -> str:
    ((kind, settings),) = step.items()
    (value,) = settings.values()
    return str(value) if kind == "quantize" else f"{kind} {value}"


def _round(
    job: Job, known: Mapping[str, Compress], budget: Budget, run: Run, left_out: dict[str, str]
) -> list[Point]:
    """Each recipe measured; one that fails is left out, one that time cuts short does not count."""
    found = []
    for name, recipe in known.items():
        folder = job.folder / name.replace(", ", "_").replace(" ", "-")
        point = folder.with_name(f"{folder.name}.json")
        if (kept := _load(point)) is not None:
            found.append(kept)
            continue
        if job.out_of_time:
            break
        progress.info("recipe: %s; %.0f%% of the training steps", name, 100 * job.share)
        try:
            report = run(replace(job, folder=folder), recipe)
        except ConfigError as error:
            progress.info("left out: %s", error)
            left_out[name] = str(error)
            continue
        if report["stopped"] or job.out_of_time:
            break
        found.append(_point(name, job.share, report, budget))
        write_whole(point, json.dumps(asdict(found[-1])))
        states.discard(folder)  # a teacher's outputs take gigabytes
    return found


def _point(name: str, share: float, report: Mapping[str, Any], budget: Budget) -> Point:
    trained, *_, last = (Figures(**one["figures"]) for one in report["candidates"])
    excess = sum(line.excess for line in budgets.lines(budget, trained, last))
    return Point(name, share, last, trained, excess)


def _load(file: Path) -> Point | None:
    if not file.exists():
        return None
    facts = json.loads(file.read_text(encoding="utf-8"))
    for name in ("figures", "trained"):
        facts[name] = Figures(**facts[name])
    return Point(**facts)


def ranked(points: Iterable[Point], budget: Budget) -> list[Point]:
    """Best first; see the module's text."""
    limited = budget.accuracy_drop is not None

    def key(point: Point) -> tuple[float, float, float]:
        loss = 0.0 if limited else max(0, round(100 * point.loss))
        return point.excess, loss, point.figures.gzipped * point.latency

    return sorted(points, key=key)


def front(points: Sequence[Point]) -> list[str]:
    """The names of the points that no other is at least as good as in accuracy, gzipped size and
    latency, and better in one of them."""

    def costs(point: Point) -> tuple[float, float, float]:
        return -point.figures.accuracy, point.figures.gzipped, round(_NOISE * point.latency)

    def beats(one: Point, other: Point) -> bool:
        return costs(one) != costs(other) and all(
            a <= b for a, b in zip(costs(one), costs(other), strict=True)
        )

    return [one.name for one in points if not any(beats(other, one) for other in points)]


def _nothing(left_out: Mapping[str, str], time_limit: float | None) -> str:
    if time_limit is not None and not left_out:
        return f"--time-limit {time_limit:g}: no recipe was through in time. Allow more minutes."
    reasons = "\n".join(f"  {name}: {why}" for name, why in left_out.items())
    return f"No recipe could be tried:\n{reasons}\nAllow more in the budget."
