"""Where the disk went, and what of it nothing needs any more: `espalier gc`.

Whole runs are kept, or not: the newest ones, those whose versions lie in `push.to`, and pinned
ones. Of a kept run everything stays that its components used or made, and everything that this was
made from, whichever run made it. The metadata itself always stays.

A kill at any moment loses nothing that is needed: first ML Metadata is told what is gone, in one
step, then the artifacts are deleted. What a kill left of them no live artifact names any more, and
the next collection takes it.
"""

import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..components.pusher import publish
from ..errors import ConfigError
from ..files import write_whole
from . import contents, leftovers, results, versions
from .compress import WORK
from .config import Config
from .store import BEGUN, Graph, Node, alone, opened
from .versions import History, Pushed, size_of

KEEP = 3  # runs
PINS = "pins.json"
ORPHANS, RECORDS = "orphans", "records"
# Folders of the pipeline where the names do not say which run left what.
_BY_TIME = ("logs", "training", "compression", "tuning", "schemas")
# Component, output and execution: where TFX puts an artifact below the pipeline's artifacts/.
_Place = tuple[str, str, str]
_PLACE = re.compile(r"artifacts/([^/\s]+)/([^/\s]+)/(\d+)(?=\W|$)")


@dataclass(frozen=True)
class Piece:
    """Files that stay or go together.

    Attributes:
        path: a file or a folder.
        kind: the component that made it; or logs, reports, training, compression, tuning (what
            a killed run can go on from), schemas; orphans, artifacts that the metadata does not
            know; records, which always stay.
        run: the run that made it; "" where nobody knows.
        size: bytes.
        kept: whether something needs it.
        artifacts: the ids in ML Metadata of what lies there.
    """

    path: Path
    kind: str
    run: str
    size: int
    kept: bool
    artifacts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Beside:
    """A folder outside the pipeline's own; a collection never touches it.

    Attributes:
        path: it.
        size: bytes; None if it is remote.
        words: what there is to say of it.
    """

    path: str
    size: int | None
    words: str


@dataclass(frozen=True)
class Disk:
    """What a pipeline takes on the disk.

    Attributes:
        home: the pipeline's folder.
        pieces: all that lies there.
        kept: the runs that are kept, the oldest first, and why.
        beside: what belongs to it and lies elsewhere.
    """

    home: Path
    pieces: Sequence[Piece]
    kept: dict[str, str]
    beside: Sequence[Beside]

    @property
    def size(self) -> int:
        """Bytes in the pipeline's folder."""
        return sum(piece.size for piece in self.pieces)

    @property
    def goes(self) -> list[Piece]:
        """What nothing needs."""
        return [piece for piece in self.pieces if not piece.kept]


def collect(
    config: Config,
    keep: int = KEEP,
    *,
    pin: Iterable[str] = (),
    unpin: Iterable[str] = (),
    remove: bool = False,
) -> Disk:
    """Look what a pipeline takes on the disk, and remove what nothing needs.

    Args:
        config: the pipeline.
        keep: how many of the newest runs stay.
        pin, unpin: runs (their id, its beginning, or a version) that stay from now on, or no
            longer.
        remove: remove it; else only look.

    Returns:
        What there was before.

    Raises:
        ConfigError: no run yet, a run or another collection is going on, there is no such run to
            pin, or something cannot be read, written or deleted.
    """
    opened(config.home, config.name)
    with alone(config.home):
        if remove:
            leftovers.clear(config.home)
        history = versions.read(config)
        graph = history.store.graph()
        _change_pins(config, history, graph, list(pin), list(unpin))
        disk = _look(config, history, graph, keep)
        if remove:
            _remove(config, history, disk.goes)
            gone = {id_ for piece in disk.goes for id_ in piece.artifacts}
            contents.forget(config.home, graph.uris.keys() - gone)
        return disk


def _remove(config: Config, history: History, pieces: Sequence[Piece]) -> None:
    """Delete the pieces; first what no metadata names, since on a full disk nothing can be noted
    before there is some room."""
    for piece in pieces:
        if not piece.artifacts:
            _delete(piece.path)
    history.store.mark_deleted(id_ for piece in pieces for id_ in piece.artifacts)
    for piece in pieces:
        if piece.artifacts:
            _delete(piece.path)
    if not publish.is_remote(config.push.to) and Path(config.push.to).is_dir():
        publish.clean(config.push.to)


