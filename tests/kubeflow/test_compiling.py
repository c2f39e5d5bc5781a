"""What is compiled for Kubeflow Pipelines, and which specs its backend would refuse."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from espalier import Config, ConfigError
from espalier.kubeflow import entrypoint
from espalier.kubeflow.commands import commands
from espalier.kubeflow.compiling import compile_pipeline, resources, write
from espalier.kubeflow.linting import lint
from espalier.pipeline.config import Resources

CLUSTER = {
    "image": "registry.example/espalier@sha256:abc",
    "root": "minio://mlpipeline/v2",
    "resources": {
        "all": {"cpu": 1, "memory": "2Gi"},
        "Trainer": {
            "cpu": 4,
            "memory": "16Gi",
            "accelerator": {"type": "nvidia.com/gpu", "count": 1},
        },
        "ExampleGen": {"memory": "512Mi"},
    },
}


@pytest.fixture(scope="module")
def config(small_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("compiling")
    rows = [f"text number {n},{'good' if n % 2 else 'bad'}" for n in range(100)]
    (folder / "rows.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return Config(
        name="small",
        data={"csv": str(folder / "rows.csv"), "text": "text", "label": "label"},
        model={"family": "bert", "start": str(small_bert), "sequence_length": 16},
        push={"to": str(folder / "models")},
        cluster=CLUSTER,
        retries=2,
    )


@pytest.fixture(scope="module")
def compiled(config: Config) -> dict[str, Any]:
    return yaml.safe_load(compile_pipeline(config))


@pytest.fixture
def spec(compiled: dict[str, Any]) -> dict[str, Any]:
    """A copy to break."""
    return copy.deepcopy(compiled)


def container(spec: dict[str, Any], name: str) -> dict[str, Any]:
    executors = spec["deploymentSpec"]["executors"]
    return executors[spec["components"][name]["executorLabel"]]["container"]


def test_what_is_compiled_is_taken_by_the_backend(compiled: dict[str, Any]) -> None:
    assert lint(compiled) == []
    assert compiled["schemaVersion"] == "2.1.0"
    assert compiled["defaultPipelineRoot"] == CLUSTER["root"]
    kinds = {kind for one in compiled["deploymentSpec"]["executors"].values() for kind in one}
    assert kinds == {"container"}
    assert all("_" not in label for label in compiled["deploymentSpec"]["executors"])


def test_the_same_job_is_compiled_to_the_same_pipeline(
    config: Config, compiled: dict[str, Any]
) -> None:
    assert yaml.safe_load(compile_pipeline(config)) == compiled


def test_each_component_gets_what_it_asks_for(compiled: dict[str, Any]) -> None:
    assert container(compiled, "Trainer")["resources"] == {
        "cpuRequest": 4, "cpuLimit": 4, "memoryRequest": 16, "memoryLimit": 16,
        "accelerator": {"type": "nvidia.com/gpu", "count": "1"},
    }  # fmt: skip
    # TFX drops the resources of file-based ExampleGens.
    assert container(compiled, "ExampleGen")["resources"] == {
        "memoryRequest": 0.5, "memoryLimit": 0.5,
    }  # fmt: skip
    assert container(compiled, "Pusher")["resources"]["cpuLimit"] == 1
    images = {one["container"]["image"] for one in compiled["deploymentSpec"]["executors"].values()}
    assert images == {CLUSTER["image"]}


def test_tasks_are_tried_again_and_what_is_served_is_never_cached(compiled: dict[str, Any]) -> None:
    tasks = compiled["root"]["dag"]["tasks"]
    assert {task["retryPolicy"]["maxRetryCount"] for task in tasks.values()} == {2}
    cached = {name for name, task in tasks.items() if task["cachingOptions"].get("enableCache")}
    assert set(tasks) - cached == {"LatestBlessed", "Pusher"}


def test_the_example_gens_driver_is_run_by_the_entry_point(compiled: dict[str, Any]) -> None:
    assert "lifecycle" not in container(compiled, "ExampleGen")
    with_driver = [
        name
        for name in compiled["components"]
        if "--file_based_example_gen" in container(compiled, name)["args"]
    ]
    assert with_driver == ["ExampleGen"]


def test_a_search_is_a_task_between_transform_and_trainer(
    config: Config, compiled: dict[str, Any]
) -> None:
    tune = {"over": {"train.batch_size": [16, 32]}, "trials": 2}
    searching = Config(**{**config.model_dump(by_alias=True, exclude_unset=True), "tune": tune})
    spec = yaml.safe_load(compile_pipeline(searching))
    assert lint(spec) == []
    tasks, before = spec["root"]["dag"]["tasks"], compiled["root"]["dag"]["tasks"]
    assert set(tasks) - set(before) == {"Tuner"}
    given = tasks["Trainer"]["inputs"]["artifacts"]
    assert given.pop("hyperparameters")["taskOutputArtifact"] == {
        "producerTask": "Tuner", "outputArtifactKey": "best_hyperparameters",
    }  # fmt: skip
    assert given == before["Trainer"]["inputs"]["artifacts"]
    assert tasks["Transform"] == before["Transform"]


def test_image_root_and_cache_can_be_given(config: Config) -> None:
    given = yaml.safe_load(compile_pipeline(config, image="mine:2", root="s3://b", cache=False))
    assert container(given, "Trainer")["image"] == "mine:2"
    assert given["defaultPipelineRoot"] == "s3://b"
    assert all(
        not task["cachingOptions"].get("enableCache")
        for task in given["root"]["dag"]["tasks"].values()
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(schemaVersion="2.0.0"), "schemaVersion is 2.0.0; 2.1.0 alone"),
        (lambda s: s["pipelineInfo"].update(name="My_Pipe"), "the pipeline's name 'My_Pipe'"),
        (lambda s: s["pipelineInfo"].update(name="x" * 201), "at most 200"),
        (lambda s: s.update(defaultPipelineRoot="hdfs://x"), "root hdfs://x must begin with gs://"),
        (lambda s: s["root"].pop("dag"), "no tasks in the root"),
        (lambda s: s["components"].pop("Trainer"), "task Trainer: its component is not there"),
        (
            lambda s: s["deploymentSpec"]["executors"]["exec-Trainer"].update(
                resolver=s["deploymentSpec"]["executors"]["exec-Trainer"].pop("container")
            ),
            "task Trainer: its executor is a resolver; containers and importers alone are run",
        ),
        (
            lambda s: s["deploymentSpec"]["executors"].pop("exec-Trainer"),
            "task Trainer: its executor exec-Trainer is not there",
        ),
        (
            lambda s: s["root"]["dag"]["tasks"].update(
                small=s["root"]["dag"]["tasks"].pop("Pusher")
            ),
            "task small: it bears the pipeline's name",
        ),
        (
            lambda s: s["root"]["dag"]["tasks"].update(
                an_other=s["root"]["dag"]["tasks"].pop("Pusher")
            ),
            "task an_other: its name must be letters, digits and -",
        ),
        (
            lambda s: s["root"]["dag"]["tasks"].pop("Transform"),
            "task Trainer: it depends on Transform, which is not there",
        ),
        (
            lambda s: s["root"].update(
                inputDefinitions={"parameters": {"rate": {"parameterType": "NUMBER_DOUBLE"}}}
            ),
            "parameter rate has no default",
        ),
        (lambda s: container(s, "Pusher").pop("command"), "Pusher: its container has no image, or"),
    ],
)
def test_what_the_backend_would_refuse_is_named(
    spec: dict[str, Any], change: Callable[[dict[str, Any]], Any], words: str
) -> None:
    change(spec)
    faults = lint(spec)
    assert any(words in fault for fault in faults), faults


def test_an_input_that_nobody_makes_is_named(spec: dict[str, Any]) -> None:
    spec["components"]["Transform"]["outputDefinitions"]["artifacts"].pop("transform_graph")
    words = "its input transform_graph is transform_graph of Transform, which has no such output"
    assert f"task Trainer: {words}" in lint(spec)


def test_unknown_components_and_schemas_of_this_machine_are_refused(
    config: Config, tmp_path: Path
) -> None:
    cluster = config.cluster.model_copy(update={"resources": {"Tranier": Resources(cpu=1)}})
    with pytest.raises(ConfigError, match="cluster.resources: no such component: Tranier"):
        compile_pipeline(config.model_copy(update={"cluster": cluster}))
    data = config.data.model_copy(update={"schema_file": str(tmp_path / "schema.pbtxt")})
    with pytest.raises(ConfigError, match=r"data\.schema_file is a file of this machine"):
        compile_pipeline(config.model_copy(update={"data": data}))
    with pytest.raises(ConfigError, match="must begin with gs://"):
        compile_pipeline(config, root="hdfs://somewhere")


@pytest.mark.parametrize(
    ("memory", "gib"), [("1Gi", 1.0), ("512Mi", 0.5), ("1G", 1e9 / 2**30), ("0.5Ti", 512.0)]
)
def test_memory_is_in_gib(memory: str, gib: float) -> None:
    assert resources(Resources(memory=memory)) == {"memoryRequest": gib, "memoryLimit": gib}


def test_only_yaml_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes YAML alone"):
        write("{}", tmp_path / "pipeline.json")
    with pytest.raises(ConfigError, match="cannot be written"):
        write("{}", tmp_path / "nowhere" / "pipeline.yaml")


def test_the_command_writes_what_is_compiled(config: Config, tmp_path: Path) -> None:
    job, out = tmp_path / "job.yaml", tmp_path / "pipeline.yaml"
    job.write_text(config.to_yaml())
    done = CliRunner().invoke(
        commands, [str(job), "-o", str(out), "--set", "cluster.image=other:1"]
    )
    assert done.exit_code == 0, done.output
    assert container(yaml.safe_load(out.read_text()), "Trainer")["image"] == "other:1"


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        ("minio://mlpipeline/v2/a", "/minio/mlpipeline/v2/a"),
        ("s3://bucket/a", "/s3/bucket/a"),
        ("gs://bucket/a", "/gcs/bucket/a"),
        ("/mnt/models", "/mnt/models"),
    ],
)
def test_artifacts_are_where_the_launcher_has_them(uri: str, path: str) -> None:
    assert entrypoint.local(uri) == path
    assert entrypoint.remote(path) == uri
