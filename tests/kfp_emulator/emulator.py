"""Executes a compiled PipelineSpec as KFP's driver and launcher would, on one machine.

From backend/src/v2: tasks in topological order (argocompiler/dag.go), the ExecutorInput of each
(driver/container.go), {{$}} replaced and artifacts staged below a folder for each scheme
(component/launcher_v2.go), metadata of outputs carried forward, results of cached tasks taken again
(driver/cache.go: a fingerprint of inputs, outputs and the container), retries, and a task that
fails stops those behind it. The object store is a folder, or one that speaks S3.
"""

import copy
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Run = Callable[[list[str], list[str], dict[str, str]], None]  # command, args, environment


class Folder:
    """An object store that is a folder; its subfolders are buckets."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def place(self, uri: str) -> Path:
        """Where an object, or all below it, lies."""
        return self._path / uri.partition("://")[2]

    def download(self, uri: str, to: Path) -> None:
        """Bring a file, or the files below a folder: an object store has no empty folders."""
        _copy_files(self.place(uri), to)

    def upload(self, source: Path, uri: str) -> None:
        """The other way round."""
        _copy_files(source, self.place(uri))


class Bucket:
    """An object store behind S3's API.

    Args:
        client: boto3's.
    """

    def __init__(self, client: Any) -> None:
        self._client = client

    def keys(self, uri: str) -> list[str]:
        """Of an object, or of all below it."""
        bucket, key = self._split(uri)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=key)
        found = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return [one for one in found if one == key or one.startswith(f"{key}/")]

    def download(self, uri: str, to: Path) -> None:
        """See `Folder`."""
        bucket, key = self._split(uri)
        for name in self.keys(uri):
            place = to / name.removeprefix(key).lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            self._client.download_file(bucket, name, str(place))

    def upload(self, source: Path, uri: str) -> None:
        """See `Folder`."""
        bucket, key = self._split(uri)
        for file in _files(source):
            name = key if file == source else f"{key}/{file.relative_to(source)}"
            self._client.upload_file(str(file), bucket, name)

    def _split(self, uri: str) -> tuple[str, str]:
        bucket, _, key = uri.partition("://")[2].partition("/")
        return bucket, key


@dataclass
class Task:
    """What came of a task."""

    state: str  # SUCCEEDED, CACHED, FAILED, SKIPPED
    artifacts: dict[str, dict[str, Any]] = field(default_factory=dict)  # RuntimeArtifacts by key
    error: str = ""
    tries: int = 0


class Emulator:
    """A cluster with an object store.

    Args:
        store: where artifacts are between tasks.
        scratch: a folder for what the pods keep to themselves.
        staging: from a URI to the local path where the launcher has it.
        run: runs a container: its command, its arguments, its environment; raises if it fails.
    """

    def __init__(
        self, store: Folder | Bucket, scratch: Path, staging: Callable[[str], str], run: Run
    ) -> None:
        self.store, self._scratch, self._staging, self._run = store, scratch, staging, run
        self._cache: dict[str, dict[str, dict[str, Any]]] = {}

    def execute(self, spec_yaml: str, root: str) -> dict[str, Task]:
        """Run a pipeline; its tasks by their names, in the order in which they ran."""
        spec = yaml.safe_load(spec_yaml)
        run_root = f"{root}/{spec['pipelineInfo']['name']}/{uuid.uuid4()}"
        done: dict[str, Task] = {}
        for name, task in in_order(spec["root"]["dag"]["tasks"]):
            before = [done[one] for one in producers(task)]
            if any(one.state in ("FAILED", "SKIPPED") for one in before):
                done[name] = Task("SKIPPED")
            else:
                done[name] = self._task(spec, name, task, done, f"{run_root}/{name}")
        return done

    def _task(self, spec: Any, name: str, task: Any, done: Mapping[str, Task], root: str) -> Task:
        component = spec["components"][task["componentRef"]["name"]]
        executor = spec["deploymentSpec"]["executors"][component["executorLabel"]]
        container = executor["container"]
        given = self._executor_input(component, task, done, root)
        fingerprint = _fingerprint(given, component, container)
        cached = task.get("cachingOptions", {}).get("enableCache")
        if cached and fingerprint in self._cache:
            return Task("CACHED", copy.deepcopy(self._cache[fingerprint]))
        tries = 1 + int(task.get("retryPolicy", {}).get("maxRetryCount", 0))
        for attempt in range(1, tries + 1):
            try:
                artifacts = self._launch(copy.deepcopy(given), container)
            except Exception as error:
                failed = Task("FAILED", error=f"{type(error).__name__}: {error}", tries=attempt)
                continue
            if cached:
                self._cache[fingerprint] = copy.deepcopy(artifacts)
            return Task("SUCCEEDED", artifacts, tries=attempt)
        return failed

    def _executor_input(
        self, component: Any, task: Any, done: Mapping[str, Task], root: str
    ) -> dict[str, Any]:
        inputs = task.get("inputs", {})
        artifacts = {}
        for key, source in inputs.get("artifacts", {}).items():
            made = source["taskOutputArtifact"]
            found = done[made["producerTask"]].artifacts[made["outputArtifactKey"]]
            artifacts[key] = {"artifacts": [copy.deepcopy(found)]}
        parameters = {
            key: value["runtimeValue"]["constant"]
            for key, value in inputs.get("parameters", {}).items()
        }
        outputs = component.get("outputDefinitions", {}).get("artifacts", {})
        return {
            "inputs": {"artifacts": artifacts, "parameterValues": parameters},
            "outputs": {
                "artifacts": {
                    key: {
                        "artifacts": [
                            {
                                "name": key,
                                "type": declared["artifactType"],
                                "uri": f"{root}/{key}",
                                "metadata": copy.deepcopy(declared.get("metadata", {})),
                            }
                        ]
                    }
                    for key, declared in outputs.items()
                },
            },
        }

    def _launch(self, given: dict[str, Any], container: Any) -> dict[str, dict[str, Any]]:
        """The launcher's work: stage, run, upload, read the output's metadata."""
        scratch = self._scratch / f"pod-{uuid.uuid4()}"
        scratch.mkdir(parents=True)
        given["outputs"]["outputFile"] = str(scratch / "output_metadata.json")
        for artifact in _artifacts(given["inputs"]):
            self.store.download(artifact["uri"], Path(self._staging(artifact["uri"])))
        for artifact in _artifacts(given["outputs"]):
            Path(self._staging(artifact["uri"])).parent.mkdir(parents=True, exist_ok=True)
        filled = {"{{$}}": json.dumps(given)}
        arguments = [filled.get(one, one) for one in container.get("args", [])]
        environment = {one["name"]: one["value"] for one in container.get("env", [])}
        try:
            self._run(container["command"], arguments, environment)
            output = Path(given["outputs"]["outputFile"])
            written = json.loads(output.read_text()) if output.exists() else {}
            found = {}
            for key, (artifact,) in _by_key(given["outputs"]):
                told = written.get("artifacts", {}).get(key, {}).get("artifacts", [{}])[0]
                artifact["metadata"] = {**artifact["metadata"], **told.get("metadata", {})}
                artifact["uri"] = told.get("uri") or artifact["uri"]
                self.store.upload(Path(self._staging(artifact["uri"])), artifact["uri"])
                found[key] = artifact
        finally:
            shutil.rmtree(scratch)
            # Pods share nothing: whatever is not in the store is gone.
            for artifact in (*_artifacts(given["inputs"]), *_artifacts(given["outputs"])):
                _remove(Path(self._staging(artifact["uri"])))
        return found


def _remove(place: Path) -> None:
    if place.is_file():
        place.unlink()
    shutil.rmtree(place, ignore_errors=True)


def _files(place: Path) -> list[Path]:
    return [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]


def _copy_files(source: Path, to: Path) -> None:
    for file in _files(source):
        place = to / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def in_order(tasks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tasks, each after those that it needs."""
    left = dict(tasks)
    while left:
        ready = sorted(name for name, task in left.items() if not producers(task) & set(left))
        assert ready, f"a circle: {sorted(left)}"
        for name in ready:
            yield name, left.pop(name)


def producers(task: Mapping[str, Any]) -> set[str]:
    """The tasks that one needs."""
    sources = task.get("inputs", {}).get("artifacts", {}).values()
    made = {source["taskOutputArtifact"]["producerTask"] for source in sources}
    return made | set(task.get("dependentTasks", []))


def _by_key(part: Mapping[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(key, content["artifacts"]) for key, content in part.get("artifacts", {}).items()]


def _artifacts(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [artifact for _, (artifact,) in _by_key(part)]


def _fingerprint(given: Any, component: Any, container: Any) -> str:
    """driver/cache.go: names and URIs of inputs, parameters, outputs' types, the container."""
    parts = [
        {key: [one["uri"] for one in artifacts] for key, artifacts in _by_key(given["inputs"])},
        given["inputs"]["parameterValues"],
        component.get("outputDefinitions", {}),
        container["image"],
        container["command"],
        container.get("args", []),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
