"""What a run does before and after the components: locks, and words its errors."""

import io
import itertools
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import markupsafe
import pytest
from filelock import FileLock
from rich.console import Console

from espalier import (
    CheckpointError,
    ComponentError,
    Config,
    ConfigError,
    DataError,
    EspalierError,
    RunResult,
    ServerError,
    run,
)
from espalier.pipeline import report, results, runner, store
from espalier.pipeline.places import temporary
from espalier.pipeline.progress import quiet
from espalier.pipeline.results import Component
from espalier.pipeline.runner import explain
from espalier.pipeline.store import database
from espalier.trainer import families, workers

LOG = Path("runs/reviews/logs/1.log")


def chained(*errors: BaseException) -> BaseException:
    """The first error, raised while the second was handled, and so on."""
    for error, cause in itertools.pairwise(errors):
        error.__cause__ = cause
    return errors[0]


@pytest.mark.parametrize("kind", [DataError, ConfigError, CheckpointError, ComponentError])
def test_a_sentence_of_our_own_is_kept_whole(kind: type[EspalierError]) -> None:
    error = chained(RuntimeError("beam: [while running X]"), ValueError("x"), kind("a.csv:3: bad."))
    said = explain(error, "DataGate", LOG)
    assert type(said) is kind
    assert str(said) == "DataGate: a.csv:3: bad."


def test_what_a_server_refused_is_the_components_fault() -> None:
    said = explain(chained(RuntimeError("x"), ServerError("UNAVAILABLE", "it is gone.")), "A", LOG)
    assert isinstance(said, ComponentError)
    assert str(said) == "A: it is gone."


def test_an_error_outside_of_components_has_no_name_before_it() -> None:
    assert str(explain(ConfigError("no place."), "", LOG)) == "no place."


def test_a_refused_run_is_not_the_end_of_the_one_that_goes_on(tmp_path: Path) -> None:
    """Other workers train on with that one's chief."""
    over = tmp_path / "training" / "workers-over.json"

    def refused() -> None:
        with workers.leading(tmp_path, partial(store.is_busy, tmp_path)):
            raise ConfigError("another run is going on")

    with FileLock(tmp_path / ".lock"), pytest.raises(ConfigError):
        refused()
    assert not over.exists()
    with pytest.raises(ConfigError):
        refused()
    assert json.loads(over.read_text()) == {"outcome": "another run is going on"}


SYSTEM = {
    "disk full": (OSError(28, "No space left on device"), "The disk is full. Make room (`espalier"),
    "quota": (OSError(122, "Disk quota exceeded"), "The disk quota is used up. Make room"),
    "read-only": (OSError(30, "Read-only file system"), "The file system is read-only."),
    "permission": (PermissionError(13, "Permission denied"), "may not be written"),
}


@pytest.mark.parametrize(("cause", "expected"), SYSTEM.values(), ids=SYSTEM.keys())
@pytest.mark.parametrize("wrapped", [False, True])
def test_faults_of_the_system(cause: OSError, expected: str, wrapped: bool) -> None:
    error = chained(RuntimeError("Beam failed"), cause) if wrapped else cause
    said = explain(error, "Transform", LOG)
    assert isinstance(said, ComponentError)
    assert str(said).startswith(f"Transform: {cause.strerror}. ")
    assert expected in str(said)
    assert "run the same command again; what was finished is kept" in str(said)
    assert str(LOG) in str(said)


def test_tensorflows_word_for_a_full_disk() -> None:
    said = explain(RuntimeError("ResourceExhausted: /x; No space left on device"), "Trainer", LOG)
    assert "The disk is full" in str(said)


def test_sqlites_word_for_a_full_disk_and_a_read_only_one() -> None:
    error = RuntimeError("Error when executing query: database or disk is full query: INSERT")
    assert "The disk is full" in str(explain(error, "Trainer", LOG))
    error = RuntimeError("attempt to write a readonly database query: INSERT")
    assert "The file system is read-only" in str(explain(error, "Trainer", LOG))


