"""What a second run may take from the first, and what it must do again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError, RunResult, run
from espalier.pipeline import contents
from espalier.pipeline.runner import foresee
from espalier.pipeline.store import Store
from espalier.serving.predictor import newest_version
from espalier.trainer.export import describe

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


def foreseen(config: Config, **options: Any) -> RunResult:
    """Run it, and hold what `plan` has said before to what came."""
    planned = foresee(config, **options)
    result = run(config, **options)
    states = {c.name: c.state for c in result.components if c.name != "LatestBlessed"}
    if result.cached:
        assert planned == []
    else:
        assert {step.name: "done" if step.runs else "cached" for step in planned} == states
        assert all(bool(step.why) == step.runs for step in planned)
    return result


def reasons(config: Config) -> dict[str, str]:
    return {step.name: step.why for step in foresee(config) if step.runs}


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
    first = foreseen(worse, accept=True)
    assert "--accept" in first.verdict
    back = foreseen(plain(mine), accept=True)
    again = foreseen(worse, accept=True)
    for result in (first, back, again):
        assert result.status == "pushed"
    assert served(mine) == again.pushed
    assert len({first.pushed, back.pushed, again.pushed}) == 3
    assert reasons(plain(mine))["Evaluator"] == "--accept: False, was True"
    better = foreseen(plain(mine))
    kept = Config.load(mine.yaml, [*PLAIN, "push.keep=7"])
    assert reasons(kept)["Evaluator"].startswith("another model is served")
    value = again.metrics["overall"]["accuracy"]
    assert f"the blessed model has {value:.4f}" in better.verdict
    assert served(mine) == better.pushed
    assert foreseen(plain(mine)).cached


def test_a_served_model_is_not_pushed_twice(mine: Any, good: RunResult) -> None:
    before = run(plain(mine)).pushed
    unsliced = Config.load(mine.yaml, [*PLAIN, "evaluate.slices=[]"])
    assert reasons(unsliced)["Evaluator"] == "evaluate.slices: [], was ['category']"
    sliced = foreseen(unsliced)
    assert sliced.pushed == before == served(mine)
    page = Path(sliced.report).read_text(encoding="utf-8")
    assert f"The data are the same as those of version {Path(str(before)).name}." in page


def test_a_version_that_was_taken_away_comes_back(mine: Any, good: RunResult) -> None:
    shutil.rmtree(mine.folder / "models")
    result = foreseen(plain(mine))
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
    assert reasons(plain(mine))["ExampleGen"] == "the data's content has changed"
    result = run(plain(mine), to_node="SchemaGen")
    assert {c.name: c.state for c in result.components}["ExampleGen"] == "done"
    html = Path(result.report).read_text(encoding="utf-8")
    version = Path(served(mine)).name
    assert f"Drift from the data of version {version}" in html and "They are alike." in html
    file.write_text(text)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_result_that_was_altered_is_made_again(mine: Any, good: RunResult) -> None:
    config = Config.load(mine.yaml, [*PLAIN, "evaluate.slices=[category]", "push.keep=1"])
    run(config)
    nodes = {n.name: n for n in Store(config.home).nodes(Store(config.home).runs()[-1])}
    graph = Path(nodes["Transform"].outputs["transform_graph"].uri)
    (file,) = graph.rglob("wordpiece-*.txt")
    content, times = file.read_bytes(), file.stat()
    os.utime(file)  # another time, the same content
    assert "Transform" not in reasons(config)
    file.write_bytes(content[:-10])
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    changed = config.model_copy(update={"push": config.push.model_copy(update={"keep": 2})})
    assert reasons(changed)["Transform"] == f"{file} was altered"
    assert reasons(changed)["Trainer"] == "Transform runs"
    os.utime(mine.folder / "data" / "reviews.csv")  # as a fresh checkout has it
    result = foreseen(changed)
    assert {c.name: c.state for c in result.components}["ExampleGen"] == "cached"
    assert result.exit_code == 0
    (made,) = (o for o in contents.altered(config.home, nodes["Transform"].outputs.values()))
    assert made == nodes["Transform"].outputs["transform_graph"].id  # the old one stays as it is


def test_an_altered_model_is_trained_again_and_still_the_one_to_beat(
    mine: Any, good: RunResult
) -> None:
    config = Config.load(mine.yaml, [*PLAIN, "evaluate.slices=[]", "push.keep=11"])
    before = foreseen(config)
    nodes = {n.name: n for n in Store(config.home).nodes(before.run)}
    model = Path(nodes["Trainer"].outputs["model"].uri)
    (sample,) = model.rglob("sample_request.json")
    sample.write_text(sample.read_text() + " ")
    with pytest.raises(ConfigError, match="sample_request.json was altered since"):
        run(config, from_node="ServingCheck")
    again = config.model_copy(update={"push": config.push.model_copy(update={"keep": 12})})
    assert reasons(again)["Trainer"] == f"{sample} was altered"
    result = run(again, to_node="Evaluator")
    states = {c.name: c.state for c in result.components}
    assert states["Trainer"] == "done" and states["Transform"] == "cached"
    assert "the blessed model has" in result.verdict


def test_a_sweep_shares_what_it_can(mine: Any, good: RunResult) -> None:
    mine.yaml.write_text(
        mine.yaml.read_text() + "sweep: {evaluate.metrics: [[accuracy], [loss, auc]], "
        "evaluate.slices: [[], [none]]}\n"
    )
    before = served(mine)
    done = mine.cli("sweep", str(mine.yaml), "--set", PLAIN[0], "--json")
    assert done.returncode == 3, done.stderr  # of the slice that is not there
    found = json.loads(done.stdout)
    assert [bool(row["failure"]) for row in found["runs"]] == [False, True, False, True]
    assert "none" in found["runs"][1]["failure"]
    assert set(found["runs"][0]["metrics"]) == {"accuracy"}
    assert set(found["runs"][2]["metrics"]) == {"loss", "auc", "accuracy"}  # it has a limit
    for row in (found["runs"][0], found["runs"][2]):
        nodes = {n.name: n.state for n in Store(mine.config.home).nodes(row["run"])}
        assert nodes["Trainer"] == "cached" and nodes["Evaluator"] == "done"
        assert "Pusher" not in nodes
    assert served(mine) == before


def test_a_training_goes_on_from_what_was_pushed_last(mine: Any, good: RunResult) -> None:
    """With a rate of nearly nothing it stays what it was."""
    goes_on = ["train.from=last-blessed", "train.epochs=1", "train.learning_rate=1e-9"]
    config = Config.load(mine.yaml, [*PLAIN, *goes_on])
    before = run(plain(mine))
    result = foreseen(config)
    assert result.metrics["overall"] == pytest.approx(before.metrics["overall"], abs=1e-6)
    assert describe(served(mine))["continued"]
    assert "version that was pushed before" in (
        Path(served(mine), "assets.extra", "MODEL_CARD.md").read_text()
    )
    assert run(config).cached  # nothing is new
    again = Config.load(mine.yaml, [*PLAIN, *goes_on, "push.keep=9"])
    assert reasons(again)["Trainer"].startswith("another model is served")


def test_the_command(mine: Any, good: RunResult) -> None:
    run(plain(mine))
    done = mine.cli("plan", str(mine.yaml), "--set", PLAIN[0])
    assert (done.returncode, done.stdout.strip()) == (
        0, "nothing to do: the last run had the same to go by",
    )  # fmt: skip
    done = mine.cli("plan", str(mine.yaml), "--set", PLAIN[0], "--set", "train.epochs=7")
    assert "cached  ExampleGen, StatisticsGen, SchemaGen" in done.stdout
    assert "run     Trainer: train.epochs: 7, was" in done.stdout
    assert "run     Evaluator, ServingCheck: what comes before it runs" in done.stdout
