"""The surroundings of a run break: its disks, its clock, its metadata, and others beside it.

The drills share one job on a small disk of its own. The first of them takes it through the whole
line while that disk fills up again and again; the others find it done, or do it themselves.
"""

import contextlib
import io
import logging
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from espalier import Config, ConfigError, EspalierError, RunResult, run
from espalier.components.pusher import publish
from espalier.pipeline import collecting, store, versions
from espalier.pipeline.cli import app
from espalier.pipeline.explain import explain
from espalier.pipeline.runner import NODES, foresee
from espalier.serving.predictor import Predictor, find_newest

KIB = 1 << 10
# When in a component's life its disk fills up, by what TFX logs then.
MOMENTS = {
    "before it is noted": re.compile(r"Component \w+ is running|node \w+ is running"),
    "before it works": re.compile("Going to run a new execution: "),
    "before its result is noted": re.compile("Publishing output artifacts"),
}
SHORT = [  # (component, moment, KiB that are left): cheap to do again, and each kind of write
    ("ExampleGen", "before it is noted", 0),
    ("ExampleGen", "before it works", 8),
    ("SchemaGen", "before its result is noted", 0),
    ("Transform", "before it works", 40),
    ("Trainer", "before it works", 100),
    ("Pusher", "before it works", 100),
    ("Pusher", "before its result is noted", 0),
]
YAML = """\
name: small
data: {{csv: {folder}/data.csv, text: text, label: label}}
model: {{family: bert, start: {start}, sequence_length: 16}}
train: {{epochs: 2, batch_size: 16, learning_rate: 3e-3, precision: float32}}
push: {{to: {folder}/models, keep: 9}}
runs: {disk}/runs
"""


@dataclass
class Disk:
    """A file system that can be filled up."""

    folder: Path

    def leave(self, kib: int) -> None:
        """Fill it, up to so many KiB."""
        self.empty()
        system = os.statvfs(self.folder)
        free = system.f_bavail * system.f_frsize
        with (self.folder / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, free - kib * KIB))

    def empty(self) -> None:
        """Make room again."""
        (self.folder / "filler").unlink(missing_ok=True)


class At(logging.Handler):
    """Does something at a moment of a component's life, once."""

    def __init__(self, node: str, moment: str, do: Callable[[], Any]) -> None:
        super().__init__()
        self._node, self._moment, self._do = node, moment, do
        self._is_on = self.is_done = False

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if re.match(rf"(Component|node) {self._node} is running", message):
            self._is_on = True
        if self._is_on and not self.is_done and MOMENTS[self._moment].match(message):
            self.is_done = True
            self._do()

    def __enter__(self) -> "At":
        logging.getLogger("absl").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("absl").removeHandler(self)


@dataclass
class Job:
    """A job whose runs lie on the disk, and whose versions do not."""

    folder: Path
    disk: Disk

    @property
    def yaml(self) -> Path:
        return self.folder / "job.yaml"

    @property
    def models(self) -> Path:
        return self.folder / "models"

    def config(self, *overrides: str) -> Config:
        return Config.load(self.yaml, overrides)

    def run(self, *overrides: str, **options: Any) -> RunResult:
        return run(self.config(*overrides), console=Console(file=io.StringIO()), **options)

    def cli(self, *arguments: str) -> Any:
        return CliRunner().invoke(app, [arguments[0], str(self.yaml), *arguments[1:]])

    def versions(self) -> list[int]:
        """Those that are served or could be; each must be whole."""
        found = sorted(int(one.name) for one in self.models.glob("[0-9]*"))
        for number in found:
            assert (self.models / str(number) / publish.SAVED_MODEL).exists(), number
        return found


