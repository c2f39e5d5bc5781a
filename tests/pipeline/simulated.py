"""A pipeline whose runs are written down as TFX's local runner writes them, and not run.

Small real files, a real metadata store, and TFX's rule for its cache: an execution's results are
taken again if all of them are live and lie there. Beside it a plain note of what came from what,
for tests to hold the code against.
"""

import itertools
import os
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as proto

from espalier import Config, RunResult
from espalier.pipeline.results import Component
from espalier.pipeline.runner import NODES
from espalier.serving.predictor import find_newest

YAML = """\
version: 2
name: reviews
data: {{csv: reviews.csv, text: text, label: label}}
model: {{family: bert, start: tiny, sequence_length: 32}}
push: {{to: {folder}/models, keep: 2}}
runs: {folder}/runs
"""
OUTPUTS = {
    "ExampleGen": {"examples": "Examples"},
    "Transform": {"transform_graph": "TransformGraph"},
    "Trainer": {"model": "Model", "model_run": "ModelRun"},
    "Evaluator": {"evaluation": "ModelEvaluation", "blessing": "ModelBlessing"},
    "Pusher": {"pushed_model": "PushedModel"},
}
Made = dict[str, int]  # artifacts by their outputs' names

# SQLite waits for the disk at each of its many writes: in memory, where that can be.
MEMORY = next((place for place in ("/dev/shm",) if os.access(place, os.W_OK)), None)


@dataclass
class Run:
    """What one run used and made.

    Attributes:
        id: its start.
        artifacts: what its components used or made.
        compared: the model that its own was compared with.
        version: what it pushed, or found pushed.
        cached: the components that came from the cache.
    """

    id: str
    artifacts: set[int] = field(default_factory=set)
    compared: set[int] = field(default_factory=set)
    version: str = ""
    cached: set[str] = field(default_factory=set)


