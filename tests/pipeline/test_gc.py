"""A collection takes all that nothing needs, and never anything else: whatever went before."""

import contextlib
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from filelock import FileLock
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from typer.testing import CliRunner

from espalier import ConfigError, RunResult
from espalier.pipeline import collecting, runner, versions
from espalier.pipeline.cli import app
from espalier.pipeline.collecting import collect
from espalier.pipeline.store import BEGUN
from espalier.serving.predictor import find_newest

_found = importlib.util.spec_from_file_location(
    "espalier_tests_simulated", Path(__file__).with_name("simulated.py")
)
assert _found and _found.loader
simulated = importlib.util.module_from_spec(_found)
sys.modules[_found.name] = simulated
_found.loader.exec_module(simulated)
Line = Any  # simulated.Line


@pytest.fixture
def line() -> Iterator[Line]:
    with tempfile.TemporaryDirectory(dir=simulated.MEMORY) as folder:
        yield simulated.Line(Path(folder))


def cli(line: Line, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, [command, str(line.folder / "job.yaml"), *arguments])


def snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".sqlite"
    }


# --- any sequence of events ---------------------------------------------------------------------


class Killed(BaseException):
    """What kill -9 looks like from inside."""


@contextlib.contextmanager
def killed_after(deletions: int | None) -> Iterator[None]:
    """The process dies when it has deleted so many pieces; with None it lives."""
    delete, done = collecting._delete, 0

    def counted(path: Path) -> None:
        nonlocal done
        if done == deletions:
            raise Killed
        done += 1
        delete(path)

    collecting._delete = counted
    try:
        with contextlib.suppress(Killed):
            yield
    finally:
        collecting._delete = delete


