"""Metadata that is lost, locked, of another age or no metadata at all: a sentence, nothing lost."""

import contextlib
import importlib.util
import os
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier import ConfigError
from espalier.pipeline import collecting, contents, runner, store, versions
from espalier.pipeline.runner import foresee

_found = importlib.util.spec_from_file_location(
    "espalier_tests_simulated", Path(__file__).with_name("simulated.py")
)
assert _found and _found.loader
simulated = importlib.util.module_from_spec(_found)
sys.modules[_found.name] = simulated
_found.loader.exec_module(simulated)
Line = Any  # simulated.Line


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    with tempfile.TemporaryDirectory(dir=simulated.MEMORY) as folder:
        monkeypatch.chdir(folder)
        made = simulated.Line(Path(folder))
        made.run()
        rows = (f"some words {n},{'yes' if n % 2 else 'no'}\n" for n in range(200))
        Path("reviews.csv").write_text("text,label\n" + "".join(rows))
        yield made
        monkeypatch.undo()


def write(content: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(content) and None


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def execute(query: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        with contextlib.closing(sqlite3.connect(file)) as metadata, metadata:
            metadata.execute(query)

    return change


def another(file: Path) -> None:
    file.unlink()
    execute("CREATE TABLE mine (a)")(file)


BROKEN = {
    "gone": (Path.unlink, "is gone, and artifacts of earlier runs lie beside it"),
    "empty": (lambda file: file.write_bytes(b""), "knows no run, and artifacts of earlier runs"),
    "no metadata": (another, "knows no run, and artifacts of earlier runs"),
    "cut short": (cut, "cannot be read: database disk image is malformed"),
    "junk": (write(b"junk " * 5000), "cannot be read: file is not a database"),
    "newer": (execute("UPDATE MLMDEnv SET schema_version = 99"), "a newer ML Metadata wrote it"),
    "older": (execute("UPDATE MLMDEnv SET schema_version = 4"), "an older ML Metadata wrote it"),
    "a table less": (execute("DROP TABLE Artifact"), "cannot be read: There are a subset"),
}


@pytest.mark.parametrize(("breaks", "words"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_metadata_is_a_sentence_and_nothing_is_deleted(
    line: Line, breaks: Callable[[Path], None], words: str
) -> None:
    file = store.database(line.home)
    breaks(file)
    there = {path: path.read_bytes() for path in line.folder.rglob("*") if path.is_file()}
    for command in (versions.rows, foresee, lambda config: collecting.collect(config, remove=True)):
        with pytest.raises(ConfigError) as caught:
            command(line.config)
        assert f"{file}" in str(caught.value) and words in str(caught.value)
    there.pop(file, None)
    now = {path: path.read_bytes() for path in line.folder.rglob("*") if path.is_file()}
    assert there.items() <= now.items()


def test_an_older_copy_is_not_built_on_until_it_is_collected(line: Line) -> None:
    file = store.database(line.home)
    shutil.copyfile(file, line.folder / "copy")
    line.run(data=1)
    made = store.Store(line.home).outputs("Examples")
    contents.note(line.home, made)
    shutil.copyfile(line.folder / "copy", file)
    with pytest.raises(ConfigError, match="is an older copy: it knows 5 executions, and artifacts"):
        foresee(line.config)
    collecting.collect(line.config, remove=True)
    foresee(line.config)
    assert contents.read(line.home).keys() == {str(made[0].id)}, "another will bear that number"


def test_locked_metadata_is_said_soon(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_PATIENCE", 0.1)
    with contextlib.closing(sqlite3.connect(store.database(line.home))) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match="another program holds the pipeline's metadata"):
            versions.rows(line.config)
    versions.rows(line.config)


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        store.Store(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_built_on_the_last_run_whatever_the_clock_said(line: Line) -> None:
    last = line.run(data=1)
    for file in (line.home / "results").glob(f"{last.id.replace(':', '-')}*"):
        os.utime(file, (0, 0))
    assert runner._base_run(line.config, "", "", "Evaluator") == last.id


@pytest.mark.parametrize("follows", [False, True])
def test_after_the_clock_was_set_back_a_new_execution_is_found(line: Line, follows: bool) -> None:
    """ML Metadata leaves out one that is older by its time than a hundred others."""
    while store._last_execution(line.home) < 120:
        line.run(settings=store._last_execution(line.home))
    for table in ("Execution", "Artifact", "Context"):
        changes = [f"{when}_time_since_epoch = {when}_time_since_epoch + 86400000"
                   for when in ("create", "last_update")]  # fmt: skip
        execute(f"UPDATE {table} SET {', '.join(changes)}")(store.database(line.home))
    before = {
        run: [node.name for node in nodes]
        for run, nodes in store.Store(line.home).history().items()
    }
    late = store.follow_clock(line.home) if follows else 0
    assert late == pytest.approx(86400 * follows, abs=600)
    assert {
        r: [n.name for n in nodes] for r, nodes in store.Store(line.home).history().items()
    } == before
    line.run(settings=-1)
    opened = store.Store(line.home)._store
    (context,) = opened.get_contexts_by_type("pipeline")
    found = {execution.id for execution in opened.get_executions_by_context(context.id)}
    assert (store._last_execution(line.home) in found) == follows
    assert store.follow_clock(line.home) == (0 if follows else pytest.approx(86400, abs=600))