class Line:
    """A pipeline in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "job.yaml").write_text(YAML.format(folder=folder))
        self.home = folder / "runs" / "reviews"
        self.home.mkdir(parents=True)
        self.models = folder / "models"
        self.models.mkdir()
        self.runs: list[Run] = []
        self.versions: dict[str, Run] = {}  # the run that made each, copies too
        self.pushes: list[tuple[Made, Run]] = []  # the last one is the one to beat
        self.lineage: dict[int, set[int]] = {}
        self.places: dict[int, Path] = {}
        self._trained: list[Made] = []
        self._cache: dict[Any, list[Made]] = defaultdict(list)
        self._clock = itertools.count()
        connection = proto.ConnectionConfig()
        connection.sqlite.filename_uri = str(self.home / "metadata.sqlite")
        self.store = metadata_store.MetadataStore(connection)

    @property
    def config(self) -> Config:
        return Config.load(self.folder / "job.yaml")

    def run(
        self, data: int = 0, settings: int = 0, *, blessed: bool = True, fails: str = ""
    ) -> Run:
        """One run; `fails` is the component that leaves half of its files and no result."""
        return self._line(self._begun(), list(OUTPUTS), {}, (data, settings), blessed, fails)

    def evaluated_again(self) -> Run | None:
        """A run `--from Evaluator` on what the last run has made that came to the Trainer.

        It takes over no more than what its components read; TFX takes over all. None if there is
        none whose files still lie there.
        """
        whole = [made for made in self._trained if self.live() >= set(made.values())]
        if not whole:
            return None
        run, made = self._begun(), whole[-1]
        taken = {key: made[key] for key in OUTPUTS["Trainer"]}
        self._execution(run, "Trainer", proto.Execution.CACHED, {}, taken)
        return self._line(run, ["Evaluator", "Pusher"], dict(made), (0, 0), True, "")

    def _begun(self) -> Run:
        start = datetime(2026, 1, 1) + timedelta(hours=next(self._clock))
        self.runs.append(Run(start.isoformat()))
        return self.runs[-1]

    def _line(
        self, run: Run, nodes: list[str], made: Made, given: tuple[int, int], blessed: bool,
        fails: str,
    ) -> Run:  # fmt: skip
        for node in nodes:
            if node == fails:
                self._execution(run, node, proto.Execution.FAILED, half=True)
                return run
            if node == "Pusher":
                self._push(run, made, blessed)
            else:
                used = self._used(node, made)
                made |= self._component(run, node, used, given[node != "ExampleGen"])
            if node == "Trainer":
                self._trained.append(dict(made))
        self._record(run, blessed)
        return run

    def rolled_back(self, version: str, of: str) -> None:
        """Note a rollback that the code under test has made."""
        run = self.versions[of]
        self.versions[version] = run
        pushes = self.store.get_artifacts_by_type("PushedModel")
        newest = max(pushes, key=lambda one: one.id)
        self.places[newest.id] = Path(newest.uri)
        self.lineage[newest.id] = set()
        model = newest.custom_properties["model_id"].int_value
        self.pushes.append(({"pushed_model": newest.id, "model": model}, run))

    def needed(self, runs: list[Run]) -> set[int]:
        """What these runs used or made, and what that was made from."""
        direct = {one for run in runs for one in run.artifacts}
        return direct.union(*(self.lineage[one] for one in direct), *(run.compared for run in runs))

    def live(self) -> set[int]:
        """Artifacts that TFX would take, and whose files are whole."""
        states = {a.id: a.state == proto.Artifact.LIVE for a in self.store.get_artifacts()}
        return {
            one for one, place in self.places.items() if states[one] and (place / "file").exists()
        }

    def folders(self) -> set[Path]:
        """The folders of artifacts that lie there."""
        return {p for p in (self.home / "artifacts").glob("*/*/*") if p.name.isdecimal()}

    def _used(self, node: str, made: Made) -> Made:
        names = {
            "ExampleGen": [],
            "Transform": ["examples"],
            "Trainer": ["transform_graph"],
            "Evaluator": ["model"],
            "Pusher": ["model", "evaluation", "blessing"],
        }[node]
        used = {name: made[name] for name in names}
        last = self.pushes[-1][0]["model"] if self.pushes else None
        # The store takes an artifact once for each execution, whatever its inputs' names.
        if node == "Evaluator" and last in self.live() - {made["model"]}:
            used["baseline_model"] = last
        return used

    def _component(self, run: Run, node: str, used: Made, settings: int) -> Made:
        key = (node, tuple(sorted(used.items())), settings)
        live = self.live()
        whole = [made for made in self._cache[key] if live.issuperset(made.values())]
        if whole:
            run.cached.add(node)
            self._execution(run, node, proto.Execution.CACHED, used, whole[-1])
            return whole[-1]
        made = self._execution(run, node, proto.Execution.COMPLETE, used)
        self._cache[key].append(made)
        return made

    def _push(self, run: Run, made: Made, blessed: bool) -> None:
        used = self._used("Pusher", made)
        marks: dict[str, str | int] = {"pushed": int(blessed), "model_id": made["model"]}
        if blessed:
            run.version = self._publish(made["model"])
            self.versions.setdefault(run.version, run)
            marks |= {"pushed_version": run.version}
            marks["pushed_destination"] = str(self.models / run.version)
        pushed = self._execution(run, "Pusher", proto.Execution.COMPLETE, used, marks=marks)
        if blessed:
            self.pushes.append((made | pushed, run))

    def _publish(self, model: int) -> str:
        """The version of a model: the one that is served, or a new one."""
        served = find_newest(self.models)
        if served and (served / "saved_model.pb").read_text() == str(model):
            return served.name
        number = 1 + max((int(name) for name in self.versions), default=0)
        (self.models / str(number)).mkdir()
        (self.models / str(number) / "saved_model.pb").write_text(str(model))
        for old in sorted(self.models.glob("[0-9]*"), key=lambda p: int(p.name))[:-2]:
            (old / "saved_model.pb").unlink()
            old.rmdir()
        return str(number)

    def _execution(
        self,
        run: Run,
        node: str,
        state: int,
        used: Made | None = None,
        cached: Made | None = None,
        marks: dict[str, str | int] | None = None,
        half: bool = False,
    ) -> Made:
        type_id = self.store.put_execution_type(proto.ExecutionType(name=node))
        execution = proto.Execution(type_id=type_id, last_known_state=state)
        named = {"pipeline": "reviews", "pipeline_run": run.id, "node": f"reviews.{node}"}
        contexts = [
            proto.Context(
                name=name, type_id=self.store.put_context_type(proto.ContextType(name=kind))
            )
            for kind, name in named.items()
        ]
        number, _, _ = self.store.put_execution(
            execution, [], contexts, reuse_context_if_already_exist=True
        )
        execution.id, events, made = number, [], {}
        own = self.home / "artifacts" / node / ".system" / "executor_execution" / str(number)
        own.mkdir(parents=True)
        (own / "executor_output.pb").touch()
        for key, artifact in (used or {}).items():
            events.append(_event(key, artifact, number, proto.Event.INPUT))
        for key, kind in OUTPUTS[node].items():
            place = self.home / "artifacts" / node / key / str(number)
            if cached is None:
                place.mkdir(parents=True)
                (place / "file").write_text(f"{node} {key} {number}")
            if not half:
                made[key] = cached[key] if cached else self._artifact(kind, place, marks or {})
                events.append(_event(key, made[key], number, proto.Event.OUTPUT))
        if events:
            self.store.put_events(events)
        self._note(run, used or {}, made, is_new=cached is None)
        return made

    def _artifact(self, kind: str, place: Path, marks: dict[str, str | int]) -> int:
        artifact = proto.Artifact(
            type_id=self.store.put_artifact_type(proto.ArtifactType(name=kind)),
            uri=str(place), state=proto.Artifact.LIVE,
        )  # fmt: skip
        for mark, value in marks.items():
            field = "int_value" if isinstance(value, int) else "string_value"
            setattr(artifact.custom_properties[mark], field, value)
        (number,) = self.store.put_artifacts([artifact])
        self.places[number] = place
        return int(number)

    def _note(self, run: Run, used: Made, made: Made, is_new: bool) -> None:
        sources = {one for key, one in used.items() if key != "baseline_model"}
        run.compared |= set(used.values()) - sources
        run.artifacts |= sources | set(made.values())
        for one in made.values() if is_new else ():
            self.lineage[one] = sources.union(*(self.lineage[source] for source in sources))

    def _record(self, run: Run, blessed: bool) -> None:
        RunResult(
            name="reviews",
            run=run.id,
            key="a whole one",
            status="pushed" if blessed else "not_blessed",
            pushed=str(self.models / run.version) if blessed else None,
            components=[Component(name=name, state="done", seconds=1.0) for name in NODES],
            config=self.config.to_yaml(),
        ).save(self.home / "results")


def _event(key: str, artifact: int, execution: int, kind: int) -> Any:
    event = proto.Event(type=kind, artifact_id=artifact, execution_id=execution)
    event.path.steps.add(key=key)
    return event