def mounted(folder: Path, size: str, *options: str) -> Iterator[Disk]:
    """A file system in memory; the test is skipped where that may not be."""
    folder.mkdir()
    given = ",".join((f"size={size}", *options))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", given, "tmpfs", str(folder)])
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, small_bert: Path) -> Iterator[Job]:
    folder = tmp_path_factory.mktemp("surroundings")
    rng = random.Random(1)
    with (folder / "data.csv").open("w") as file:
        file.write("text,label\n")
        for number in range(200):
            word, label = rng.choice((("lovely", "yes"), ("awful", "no")))
            file.write(f"the soup was {word} order {number},{label}\n")
    for disk in mounted(folder / "disk", "300m"):
        text = YAML.format(folder=folder, disk=disk.folder, start=small_bert)
        (folder / "job.yaml").write_text(text)
        yield Job(folder, disk)


@pytest.fixture
def done(job: Job) -> Job:
    """The job once its model is served; nothing is done if it is already."""
    job.disk.empty()
    assert job.run(accept=True).status == "pushed"
    return job


def assert_sentence(error: BaseException, *words: str) -> None:
    """A user's error of a few lines, that says what is wrong."""
    assert isinstance(error, EspalierError), repr(error)
    assert error.exit_code in (2, 3), error.exit_code
    said = str(error)
    assert "Traceback" not in said and len(said.splitlines()) <= 2, said
    for one in words:
        assert one in said, said


def failed(do: Callable[[], Any]) -> Exception:
    """What is raised."""
    try:
        result = do()
    except Exception as error:
        return error
    raise AssertionError(f"it went well: {result}")


# --- a disk fills up ------------------------------------------------------------------------------


def test_the_runs_disk_fills_up_in_each_component(
    job: Job, drill: Any, times: Callable[[int, int], int]
) -> None:
    line, rng = drill("the runs' disk fills up"), random.Random(7)
    components = [node for node in NODES if node not in ("Tuner", "Compressor", "LatestBlessed")]
    tries = [(node, moment) for node in components for moment in MOMENTS]
    long = [(*one, kib) for one in tries for kib in (0, rng.choice((4, 16, 40, 100)))]
    for node, moment, kib in long if times(0, 1) else SHORT:
        with line.attempt(f"{node}, {moment}, {kib} KiB left"):
            before = job.versions()
            with At(node, moment, partial(job.disk.leave, kib)) as at:
                error = failed(job.run)
            job.disk.empty()
            assert at.is_done, error
            place = components.index(node)
            assert_sentence(error, "full", str(job.disk.folder), "oom")
            assert str(error).startswith(tuple(components[place:])), error
            states = {one.name: one.state for one in last_nodes(job)}
            assert {states.get(name) for name in components[:place]} <= {"done", "cached"}
            assert set(before) <= set(job.versions()), "a version is gone"
    with line.attempt("the same command, once there is room"):
        result = job.run()
        assert result.status == "pushed"
        assert job.versions() == [int(Path(str(result.pushed)).name)], "pushed once"
        assert Predictor(job.models).predict(["the soup was lovely"])


def last_nodes(job: Job) -> list[store.Node]:
    opened = store.Store(job.config().home)
    runs = opened.runs()
    return opened.nodes(runs[-1]) if runs else []


def test_the_models_disk_fills_up(done: Job, drill: Any, tmp_path: Path) -> None:
    line = drill("the models' disk fills up")
    for disk in mounted(tmp_path / "small", "40m"):
        to = f"push.to={disk.folder}/models"
        for kib in (0, 4, 300, 560):
            with line.attempt(f"{kib} KiB left"):
                with At("Pusher", "before it works", partial(disk.leave, kib)):
                    error = failed(partial(done.run, to, accept=True))
                assert_sentence(error, str(disk.folder), "the disk is full", "Nothing was publ")
                names = os.listdir(disk.folder / "models") if kib else []
                assert not [name for name in names if name != publish.LAST_PUSH], names
                disk.empty()
        with line.attempt("the same command, once there is room"):
            result = done.run(to, accept=True)
            assert (Path(str(result.pushed)) / publish.SAVED_MODEL).exists()
        first = Path(str(result.pushed)).name
        with line.attempt("a rollback and the number of the last push"):
            disk.leave(0)
            last = (disk.folder / "models" / publish.LAST_PUSH).read_text()
            base = str(disk.folder / "models")
            error = failed(partial(publish.publish, str(result.pushed), base, keep=None, now=1))
            assert_sentence(error, "the disk is full")
            assert (disk.folder / "models" / publish.LAST_PUSH).read_text() == last
            newest = find_newest(disk.folder / "models")
            assert newest and newest.name == first


