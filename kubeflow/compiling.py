"""From a configuration to a PipelineSpec that open-source Kubeflow Pipelines 2.x takes.

TFX 1.16 compiles for Vertex AI; what the other backend refuses or drops is mended here: no
Resolver, resources on every component, ExampleGen's driver (the lifecycle hook that it is compiled
to runs on Vertex AI alone), retries, caching.
"""

import contextlib
import io
import logging
import os
import re
import warnings
from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigError
from ..files import write_whole
from ..masking import masked
from ..pipeline.config import Config, Resources
from .entrypoint import EXAMPLE_GEN
from .linting import lint

ENTRY = ["python", "-m", "espalier.kubeflow.entrypoint"]
_NEVER_CACHED = ("LatestBlessed", "Pusher")  # what is served may have changed since
_ENVIRONMENT = {"PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1"}
_BYTES = {"M": 1e6, "G": 1e9, "T": 1e12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def compile_pipeline(config: Config, *, image: str = "", root: str = "", cache: bool = True) -> str:
    """The job as a PipelineSpec 2.1, in YAML.

    Args:
        config: the job. Its data and its push destination must be seen from the cluster's pods.
        image: the container image; else the configuration's.
        root: where artifacts go; else the configuration's, else the cluster's own default.
        cache: whether components may take results of earlier runs.

    Raises:
        ConfigError, CheckpointError, DataError: the job cannot be used, or the spec would be
            refused by the backend.
    """
    from ..pipeline import preflight
    from ..trainer import families

    _check(config)
    report = preflight.check(config)
    start = families.load(config.model.family).fingerprint(config.model)
    spec = _spec(config, image or config.cluster.image, report.fingerprint, start, cache)
    for name, task in spec["root"]["dag"]["tasks"].items():
        _mend_task(task, config, cache and name not in _NEVER_CACHED)
    executors = spec["deploymentSpec"]["executors"]
    for name, component in spec["components"].items():
        executor = executors.pop(component["executorLabel"])
        _mend_executor(name, executor, config)
        # Argo takes no underscore in a name.
        component["executorLabel"] = f"exec-{name}"
        executors[component["executorLabel"]] = executor
    if where := root or config.cluster.root:
        spec["defaultPipelineRoot"] = where
    if faults := lint(spec):
        raise ConfigError(
            f"{config.name}: Kubeflow Pipelines would refuse the compiled pipeline:\n"
            + "\n".join(f"  {fault}" for fault in faults)
        )
    return yaml.safe_dump(spec, sort_keys=True, width=100)


def _check(config: Config) -> None:
    """What a cluster cannot do, or does not know."""
    from ..pipeline.runner import NODES

    if config.data.schema_file:
        raise ConfigError(
            "data.schema_file is a file of this machine, which a cluster's pods do not see. Leave "
            "it out: the schema is then learned from the rows."
        )
    if any("{SPAN}" in path for path in config.data.places.values()):
        raise ConfigError(
            "data: {SPAN} is looked up where a run begins, and a compiled pipeline would read what "
            "is the newest now, for ever. Name the folder itself."
        )
    if config.train.distribute == "multi_worker":
        raise ConfigError(
            "train.distribute is multi_worker, and a component of Kubeflow Pipelines is one pod. "
            "Leave it out here, or let a TFJob run the whole line: espalier manifests."
        )
    for name, value in config.beam.options.items():
        if (shown := masked(str(value))) != str(value):
            raise ConfigError(
                f"beam.options.{name} is {shown}, a secret, and a compiled pipeline would hold its "
                f"value for everybody to read. Leave it out here."
            )
    known = {*NODES, "all"}
    if unknown := sorted(set(config.cluster.resources) - known):
        raise ConfigError(
            f"cluster.resources: no such component: {', '.join(unknown)}. They are: "
            f"{', '.join(NODES)}, or all."
        )


def _spec(config: Config, image: str, data: str, start: str, cache: bool) -> dict[str, Any]:
    """What TFX makes of the pipeline."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # it greets with a dozen lines
    warnings.filterwarnings("ignore", category=FutureWarning)
    from tfx.orchestration.kubeflow.v2 import kubeflow_v2_dag_runner as kubeflow

    from ..pipeline.dag import create_pipeline

    with _in_silence():
        # Components keep their state where their pod may write, whatever the laptop has.
        inside = config.model_copy(update={"runs": "/tmp/espalier"})
        pipeline = create_pipeline(inside, data=data, start=start, cache=cache, resolver=False)
        runner = kubeflow.KubeflowV2DagRunner(
            kubeflow.KubeflowV2DagRunnerConfig(
                default_image=image, default_commands=ENTRY, use_pipeline_spec_2_1=True
            )
        )
        return runner.run(pipeline, write_out=False)["pipelineSpec"]


@contextlib.contextmanager
def _in_silence() -> Any:
    """TFX tells what it is doing line by line."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _mend_task(task: dict[str, Any], config: Config, cache: bool) -> None:
    task["cachingOptions"] = {"enableCache": True} if cache else {}
    if config.retries:
        task["retryPolicy"] = {
            "maxRetryCount": config.retries,
            "backoffDuration": "30s",
            "backoffFactor": 2.0,
            "backoffMaxDuration": "600s",
        }


def _mend_executor(name: str, executor: dict[str, Any], config: Config) -> None:
    container = executor["container"]
    # The hook of ExampleGen's driver is Vertex AI's; the entry point runs the driver itself.
    if container.pop("lifecycle", None):
        container["args"].append(EXAMPLE_GEN)
    asked = config.cluster.resources.get(name) or config.cluster.resources.get("all")
    if asked is not None:
        container["resources"] = resources(asked)
    container["env"] = [{"name": key, "value": value} for key, value in _ENVIRONMENT.items()]


def resources(asked: Resources) -> dict[str, Any]:
    """A ResourceSpec of the PipelineSpec: CPUs, memory in GiB; requests equal limits."""
    spec: dict[str, Any] = {}
    if asked.cpu is not None:
        spec |= {"cpuRequest": asked.cpu, "cpuLimit": asked.cpu}
    if asked.memory is not None:
        number, unit = re.fullmatch(r"([\d.]+)(\w+)", asked.memory).groups()  # type: ignore[union-attr]
        gib = float(number) * _BYTES[unit] / 2**30
        spec |= {"memoryRequest": gib, "memoryLimit": gib}
    if asked.accelerator is not None:
        accelerator = asked.accelerator
        spec["accelerator"] = {"type": accelerator.type, "count": str(accelerator.count)}
    return spec


def write(text: str, path: Path) -> None:
    """Write a compiled pipeline, whole or not at all.

    Raises:
        ConfigError: it cannot be written, or is not named as YAML, which alone the backend takes.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{path}: Kubeflow Pipelines takes YAML alone; name it *.yaml.")
    try:
        write_whole(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}.") from None
