"""The rules by which open-source Kubeflow Pipelines accepts a PipelineSpec, before it is asked.

From its backend: src/apiserver/template/v2_template.go (schema version, name, root),
src/v2/compiler/visitor.go and argocompiler/dag.go (executors, references),
src/v2/component/launcher_v2.go (schemes of URIs); and Argo's and Kubernetes' rules for names.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

SCHEMA_VERSION = "2.1.0"
SCHEMES = ("gs", "minio", "s3")
_DNS_1123 = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_ARGO = re.compile(r"[a-zA-Z0-9][-a-zA-Z0-9]*")
_LONGEST_TASK = 63  # characters; it becomes a label of its pod
_LONGEST_NAME = 200  # src/apiserver/resource/resource_manager.go


def lint(spec: Mapping[str, Any]) -> list[str]:
    """Each rule that a spec breaks, in a sentence; none if the backend would take it.

    Args:
        spec: a PipelineSpec, as its YAML is read.
    """
    return list(_faults(spec))


def _faults(spec: Mapping[str, Any]) -> Iterator[str]:
    version = spec.get("schemaVersion")
    if version != SCHEMA_VERSION:
        yield f"schemaVersion is {version}; {SCHEMA_VERSION} alone is taken"
    name = spec.get("pipelineInfo", {}).get("name", "")
    if not _DNS_1123.fullmatch(name) or len(name) > _LONGEST_NAME:
        yield (
            f"the pipeline's name {name!r} must be lower-case letters, digits, - and ., at most "
            f"{_LONGEST_NAME} of them"
        )
    root = spec.get("defaultPipelineRoot", "")
    if root and root.partition("://")[0] not in SCHEMES:
        yield f"the pipeline root {root} must begin with {', '.join(f'{s}://' for s in SCHEMES)}"
    dag = spec.get("root", {}).get("dag")
    if not dag or not dag.get("tasks"):
        yield "there are no tasks in the root"
        return
    for parameter, declared in _parameters(spec.get("root", {})):
        if not declared.get("isOptional") and "defaultValue" not in declared:
            yield f"parameter {parameter} has no default, so a run without it is refused"
    for task, content in dag["tasks"].items():
        yield from (f"task {task}: {fault}" for fault in _task(spec, name, task, content))


def _parameters(component: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return list(component.get("inputDefinitions", {}).get("parameters", {}).items())


def _task(
    spec: Mapping[str, Any], pipeline: str, name: str, task: Mapping[str, Any]
) -> Iterator[str]:
    if not _ARGO.fullmatch(name) or len(name) > _LONGEST_TASK:
        yield f"its name must be letters, digits and -, at most {_LONGEST_TASK}"
    if name == pipeline:
        yield "it bears the pipeline's name"
    tasks = spec["root"]["dag"]["tasks"]
    for other in task.get("dependentTasks", []):
        if other not in tasks:
            yield f"it depends on {other}, which is not there"
    component = spec.get("components", {}).get(task.get("componentRef", {}).get("name"))
    if component is None:
        yield "its component is not there"
        return
    for key, artifact in task.get("inputs", {}).get("artifacts", {}).items():
        yield from _artifact(spec, key, artifact.get("taskOutputArtifact", {}))
    label = component.get("executorLabel")
    executor = spec.get("deploymentSpec", {}).get("executors", {}).get(label)
    if executor is None:
        yield f"its executor {label} is not there"
    elif "container" in executor:
        container = executor["container"]
        if not container.get("image") or not container.get("command"):
            yield "its container has no image, or no command"
    elif "importer" not in executor:
        kinds = ", ".join(executor) or "nothing"
        yield f"its executor is a {kinds}; containers and importers alone are run"


def _artifact(spec: Mapping[str, Any], key: str, source: Mapping[str, Any]) -> Iterator[str]:
    """Whether the task that makes an input is there, and makes it."""
    tasks = spec["root"]["dag"]["tasks"]
    producer, output = source.get("producerTask"), source.get("outputArtifactKey")
    if producer not in tasks:
        yield f"its input {key} comes from {producer}, which is not there"
        return
    made = spec.get("components", {}).get(tasks[producer].get("componentRef", {}).get("name"), {})
    if output not in made.get("outputDefinitions", {}).get("artifacts", {}):
        yield f"its input {key} is {output} of {producer}, which has no such output"
