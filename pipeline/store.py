"""What runs left in ML Metadata, read without TFX (0.4 s against 14)."""

import json
import re
import sqlite3
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock, Timeout

from ..errors import ConfigError
from ..files import write_whole

_DONE = {3: "done", 4: "failed", 5: "cached", 6: "cancelled", 2: "running", 1: "new"}
# The input by which the Evaluator takes the model to compare with. The name is TFX's
# (standard_component_specs.BASELINE_MODEL_KEY), which takes 14 s to ask.
BASELINE = "baseline_model"
# Of what stands in a pipeline's folder: one more when an older Espalier would misread it.
_FORMAT, _FORMAT_FILE = 1, "format"
BEGUN = "begun.yaml"  # in a pipeline's folder: the configuration of the newest run, be it killed
# Milliseconds, by the tables of ML Metadata's schema (metadata_source_query_config.cc).
_TIMES = {
    **dict.fromkeys(
        ("Execution", "Artifact", "Context"),
        ("create_time_since_epoch", "last_update_time_since_epoch"),
    ),
    "Event": ("milliseconds_since_epoch",),
}
_PATIENCE = 10.0  # seconds; a run holds the file for moments alone


@dataclass
class Output:
    """One artifact that a component made, or took from the cache; `live` until it is given up:
    by `gc`, or because it was altered."""

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
    """One component in one run.

    Attributes:
        name: the component's.
        state: done, cached, failed, ...
        started: its start, in seconds since 1970.
        seconds: from start to end.
        outputs: by key.
        inputs: the ids of the artifacts that it took, by key.
        properties: its execution properties.
    """

    name: str
    state: str
    started: float
    seconds: float
    outputs: dict[str, Output]
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    properties: dict[str, Any] = field(default_factory=dict)


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
        ConfigError: another one is going on, or see `check_format`.
    """
    check_format(home)
    home.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(home / ".lock").acquire(blocking=False)
    except Timeout:
        raise ConfigError(
            f"{home}: another run of this pipeline is going on, or `espalier gc`. Wait for "
            f"it{instead}."
        ) from None
    if _format(home) != _FORMAT:  # `gc` must do on a full disk
        write_whole(home / _FORMAT_FILE, f"{_FORMAT}\n")
    return lock


def is_busy(home: Path) -> bool:
    """Whether a run or a collection of a pipeline is going on."""
    try:
        with FileLock(home / ".lock").acquire(blocking=False):
            return False
    except Timeout:
        return True
    except OSError:  # no folder yet
        return False


def check_format(home: Path) -> None:
    """Raise ConfigError if a newer Espalier has written to a pipeline's folder."""
    if (found := _format(home)) > _FORMAT:
        raise ConfigError(
            f"{home}: a newer Espalier has written here (its format is {found}, and this one knows "
            f"{_FORMAT}). Upgrade Espalier, or give the pipeline another `name:` to begin anew."
        )