class Events(RuleBasedStateMachine):
    """Runs, pushes, rollbacks, removals, pins, kills and collections, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=simulated.MEMORY)
        self.line = simulated.Line(Path(self.folder.name))
        self.pinned: list[Any] = []

    def teardown(self) -> None:
        self.folder.cleanup()

    def there(self) -> list[str]:
        return sorted((p.name for p in self.line.models.glob("[0-9]*")), key=int)

    @rule(
        data=st.integers(0, 1),
        change=st.integers(0, 2),
        blessed=st.booleans(),
        fails=st.sampled_from(["", "", "", "Transform", "Evaluator", "Pusher"]),
    )
    def a_run(self, data: int, change: int, blessed: bool, fails: str) -> None:
        self.line.run(data, change, blessed=blessed, fails=fails)

    @rule()
    def a_run_from_the_evaluator(self) -> None:
        self.line.evaluated_again()

    @precondition(lambda self: len(self.there()) > 1)
    @rule(which=st.integers(0, 9))
    def a_rollback(self, which: int) -> None:
        asked = self.there()[:-1][which % (len(self.there()) - 1)]
        with contextlib.suppress(ConfigError):  # the very model that is served
            new = versions.rollback(self.line.config, asked)
            self.line.rolled_back(new.version, asked)

    @precondition(lambda self: len(self.there()) > 1)
    @rule(which=st.integers(0, 9))
    def a_removal(self, which: int) -> None:
        versions.remove(self.line.config, self.there()[:-1][which % (len(self.there()) - 1)])

    @precondition(lambda self: self.there())
    @rule()
    def someone_deletes_what_is_served(self) -> None:
        shutil.rmtree(self.line.models / self.there()[-1])

    @precondition(lambda self: self.line.runs)
    @rule(which=st.integers(0, 99))
    def a_pin(self, which: int) -> None:
        one = self.line.runs[which % len(self.line.runs)]
        try:
            collect(self.line.config, pin=[one.id])
        except ConfigError:  # too late
            assert not self.line.needed([one]) <= self.line.live()
        else:
            assert self.line.needed([one]) <= self.line.live()
            self.pinned += [] if one in self.pinned else [one]

    @precondition(lambda self: self.pinned)
    @rule(which=st.integers(0, 99))
    def an_unpin(self, which: int) -> None:
        one = self.pinned.pop(which % len(self.pinned))
        collect(self.line.config, unpin=[one.id])

    @precondition(lambda self: self.line.runs)
    @rule(keep=st.integers(0, 3), dies=st.sampled_from([None, None, 0, 1, 3]))
    def a_collection(self, keep: int, dies: int | None) -> None:
        line, served = self.line, snapshot(self.line.models)
        needed = line.needed(self.kept(keep))
        before = line.live()
        with killed_after(dies):
            collect(line.config, keep, remove=True)
        assert before & needed <= line.live(), "something that is needed was taken"
        assert snapshot(line.models) == served
        if dies is not None:  # all is as if nothing had happened, once it is run again
            collect(line.config, keep, remove=True)
        live = line.live()
        assert before & needed <= live
        # Those that share a folder with what is needed stay with it: a rollback's own.
        assert {line.places[one] for one in live} == {line.places[one] for one in before & needed}
        assert line.folders() == {line.places[one] for one in live}
        assert collect(line.config, keep).goes == []

    def kept(self, keep: int) -> list[Any]:
        """The runs that have to stay, by the notes of what happened alone."""
        line = self.line
        kept = line.runs[len(line.runs) - min(keep, len(line.runs)) :] + self.pinned
        kept += [line.versions[name] for name in self.there()]
        kept += [one for _, one in line.pushes[-1:]]
        whole = [one for one in line.runs if (line.home / "results" / f"{stem(one)}.json").exists()]
        return kept + whole[-1:]


def stem(one: Any) -> str:
    return str(one.id).replace(":", "-")


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=25,
    stateful_step_count=14,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


# --- one thing each -----------------------------------------------------------------------------


def test_the_cache_still_knows_what_the_kept_runs_made(line: Line) -> None:
    for change in (1, 2, 3):
        line.run(settings=change)
    collect(line.config, 1, remove=True)
    assert line.run(settings=3).cached >= {"ExampleGen", "Transform", "Trainer"}
    assert line.run(settings=1).cached == {"ExampleGen"}, "the version and its run are gone"


def test_what_was_made_from_what_stays_across_runs(line: Line) -> None:
    line.run(data=1, settings=1)
    again = line.evaluated_again()
    for change in (2, 3, 4):
        line.run(settings=change)
    collect(line.config, 0, pin=[again.id], remove=True)
    assert line.needed([again]) > again.artifacts, "it took over less than it is made from"
    assert line.needed([again]) <= line.live()
    assert not line.runs[0].artifacts <= line.live()


def test_a_model_that_a_kept_one_was_compared_with_stays_without_its_past(line: Line) -> None:
    first, second = line.run(data=1, settings=1), line.run(data=2, settings=2)
    versions.remove(line.config, "1")
    collect(line.config, 1, remove=True)
    (model,) = second.compared
    assert model in first.artifacts & line.live()
    assert not line.lineage[model] & line.live()


def test_a_look_touches_nothing_and_says_what_would_go(line: Line) -> None:
    for change in (1, 2, 3, 4):
        line.run(settings=change)
    before = snapshot(line.folder)
    done = cli(line, "gc", "--keep", "1")
    assert done.exit_code == 0, done.output
    assert snapshot(line.folder).items() >= before.items()
    assert "can go: the same command with --yes removes them." in done.output
    assert "newest, the last whole one, version 4, served, pushed last" in done.output
    done = cli(line, "gc", "--keep", "1", "--yes")
    assert "Removed" in done.output
    assert "Nothing can go" in cli(line, "gc", "--keep", "1").output


def test_ls_and_show_still_say_what_is_known(line: Line) -> None:
    for change in (1, 2, 3):
        line.run(settings=change)
    collect(line.config, 0, remove=True)
    assert [r[0] for r in map(str.split, cli(line, "ls").output.splitlines()[1:])] == list("321")
    shown = cli(line, "show", "1").output
    assert "deleted since" in shown
    assert "name: reviews" in shown, "its settings stay"
    transform = next(row for row in shown.splitlines() if "Transform (done" in row)
    assert "(its files are gone)" in transform


def test_it_is_alone(line: Line) -> None:
    line.run()
    with FileLock(line.home / ".lock"):
        done = cli(line, "gc", "--yes")
    assert done.exit_code == 2
    assert "another run of this pipeline is going on, or `espalier gc`. Wait for it." in done.output


def test_without_a_run_there_is_nothing_to_collect(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(simulated.YAML.format(folder=tmp_path))
    done = CliRunner().invoke(app, ["gc", str(tmp_path / "job.yaml")])
    assert done.exit_code == 2
    assert "no run of reviews yet" in done.output
    assert not (tmp_path / "runs").exists()


def test_logs_and_states_go_by_their_time_and_pages_by_their_run(line: Line) -> None:
    first, second = line.run(settings=1), line.run(settings=2)
    line.run(settings=3)
    home = line.home
    result = RunResult.model_validate_json(
        (home / "results" / f"{stem(second)}.json").read_text(encoding="utf-8")
    )
    result.log = str(home / "logs" / "second.log")
    result.save(home / "results")
    old = ["logs/first.log", "logs/second.log", "training/aa/state.json", "compression/bb/x",
           "tuning/ee/x", "schemas/cc/schema.pbtxt", "notes/mine.txt"]  # fmt: skip
    pages = [f"{stem(first)}.html", f"{stem(second)}.html", f"{stem(first)}..{stem(second)}.html",
             "mine.html"]  # fmt: skip
    for name in [*old, *(f"reports/{page}" for page in pages), "logs/new.log", "training/dd/x"]:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text("x" * 100)
    for name in old:
        for path in (home / name, (home / name).parent):
            os.utime(path, (0, 0))
    # The second is pushed; the first has gone from push.to.
    collect(line.config, 1, remove=True)
    left = {str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()}
    states = {"training/aa/state.json", "compression/bb/x", "tuning/ee/x"}
    assert not left & {"logs/first.log", *states}
    assert not left & {"schemas/cc/schema.pbtxt", f"reports/{pages[0]}", f"reports/{pages[2]}"}
    assert left >= {"logs/second.log", "logs/new.log", "training/dd/x", "notes/mine.txt"}
    assert left >= {f"reports/{pages[1]}", "reports/mine.html", f"results/{stem(first)}.json"}
    assert "artifacts/ExampleGen/.system/executor_execution/1/executor_output.pb" in left


def test_weights_that_another_job_starts_from_stay(line: Line) -> None:
    for change in (1, 2, 3, 4):
        line.run(settings=change)
    weights = min(line.home.glob("artifacts/Trainer/model_run/*"), key=lambda p: int(p.name))
    RunResult(
        name="other", run="r", status="pushed", config=f"model:\n  weights: {weights}/weights.h5\n"
    ).save(line.folder / "runs" / "other" / "results")
    collect(line.config, 0, remove=True)
    assert (weights / "file").exists()
    assert not (weights.parents[1] / "model" / weights.name).exists()


def test_weights_that_a_killed_run_of_another_job_has_begun_with_stay(line: Line) -> None:
    """It left no result; its configuration was noted as it began."""
    for change in (1, 2, 3, 4):
        line.run(settings=change)
    weights = min(line.home.glob("artifacts/Trainer/model_run/*"), key=lambda p: int(p.name))
    begun = line.folder / "runs" / "other" / BEGUN
    begun.parent.mkdir()
    begun.write_text(f"model:\n  weights: {weights}/weights.h5\n")
    collect(line.config, 0, remove=True)
    assert (weights / "file").exists()


def test_no_state_outlives_artifacts_whose_numbers_are_given_again(line: Line) -> None:
    """With an older copy of the metadata: a state is known by the numbers of what it read."""
    line.run()
    state = line.home / "training" / "aa" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text("x")
    collect(line.config, 1, remove=True)
    assert state.exists()
    (line.home / "artifacts" / "Transform" / "transform_graph" / "999").mkdir()
    collect(line.config, 1, remove=True)
    assert not state.exists()


def test_what_a_killed_push_or_removal_has_left_goes(line: Line) -> None:
    line.run()
    for name in (".espalier-push-aa", ".espalier-old-5-bb"):
        (line.models / name).mkdir()
    before = set(os.listdir(line.models))
    collect(line.config, 1)
    assert set(os.listdir(line.models)) == before
    collect(line.config, 1, remove=True)
    assert not [name for name in os.listdir(line.models) if name.startswith(".espalier-p")]
    assert not [name for name in os.listdir(line.models) if name.startswith(".espalier-o")]


def test_a_moved_pipeline_is_still_known(line: Line) -> None:
    for change in (1, 2, 3):
        line.run(settings=change)
    shutil.move(line.home, line.folder / "elsewhere" / "reviews")
    text = (
        (line.folder / "job.yaml")
        .read_text()
        .replace(f"{line.folder}/runs", f"{line.folder}/elsewhere")
    )
    (line.folder / "job.yaml").write_text(text)
    disk = collect(line.config, 0)
    assert {piece.run for piece in disk.goes} == {line.runs[0].id}
    assert not [piece for piece in disk.pieces if piece.kind == collecting.ORPHANS]


def test_a_remote_destination_is_not_looked_at(line: Line) -> None:
    for change in (1, 2, 3, 4):
        line.run(settings=change)
    for one in line.store.get_artifacts_by_type("PushedModel"):
        version = one.custom_properties["pushed_version"].string_value
        one.custom_properties["pushed_destination"].string_value = f"gs://bucket/{version}"
        line.store.put_artifacts([one])
    text = (line.folder / "job.yaml").read_text()
    (line.folder / "job.yaml").write_text(text.replace(f"to: {line.models}", "to: gs://bucket"))
    disk = collect(line.config, 0)
    assert list(disk.kept) == [one.id for one in line.runs[-2:]], "push.keep is 2"
    assert disk.beside[0].size is None


def test_a_destination_that_is_not_mounted_is_not_an_empty_one(line: Line) -> None:
    for change in (1, 2, 3):
        line.run(settings=change)
    before = line.live()
    line.models.rename(line.folder / "unmounted")
    done = cli(line, "gc", "--yes", "--keep", "0")
    assert done.exit_code == 2
    assert "models: no such folder, though version 1 was pushed there." in done.output
    assert line.live() == before
    line.models.mkdir()
    assert cli(line, "gc", "--yes", "--keep", "0").exit_code == 0
    assert line.needed(line.runs[-1:]) <= line.live(), "the next one is compared with it"


def test_pins(line: Line) -> None:
    one, two, three = (line.run(settings=change) for change in (1, 2, 3))
    assert cli(line, "gc", "--pin", "1", "--keep", "0", "--yes").exit_code == 0
    assert json.loads((line.home / "pins.json").read_text()) == {"runs": [one.id]}
    assert line.needed([one, two, three]) <= line.live()
    assert "pinned" in cli(line, "gc").output
    assert cli(line, "gc", "--unpin", one.id[:13], "--keep", "0", "--yes").exit_code == 0
    assert not line.needed([one]) <= line.live()
    late = cli(line, "gc", "--pin", "1")
    assert late.exit_code == 2
    assert "were removed before, so there is nothing whole to keep" in late.output
    again = cli(line, "gc", "--unpin", "1")
    assert again.exit_code == 2
    assert "--unpin 1: not pinned. Pinned are: none." in again.output
    unknown = cli(line, "gc", "--pin", "2026")
    assert "several runs begin with 2026" in unknown.output


def test_broken_pins_are_not_no_pins(line: Line) -> None:
    for change in (1, 2, 3):
        line.run(settings=change)
    (line.home / "pins.json").write_text('{"runs": [')
    before = line.live()
    done = cli(line, "gc", "--keep", "0", "--yes")
    assert done.exit_code == 2
    assert "pins.json: cannot be read" in done.output
    assert line.live() == before


def test_what_cannot_be_deleted_is_named(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    for change in (1, 2, 3):
        line.run(settings=change)

    def refuse(path: Path, **_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    done = cli(line, "gc", "--keep", "0", "--yes")
    assert done.exit_code == 2
    assert "cannot be deleted: Permission denied." in done.output
    monkeypatch.undo()
    assert "Removed" in cli(line, "gc", "--keep", "0", "--yes").output


def test_work_of_compress_is_told_of_and_left(
    line: Line, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    line.run()
    monkeypatch.chdir(tmp_path)
    for name in ("a/scratch/rows", "b/report.json"):
        (tmp_path / "runs" / "compress" / name).parent.mkdir(parents=True)
        (tmp_path / "runs" / "compress" / name).write_text("x")
    done = cli(line, "gc", "--keep", "0", "--yes")
    assert "runs/compress/a: 0.0 MB, left by `espalier compress`; unfinished" in done.output
    assert "runs/compress/b: 0.0 MB, left by `espalier compress`; done" in done.output
    assert (tmp_path / "runs" / "compress" / "a" / "scratch" / "rows").exists()


def test_from_takes_no_run_whose_files_are_gone(line: Line) -> None:
    line.run(settings=1)
    line.run(settings=2, fails="Trainer")
    assert runner._base_run(line.config, "", "", "Evaluator") == line.runs[0].id
    models = [one.id for one in line.store.get_artifacts_by_type("Model")]
    versions.read(line.config).store.mark_deleted(models)
    with pytest.raises(ConfigError, match="no earlier run has finished what comes before it"):
        runner._base_run(line.config, "", "", "Evaluator")


def test_the_served_version_is_there_after_anything(line: Line) -> None:
    line.run()
    collect(line.config, 0, remove=True)
    served = find_newest(line.models)
    assert served and (served / "saved_model.pb").exists()
    assert line.needed(line.runs) <= line.live()
