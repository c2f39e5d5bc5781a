"""What runs left in ML Metadata, read without TFX (0.4 s against 14)."""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import ConfigError

_DONE = {3: "done", 4: "failed", 5: "cached", 6: "cancelled", 2: "running", 1: "new"}
# The input by which the Evaluator takes the model to compare with. The name is TFX's
# (standard_component_specs.BASELINE_MODEL_KEY), which takes 14 s to ask.
BASELINE = "baseline_model"


@dataclass
class Output:
    """One artifact that a component made, or took from the cache; `live` until `gc` deletes it."""

    id: int
    uri: str
    properties: dict[str, Any] = field(default_factory=dict)
    live: bool = True

    def read_json(self, name: str) -> Any:
        """A JSON file of the artifact, or None where there is none."""
        file = Path(self.uri) / name
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


@dataclass
class Node:
    """One component in one run: its state, its start (seconds since 1970), seconds from start to
    end, and outputs by key."""

    name: str
    state: str
    started: float
    seconds: float
    outputs: dict[str, Output]


@dataclass(frozen=True)
class Graph:
    """Who made and used what; executions and artifacts by their ids.

    Attributes:
        runs: each run's executions; the oldest run first.
        made, used: the artifacts of each execution.
        compared: those that an execution only compared its own with.
        uris: of the artifacts that were not deleted.
    """

    runs: dict[str, list[int]]
    made: dict[int, set[int]]
    used: dict[int, set[int]]
    compared: dict[int, set[int]]
    uris: dict[int, str]

    def needed(self, runs: Iterable[str]) -> set[int]:
        """All artifacts that the runs made or used, and all that these were made from.

        What made a model that another was only compared with is not among them: each version is
        compared with the one before, and so the newest would need all there ever were.
        """
        makers = defaultdict(set)
        for execution, artifacts in self.made.items():
            for artifact in artifacts:
                makers[artifact].add(execution)
        executions = [execution for run in runs for execution in self.runs[run]]
        waiting = [a for e in executions for a in self.made[e] | self.used[e]]
        found = set(waiting)
        while waiting:
            for execution in makers[waiting.pop()]:
                new = self.used[execution] - found
                found |= new
                waiting += new
        return found.union(*(self.compared[execution] for execution in executions))


def alone(home: Path, instead: str = "") -> AbstractContextManager[Any]:
    """One run or collection of a pipeline at a time: SQLite has no protection of its own in TFX.

    Args:
        home: the pipeline's folder; made if there is none.
        instead: what one can do but wait, for the message.

    Raises:
        ConfigError: another one is going on.
    """
    home.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(home / ".lock").acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{home}: another run of this pipeline is going on, or `espalier gc`. Wait for "
            f"it{instead}."
        ) from None


def database(home: Path) -> Path:
    """The SQLite file of a pipeline's metadata."""
    return home / "metadata.sqlite"


def opened(home: Path, name: str) -> "Store":
    """The metadata of a pipeline that has run; `name` is what the message calls it.

    Raises:
        ConfigError: there is no run yet.
    """
    if not database(home).exists():
        raise ConfigError(f"{home}: no run of {name} yet. Run `espalier run` first.")
    return Store(home)


