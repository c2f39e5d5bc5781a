"""What a second run may take from the first, and what it must do again."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError, RunResult, run
from espalier.serving.predictor import newest_version

# Only the comparison decides: --accept waives that and no other limit.
PLAIN = ["evaluate.at_least={}"]
WORSE = [*PLAIN, "train.epochs=1", "train.learning_rate=1e-7"]


@pytest.fixture(scope="module")
def mine(
    tmp_path_factory: pytest.TempPathFactory, small_bert: Path, make_job: Callable[..., Any]
) -> Any:
    return make_job(tmp_path_factory.mktemp("reruns"), small_bert)


@pytest.fixture(scope="module")
def good(mine: Any) -> RunResult:
    result = run(plain(mine))
    assert result.status == "pushed"
    return result


def plain(mine: Any) -> Config:
    return Config.load(mine.yaml, PLAIN)


def served(mine: Any) -> str:
    return str(newest_version(mine.folder / "models"))


def test_from_needs_an_earlier_run(tmp_path: Path, small_bert: Path, make_job: Any) -> None:
    job = make_job(tmp_path, small_bert, count=50)
    with pytest.raises(ConfigError, match="no earlier run has finished"):
        run(job.config, from_node="Trainer")


def test_from_trainer_is_held_to_the_served_model(mine: Any, good: RunResult) -> None:
    worse = Config.load(mine.yaml, WORSE)
    result = run(worse, from_node="Trainer")
    assert result.exit_code == 4
    assert "the blessed model has" in result.verdict
    assert served(mine) == good.pushed
    assert run(plain(mine)).cached  # a part of the line is not filed as the whole


def test_from_behind_a_changed_section_is_refused(mine: Any, good: RunResult) -> None:
    changed = Config.load(mine.yaml, [*PLAIN, "train.epochs=2"])
    with pytest.raises(ConfigError, match="train has changed .* Begin at Trainer"):
        run(changed, from_node="Evaluator")
    with pytest.raises(ConfigError, match="comes after"):
        run(plain(mine), from_node="Trainer", to_node="Transform")


def test_a_part_that_ends_in_a_refusal_exits_with_4(mine: Any, good: RunResult) -> None:
    assert run(Config.load(mine.yaml, WORSE), to_node="Evaluator").exit_code == 4


def test_what_is_pushed_last_is_served_and_is_the_one_to_beat(mine: Any, good: RunResult) -> None:
    worse = Config.load(mine.yaml, WORSE)
    first = run(worse, accept=True)
    assert "--accept" in first.verdict
    back = run(plain(mine), accept=True)
    again = run(worse, accept=True)
    for result in (first, back, again):
        assert result.status == "pushed"
    assert served(mine) == again.pushed
    assert len({first.pushed, back.pushed, again.pushed}) == 3
    better = run(plain(mine))
    value = again.metrics["overall"]["accuracy"]
    assert f"the blessed model has {value:.4f}" in better.verdict
    assert served(mine) == better.pushed
    assert run(plain(mine)).cached


def test_a_served_model_is_not_pushed_twice(mine: Any, good: RunResult) -> None:
    before = run(plain(mine)).pushed
    sliced = run(Config.load(mine.yaml, [*PLAIN, "evaluate.slices=[]"]))
    assert sliced.pushed == before == served(mine)
    page = Path(sliced.report).read_text(encoding="utf-8")
    assert f"The data are the same as those of version {Path(str(before)).name}." in page


def test_a_version_that_was_taken_away_comes_back(mine: Any, good: RunResult) -> None:
    shutil.rmtree(mine.folder / "models")
    result = run(plain(mine))
    assert not result.cached
    assert served(mine) == result.pushed


def test_data_changed_under_the_same_size_and_time_is_read_again(
    mine: Any, good: RunResult
) -> None:
    file = mine.folder / "data" / "reviews.csv"
    times = file.stat()
    text = file.read_text()
    swapped = text.replace("positive", "_").replace("negative", "positive").replace("_", "negative")
    assert len(swapped) == len(text)
    file.write_text(swapped)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    result = run(plain(mine), to_node="SchemaGen")
    assert {c.name: c.state for c in result.components}["ExampleGen"] == "done"
    html = Path(result.report).read_text(encoding="utf-8")
    version = Path(served(mine)).name
    assert f"Drift from the data of version {version}" in html and "They are alike." in html
    file.write_text(text)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