def _look(config: Config, history: History, graph: Graph, keep: int) -> Disk:
    kept = _kept(config, history, keep)
    needed = graph.needed(kept)
    pieces = list(_artifacts(config, graph, needed, _named(config, kept)))
    last = max((execution for made in graph.runs.values() for execution in made), default=0)
    older = any(int(piece.path.name) > last for piece in pieces)
    pieces += [
        *_by_time(config, history, set(kept), keep, older),
        *_reports(config, history, set(kept)),
    ]
    rest = size_of(config.home) - sum(piece.size for piece in pieces)
    pieces.append(Piece(config.home, RECORDS, "", max(0, rest), True))
    why = {run: ", ".join(kept[run]) for run in history.runs if run in kept}
    return Disk(config.home, pieces, why, list(_beside(config)))


def _delete(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or path}: cannot be deleted: {error.strerror or error}. Change that, "
            f"and run the same command again: it goes on from here."
        ) from None


# --- which runs are kept ------------------------------------------------------------------------


def _kept(config: Config, history: History, keep: int) -> dict[str, list[str]]:
    """The runs that are kept, and why."""
    why: dict[str, list[str]] = defaultdict(list)
    for run in _newest(history, keep):
        why[run].append("newest")
    whole = results.latest(config.home / "results")
    if whole and whole.run in history.runs:
        # `espalier run` repeats its answer as long as nothing has changed.
        why[whole.run].append("the last whole one")
    served = publish.newest(config.push.to)
    for pushed in _there(config, history):
        is_served = served is not None and served.name == pushed.version
        why[pushed.run].append(f"version {pushed.version}" + ", served" * is_served)
    if last := _pushed_last(history):
        why[last].append("pushed last")
    for run in read_pins(config.home):
        if run in history.runs:
            why[run].append("pinned")
    return dict(why)


def _newest(history: History, keep: int) -> list[str]:
    runs = list(history.runs)
    return runs[max(0, len(runs) - keep) :]


def _there(config: Config, history: History) -> list[Pushed]:
    """The versions whose folder is where it was pushed to, or in push.to.

    What is remote is not looked at: the newest `push.keep` are taken to be there.
    """
    remote = [one for one in history.versions.values() if publish.is_remote(one.folder)]
    found = sorted(remote, key=lambda one: int(one.version))[-config.push.keep :]
    for one in history.versions.values():
        if not publish.is_remote(one.folder):
            places = [Path(one.folder)]
            if not publish.is_remote(config.push.to):
                places.append(Path(config.push.to, one.version))
            if not any(place.parent.is_dir() for place in places):
                raise ConfigError(
                    f"{places[0].parent}: no such folder, though version {one.version} was pushed "
                    f"there. Mount its disk, or call this from the folder that the paths in the "
                    f"configuration count from; if all versions are gone for good, make it empty."
                )
            found += [one] if any(place.is_dir() for place in places) else []
    return found


def _pushed_last(history: History) -> str | None:
    """The run of the last push or rollback: with its model the next one is compared, whether or
    not it still lies in push.to."""
    pushes = {one.output: one.run for one in history.versions.values()}
    for run, nodes in history.runs.items():
        pushed = nodes["Pusher"].outputs.get("pushed_model") if "Pusher" in nodes else None
        if pushed and pushed.properties.get("pushed"):
            pushes.setdefault(pushed.id, run)
    return pushes[max(pushes)] if pushes else None


# --- pins ---------------------------------------------------------------------------------------


def read_pins(home: Path) -> list[str]:
    """The runs that somebody has pinned.

    Raises:
        ConfigError: the file is broken; to take it for empty would delete what is pinned.
    """
    file = home / PINS
    if not file.exists():
        return []
    try:
        found = json.loads(file.read_text(encoding="utf-8"))["runs"]
        return [str(run) for run in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f'{file}: cannot be read: {error}. Expected {{"runs": [...]}}; mend it, or delete it '
            f"and pin anew."
        ) from None


def _change_pins(
    config: Config, history: History, graph: Graph, pin: list[str], unpin: list[str]
) -> None:
    if not pin and not unpin:
        return
    pins = dict.fromkeys(read_pins(config.home))
    for name in pin:
        run = _find(config, history, name)
        if not graph.needed([run]) <= graph.uris.keys():
            raise ConfigError(
                f"--pin {name}: files of the run of {run} were removed before, so there is nothing "
                f"whole to keep."
            )
        pins[run] = None
    for name in unpin:
        run = _find(config, history, name)
        if run not in pins:
            raise ConfigError(
                f"--unpin {name}: not pinned. Pinned are: {', '.join(pins) or 'none'}."
            )
        del pins[run]
    write_whole(config.home / PINS, json.dumps({"runs": list(pins)}, indent=1))