def _format(home: Path) -> int:
    try:
        return int((home / _FORMAT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0  # begun before there was such a file, or spoilt


def database(home: Path) -> Path:
    """The SQLite file of a pipeline's metadata."""
    return home / "metadata.sqlite"


def opened(home: Path, name: str) -> "Store":
    """The metadata of a pipeline that has run; `name` is what the message calls it.

    Raises:
        ConfigError: there is no run yet, or the metadata was lost.
    """
    check_known(home, older=True)
    if not database(home).exists():
        raise ConfigError(f"{home}: no run of {name} yet. Run `espalier run` first.")
    return Store(home)


def check_known(home: Path, *, older: bool = False) -> None:
    """Whether the metadata knows of the artifacts that lie there.

    TFX numbers their folders by the metadata. With an empty file, or an older copy put back, a run
    would write into folders that are there, and with an empty one a collection would delete all.

    Args:
        home: the pipeline's folder.
        older: take an older copy, too.

    Raises:
        ConfigError: it does not.
    """
    places = (home / "artifacts").glob("*/*/*")
    numbers = [int(place.name) for place in places if place.name.isdecimal()]
    if not numbers:
        return
    file = database(home)
    last = _last_execution(home) if file.exists() else 0
    if not last:
        raise ConfigError(
            f"{file} {'knows no run' if file.exists() else 'is gone'}, and artifacts of earlier "
            f"runs lie beside it. Put a copy of it back, or move {home} away to begin anew. "
            f"Nothing was deleted."
        )
    if max(numbers) > last and not older:
        raise ConfigError(
            f"{file} is an older copy: it knows {last} executions, and artifacts of number "
            f"{max(numbers)} lie beside it, into which a run would write. Put the newest copy "
            f"back, or let `espalier gc` remove what this one does not know."
        )


def _last_execution(home: Path) -> int:
    """The number of the newest execution; 0 if there is none, as in a file of no length.

    Not through ML Metadata, which would make its tables in whatever file it finds.
    """
    try:
        return _ask(database(home), "SELECT max(id) FROM Execution") or 0
    except sqlite3.Error as error:
        if "no such table" not in str(error):
            Store(home)  # which says what is wrong
    return 0


def _ask(file: Path, query: str) -> Any:
    """One value of an SQLite file, or None.

    Raises:
        ConfigError: another program has locked it; ML Metadata would ask for half a minute and
            more.
        sqlite3.Error: anything else.
    """
    there = f"file:{quote(str(file))}?mode=rw"  # without the mode, a missing one would be made
    try:
        with closing(sqlite3.connect(there, uri=True, timeout=_PATIENCE)) as metadata:
            return (metadata.execute(query).fetchone() or [None])[0]
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        raise ConfigError(
            f"{file}: another program holds the pipeline's metadata. End it, or wait, and give the "
            f"command again."
        ) from None


def follow_clock(home: Path) -> float:
    """Set back what earlier runs have noted, by as much as the clock was set back since.

    ML Metadata gives executions a hundred at a time (`get_executions_by_context`), by time and by
    number at once: one that is newer than a hundred others by its number, and older by its time,
    is left out, and TFX finds nothing of what it made.

    Only while `alone` is held.

    Returns:
        seconds; 0 if nothing was noted in the future.

    Raises:
        ConfigError: the metadata cannot be written.
    """
    file = database(home)
    newest = 0
    with suppress(sqlite3.Error):  # whoever opens it next says what is wrong with it
        newest = _ask(file, "SELECT max(create_time_since_epoch) FROM Execution") or 0
    late = newest - int(1000 * time.time())
    if late <= 0:
        return 0.0
    try:
        with closing(sqlite3.connect(file, timeout=_PATIENCE)) as metadata, metadata:
            for table, columns in _TIMES.items():
                changes = ", ".join(f"{column} = {column} - ?" for column in columns)
                metadata.execute(f"UPDATE {table} SET {changes}", [late + 1] * len(columns))
    except sqlite3.Error as error:
        raise ConfigError(f"{file}: cannot be written: {error}.") from error
    return late / 1000


def _unreadable(file: Path, error: str) -> str:
    """Why ML Metadata does not open the file, in a sentence."""
    first = error.splitlines()[0].removeprefix("Error when executing query: ")
    first = first.partition(" query: ")[0][:200].rstrip(". ")
    if "disk is full" in error:
        return f"{file}: the disk is full. Make room, and give the command again."
    if found := re.search(r"version (\d+) is (greater|older) than library version (\d+)", error):
        theirs, kind, ours = found.groups()
        age = {"greater": "a newer", "older": "an older"}[kind]
        return (
            f"{file}: {age} ML Metadata wrote it, in form {theirs}, and this one reads form "
            f"{ours}. Use the Espalier that wrote it, or give the pipeline another `name:` to "
            f"begin anew. Nothing was changed."
        )
    return (
        f"{file}: the metadata cannot be read: {first}. Put a copy of it back, or give the "
        f"pipeline another `name:` to begin anew. Nothing was deleted."
    )


class Store:
    """Reads one pipeline's metadata.

    Args:
        home: the pipeline's folder (`runs/NAME`).

    Raises:
        ConfigError: the file is no metadata, or another program holds it; or see `check_format`.
    """

    def __init__(self, home: Path) -> None:
        from ml_metadata import metadata_store
        from ml_metadata.proto import metadata_store_pb2 as proto

        check_format(home)
        self._proto, self._file = proto, database(home)
        with suppress(sqlite3.Error):  # of which ML Metadata will say what it thinks
            _ask(self._file, "SELECT 1 FROM sqlite_master")
        connection = proto.ConnectionConfig()
        connection.sqlite.filename_uri = str(self._file)
        # 3 is READWRITE_OPENCREATE, which would make an empty file where there is none.
        connection.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READWRITE
        try:
            self._store = metadata_store.MetadataStore(connection)
        except Exception as error:  # RuntimeError, and those of ML Metadata
            raise ConfigError(_unreadable(self._file, str(error))) from None

    def runs(self) -> list[str]:
        """The ids of all runs, oldest first: their start, as each of TFX's runners writes it."""
        return [context.name for context in self._contexts()]

    def _contexts(self) -> list[Any]:
        found = self._store.get_contexts_by_type("pipeline_run")
        return sorted(found, key=lambda context: context.id)

    def nodes(self, run: str) -> list[Node]:
        """The components that a run has begun, in the order of their start."""
        context = self._store.get_context_by_type_and_name("pipeline_run", run)
        if context is None:
            return []
        executions = self._store.get_executions_by_context(context.id)
        names = {}
        for execution in executions:
            found = self._store.get_contexts_by_execution(execution.id)
            names[execution.id] = next((c.name for c in found if c.type == "node"), "")
        return self._nodes(executions, names)

    def history(self) -> dict[str, list[Node]]:
        """The same of all runs, the oldest first, in few questions."""
        named, executions = {}, {}
        for context in self._store.get_contexts_by_type("node"):
            for execution in self._store.get_executions_by_context(context.id):
                named[execution.id] = context.name
                executions[execution.id] = execution
        nodes = dict(zip(sorted(executions), self._nodes(executions.values(), named), strict=True))
        found = {}
        for context in self._contexts():
            ids = sorted(e.id for e in self._store.get_executions_by_context(context.id))
            found[context.name] = [nodes[id] for id in ids if id in nodes]
        return found

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
        ids = list(outputs)
        artifacts = self._store.get_artifacts_by_id(ids) if ids else []
        for artifact in artifacts:
            artifact.state = self._proto.Artifact.DELETED
        with self._writing(" Nothing was deleted."):
            self._store.put_artifacts(artifacts)

    def running(self) -> list[int]:
        """The executions that have begun and not ended, by their ids."""
        states = self._proto.Execution
        active = (states.NEW, states.RUNNING)
        found = self._store.get_executions()
        return [one.id for one in found if one.last_known_state in active]

    def mark_failed(self, executions: Iterable[int]) -> None:
        """Record that these executions have ended, and made nothing.

        Raises:
            ConfigError: the metadata cannot be written.
        """
        ids = list(executions)
        found = self._store.get_executions_by_id(ids) if ids else []
        for execution in found:
            execution.last_known_state = self._proto.Execution.FAILED
        with self._writing():
            self._store.put_executions(found)

    def places(self) -> set[str]:
        """The URIs of all artifacts, whether or not their files are still there."""
        return {artifact.uri for artifact in self._store.get_artifacts()}

    def add_copy(self, output: int, changes: Mapping[str, str]) -> None:
        """Record one more output of a component, made outside any run: like another, but changed.

        Args:
            output: the id of the artifact that it is like.
            changes: properties that differ, or that the other has not.

        Raises:
            ConfigError: the metadata cannot be written.
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
        with self._writing():
            store.put_execution(
                execution, [(new, proto.Event(type=event.type, path=event.path))], contexts
            )

    @contextmanager
    def _writing(self, then: str = "") -> Iterator[None]:
        """Raise ConfigError where ML Metadata cannot write; `then` says what follows of it."""
        from ml_metadata import errors

        try:
            yield
        except errors.StatusError as error:
            raise ConfigError(f"{self._file}: cannot be written: {error}.{then}") from error

    def _nodes(self, executions: Iterable[Any], names: Mapping[int, str]) -> list[Node]:
        """Executions, by their ids, with what went in and came out."""
        ordered, event = sorted(executions, key=lambda e: e.id), self._proto.Event
        events = self._store.get_events_by_execution_ids([e.id for e in ordered])
        # The last is what a Resolver found.
        kinds = (event.OUTPUT, event.DECLARED_OUTPUT, event.INTERNAL_OUTPUT)
        made = {e.artifact_id: e for e in events if e.type in kinds}
        outputs = {a.id: self._output(a) for a in self._store.get_artifacts_by_id(list(made))}
        taken: dict[int, list[Any]] = {}
        for one in events:
            if one.path.steps:
                taken.setdefault(one.execution_id, []).append(one)
        return [
            self._node(e, names[e.id].split(".", 1)[-1], taken.get(e.id, []), outputs)
            for e in ordered
        ]

    def _node(
        self, execution: Any, name: str, events: Sequence[Any], outputs: Mapping[int, Output]
    ) -> Node:
        inputs: dict[str, tuple[int, ...]] = {}
        made = {}
        for event in events:
            key, id = event.path.steps[0].key, event.artifact_id
            if event.type in (self._proto.Event.INPUT, self._proto.Event.DECLARED_INPUT):
                inputs[key] = (*inputs.get(key, ()), id)
            elif id in outputs:
                made[key] = outputs[id]
        times = (execution.create_time_since_epoch, execution.last_update_time_since_epoch)
        return Node(
            name=name,
            state=_DONE.get(execution.last_known_state, "unknown"),
            started=times[0] / 1000,
            seconds=(times[1] - times[0]) / 1000,
            outputs=made,
            inputs=inputs,
            properties=_values({**execution.properties, **execution.custom_properties}),
        )

    def _output(self, artifact: Any) -> Output:
        return Output(
            artifact.id, artifact.uri, _values(artifact.custom_properties), self._is_live(artifact)
        )

    def _is_live(self, artifact: Any) -> bool:
        # UNKNOWN: a store that says nothing of it.
        states = self._proto.Artifact
        return artifact.state in (states.LIVE, states.UNKNOWN)


def _values(properties: Mapping[str, Any]) -> dict[str, Any]:
    """MLMD's values as Python's; what has none is None."""
    return {
        key: getattr(value, kind) if (kind := value.WhichOneof("value")) else None
        for key, value in properties.items()
    }