class Store:
    """Reads one pipeline's metadata.

    Args:
        home: the pipeline's folder (`runs/NAME`).
    """

    def __init__(self, home: Path) -> None:
        from ml_metadata import metadata_store
        from ml_metadata.proto import metadata_store_pb2 as proto

        self._proto, self._file = proto, database(home)
        connection = proto.ConnectionConfig()
        connection.sqlite.filename_uri = str(self._file)
        # 3 is READWRITE_OPENCREATE, which would make an empty file where there is none.
        connection.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READWRITE
        self._store = metadata_store.MetadataStore(connection)

    def runs(self) -> list[str]:
        """The ids of all runs, oldest first: their start, as each of TFX's runners writes it."""
        contexts = self._store.get_contexts_by_type("pipeline_run")
        return [context.name for context in sorted(contexts, key=lambda context: context.id)]

    def nodes(self, run: str) -> list[Node]:
        """The components that a run has begun, in the order of their start."""
        context = self._store.get_context_by_type_and_name("pipeline_run", run)
        if context is None:
            return []
        executions = self._store.get_executions_by_context(context.id)
        executions.sort(key=lambda e: e.id)
        return [self._node(execution) for execution in executions]

    def outputs(self, kind: str) -> list[Output]:
        """Every artifact of a type, such as PushedModel, oldest first; of a run or of none."""
        found = self._store.get_artifacts_by_type(kind)
        return [self._output(artifact) for artifact in sorted(found, key=lambda a: a.id)]

    def graph(self) -> Graph:
        """Who made and used what, in all runs."""
        event_type = self._proto.Event
        makes = (event_type.OUTPUT, event_type.DECLARED_OUTPUT)
        uses = (event_type.INPUT, event_type.DECLARED_INPUT)
        made, used, compared = (defaultdict[int, set[int]](set) for _ in range(3))
        executions = [execution.id for execution in self._store.get_executions()]
        for event in self._store.get_events_by_execution_ids(executions) if executions else ():
            key = event.path.steps[0].key if event.path.steps else ""
            kind = made if event.type in makes else used if event.type in uses else compared
            kind = compared if key == BASELINE else kind
            kind[event.execution_id].add(event.artifact_id)
        runs = {}
        for context in self._store.get_contexts_by_type("pipeline_run"):
            found = self._store.get_executions_by_context(context.id)
            runs[context.name] = (context.id, [execution.id for execution in found])
        ordered = {run: ids for run, (_, ids) in sorted(runs.items(), key=lambda r: r[1][0])}
        artifacts = self._store.get_artifacts()
        uris = {one.id: one.uri for one in artifacts if self._is_live(one)}
        return Graph(ordered, made, used, compared, uris)

    def mark_deleted(self, outputs: Iterable[int]) -> None:
        """Record that artifacts' files are gone, all or none: TFX's cache offers them no more.

        Raises:
            ConfigError: the metadata cannot be written.
        """
        from ml_metadata import errors

        ids = list(outputs)
        artifacts = self._store.get_artifacts_by_id(ids) if ids else []
        for artifact in artifacts:
            artifact.state = self._proto.Artifact.DELETED
        try:
            self._store.put_artifacts(artifacts)
        except errors.StatusError as error:
            raise ConfigError(
                f"{self._file}: cannot be written: {error}. Nothing was deleted."
            ) from error

    def add_copy(self, output: int, changes: Mapping[str, str]) -> None:
        """Record one more output of a component, made outside any run: like another, but changed.

        Args:
            output: the id of the artifact that it is like.
            changes: properties that differ, or that the other has not.
        """
        proto, store = self._proto, self._store
        (old,) = store.get_artifacts_by_id([output])
        events = store.get_events_by_artifact_ids([output])
        event = next(event for event in events if event.type == proto.Event.OUTPUT)
        (component,) = store.get_executions_by_id([event.execution_id])
        execution = proto.Execution(
            type_id=component.type_id, last_known_state=proto.Execution.COMPLETE
        )
        new = proto.Artifact()
        new.CopyFrom(old)
        for own in ("id", "name", "create_time_since_epoch", "last_update_time_since_epoch"):
            new.ClearField(own)
        for name, value in changes.items():
            new.custom_properties[name].string_value = value
        # By these two TFX finds it; it belongs to no run.
        contexts = [
            context
            for context in store.get_contexts_by_execution(component.id)
            if context.type in ("pipeline", "node")
        ]
        store.put_execution(
            execution, [(new, proto.Event(type=event.type, path=event.path))], contexts
        )

    def _node(self, execution: Any) -> Node:
        events = self._store.get_events_by_execution_ids([execution.id])
        output_types = (self._proto.Event.OUTPUT, self._proto.Event.DECLARED_OUTPUT)
        outputs = [event for event in events if event.type in output_types]
        times = (execution.create_time_since_epoch, execution.last_update_time_since_epoch)
        return Node(
            name=self._node_name(execution),
            state=_DONE.get(execution.last_known_state, "unknown"),
            started=times[0] / 1000,
            seconds=(times[1] - times[0]) / 1000,
            outputs=self._by_key(outputs),
        )

    def _node_name(self, execution: Any) -> str:
        contexts = self._store.get_contexts_by_execution(execution.id)
        kinds = {c.type: c.name for c in contexts}
        return kinds.get("node", "").split(".", 1)[-1]

    def _by_key(self, events: Sequence[Any]) -> dict[str, Output]:
        artifacts = self._store.get_artifacts_by_id([event.artifact_id for event in events])
        by_id = {artifact.id: artifact for artifact in artifacts}
        return {
            event.path.steps[0].key: self._output(by_id[event.artifact_id])
            for event in events
            if event.artifact_id in by_id and event.path.steps
        }

    def _output(self, artifact: Any) -> Output:
        values = {
            key: getattr(value, value.WhichOneof("value"))
            for key, value in artifact.custom_properties.items()
        }
        return Output(artifact.id, artifact.uri, values, self._is_live(artifact))

    def _is_live(self, artifact: Any) -> bool:
        # UNKNOWN: a store that says nothing of it.
        states = self._proto.Artifact
        return artifact.state in (states.LIVE, states.UNKNOWN)