def _find(config: Config, history: History, name: str) -> str:
    runs = {version: one.run for version, one in history.versions.items()}
    return results.find_run(config.home, list(history.runs), name, runs.get)


# --- what lies there ----------------------------------------------------------------------------


def _artifacts(
    config: Config, graph: Graph, needed: set[int], named: set[_Place]
) -> Iterator[Piece]:
    """The folders of artifacts. A rollback's own artifact belongs to no run, but shares the folder
    of the push that it is like, and stays or goes with it."""
    there: dict[_Place, list[int]] = defaultdict(list)
    for artifact, uri in graph.uris.items():
        # Not by the whole path: the pipeline's folder may have been moved since.
        for place in _PLACE.findall(uri)[-1:]:
            there[place].append(artifact)
    run_of = {execution: run for run, made in graph.runs.items() for execution in made}
    for folder in sorted((config.home / "artifacts").glob("*/*/*")):
        node, output, number = folder.parts[-3:]
        if not number.isdecimal() or output.startswith(".") or folder.is_symlink():
            continue  # TFX's own, or somebody moved it to another disk
        ids = there[node, output, number]
        kept = (node, output, number) in named or not needed.isdisjoint(ids)
        run = run_of.get(int(number), "")
        yield Piece(folder, node if ids else ORPHANS, run, size_of(folder), kept, tuple(ids))


def _named(config: Config, kept: Iterable[str]) -> set[_Place]:
    """Artifacts that settings name, such as weights to train on from: this job's, those of kept
    runs, and those of all other pipelines beside it, of what they have begun last as well."""
    texts = [config.to_yaml()]
    texts += [file.read_text(encoding="utf-8") for file in Path(config.runs).glob(f"*/{BEGUN}")]
    for folder in Path(config.runs).glob("*/results"):
        own = folder.parent.name == config.home.name
        texts += [r.config for r in results.all_results(folder) if not own or r.run in kept]
    place = re.compile(rf"(?<![^/\s'\"]){re.escape(config.home.name)}/{_PLACE.pattern}")
    return {found for text in texts for found in place.findall(text)}


def _by_time(
    config: Config, history: History, kept: set[str], keep: int, older: bool
) -> Iterator[Piece]:
    """Logs and states: those last written before the oldest of the newest runs began may go.

    With an `older` copy of the metadata, the numbers by which states know their inputs are given
    again, to others: then no state stays."""
    starts = [_start(history.runs[run]) for run in _newest(history, keep)]
    since = min(starts, default=math.inf)
    read = (results.of_run(config.home / "results", run) for run in kept)
    logs = {Path(result.log).name for result in read if result and result.log}
    for kind in _BY_TIME:
        for path in sorted((config.home / kind).iterdir() if (config.home / kind).exists() else ()):
            stays = path.name in logs or _written(path) >= since
            stays = stays and not (older and kind in leftovers.STATES)
            yield Piece(path, kind, "", _size(path), stays)


def _start(nodes: dict[str, Node]) -> float:
    """When a run began, in seconds; one that has begun nothing began before everything."""
    return min((node.started for node in nodes.values()), default=0.0)


def _written(path: Path) -> float:
    """The time of the last change, of a file or of anything in a folder."""
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


def _size(path: Path) -> int:
    return size_of(path) if path.is_dir() else path.lstat().st_size


def _reports(config: Config, history: History, kept: set[str]) -> Iterator[Piece]:
    """A run's page, and pages that set it beside another."""
    runs = {results.file_stem(run): run for run in history.runs}
    for page in sorted((config.home / "reports").glob("*.html")):
        names = page.name.removesuffix(".html").split("..")
        shown = [runs[name] for name in names if name in runs]
        run = shown[0] if len(shown) == 1 else ""
        stays = len(shown) < len(names) or kept.issuperset(shown)
        yield Piece(page, "reports", run, page.stat().st_size, stays)


def _beside(config: Config) -> Iterator[Beside]:
    if publish.is_remote(config.push.to):
        yield Beside(config.push.to, None, "push.to; remote, and not looked at")
    else:
        base = Path(config.push.to)
        yield Beside(config.push.to, size_of(base), "push.to; see push.keep and `espalier rm`")
    for work in sorted(WORK.glob("*/")):
        words = "left by `espalier compress`; "
        words += "unfinished, it can go on" if (work / "scratch").exists() else "done"
        yield Beside(str(work), size_of(work), words)
