"""The same job on Kubeflow: compiled, and executed as its driver and launcher would."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, Predictor, RunResult
from espalier.kubeflow import entrypoint
from espalier.kubeflow.compiling import compile_pipeline

EMULATOR = Path(__file__).parents[1] / "kfp_emulator" / "emulator.py"
ROOT = "minio://mlpipeline/v2/artifacts"


@pytest.fixture(scope="module")
def emulator() -> Any:
    spec = importlib.util.spec_from_file_location("kfp_emulator", EMULATOR)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cluster(emulator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster whose containers run in this process, where speed matters."""
    staged = {scheme: f"{tmp_path}/staged{place}" for scheme, place in entrypoint.STAGED.items()}
    monkeypatch.setattr(entrypoint, "STAGED", staged)

    def run(command: list[str], arguments: list[str], environment: dict[str, str]) -> None:
        assert command == ["python", "-m", "espalier.kubeflow.entrypoint"]
        entrypoint.main(arguments)

    return emulator.Emulator(tmp_path / "store", entrypoint.local, run)


def states(tasks: dict[str, Any]) -> dict[str, str]:
    assert not (broken := {name: task.error for name, task in tasks.items() if task.error}), broken
    return {name: task.state for name, task in tasks.items()}


def test_the_job_runs_on_kubeflow_as_it_does_here(
    job: Any, first_run: RunResult, cluster: Any, tmp_path: Path
) -> None:
    base = tmp_path / "pushed"
    config = Config.load(job.yaml, [f"push.to={base}"])
    tasks = cluster.execute(compile_pipeline(config, image="espalier:test"), ROOT)
    assert set(states(tasks).values()) == {"SUCCEEDED"}
    assert set(tasks) == {component.name for component in first_run.components}
    (version,) = [one for one in base.iterdir() if one.name.isdecimal()]
    (label,) = Predictor(base).predict(["the soup was lovely, order 7"])
    assert label.label == "positive"
    evaluation = tasks["Evaluator"].artifacts["evaluation"]["uri"]
    assert evaluation.startswith(ROOT)
    metrics = json.loads((cluster.store / evaluation[8:] / "metrics.json").read_text())
    assert metrics["candidate"]["overall"]["accuracy"] == pytest.approx(
        first_run.metrics["overall"]["accuracy"], abs=0.05
    )
    assert metrics["baseline"] is None and metrics["blessed"]
    assert tasks["LatestBlessed"].artifacts["model"]["metadata"]["found"] == 0.0

    again = cluster.execute(compile_pipeline(config, image="espalier:test"), ROOT)
    assert states(again)["Trainer"] == "CACHED"
    assert states(again)["LatestBlessed"] == states(again)["Evaluator"] == "SUCCEEDED"
    evaluation = again["Evaluator"].artifacts["evaluation"]["uri"]
    metrics = json.loads((cluster.store / evaluation[8:] / "metrics.json").read_text())
    assert metrics["baseline"]["overall"] == metrics["candidate"]["overall"]
    assert [one for one in base.iterdir() if one.name.isdecimal()] == [version]  # the same model

    small = Config.load(job.yaml, [f"push.to={base}", "compress={steps: [{quantize: {}}]}"])
    third = cluster.execute(compile_pipeline(small, image="espalier:test"), ROOT)
    assert states(third)["Trainer"] == "CACHED"
    assert states(third)["Compressor"] == states(third)["Pusher"] == "SUCCEEDED"
    assert len([one for one in base.iterdir() if one.name.isdecimal()]) == 2
    assert Predictor(base).predict(["the soup was awful, order 8"])[0].label == "negative"


def test_a_gate_that_refuses_the_data_stops_what_comes_behind(
    make_job: Any, small_bert: Path, cluster: Any, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "job", small_bert)
    spec = compile_pipeline(job.config, image="espalier:test")
    # What compiling looked at has changed since: each row has a label of its own.
    file = tmp_path / "job" / "data" / "reviews.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{row}{n}" for n, row in enumerate(rows))]) + "\n")
    tasks = cluster.execute(spec, ROOT)
    assert tasks["DataGate"].state == "FAILED" and "DataError" in tasks["DataGate"].error
    behind = ("Transform", "Trainer", "Evaluator", "ServingCheck", "Pusher")
    assert {tasks[name].state for name in behind} == {"SKIPPED"}
    assert not list((tmp_path / "job").glob("models/*"))


def test_a_container_runs_the_command_that_was_compiled(
    make_job: Any, small_bert: Path, emulator: Any, tmp_path: Path
) -> None:
    """A process of its own for the first task; artifacts in a folder that needs no staging."""

    def run(command: list[str], arguments: list[str], environment: dict[str, str]) -> None:
        assert "--file_based_example_gen" in arguments, "the first task is enough"
        python, *rest = command
        assert python == "python"
        done = subprocess.run(
            [sys.executable, *rest, *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr

    job = make_job(tmp_path / "job", small_bert)
    local = emulator.Emulator(tmp_path / "store", lambda uri: uri, run)
    tasks = local.execute(compile_pipeline(job.config, image="espalier:test"), str(tmp_path / "r"))
    assert tasks["ExampleGen"].state == "SUCCEEDED", tasks["ExampleGen"].error
    metadata = tasks["ExampleGen"].artifacts["examples"]["metadata"]
    assert json.loads(metadata["split_names"]) == ["train", "eval", "test"]
    assert metadata["custom:span"] == 0 and "num_files:1" in metadata["input_fingerprint"]
