"""The same job on Kubeflow: compiled, and executed as its driver and launcher would."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import tensorflow as tf
import yaml
from moto.server import ThreadedMotoServer

from espalier import Config, Predictor, RunResult, run
from espalier.kubeflow import entrypoint
from espalier.kubeflow.compiling import compile_pipeline
from espalier.pipeline import preflight
from espalier.pipeline.store import Store

EXAMPLES = Path(__file__).parents[2] / "examples"
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


class Cluster:
    """An emulated one; its containers run in this process, where speed matters."""

    def __init__(self, emulator: Any, store: Any, folder: Path) -> None:
        def execute(command: list[str], arguments: list[str], environment: dict[str, str]) -> None:
            assert command == ["python", "-m", "espalier.kubeflow.entrypoint"]
            entrypoint.main(arguments)

        self.store, self._folder = store, folder
        self._emulator = emulator.Emulator(store, folder / "pods", entrypoint.local, execute)

    def run(self, config: Config, root: str = ROOT) -> dict[str, Any]:
        """Compile and execute."""
        tasks = self.execute(compile_pipeline(config, image="espalier:test"), root)
        assert not (broken := {n: task.error for n, task in tasks.items() if task.error}), broken
        return tasks

    def execute(self, spec: str, root: str = ROOT) -> dict[str, Any]:
        before = entrypoint.STAGED
        staged = {scheme: f"{self._folder}/staged{place}" for scheme, place in before.items()}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(entrypoint, "STAGED", staged)
            found: dict[str, Any] = self._emulator.execute(spec, root)
        return found

    def artifact(self, task: Any, key: str, to: Path) -> Path:
        """Bring what a task made out of the object store."""
        self.store.download(task.artifacts[key]["uri"], to)
        return to


@pytest.fixture(scope="module")
def cluster(emulator: Any, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """A cluster whose object store is a folder."""
    folder = tmp_path_factory.mktemp("cluster")
    return Cluster(emulator, emulator.Folder(folder / "store"), folder)


@pytest.fixture(scope="module")
def s3_cluster(emulator: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose object store is a server that speaks S3."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        client = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
            aws_access_key_id="minio", aws_secret_access_key="minio123",
        )  # fmt: skip
        client.create_bucket(Bucket="mlpipeline")
        yield Cluster(emulator, emulator.Bucket(client), tmp_path_factory.mktemp("s3"))
    finally:
        server.stop()


@dataclass
class Both:
    """The same job run here and on a cluster, each with a place of its own to push to."""

    folder: Path
    example: str
    settings: tuple[str, ...]
    cluster: Cluster

    def config(self, place: str, *changes: str) -> Config:
        runs = [f"push.to={self.folder}/{place}", f"runs={self.folder}/runs"]
        return Config.load(EXAMPLES / self.example, [*self.settings, *runs, *changes])

    def run(self, *changes: str) -> tuple[RunResult, dict[str, Any]]:
        result = run(self.config("here", *changes))
        return result, self.cluster.run(self.config("cluster", *changes))

    def versions(self, place: str) -> list[Path]:
        folder = self.folder / place
        found = [one for one in folder.glob("*") if one.name.isdecimal()]
        return sorted(found, key=lambda one: int(one.name))

    def same(self, result: RunResult, tasks: dict[str, Any]) -> None:
        """Hold one run's artifacts and verdict against the other's."""
        store = Store(self.config("here").home)
        here = {node.name: node.outputs for node in store.nodes(result.run)}
        assert set(here) == set(tasks)
        for name, task in tasks.items():
            if name == "LatestBlessed":  # a Resolver here, a component there
                continue
            assert set(here[name]) == set(task.artifacts), name
            for key, output in here[name].items():
                with tempfile.TemporaryDirectory() as folder:
                    there = self.cluster.artifact(task, key, Path(folder) / "artifact")
                    assert files(Path(output.uri)) == files(there), (name, key)
        with tempfile.TemporaryDirectory() as folder:
            there = self.cluster.artifact(tasks["Evaluator"], "evaluation", Path(folder) / "e")
            evaluation = json.loads((there / "metrics.json").read_text())
        assert evaluation["blessed"] == (result.status == "pushed")
        assert (evaluation["baseline"] is None) == (result.baseline is None)
        assert evaluation["candidate"]["overall"] == pytest.approx(
            result.metrics["overall"], abs=0.05
        )
        assert len(self.versions("here")) == len(self.versions("cluster"))
        for version, other in zip(self.versions("here"), self.versions("cluster"), strict=True):
            assert files(version) == files(other)
            assert "assets.extra/MODEL_CARD.md" in files(version)


def files(place: Path) -> set[str]:
    """The files below a folder, without what differs from run to run."""
    if place.is_file():
        return {""}
    names = {str(one.relative_to(place)) for one in place.rglob("*") if one.is_file()}
    return {re.sub(r"events\.out\.tfevents\..*", "events", name) for name in names}


@pytest.fixture(scope="module")
def reviews(cluster: Cluster, small_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Both:
    """The first example on a small checkpoint, run once."""
    settings = (
        f"data.csv={EXAMPLES}/reviews/data", f"model.start={small_bert}", "train.epochs=1",
        "evaluate.at_least={accuracy: 0.4}",
    )  # fmt: skip
    both = Both(tmp_path_factory.mktemp("reviews"), "reviews.yaml", settings, cluster)
    both.same(*both.run())
    return both


def test_rows_are_split_there_as_here(cluster: Cluster, tmp_path: Path) -> None:
    rows = [f"text number {n},{'ab'[n % 5 == 0]}" for n in range(200)]
    (tmp_path / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    config = Config(
        name="split",
        data={
            "csv": str(tmp_path / "rows.csv"), "text": "text", "label": "label",
            "split": {"by": "label"}, "sample": 100,
        },
        model={"family": "bert", "start": "tiny"},
        push={"to": str(tmp_path / "models")},
    )  # fmt: skip
    spec = yaml.safe_load(compile_pipeline(config, image="espalier:test"))
    tasks = spec["root"]["dag"]["tasks"]
    spec["root"]["dag"]["tasks"] = {"ExampleGen": tasks["ExampleGen"]}
    task = cluster.execute(yaml.safe_dump(spec), ROOT)["ExampleGen"]
    assert task.state == "SUCCEEDED", task.error
    there = cluster.artifact(task, "examples", tmp_path / "examples")
    found = {folder.name: str(next(folder.iterdir())) for folder in there.iterdir()}
    counts = {
        name: sum(1 for _ in tf.data.TFRecordDataset(file, "GZIP")) for name, file in found.items()
    }
    expected = preflight.check(config).fallen
    assert expected is not None
    assert counts == {f"Split-{split}": rows for split, rows in expected.rows.items()}


def test_nothing_is_pushed_twice(reviews: Both) -> None:
    before = reviews.versions("cluster")
    _, tasks = reviews.run()
    assert tasks["Trainer"].state == "CACHED"
    assert tasks["LatestBlessed"].state == tasks["Pusher"].state == "SUCCEEDED"
    assert reviews.versions("cluster") == before


@pytest.mark.parametrize(
    ("changes", "status", "ran"),
    [
        pytest.param(
            ["compress={steps: [{quantize: {}}]}"],
            "pushed", {"Trainer": "CACHED", "Compressor": "SUCCEEDED"}, id="compressed",
        ),
        pytest.param(
            [
                "tune={search: random, trials: 2, over: {train.learning_rate: [1e-4, 1e-3]}}",
                "evaluate.worse_than_blessed_by_at_most={accuracy: 0.9}",
            ],
            "pushed", {"Transform": "CACHED", "Tuner": "SUCCEEDED", "Trainer": "SUCCEEDED"},
            id="a search and a baseline",
        ),
        pytest.param(
            ["evaluate.at_least={accuracy: 0.999}"],
            "not_blessed", {"Trainer": "CACHED", "Evaluator": "SUCCEEDED"}, id="a failing gate",
        ),
    ],
)  # fmt: skip
def test_every_shape_of_the_line_gives_the_same_on_a_cluster(
    reviews: Both, changes: list[str], status: str, ran: dict[str, str]
) -> None:
    result, tasks = reviews.run(*changes)
    assert result.status == status
    assert {name: tasks[name].state for name in ran} == ran
    assert tasks["LatestBlessed"].state == "SUCCEEDED"  # never from the cache
    assert tasks["LatestBlessed"].artifacts["model"]["metadata"]["found"] == 1.0
    reviews.same(result, tasks)


def test_what_a_cluster_pushed_answers(reviews: Both) -> None:
    texts = ["a good film , warm and funny .", "not good"]
    answers = [
        Predictor(reviews.versions(place)[0]).predict(texts) for place in ("here", "cluster")
    ]
    assert [one.label for one in answers[0]] == [one.label for one in answers[1]]


def test_pictures_go_through_a_cluster_whose_store_speaks_s3(
    s3_cluster: Cluster, tmp_path: Path
) -> None:
    settings = (
        f"data.images={EXAMPLES}/digits/data", "train.epochs=1",
        "evaluate.at_least={accuracy: 0.05}",
    )  # fmt: skip
    both = Both(tmp_path, "digits.yaml", settings, s3_cluster)
    result, tasks = both.run()
    assert result.status == "pushed"
    assert "could not be drawn" not in Path(result.report).read_text(encoding="utf-8")
    assert s3_cluster.store.keys(tasks["Trainer"].artifacts["model"]["uri"])
    both.same(result, tasks)


def test_a_gate_that_refuses_the_data_stops_what_comes_behind(
    make_job: Any, small_bert: Path, cluster: Cluster, tmp_path: Path
) -> None:
    job = make_job(tmp_path / "job", small_bert)
    spec = compile_pipeline(job.config, image="espalier:test")
    # What compiling looked at has changed since: each row has a label of its own.
    file = tmp_path / "job" / "data" / "reviews.csv"
    header, *rows = file.read_text().splitlines()
    file.write_text("\n".join([header, *(f"{row}{n}" for n, row in enumerate(rows))]) + "\n")
    tasks = cluster.execute(spec)
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
    store = emulator.Folder(tmp_path / "store")
    local = emulator.Emulator(store, tmp_path / "pods", lambda uri: uri, run)
    tasks = local.execute(compile_pipeline(job.config, image="espalier:test"), str(tmp_path / "r"))
    assert tasks["ExampleGen"].state == "SUCCEEDED", tasks["ExampleGen"].error
    metadata = tasks["ExampleGen"].artifacts["examples"]["metadata"]
    assert json.loads(metadata["split_names"]) == ["train", "eval", "test"]
    assert metadata["custom:span"] == 0 and "num_files:1" in metadata["input_fingerprint"]
