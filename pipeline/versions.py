"""The pushed versions of a pipeline: which there are, and how to go back to an earlier one.

TensorFlow Serving serves the highest number that it finds. To go back is therefore to publish a
copy of the earlier version under a higher number still, and to note it in ML Metadata: from then
on the copy is what the next run's model is compared with.
"""

import os
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.table import Table

from ..components.pusher import publish
from ..errors import ConfigError
from ..serving.predictor import find_newest, is_version
from . import results
from .config import Config
from .store import Node, Store, database, opened

# What a rollback notes beside the Pusher's own marks: the version copied, and the time.
COPY_OF, COPIED = "copy_of", "copied"


@dataclass(frozen=True)
class Pushed:
    """A version that the Pusher or a rollback published.

    Attributes:
        version: its number.
        when: ISO time of the push, or of the rollback.
        run: the run that made the model.
        folder: where it was published.
        output: the id of its artifact in ML Metadata.
        copy_of: the version that a run pushed and a rollback copied; "" if this is not a copy.
    """

    version: str
    when: str
    run: str
    folder: str
    output: int
    copy_of: str = ""

    @property
    def model(self) -> str:
        """The version that a run pushed with the same model: this one, or what it is a copy of."""
        return self.copy_of or self.version


@dataclass(frozen=True)
class History:
    """A pipeline's metadata, as read at one time.

    Attributes:
        store: where it was read.
        runs: each run's components by name; the oldest run first.
        versions: every version ever published, by its number.
    """

    store: Store
    runs: dict[str, dict[str, Node]]
    versions: dict[str, Pushed]


def read(config: Config) -> History:
    """All runs of the pipeline, and all versions.

    Raises:
        ConfigError: there is no run yet.
    """
    return history(opened(config.home, config.name))


def history(store: Store) -> History:
    """The same, out of metadata that is open."""
    runs = {run: {n.name: n for n in nodes} for run, nodes in store.history().items()}
    versions: dict[str, Pushed] = {}
    for run, nodes in runs.items():
        if version := _version(nodes):
            pusher = nodes["Pusher"]
            output, when = pusher.outputs["pushed_model"], _iso(pusher.started)
            folder = output.properties["pushed_destination"]
            # A later run that came to the same model found it there already.
            versions.setdefault(version, Pushed(version, when, run, folder, output.id))
    for output in store.outputs("PushedModel"):
        marks = output.properties
        if first := versions.get(marks.get(COPY_OF, "")):
            version, folder = marks["pushed_version"], marks["pushed_destination"]
            versions[version] = Pushed(
                version, marks[COPIED], first.run, folder, output.id, first.version
            )
    return History(store, runs, versions)


def compared_with(history: History, run: str) -> Pushed | None:
    """The version that a run's model was, or would be, compared with; None if there was none."""
    baseline = history.runs[run].get("LatestBlessed")
    if baseline and baseline.state == "done":  # else an earlier run's answer stands in for it
        found = baseline.outputs.get("pushed_model")
        return history.versions.get(found.properties["pushed_version"]) if found else None
    # With --accept nothing is compared. By their numbers: a clock may have been set back.
    made = [output.id for node in _done(history.runs[run]) for output in node.outputs.values()]
    pusher = history.runs[run].get("Pusher")
    own = {output.id for output in pusher.outputs.values()} if pusher else set()
    known = {one.output: one for one in history.versions.values() if one.output not in own}
    return known.get(max((id for id in known if id < max(made, default=0)), default=0))


def _done(nodes: dict[str, Node]) -> list[Node]:
    """The components that were not taken from an earlier run."""
    return [node for node in nodes.values() if node.state == "done"]


def _version(nodes: dict[str, Node]) -> str:
    """What a run's Pusher published, or found published; "" if it did not."""
    output = nodes["Pusher"].outputs.get("pushed_model") if "Pusher" in nodes else None
    return str(output.properties.get("pushed_version", "")) if output else ""


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat()


