"""A search before the training: the Trainer takes its best values, and the run tells its trials."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from espalier import Config, ConfigError, RunResult, run
from espalier.pipeline.store import Node, Store
from espalier.trainer.export import describe

TUNE = """tune={search: random, trials: 2, over: {
  train.learning_rate: {from: 1e-4, to: 1e-2, scale: log}, model.dropout: [0.0, 0.2]}}"""


def load(job: Any, *changes: str) -> Config:
    return Config.load(job.yaml, [TUNE, "train.epochs=2", *changes])


def nodes(config: Config, result: RunResult) -> dict[str, Node]:
    return {node.name: node for node in Store(config.home).nodes(result.run)}


@pytest.fixture(scope="module")
def said() -> io.StringIO:
    """What the terminal shows of the run below."""
    return io.StringIO()


@pytest.fixture(scope="module")
def result(job: Any, first_run: RunResult, said: io.StringIO) -> RunResult:
    """The shared job again with a search, up to the Trainer: nothing is pushed."""
    run(job.config, to_node="Transform")  # others may have read the rows anew since
    return run(load(job), to_node="Trainer", console=Console(file=said, width=200))


@pytest.fixture(scope="module")
def trials(job: Any, result: RunResult) -> dict[str, Any]:
    made = nodes(load(job), result)["Tuner"].outputs["tuner_results"]
    return dict(made.read_json("trials.json"))


def test_the_search_comes_between_transform_and_trainer(job: Any, result: RunResult) -> None:
    found = {one.name: one.state for one in result.components}
    assert list(found)[-3:] == ["Transform", "Tuner", "Trainer"]
    assert found["Transform"] == "cached", "a search changes nothing that comes before it"
    assert not list((job.config.home / "tuning").iterdir())


def test_the_trainer_takes_the_best_values(
    job: Any, result: RunResult, trials: dict[str, Any]
) -> None:
    best = trials["trials"][trials["best"] - 1]
    assert best["loss"] == min(trial["loss"] for trial in trials["trials"])
    assert len({json.dumps(trial["values"]) for trial in trials["trials"]}) == 2
    trainer = nodes(load(job), result)["Trainer"]
    history = trainer.outputs["model_run"].read_json("history.json")
    assert history["tuned"] == best["values"]
    # The same values, rows and seed: the training is the best trial again.
    losses = [epoch["val_loss"] for epoch in history["epochs"]]
    assert len(losses) == best["epochs"] == 2
    assert min(losses) == pytest.approx(best["loss"], abs=1e-3)
    facts = describe(f"{trainer.outputs['model'].uri}/Format-Serving")
    assert facts["tuned"] == best["values"]
    assert facts["model"]["dropout"] == best["values"]["model.dropout"]


def test_the_trials_are_told(result: RunResult, said: io.StringIO, trials: dict[str, Any]) -> None:
    lines = [" ".join(line.split()) for line in said.getvalue().splitlines()]
    for trial in trials["trials"]:
        (line,) = [one for one in lines if one.startswith(f"trial {trial['trial']} of 2: ")]
        assert f"eval loss {trial['loss']:.4f} (best so far " in line
    assert sum(line.startswith("epoch ") for line in lines) == 2, "the Trainer's alone"
    tuner = next(one for one in result.components if one.name == "Tuner")
    assert tuner.produced.startswith("2 trials; best: model.dropout ")
    html = Path(result.report).read_text(encoding="utf-8")
    assert ">Tuning</h2>" in html and "could not be drawn" not in html
    assert all(f"{trial['loss']:.4f}</td>" in html for trial in trials["trials"])


def test_a_part_of_the_line_knows_of_the_search(job: Any, result: RunResult) -> None:
    with pytest.raises(ConfigError, match="Trainer: tune has changed.*Begin at Tuner"):
        run(load(job, "tune.trials=5"), from_node="Trainer")
    with pytest.raises(ConfigError, match="Trainer: train has changed.*Begin at Tuner"):
        run(load(job, "train.warmup=0"), from_node="Trainer")
    with pytest.raises(ConfigError, match="no `tune:` section, and so no Tuner"):
        run(job.config, to_node="Tuner")


def test_a_search_is_not_repeated_and_another_one_is_run(job: Any, result: RunResult) -> None:
    same = run(load(job), to_node="Trainer")
    states = {one.name: one.state for one in same.components}
    assert states["Tuner"] == states["Trainer"] == "cached"
    changed = load(job, "tune.trials=1", "train.epochs=1")
    states = {one.name: one.state for one in run(changed, to_node="Tuner").components}
    assert states["Transform"] == "cached" and states["Tuner"] == "done"