def test_a_full_disk_is_named_whatever_the_error_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, free = tmp_path / "full" / "runs", tmp_path / "free"
    odd = RuntimeError("No type found for query, name: `pipeline`")
    assert "full" not in str(explain(odd, "ExampleGen", LOG, [free]))
    system = os.statvfs(tmp_path)
    none = os.statvfs_result((*system[:4], 0, *system[5:10]))  # no block is left
    monkeypatch.setattr(os, "statvfs", lambda path: none if path == full else system)
    full.mkdir(parents=True)
    said = str(explain(odd, "ExampleGen", LOG, [free, full]))
    assert said.startswith("ExampleGen: RuntimeError: No type found for query")
    assert f"The disk is full: {full}. Make room (`espalier gc` shows" in said


def test_a_full_disk_is_named_by_the_file_that_was_written() -> None:
    said = str(explain(OSError(28, "No space left on device", "/x/rows"), "Transform", LOG))
    assert "The disk is full: /x/rows. Make room" in said


def test_a_component_is_named_once() -> None:
    assert str(explain(ConfigError("Pusher: no."), "Pusher", LOG)) == "Pusher: no."


def test_a_log_on_a_full_disk_fails_nothing(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with quiet(Path("/dev/full")):
        print("a line", flush=True)
        print("x" * 100_000, file=sys.stderr)
        try:
            raise ValueError
        except ValueError:
            traceback.print_exc()


def test_metadata_that_another_program_holds() -> None:
    error = RuntimeError("Concurrent writes aborted after max number of retries.")
    said = str(explain(error, "", LOG))
    assert said.startswith("TFX: Concurrent writes aborted. Another program holds the pipeline's")


def test_any_other_error_is_its_first_cause_in_one_line() -> None:
    error = chained(RuntimeError("wrapper"), KeyError("text\nand a page of more"))
    lines = str(explain(error, "Transform", LOG)).splitlines()
    assert lines[0].startswith("Transform failed: KeyError: ")
    assert "wrapper" not in lines[0]
    assert lines[1] == (
        f"The whole story is in {LOG}; what was finished before is kept for the next run."
    )
    assert "ValueError: ValueError" in str(explain(ValueError(), "Trainer", LOG))
    assert len(str(explain(ValueError("x" * 9000), "Trainer", LOG))) < 800


def test_errors_that_cause_each_other_end() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert "two" in str(explain(one, "Trainer", LOG))


def test_an_interrupt_stays_one() -> None:
    interrupt = KeyboardInterrupt()
    assert explain(interrupt, "Trainer", LOG) is interrupt


def job(folder: Path) -> Config:
    """A configuration that passes every check before a run."""
    rows = "".join(f"some words {n},{'yes' if n % 2 else 'no'}\n" for n in range(200))
    (folder / "data.csv").write_text(f"text,label\n{rows}")
    return Config(
        name="job",
        data={"csv": str(folder / "data.csv"), "text": "text", "label": "label"},
        model={"family": "bert", "start": "tiny", "sequence_length": 16},
        push={"to": str(folder / "models")},
        runs=str(folder / "runs"),
    )


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Another process holds the pipeline's lock, as a run does."""
    home.mkdir(parents=True)
    code = "import sys, filelock; held = filelock.FileLock(sys.argv[1]).acquire();"
    code += "print(flush=True); input()"
    command = [sys.executable, "-c", code, str(home / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        yield
        process.communicate(b"\n")


def test_a_second_run_at_once_is_refused(tmp_path: Path) -> None:
    config = job(tmp_path)
    with (
        locked(config.home),
        pytest.raises(
            ConfigError, match=r"job: another run of this pipeline is going on.*another `name:`"
        ),
    ):
        run(config)
    assert not (tmp_path / "models").exists()
    assert "The run did not begin. " in failed_page(config), "the other run's results are its own"


def test_an_unknown_component_is_refused_first(tmp_path: Path) -> None:
    config = job(tmp_path)
    (tmp_path / "data.csv").unlink()
    with pytest.raises(ConfigError, match=r"--to Trainr: no such component\. Did you mean Trainer"):
        run(config, to_node="Trainr")
    with pytest.raises(ConfigError, match=r"--from Gate: .*They are: ExampleGen, .*Pusher"):
        run(config, from_node="Gate")


def failed_page(config: Config) -> str:
    """The page of the only run, which failed before any component."""
    (result,) = results.all_results(config.home / "results")
    assert (result.status, result.components, result.key) == ("failed", [], "")
    page = Path(result.report)
    html = page.read_text(encoding="utf-8")
    assert page.parent == config.home / "reports" and "could not be drawn" not in html
    assert report.write(config.home, result.run) == page, "drawn anew by its id"
    assert page.read_text(encoding="utf-8") == html
    return html


def test_bad_data_stops_a_run_and_leaves_a_page_that_says_where(tmp_path: Path) -> None:
    config, screen = job(tmp_path), io.StringIO()
    with (tmp_path / "data.csv").open("a") as file:
        file.write(",yes\n<b>bold</b>,\n")
    with pytest.raises(DataError) as caught:
        run(config, console=Console(file=screen, width=500))
    assert "data.csv:202: empty text in column 'text'" in str(caught.value)
    html = failed_page(config)
    assert f"The run did not begin. {markupsafe.escape(caught.value)}</p>" in html
    assert "it failed before the first one" in html
    assert f"csv: {tmp_path}/data.csv" in html, "its settings"
    assert "report: " in screen.getvalue()
    assert sorted(path.name for path in config.home.iterdir()) == ["reports", "results"]
    assert not (tmp_path / "models").exists()


def test_metadata_that_cannot_be_read_stops_a_run_and_leaves_a_page(tmp_path: Path) -> None:
    config = job(tmp_path)
    config.home.mkdir(parents=True)
    database(config.home).write_text("this is no database" * 100)
    with pytest.raises(ConfigError, match="metadata cannot be read: .*file is not a database"):
        run(config)
    assert "file is not a database" in failed_page(config)


def test_a_place_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    config = job(tmp_path)
    (tmp_path / "runs").write_text("a file")
    (tmp_path / "data.csv").write_text("text,label\n")
    with pytest.raises((ConfigError, DataError), match="data.csv|runs"):
        run(config)


def test_from_sees_weights_that_changed_under_their_name(tmp_path: Path) -> None:
    weights = tmp_path / "weights.h5"
    weights.write_bytes(b"one")
    config = Config(
        name="digits",
        data={"images": "digits"},
        model={"family": "resnet", "start": "resnet20", "weights": str(weights)},
        push={"to": str(tmp_path / "models")},
        runs=str(tmp_path / "runs"),
    )
    done = [Component(name=name, state="done", seconds=0.1) for name in runner.NODES]

    def base_run(from_node: str) -> str:
        start = families.load("resnet").fingerprint(config.model)
        return runner._base_run(config, "d", start, from_node)

    start = families.load("resnet").fingerprint(config.model)
    before = RunResult(
        name="digits", run="1", status="pushed", components=done, config=config.to_yaml(),
        data="d", start=start,
    )  # fmt: skip
    before.save(config.home / "results")
    assert base_run("Evaluator") == "1"
    weights.write_bytes(b"two")
    with pytest.raises(ConfigError, match="model has changed since the run of 1"):
        base_run("Evaluator")
    assert base_run("ExampleGen") == "1"


def test_a_run_that_was_killed_behind_its_components_is_no_whole_one(tmp_path: Path) -> None:
    """It has no report, and its temporary files lie there yet."""
    config = job(tmp_path)
    RunResult(name="reviews", run="1", status="not_blessed", key="k").save(config.home / "results")
    assert runner._same(config, "k") is not None
    with temporary(config.home):
        assert runner._same(config, "k") is None
    assert runner._same(config, "k") is not None