# --- espalier ls --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A version, or a run that pushed none.

    Attributes:
        version: its number; "" for such a run.
        when: ISO time of the push or the rollback; of such a run's start; of others' folder.
        blessed: None where that was not decided.
        pushed: "yes", "no", "copy of VERSION", or "by others": it is in push.to, and no run's.
        folder: "served", "there", "gone", "remote"; "" for such a run.
        size: bytes; None where there is no folder to look at.
        metric: the first one of the configuration; None where it was not measured.
    """

    version: str
    when: str
    blessed: bool | None
    pushed: str
    folder: str
    size: int | None
    metric: float | None


def rows(config: Config) -> list[Row]:
    """All versions, and the runs that pushed none; newest first.

    Raises:
        ConfigError: there is no run yet.
    """
    history = read(config)
    metric = config.evaluate.measured[0]
    found = []  # with the number of the last artifact by then
    for one in history.versions.values():
        how = f"copy of {one.copy_of}" if one.copy_of else "yes"
        value = _measured(history.runs[one.run], metric)
        row = Row(one.version, one.when, True, how, *_folder(config, one.version), value)
        found.append((one.output, row))
    last = 0
    for run, nodes in history.runs.items():
        outputs = [output.id for node in nodes.values() for output in node.outputs.values()]
        last = max([last, *outputs])
        if not _version(nodes):
            value = _measured(nodes, metric)
            found.append((last, Row("", run, _blessed(nodes), "no", "", None, value)))
    others = []
    for folder in _folders(config):
        if (name := folder.name) not in history.versions:
            when = _iso(folder.stat().st_mtime)
            others.append((when, Row(name, when, None, "by others", *_folder(config, name), None)))
    known = [(row.when, row) for _, row in sorted(found, key=lambda one: one[0])]
    return results.in_order(known, others)[::-1]


def table(found: list[Row], metric: str) -> Table:
    """The rows as a person reads them; `metric` is its column's name."""
    drawn = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("version", "when", "blessed", "pushed", "folder"):
        drawn.add_column(name)
    for name in ("MB", metric):
        drawn.add_column(name, justify="right")
    for row in found:
        drawn.add_row(
            row.version or "-",
            row.when[:19].replace("T", " "),
            {True: "yes", False: "no", None: "-"}[row.blessed],
            row.pushed,
            row.folder or "-",
            "-" if row.size is None else f"{row.size / 1e6:.1f}",
            "-" if row.metric is None else f"{row.metric:.4f}",
            style="green" if row.folder == "served" else None,
        )
    return drawn


def _blessed(nodes: dict[str, Node]) -> bool | None:
    """Whether both the Evaluator and the ServingCheck blessed the run's model."""
    verdicts = [
        nodes[judge].outputs["blessing"].properties.get("blessed")
        for judge in ("Evaluator", "ServingCheck")
        if judge in nodes and "blessing" in nodes[judge].outputs
    ]
    if 0 in verdicts:
        return False
    return True if verdicts == [1, 1] else None


def _measured(nodes: dict[str, Node], metric: str) -> float | None:
    evaluation = nodes["Evaluator"].outputs.get("evaluation") if "Evaluator" in nodes else None
    facts = evaluation.read_json("metrics.json") if evaluation else None
    return facts["candidate"]["overall"].get(metric) if facts else None


def _folder(config: Config, version: str) -> tuple[str, int | None]:
    """What there is to say of a version's folder in push.to, and its size."""
    if publish.is_remote(config.push.to):
        return "remote", None
    folder = Path(config.push.to, version)
    if not folder.is_dir():
        return "gone", None
    return "served" if folder == find_newest(folder.parent) else "there", size_of(folder)


