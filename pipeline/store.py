"""What runs left in ML Metadata, read without TFX (0.4 s against 14)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError

_DONE = {3: "done", 4: "failed", 5: "cached", 6: "cancelled", 2: "running", 1: "new"}


@dataclass
class Output:
    """One artifact that a component made, or took from the cache."""

    id: int
    uri: str
    properties: dict[str, Any] = field(default_factory=dict)

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

        self._proto = proto
        connection = proto.ConnectionConfig()
        connection.sqlite.filename_uri = str(database(home))
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
        kinds = self._proto.Event
        # The last is what a Resolver found.
        output_types = (kinds.OUTPUT, kinds.DECLARED_OUTPUT, kinds.INTERNAL_OUTPUT)
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
        return Output(artifact.id, artifact.uri, values)