def test_the_disk_of_temporary_files_fills_up(
    done: Job, drill: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server that is asked has its log there, and can do without."""
    line = drill("the disk of temporary files fills up")
    short = Path(tempfile.mkdtemp(dir="/tmp"))  # or the server's socket goes elsewhere
    for disk in mounted(short / "small", "40m"):
        with line.attempt("in the ServingCheck"):
            before = done.versions()
            with monkeypatch.context() as patch:
                patch.setattr(tempfile, "tempdir", str(disk.folder))
                with At("ServingCheck", "before it works", partial(disk.leave, 0)) as full:
                    again: dict[str, Any] = {"cache": False, "from_node": "ServingCheck"}
                    assert done.run(accept=True, **again).status == "pushed"
            assert full.is_done
            assert done.versions() == before, "it is the model that is served"


def test_outputs_on_a_full_disk(done: Job, drill: Any, tmp_path: Path) -> None:
    line = drill("outputs on a full disk")
    model = find_newest(done.models)
    commands: dict[str, list[str]] = {
        "predict > FILE": ["predict", str(model), "--csv", str(done.folder / "data.csv")],
        "ls > FILE": ["ls", str(done.yaml)],
        "show --json > FILE": ["show", str(done.yaml), "--json"],
        "schema > FILE": ["schema"],
        "init -o FILE": ["init", str(done.folder / "data.csv"), "-o", "FILE"],
    }
    commands["predict -o FILE"] = [*commands["predict > FILE"], "-o", "FILE"]
    for disk in mounted(tmp_path / "small", "4m"):
        disk.leave(0)
        for name, command in commands.items():
            with line.attempt(name), open(disk.folder / "out", "w") as out:
                file = str(disk.folder / "file")
                found = subprocess.run(
                    [sys.executable, "-m", "espalier.cli",
                     *(file if word == "FILE" else word for word in command)],
                    stdout=out, stderr=subprocess.PIPE, text=True,
                )  # fmt: skip
                assert found.returncode == 2, found
                assert "error: " in found.stderr and "No space left" in found.stderr, found.stderr
                assert "Traceback" not in found.stderr and "Exception" not in found.stderr
    with line.attempt("gc makes room where there is none"):
        old = done.config().home / "logs" / "20200101-000000.log"
        old.write_bytes(bytes(500 * KIB))
        os.utime(old, (0, 0))
        done.disk.leave(0)
        for words in (["gc"], ["gc", "--yes"]):
            told = done.cli(*words)
            assert told.exit_code == 0, told.output
            assert old.exists() == (words == ["gc"])
        done.disk.empty()
    with line.attempt("report and plan with no room in the runs"):
        done.disk.leave(0)
        for words in (["report"], ["plan", "--set", "train.epochs=7"]):
            told = done.cli(*words)
            assert told.exit_code == 2 and isinstance(told.exception, SystemExit), told.output
        done.disk.empty()


def test_compress_on_a_full_disk(
    done: Job, drill: Any, times: Callable[[int, int], int], tmp_path: Path
) -> None:
    if not times(0, 1):
        pytest.skip("the long form alone")
    line = drill("the disk fills up in compress")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "steps: [{distill: {layers: 1, epochs: 2}}, {quantize: {}}]\n"
        "budget: {accuracy_drop: 0.9, size: 0.99}\n"
    )
    for disk in mounted(tmp_path / "small", "200m"):
        small = disk.folder / "small"
        command = ["compress", str(done.models), "--recipe", str(recipe), "--to", str(small)]
        command += ["--data", str(done.folder / "data.csv")]
        work = "runs/compress/*/scratch"
        moments = ["runs/compress/*/log.txt", f"{work}/rows/*", f"{work}/distill/state.json"]
        moments += [f"{work}/versions/*", "small/.espalier-push-*"]
        for pattern, kib in ((one, kib) for one in moments for kib in (0, 30)):
            with line.attempt(f"at {pattern}, {kib} KiB left"):
                for place in ("runs", "small"):
                    shutil.rmtree(disk.folder / place, ignore_errors=True)
                code, said = filled_at(disk, pattern, kib, command)
                assert "Traceback" not in said, said
                if not code and pattern == moments[-1]:  # it was done before the disk was full
                    assert Predictor(small).predict(["the soup was lovely"])
                    continue
                assert code in (2, 3), said
                # As the paths were given: from the disk, where the command was called.
                assert "runs/compress/" in said or str(disk.folder) in said, said
                assert "full" in said or "are free in" in said, said
                assert not list(small.glob("[0-9]*")), "a version is there"
        with line.attempt("the same command, once there is room"):
            code, said = filled_at(disk, "never", 0, command)
            assert code in (0, 4), said
            (folder,) = (disk.folder / "runs" / "compress").iterdir()
            assert code or set(os.listdir(folder)) == {"report.json", "log.txt", ".lock"}
            assert bool(code) != bool(list(small.glob("[0-9]*")))


def filled_at(disk: Disk, pattern: str, kib: int, command: list[str]) -> tuple[int, str]:
    """The disk fills up once such a file is there; the exit code, and all that was said."""
    process = subprocess.Popen(
        [sys.executable, "-m", "espalier.cli", *command], cwd=disk.folder, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    while process.poll() is None:
        if any(disk.folder.glob(pattern)):
            with contextlib.suppress(OSError):  # it has taken the room meanwhile: once more
                disk.leave(kib)
                break
        time.sleep(0.001)
    said, _ = process.communicate()
    disk.empty()
    return process.returncode, said


# --- places that cannot be written ----------------------------------------------------------------


def test_read_only_places(done: Job, drill: Any, tmp_path: Path) -> None:
    line = drill("read-only places")
    closed = tmp_path / "closed"
    shutil.copytree(done.models, closed)
    with read_only(closed):
        with line.attempt("models"):
            error = failed(lambda: done.run(f"push.to={closed}", accept=True))
            assert_sentence(error, str(closed), "Read-only file system")
        with line.attempt("models, in the last moment"):
            model = str(find_newest(done.models))
            error = failed(lambda: publish.publish(model, str(closed), keep=None, now=1))
            assert_sentence(error, str(closed), "read-only")
    with read_only(done.disk.folder):
        for words in (["run", "--set", "train.epochs=7"], ["plan"], ["gc"], ["report"]):
            with line.attempt(f"runs: {words[0]}"):
                told = done.cli(*words)
                assert told.exit_code == 2 and isinstance(told.exception, SystemExit)
                assert "Read-only file system" in told.output, told.output
        for words in (["ls"], ["show"]):
            with line.attempt(f"runs: {words[0]}"):
                told = done.cli(*words)
                assert told.exit_code == 0, told.output
    with line.attempt("afterwards it goes on"):
        assert done.run(accept=True).cached


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Even for root, whom permissions do not stop."""
    for command in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *map(str, command)]).returncode:
            pytest.skip("a folder cannot be mounted read-only here")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