def size_of(folder: Path) -> int:
    """The bytes of all files below a folder."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):  # a push retires the version meanwhile
                size += os.stat(os.path.join(place, name)).st_size
    return size


def _folders(config: Config) -> list[Path]:
    """The versions that lie in push.to, the lowest number first; none if it is remote."""
    base = Path(config.push.to)
    if publish.is_remote(config.push.to) or not base.is_dir():
        return []
    found = [folder for folder in base.iterdir() if is_version(folder.name) and folder.is_dir()]
    return sorted(found, key=lambda folder: int(folder.name))


# --- espalier rollback --------------------------------------------------------------------------


def rollback(config: Config, version: str | None = None) -> Pushed:
    """Serve an earlier version again: a copy of it is published under the next number.

    Nothing is deleted; the next push keeps the newest `push.keep`.

    Args:
        config: the pipeline.
        version: its number; None is the one before the model that is served now.

    Returns:
        The copy.

    Raises:
        ConfigError: there is no such version, it is served already, push.to is remote, or it or
            the metadata cannot be written.
        ComponentError: the version's files cannot be read.
    """
    base = _local(config)
    store = opened(config.home, config.name)
    with _one_rollback(config):
        done = _finish(config, store)
        if done and version in (None, done.copy_of):
            return done  # by the call before, which was killed
        old = _to_copy(config, base, history(store).versions, version)
        new = publish.publish(str(base / old.version), str(base), keep=None, now=int(time.time()))
        try:
            return _note(store, old, new)
        except ConfigError as error:  # both or none
            publish.remove(str(base), new.name)
            raise ConfigError(f"{error} What was served before is served again.") from error


def finish_rollback(config: Config) -> None:
    """Note the copy that a rollback which was killed has published, if there is one.

    Raises ConfigError if the metadata cannot be written.
    """
    if database(config.home).exists() and not publish.is_remote(config.push.to):
        with _one_rollback(config):
            _finish(config, Store(config.home))


def _one_rollback(config: Config) -> AbstractContextManager[Any]:
    """Not `alone`: while a run goes on, one can go back too."""
    return FileLock(config.home / ".rollback.lock")


def _finish(config: Config, store: Store) -> Pushed | None:
    """The newest version, if nobody has noted it and it is a copy of one that was pushed."""
    base = Path(config.push.to)
    new = publish.newest(str(base))
    noted = {output.properties.get("pushed_version") for output in store.outputs("PushedModel")}
    if new is None or new.name in noted:
        return None
    for old in reversed(history(store).versions.values()):
        folder = base / old.version
        if folder.is_dir() and publish.is_copy(new.path, str(folder)):
            return _note(store, old, new)
    return None


def _to_copy(config: Config, base: Path, versions: dict[str, Pushed], asked: str | None) -> Pushed:
    """The version to go back to; ConfigError if there is none such, or it is served already."""
    newest = find_newest(base)
    if newest is None:
        raise ConfigError(f"{base}: no version is served, so there is none to go back from.")
    served = versions[newest.name].model if newest.name in versions else newest.name
    whole = {n: one for n, one in versions.items() if (base / n / publish.SAVED_MODEL).exists()}
    if asked is None:
        # Before the model, not before its copy: going back twice must not bring back what the
        # first time took away.
        earlier = [name for name in whole if int(name) < int(served)]
        if not earlier:
            raise ConfigError(f"{base}: nothing is left there that was pushed before {served}.")
        return whole[max(earlier, key=int)]
    if asked not in whole:
        others = [name for name, one in whole.items() if one.model != served]
        raise ConfigError(
            f"version {asked}: {_why_not(config, base, versions, asked)} "
            f"Can be gone back to: {', '.join(others) or 'none'}."
        )
    if whole[asked].model == served:
        copy = "" if asked == newest.name else f", as {newest.name}"
        raise ConfigError(f"version {asked} is served already{copy}.")
    return whole[asked]


def _why_not(config: Config, base: Path, versions: dict[str, Pushed], version: str) -> str:
    if version in versions:
        return f"it is no longer in {base}."
    if is_version(version) and (base / version).is_dir():
        return f"no run of {config.name} pushed it, so nobody knows whether it was blessed."
    return f"no run of {config.name} pushed it."


def _note(store: Store, old: Pushed, new: publish.Version) -> Pushed:
    """Write the copy into the metadata, and return it."""
    marks = {"pushed_version": new.name, "pushed_destination": new.path}
    now = datetime.now().isoformat()
    store.add_copy(old.output, {**marks, COPY_OF: old.model, COPIED: now})
    return history(store).versions[new.name]


def _local(config: Config) -> Path:
    if publish.is_remote(config.push.to):
        raise ConfigError(
            f"push.to: {config.push.to} is remote, and only in a local folder a version comes and "
            f"goes in one piece. Use the storage's own tool; to go back, copy the earlier version "
            f"to a higher number, its {publish.SAVED_MODEL} last."
        )
    return Path(config.push.to)


# --- espalier rm --------------------------------------------------------------------------------


def find_removable(config: Config, version: str) -> Path:
    """The folder of a version in push.to that is not served.

    Raises:
        ConfigError: it is, or there is none such, or push.to is remote.
    """
    base = _local(config)
    folders = _folders(config)
    if version not in [folder.name for folder in folders]:
        raise ConfigError(
            f"version {version}: not in {base}. There are: "
            f"{', '.join(folder.name for folder in folders) or 'none'}."
        )
    if base / version == find_newest(base):
        raise ConfigError(
            f"version {version} is the one that is served. Go back to another one first: "
            f"`espalier rollback`."
        )
    return base / version


def remove(config: Config, version: str) -> None:
    """Delete a version's folder from push.to; a server sees it whole or not at all.

    Raises:
        ConfigError: see `find_removable`; or it cannot be deleted.
    """
    folder = find_removable(config, version)
    try:
        publish.remove(str(folder.parent), folder.name)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be deleted: {error.strerror or error}.") from None
