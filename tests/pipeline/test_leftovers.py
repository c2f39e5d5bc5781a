"""What a kill has left is put in order, and nothing else is touched."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as proto

from espalier.errors import ConfigError
from espalier.pipeline import leftovers
from espalier.pipeline.places import is_unfinished, temporary
from espalier.pipeline.store import Store
from espalier.trainer import states

STATES = proto.Execution


@pytest.fixture
def store(tmp_path: Path) -> metadata_store.MetadataStore:
    connection = proto.ConnectionConfig()
    connection.sqlite.filename_uri = str(tmp_path / "metadata.sqlite")
    return metadata_store.MetadataStore(connection)


def execution(store: metadata_store.MetadataStore, home: Path, state: int) -> int:
    """A Trainer's, with what it has written so far; recorded as its artifact if it has ended."""
    kind = store.put_execution_type(proto.ExecutionType(name="Trainer"))
    (number,) = store.put_executions([proto.Execution(type_id=kind, last_known_state=state)])
    folder = home / "artifacts" / "Trainer" / "model" / str(number)
    folder.mkdir(parents=True)
    (folder / "saved_model.pb").write_text("model")
    system = home / "artifacts" / "Trainer" / ".system"
    (system / "executor_execution" / str(number) / ".temp").mkdir(parents=True)
    (system / "stateful_working_dir" / f"of-{number}").mkdir(parents=True)
    if state == STATES.COMPLETE:
        model = store.put_artifact_type(proto.ArtifactType(name="Model"))
        store.put_artifacts([proto.Artifact(type_id=model, uri=str(folder))])
    return int(number)


def test_what_seems_to_run_has_failed_and_its_half_made_files_go(
    tmp_path: Path, store: metadata_store.MetadataStore
) -> None:
    done = execution(store, tmp_path, STATES.COMPLETE)
    killed = execution(store, tmp_path, STATES.RUNNING)
    leftovers.clear(tmp_path)
    found = {one.id: one.last_known_state for one in store.get_executions()}
    assert found == {done: STATES.COMPLETE, killed: STATES.FAILED}
    assert Store(tmp_path).running() == []
    trainer = tmp_path / "artifacts" / "Trainer"
    kept = {str(path.relative_to(trainer)) for path in trainer.glob("**/*") if path.is_dir()}
    system = {".system", ".system/executor_execution", f".system/executor_execution/{done}"}
    system |= {f".system/executor_execution/{done}/.temp", ".system/stateful_working_dir"}
    assert kept == {"model", f"model/{done}", *system}


def test_metadata_that_cannot_be_written_is_a_sentence(
    tmp_path: Path, store: metadata_store.MetadataStore
) -> None:
    execution(store, tmp_path, STATES.RUNNING)
    with contextlib.closing(sqlite3.connect(tmp_path / "metadata.sqlite")) as database:
        database.execute(
            "CREATE TRIGGER full BEFORE UPDATE ON Execution BEGIN SELECT RAISE(ABORT, 'full'); END"
        )
    with pytest.raises(ConfigError, match=r"metadata\.sqlite: cannot be written: .*full"):
        leftovers.clear(tmp_path)


def test_a_pipeline_that_never_ran_has_no_leftovers(tmp_path: Path) -> None:
    leftovers.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_state_goes_when_what_was_made_of_it_is_recorded(
    tmp_path: Path, store: metadata_store.MetadataStore
) -> None:
    """Metadata that cannot be written, as the Trainer ends, would else cost the training."""
    done = execution(store, tmp_path, STATES.COMPLETE)
    model = tmp_path / "artifacts" / "Trainer" / "model"
    for name, made in (("a", str(model / str(done))), ("b", str(model / "99")), ("c", "")):
        (tmp_path / "training" / name).mkdir(parents=True)
        if made:
            states.finish(tmp_path / "training" / name, made)
    (tmp_path / "training" / "workers.json").write_text("{}")
    (tmp_path / "tuning" / ".gone-d").mkdir(parents=True)  # half of one that went
    leftovers.clear_states(tmp_path)
    assert sorted(os.listdir(tmp_path / "training")) == ["b", "c", "workers.json"]
    assert not os.listdir(tmp_path / "tuning")


def test_a_folder_is_never_half_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """state.json without the checkpoint that it names would keep every later run from training."""
    state, there = tmp_path / "state", []
    with monkeypatch.context() as patch:  # killed before it has deleted anything
        patch.setattr(states.shutil, "rmtree", lambda *_, **__: there.append(state.exists()))
        state.mkdir()
        states.discard(state)
    assert there == [True, False]
    state.mkdir()
    states.discard(state)
    assert not os.listdir(tmp_path)


KILLED = """
import os, signal, sys, tempfile
from pathlib import Path
from espalier.pipeline.places import temporary
with temporary(Path(sys.argv[1])):
    tempfile.mkdtemp()
    open(os.environ["TMPDIR"] + "/by-a-child", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_temporary_files_of_what_was_killed_go_when_the_next_one_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, home = tmp_path / "tmp", tmp_path / "home"
    base.mkdir()
    home.mkdir()
    env = {**os.environ, "TMPDIR": str(base)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(home)], env=env)
    assert done.returncode == -signal.SIGKILL
    assert is_unfinished(home)
    (left,) = base.iterdir()
    assert len(list(left.iterdir())) == 2
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(base))
    with temporary(home):
        (own,) = base.iterdir()
        assert own != left and tempfile.gettempdir() == os.environ["TMPDIR"] == str(own)
    assert not list(base.iterdir()) and not list(home.iterdir()) and not is_unfinished(home)
    assert (tempfile.gettempdir(), os.environ["TMPDIR"]) == (str(base), str(base))


@pytest.mark.parametrize("note", [b"/{}", b"", b"\xff"])
def test_a_broken_note_deletes_nothing(tmp_path: Path, note: bytes) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (tmp_path / ".temporary").write_bytes(note.replace(b"/{}", bytes(mine)))
    with temporary(tmp_path):
        assert mine.exists()


def test_no_place_for_temporary_files_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    words = r"gone/espalier-.*: cannot be made.*set TMPDIR"
    with pytest.raises(ConfigError, match=words), temporary(tmp_path):
        pass
