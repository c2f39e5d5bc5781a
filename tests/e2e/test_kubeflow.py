"""The same job on Kubeflow: compiled, and executed as its driver and launcher would."""

import importlib.util
import json
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
