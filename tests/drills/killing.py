"""How the kill drill kills real processes at chosen moments, and what must be true afterwards.

A kill is one of the whole process group. Where a run is, is read from outside: from its log, and
from what appears in its folders.
"""

import contextlib
import fcntl
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 - registers the tokenizer's ops

from espalier.components.pusher import publish
from espalier.pipeline import results
from espalier.pipeline.runner import NODES
from espalier.pipeline.store import Store, database

LOADING = 16.0  # seconds in which a run looks at the data and imports TFX
# The line of a run without anything that trains twice.
LINE = [name for name in NODES if name not in ("Tuner", "Compressor")]
_EVENT = re.compile(r"^(\S+ \S+) INFO Component (\S+) is (running|finished)\.", re.MULTILINE)
When = Callable[["Place", "subprocess.Popen[bytes]"], None]


@dataclass
class Place:
    """A job with runs, versions and temporary files of its own.

    Attributes:
        folder: all of it.
        name: of the job.
        models_name: of the folder of versions.
        usual: seconds that each component took in a run that nobody disturbed.
        seen: the sizes of a version's files, as they were when its folder appeared.
        loaded: those that TensorFlow has loaded.
        before: the versions that were there when a command was started.
    """

    folder: Path
    name: str = "small"
    models_name: str = "models"
    usual: dict[str, float] = field(default_factory=dict)
    seen: dict[str, dict[str, int]] = field(default_factory=dict)
    loaded: dict[str, dict[str, int]] = field(default_factory=dict)
    before: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "runs" / self.name

    @property
    def models(self) -> Path:
        return self.folder / self.models_name

    @property
    def temporary(self) -> Path:
        return self.folder / "t"

    def start(self, *arguments: str) -> "subprocess.Popen[bytes]":
        self.temporary.mkdir(exist_ok=True)
        self._logged = {file: file.stat().st_size for file in self.home.glob("logs/*.log")}
        self.before = self.versions()
        with (self.folder / "said.txt").open("ab") as out:
            return subprocess.Popen(
                [sys.executable, "-m", "espalier.pipeline.cli", *arguments],
                cwd=self.folder,
                env={**os.environ, "TMPDIR": str(self.temporary), "COLUMNS": "200"},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def log(self) -> str:
        """What the process that was started last has logged."""
        texts = []
        for file in sorted(self.home.glob("logs/*.log")):
            with file.open("rb") as opened:
                opened.seek(self._logged.get(file, 0))
                texts.append(opened.read().decode(errors="replace"))
        return "".join(texts)

    def done(self, *arguments: str, code: int = 0) -> str:
        """Run a command to its end; what it said."""
        file = self.folder / "said.txt"
        before = file.stat().st_size if file.exists() else 0
        found = self.start(*arguments).wait(timeout=600)
        said = file.read_bytes()[before:].decode()
        assert found == code, f"espalier {' '.join(arguments)}: exit code {found}\n{said}"
        assert "Traceback" not in said, said
        return said

    def killed(self, when: When, *arguments: str) -> bool:
        """Start a command and kill it then; False if it had ended before."""
        process = self.start(*arguments)
        try:
            when(self, process)
            alive = process.poll() is None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        assert not _left(self.temporary), f"processes outlive the kill: {_left(self.temporary)}"
        return alive

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Look at every version as a server would, the moment that its folder appears."""
        over = threading.Event()

        def look() -> None:
            while not over.is_set():
                for name in self.versions():
                    if name not in self.seen:
                        with contextlib.suppress(FileNotFoundError):
                            self.seen[name] = sizes(self.models / name)
                time.sleep(0.002)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def versions(self) -> list[str]:
        if not self.models.is_dir():
            return []
        return sorted((n for n in os.listdir(self.models) if n.isdecimal()), key=int)


@dataclass
class Disk:
    """A file system on a disk of its own, which has the names of files within a second, and their
    bytes much later: what Linux does, in the worst case.

    Attributes:
        image: the file that stands for the disk.
        folder: where it is mounted.
    """

    image: Path
    folder: Path

    def make(self) -> bool:
        """Whether it could be made and mounted."""
        with self.image.open("wb") as file:
            file.truncate(400 << 20)
        self.folder.mkdir()
        if not shutil.which("mkfs.ext4"):
            return False
        return not subprocess.run(["mkfs.ext4", "-q", self.image]).returncode and self.on()

    def on(self) -> bool:
        """Mount it: its journal is played back, as after any cut."""
        options = ["-o", "loop,commit=1"]
        return not subprocess.run(["mount", *options, self.image, self.folder]).returncode

    def cut(self) -> None:
        """Nothing more reaches it: the ioctl by which xfstests stands for a cut of the power."""
        assert os.path.ismount(self.folder), "no disk of ours"
        opened = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.ioctl(opened, 0x8004587D, struct.pack("I", 2))  # EXT4_IOC_SHUTDOWN, no flush
        finally:
            os.close(opened)

    def again(self) -> None:
        """What it holds, once the power is back."""
        for _ in range(100):
            if not subprocess.run(["umount", self.folder]).returncode:
                break
            time.sleep(0.1)  # a process that was killed has not let go yet
        if os.path.ismount(self.folder) or not self.on():
            pytest.fail("the disk cannot be mounted again")  # which no attempt goes on from

    def off(self) -> None:
        subprocess.run(["umount", "-l", self.folder], check=True)


def _left(temporary: Path) -> list[str]:
    """Processes that live on with that folder for temporary files."""
    mark, found = f"TMPDIR={temporary}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if mark in environment and (process / "stat").read_text().split(") ")[1][0] != "Z":
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def sizes(folder: Path) -> dict[str, int]:
    """Of the model's files; what is said of it beside them may be brought up to date later."""
    files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
    return {name: files[name].stat().st_size for name in files.keys() - publish._ADDED}


# --- when ---------------------------------------------------------------------------------------


def dark(disk: Disk, when: When) -> When:
    """Then, and the power goes too."""

    def wait(place: Place, process: "subprocess.Popen[bytes]") -> None:
        when(place, process)
        disk.cut()

    return wait


def after(seconds: float) -> When:
    """That long after the start."""

    def wait(place: Place, process: "subprocess.Popen[bytes]") -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)

    return wait