# --- metadata -------------------------------------------------------------------------------------


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: random.Random(3).randrange(1, file.stat().st_size)])


def scribbled(file: Path) -> None:
    content, rng = bytearray(file.read_bytes()), random.Random(4)
    for place in range(4096 + 8, len(content) - 512, 3 * 4096):
        content[place : place + 400] = rng.randbytes(400)
    file.write_bytes(content)


def of_a_newer_form(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file)) as metadata, metadata:
        metadata.execute("UPDATE MLMDEnv SET schema_version = 99")


def replaced_by_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


BREAKS: list[Callable[[Path], Any]] = [
    Path.unlink,
    lambda file: file.write_bytes(b""),
    lambda file: file.write_bytes(b"no database " * 1000),
    cut,
    scribbled,
    of_a_newer_form,
    replaced_by_a_folder,
]


def test_metadata_is_broken(done: Job, drill: Any) -> None:
    line, home = drill("metadata is broken"), done.config().home
    file = store.database(home)
    whole = file.read_bytes()
    for breaks in BREAKS:
        for words in (["ls"], ["plan"], ["gc", "--yes"], ["run", "--set", "train.epochs=7"]):
            with line.attempt(f"{breaks.__name__}: {words[0]}"):
                breaks(file)
                before = artifacts(home)
                told = done.cli(*words)
                assert told.exit_code == 2, told.output
                assert isinstance(told.exception, SystemExit), repr(told.exception)
                assert str(file) in told.output and "Traceback" not in told.output
                assert artifacts(home) == before, "something was deleted"
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
            file.write_bytes(whole)
    with line.attempt("the copy that is put back is taken"):
        assert done.run(accept=True).cached
        assert len(done.cli("ls").output.splitlines()) > 1


