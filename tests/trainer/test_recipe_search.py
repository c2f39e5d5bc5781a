"""The search for a recipe: which are tried, on how many steps, and which is the best."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from espalier.errors import ConfigError
from espalier.trainer.compression.job import Job
from espalier.trainer.compression.measure import Figures
from espalier.trainer.compression.search import Point, candidates, front, ranked, search
from espalier.trainer.compression.settings import Budget, Compress
from espalier.trainer.settings import Train


def figures(accuracy: float = 0.9, gzipped: int = 1000, latency: float = 10.0) -> Figures:
    times = {size: {"median": latency, "p99": latency} for size in ("1", "32")}
    return Figures(100, accuracy, accuracy, 1.0, 10, 10, 2 * gzipped, gzipped, times, 0, {})


def point(name: str, *measured: Any, excess: float = 0.0) -> Point:
    return Point(name, 1.0, figures(*measured), figures(), excess)


def make_job(folder: Path, blocks: int = 6) -> Job:
    """A job of a family with students, and no rows: the fake runs below train nothing."""
    family: Any = SimpleNamespace(LAYER=object(), blocks=lambda settings: blocks)
    nothing: Any = None
    return Job(family, None, 2, None, Train(), nothing, nothing, 100, False, folder)


class Lab:
    """Runs recipes by a table: each step's gain in size and loss in accuracy; notes what it ran."""

    def __init__(self, wait: float = 0.0) -> None:
        self.ran: list[tuple[str, float]] = []
        self._wait = wait

    def __call__(self, job: Job, recipe: Compress) -> Mapping[str, Any]:
        name = job.folder.name
        job.folder.mkdir(parents=True, exist_ok=True)
        self.ran.append((name, job.share))
        time.sleep(self._wait)
        if name == "prune-0.7_int8":
            raise ConfigError("compress.steps: prune: the loss is no longer a number.")
        size = 0.6 ** len(recipe.steps)
        first = recipe.steps[0].settings
        speed = getattr(first, "layers", 6) / 6
        lost = 0.04 if getattr(first, "layers", 6) == 2 else 0.002
        made = figures(0.9 - lost, int(1000 * size), 10 * speed)
        both = [{"figures": asdict(figures())}, {"figures": asdict(made)}]
        return {"candidates": both, "stopped": []}


def test_what_a_family_can_do_is_tried() -> None:
    names = list(candidates(Budget(), 6)[0])
    assert names == [
        "int8",
        "prune 0.5, int8",
        "prune 0.7, int8",
        "prune 0.5, cluster 32, int8",
        "distill 3, int8",
        "distill 2, int8",
        "distill 2, prune 0.5, cluster 32, int8",
    ]
    assert not any("distill" in name for name in candidates(Budget(), 0)[0])
    assert len(candidates(Budget(), 2)[0]) == 6  # half of two layers is one, as a third is


def test_what_can_never_keep_to_the_budget_is_not_tried() -> None:
    found, left_out = candidates(Budget(latency="2x"), 6)
    assert all(name.startswith("distill") for name in found)
    assert "Distill to fewer layers" in left_out["int8"]
    with pytest.raises(ConfigError, match=r"(?s)No recipe could be tried:.*int8: .*Allow more"):
        search(make_job(Path("unused"), 0), Budget(latency="2x"), Lab())


def test_half_goes_on_with_more_steps_each_round(tmp_path: Path) -> None:
    lab = Lab()
    found = search(make_job(tmp_path), Budget(), lab)
    assert [share for _, share in lab.ran] == [0.25] * 7 + [0.5] * 3 + [1.0] * 2
    assert found.points[0].share == 1.0
    assert found.points[0].name == "distill 3, int8"  # half the time, a third of the size
    assert [entry.kind for entry in found.best.steps] == ["distill", "quantize"]
    assert list(found.left_out) == ["prune 0.7, int8"]
    assert {one.name for one in found.points} == {*candidates(Budget(), 6)[0]} - {*found.left_out}


def test_a_killed_search_measures_nothing_twice(tmp_path: Path) -> None:
    first, second = Lab(), Lab()
    before = search(make_job(tmp_path), Budget(), first)
    after = search(make_job(tmp_path), Budget(), second)
    assert {name for name, _ in second.ran} <= {"prune-0.7_int8"}  # what failed is tried again
    assert after.points == before.points
    kept = json.loads((tmp_path / "round-1" / "int8.json").read_text())
    assert kept["share"] == 0.25


def test_the_time_limit_leaves_the_best_so_far(tmp_path: Path) -> None:
    lab = Lab(wait=0.1)
    found = search(make_job(tmp_path), Budget(), lab, time_limit=0.25 / 60)
    assert len(lab.ran) == 3 and len(found.points) == 2
    with pytest.raises(ConfigError, match="no recipe was through in time"):
        search(make_job(tmp_path / "anew"), Budget(), Lab(wait=0.1), time_limit=0.05 / 60)


@pytest.mark.parametrize(
    ("budget", "points", "best"),
    [
        (Budget(), [point("a", 0.90, 900), point("b", 0.898, 300)], "b"),  # under a point
        (Budget(), [point("a", 0.90, 900), point("b", 0.88, 300)], "a"),
        (Budget(accuracy_drop=0.03), [point("a", 0.90, 900), point("b", 0.88, 300)], "b"),
        (Budget(), [point("a", 0.90, 300, 10), point("b", 0.90, 400, 5)], "b"),  # size x latency
        (Budget(), [point("a", 0.90, 100, excess=0.1), point("b", 0.5, 900)], "b"),
    ],
)
def test_the_order(budget: Budget, points: list[Point], best: str) -> None:
    assert ranked(points, budget)[0].name == best


def test_the_front_is_what_nothing_beats() -> None:
    points = [
        point("accurate", 0.91, 900, 10),
        point("small", 0.90, 300, 10.1),
        point("small, slower by a moment", 0.90, 300, 10.2),  # noise
        point("beaten", 0.89, 400, 10),
        point("fast", 0.80, 500, 3),
    ]
    assert front(points) == ["accurate", "small", "small, slower by a moment", "fast"]


def test_a_share_shortens_an_epoch(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    job.train = Train(batch_size=8)
    assert job.steps_per_epoch == 13
    job.share = 0.25
    assert job.steps_per_epoch == 4