def once(happened: Callable[[Place], Any], then: float = 0.0) -> When:
    """That long after something could be seen."""

    def wait(place: Place, process: "subprocess.Popen[bytes]") -> None:
        while process.poll() is None:
            if happened(place):
                time.sleep(then)
                return
            time.sleep(0.001)

    return wait


def runs(name: str, share: float) -> When:
    """In a component, after that share of the time that it usually takes, or at its end."""

    def wait(place: Place, process: "subprocess.Popen[bytes]") -> None:
        once(lambda place: f"Component {name} is running." in place.log())(place, process)
        late = time.monotonic() + share * place.usual.get(name, 1.0)
        over = f"Component {name} is finished."
        once(lambda place: time.monotonic() > late or over in place.log())(place, process)

    return wait


def ended(name: str, then: float = 0.0) -> When:
    """Behind a component."""
    return once(lambda place: f"Component {name} is finished." in place.log(), then)


def staging(place: Place) -> bool:
    return any(place.models.glob(".espalier-push-*"))


def published(place: Place) -> bool:
    """A version that was not there at the command's start; or it was, by the kill before."""
    new = place.versions()[-1:] > place.before[-1:]
    return new or "Component Pusher is finished." in place.log()


def usual(log: str) -> dict[str, float]:
    """Seconds of each component, out of a run's log."""
    begun: dict[str, float] = {}
    taken = {}
    for when, name, what in _EVENT.findall(log):
        clock, _, thousandths = when.partition(",")
        seconds = time.mktime(time.strptime(clock, "%Y-%m-%d %H:%M:%S")) + int(thousandths) / 1000
        if what == "running":
            begun[name] = seconds
        else:
            taken[name] = seconds - begun[name]
    return taken


# --- what must be true --------------------------------------------------------------------------


def check_served(place: Place) -> None:
    """Every version that a server could see is whole: as when it appeared, and TensorFlow loads
    it."""
    for name in place.versions():
        folder = place.models / name
        whole = sizes(folder)
        assert place.seen.get(name, whole) == whole, f"{name} appeared before it was whole"
        assert (folder / "assets.extra" / "config.yaml").exists()
        assert not list(folder.rglob(".*")), f"{name}: {list(folder.rglob('.*'))}"
        if place.loaded.get(name) != whole:
            tf.saved_model.load(str(folder))
            place.loaded[name] = whole