def artifacts(home: Path) -> set[Path]:
    return set((home / "artifacts").rglob("*"))


def test_metadata_is_locked(done: Job, drill: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    line, file = drill("metadata is locked"), store.database(done.config().home)
    monkeypatch.setattr(store, "_PATIENCE", 0.2)
    for words in (["ls"], ["plan"], ["gc"], ["run", "--set", "train.epochs=7"]):
        with line.attempt(words[0]), contextlib.closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN EXCLUSIVE")
            begun = time.monotonic()
            told = done.cli(*words)
            assert told.exit_code == 2 and "another program holds" in told.output, told.output
            assert time.monotonic() - begun < 60
    with line.attempt("afterwards it goes on"):
        assert done.run(accept=True).cached


# --- others beside a run --------------------------------------------------------------------------


def test_others_beside_a_run(done: Job, drill: Any) -> None:
    """In one of its components: a second run, a collection, a rollback, a push of another."""
    line = drill("others beside a run")
    (first,) = done.versions()[-1:]
    found: dict[str, Any] = {}

    def others() -> None:
        config = done.config("train.epochs=7")
        found["run"] = failed(lambda: run(config, console=Console(file=io.StringIO())))
        found["gc"] = failed(lambda: collecting.collect(config, remove=True))
        model = str(done.models / str(first))
        found["other"] = publish.publish(model, str(done.models), keep=None, now=1)
        found["rollback"] = versions.rollback(done.config(), str(first))

    with At("Trainer", "before it works", others) as at:
        result = done.run("train.epochs=1", accept=True)
    assert at.is_done
    for name in ("run", "gc"):
        with line.attempt(f"a second {name}"):
            assert isinstance(found[name], ConfigError)
            assert_sentence(found[name], "another run of this pipeline is going on")
    with line.attempt("the run itself"):
        assert result.status == "pushed"
    with line.attempt("versions grow in the order of the pushes"):
        pushed = int(Path(str(result.pushed)).name)
        order = [first, found["other"].number, int(found["rollback"].version), pushed]
        # A rollback to what another has published just now has nothing to publish.
        assert order == sorted(order) and order[0] < order[1] and order[2] < order[3], order
        assert set(order) <= set(done.versions())
    with line.attempt("ls and the next run know what is served"):
        assert f"{pushed}" in done.cli("ls").output.splitlines()[1]
        assert "served" in done.cli("ls").output.splitlines()[1]
        assert done.run("train.epochs=1", accept=True).cached


# --- the clock ------------------------------------------------------------------------------------


def test_the_clock_is_set_back(
    done: Job, drill: Any, times: Callable[[int, int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pushes, by a day. In the suite the second run's notes are set back, in the long
    form all of a process's time is, if the machine has `faketime`."""
    line = drill("the clock is set back")
    done.run("train.epochs=1", accept=True)  # and then again what is trained already
    before = done.versions()[-1]
    faketime = shutil.which("faketime") if times(0, 1) else None
    new = ["train.epochs=3"] if faketime else []
    if faketime:
        command = [faketime, "-f", "-1d", sys.executable, "-m", "espalier.cli", "run"]
        more = ["--set", *new, "--accept"]
        told = subprocess.run([*command, str(done.yaml), *more], capture_output=True, text=True)
        assert told.returncode == 0, told.stdout + told.stderr
    else:
        from espalier.components.pusher import executor

        past = int(time.time()) - 86_400
        monkeypatch.setattr(executor, "time", SimpleNamespace(time=lambda: past))
        done.run(*new, accept=True)
        monkeypatch.undo()
        set_back(done.config().home, 86_400)
    last = store.Store(done.config().home).runs()[-1]
    pushed = done.versions()[-1]
    with line.attempt("the number grows, and the newest is served"):
        assert pushed > before
        served = find_newest(done.models)
        assert served and served.name == str(pushed)
    with line.attempt("ls"):
        first = done.cli("ls").output.splitlines()[1]
        assert str(pushed) in first and "served" in first, first
    with line.attempt("report"):
        assert last.replace(":", "-") in done.cli("report").output
    with line.attempt("plan and the next run"):
        assert foresee(done.config(*new), accept=True) == []
        assert done.run(*new, accept=True).cached
    with line.attempt("a part goes on from the last run"):
        part = done.run(*new, accept=True, from_node="ServingCheck")
        assert part.status == "pushed" and done.versions()[-1] == pushed
    with line.attempt("the one to beat is what was pushed last"):
        planned = {step.name: step for step in foresee(done.config(*new, "push.keep=8"))}
        assert "--accept" in planned["Evaluator"].why
    with line.attempt("rollback"):
        copy = versions.rollback(done.config())
        assert int(copy.version) > pushed and copy.copy_of != str(pushed)


def set_back(home: Path, seconds: int) -> None:
    """What the last run has noted, and its files, get the time of a clock that was set back."""
    last = store.Store(home).runs()[-1]
    with contextlib.closing(sqlite3.connect(store.database(home))) as metadata, metadata:
        (context,) = metadata.execute("SELECT id FROM Context WHERE name = ?", (last,)).fetchone()
        chosen = "id IN (SELECT execution_id FROM Association WHERE context_id = ?)"
        for column in ("create_time_since_epoch", "last_update_time_since_epoch"):
            metadata.execute(
                f"UPDATE Execution SET {column} = {column} - ? WHERE {chosen}",
                (1000 * seconds, context),
            )
    for file in (home / "results").glob("*.json"):
        if last.replace(":", "-") in file.name or file.name == "latest.json":
            now = file.stat().st_mtime
            os.utime(file, (now - seconds, now - seconds))


# --- what a model is asked ------------------------------------------------------------------------


def test_a_text_of_ten_megabytes_is_answered(
    done: Job, drill: Any, times: Callable[[int, int], int]
) -> None:
    line, long = drill("a text of 10 MB is asked"), "a very long story " * (10 * KIB * KIB // 18)
    with line.attempt("predict"):
        (answer,) = Predictor(find_newest(done.models)).predict([long])
        assert answer.label in ("yes", "no")
    with line.attempt("explain"):
        text = long[: times(KIB * KIB, len(long))]
        assert explain(done.models, texts=[text]).found.words