def check_metadata(place: Place) -> None:
    """SQLite finds its file sound; a copy is looked at, for the next command to find what the kill
    left."""
    if not database(place.home).exists():
        return
    copy = place.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in place.home.glob("metadata.sqlite*"):
        shutil.copy(file, copy)
    with contextlib.closing(sqlite3.connect(copy / "metadata.sqlite")) as opened:
        assert opened.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def check_commands(place: Place, yaml: str, *which: str) -> None:
    """The commands that read what runs have left work, whatever was killed."""
    for name in which or ("ls", "plan", "report", "gc"):
        if database(place.home).exists() or name == "plan":
            place.done(name, yaml)


def check_artifacts(place: Place) -> None:
    """Nothing is empty that the metadata says is done."""
    history = Store(place.home).history() if database(place.home).exists() else {}
    made = [output for run in history.values() for node in run for output in node.outputs.values()]
    for artifact in (Path(output.uri) for output in made if output.live):
        assert artifact.exists(), artifact
        files = [file for file in (artifact, *artifact.rglob("*")) if file.is_file()]
        empty = [str(file) for file in files if not file.stat().st_size]
        assert not [file for file in empty if not file.endswith("BLESSED")], artifact


def check_nothing_is_left(place: Place) -> None:
    """No temporary files, no half-made folders, nothing that seems to run."""
    history = Store(place.home).history()
    nodes = [node for run in history for node in history[run]]
    uris = {output.uri for node in nodes for output in node.outputs.values()}
    made = {uri.removesuffix("/value") for uri in uris}  # a String's is a file
    states = [place.home / kind for kind in ("training", "compression", "tuning")]
    left = {
        "temporary files": _in(place.temporary),
        "beside the versions": [n for n in _in(place.models) if is_left(n)],
        "states": [file for state in states for file in _in(state)],
        "unfinished files": [str(f) for f in place.home.rglob("*.new") if f.is_file()],
        "seems to run": [n.name for n in nodes if n.state == "running"],
        "half made": [f for f in map(str, place.home.glob("artifacts/*/[!.]*/*")) if f not in made],
        "TFX's own": [
            str(file)
            for kind in ("executor_execution", "stateful_working_dir")
            for file in place.home.glob(f"artifacts/*/.system/{kind}/*")
            if any(file.rglob("*"))
        ],
    }
    assert not any(left.values()), {what: files for what, files in left.items() if files}


def is_left(name: str) -> bool:
    return name.startswith(".") and name != publish.LAST_PUSH


def _in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def examples(place: Place, node: str, key: str) -> dict[str, list[bytes]]:
    """The last run's records, by split; each with its features in one order, and all in one."""
    store = Store(place.home)
    (found,) = [n.outputs[key] for n in store.nodes(store.runs()[-1]) if n.name == node]
    return {
        split.name: sorted(
            tf.train.Example.FromString(record).SerializeToString(deterministic=True)
            for file in sorted(split.iterdir())
            for record in tf.data.TFRecordDataset(str(file), "GZIP").as_numpy_iterator()
        )
        for split in Path(found.uri).glob("Split-*")
    }


def latest(place: Place) -> results.RunResult:
    found = results.latest(place.home / "results")
    assert found is not None
    return found


def check_like(place: Place, other: Place) -> None:
    """The last run of both came to the same, to the last figure: there is no dropout."""
    for node, key in (("ExampleGen", "examples"), ("Transform", "transformed_examples")):
        assert examples(place, node, key) == examples(other, node, key), f"{node} differs"
    one, two = latest(place), latest(other)
    assert (one.status, one.rows, one.failure) == (two.status, two.rows, "")
    for metric, value in two.metrics["overall"].items():
        assert one.metrics["overall"][metric] == pytest.approx(value, abs=1e-5), metric
    epochs = [history(place), history(other)]
    assert len(epochs[0]) == len(epochs[1])
    for mine, theirs in zip(*epochs, strict=True):
        assert mine["val_loss"] == pytest.approx(theirs["val_loss"], abs=1e-5)


def history(place: Place) -> list[dict[str, float]]:
    store = Store(place.home)
    (trainer,) = [n for n in store.nodes(store.runs()[-1]) if n.name == "Trainer"]
    found: list[dict[str, float]] = trainer.outputs["model_run"].read_json("history.json")["epochs"]
    return found
