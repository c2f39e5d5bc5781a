"""The commands for versions, on a metadata store and folders laid out as runs leave them."""

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as proto
from typer.testing import CliRunner

from espalier import Config, ConfigError
from espalier.components.pusher import publish
from espalier.pipeline import versions
from espalier.pipeline.cli import app

YAML = """\
version: 1
name: reviews
data: {{csv: reviews.csv, text: text, label: label}}
model: {{family: bert, start: tiny, sequence_length: 32}}
evaluate: {{metrics: [f1, accuracy]}}
push: {{to: {folder}/models, keep: 2}}
runs: {folder}/runs
"""


@dataclass
class Line:
    """A pipeline whose runs are written down, and not run."""

    folder: Path
    store: metadata_store.MetadataStore
    runs: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        return Config.load(self.folder / "job.yaml")

    @property
    def base(self) -> Path:
        return self.folder / "models"

    def served(self) -> str:
        return max((p.name for p in self.base.iterdir() if p.name.isdecimal()), key=int)

    def cli(self, command: str, *arguments: str, answer: str = "") -> Result:
        whole = [command, str(self.folder / "job.yaml"), *arguments]
        return CliRunner().invoke(app, whole, input=answer)

    def run(self, version: str = "", blessed: Sequence[int] = (1, 1), f1: float = 0.5) -> None:
        """What TFX leaves of a run: the judges' verdicts, and a version if they blessed it."""
        run = datetime.now().isoformat()
        self.runs.append(run)
        place = self.folder / "artifacts" / run
        place.mkdir(parents=True)
        (place / "metrics.json").write_text(json.dumps({"candidate": {"overall": {"f1": f1}}}))
        marks: dict[str, str | int] = {"pushed": 0, "model_id": 10 * len(self.runs)}
        if version:
            publish_files(self.base / version, f"{run} was here")
            marks |= {"pushed": 1, "pushed_version": version}
            marks["pushed_destination"] = str(self.base / version)
        judge = {"blessing": ("ModelBlessing", {"blessed": blessed[0]})}
        self._node(run, "Evaluator", judge | {"evaluation": ("ModelEvaluation", {})}, place)
        if len(blessed) == 2:
            check = {"blessing": ("InfraBlessing", {"blessed": blessed[1]})}
            self._node(run, "ServingCheck", check, place)
            self._node(run, "Pusher", {"pushed_model": ("PushedModel", marks)}, place)

    def _node(self, run: str, name: str, outputs: dict[str, Any], place: Path) -> None:
        contexts = [
            proto.Context(
                name=named, type_id=self.store.put_context_type(proto.ContextType(name=kind))
            )
            for kind, named in [
                ("pipeline", "reviews"),
                ("pipeline_run", run),
                ("node", f"reviews.{name}"),
            ]
        ]
        pairs = []
        for key, (kind, marks) in outputs.items():
            kind_id = self.store.put_artifact_type(proto.ArtifactType(name=kind))
            artifact = proto.Artifact(type_id=kind_id, uri=str(place), state=proto.Artifact.LIVE)
            artifact.name = f"{run}:{name}:{key}"
            for mark, value in marks.items():
                field = "int_value" if isinstance(value, int) else "string_value"
                setattr(artifact.custom_properties[mark], field, value)
            event = proto.Event(type=proto.Event.OUTPUT)
            event.path.steps.add(key=key)
            pairs.append((artifact, event))
        execution = proto.Execution(
            type_id=self.store.put_execution_type(proto.ExecutionType(name=name)),
            last_known_state=proto.Execution.COMPLETE,
        )
        self.store.put_execution(execution, pairs, contexts, reuse_context_if_already_exist=True)


def publish_files(folder: Path, content: str) -> None:
    """Files laid out as in a version; 1 MB and a little."""
    for name, text in {
        "saved_model.pb": content,
        "variables/variables.index": "x" * 1_000_000,
        "assets.extra/config.yaml": "name: reviews",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def line(tmp_path: Path) -> Line:
    (tmp_path / "job.yaml").write_text(YAML.format(folder=tmp_path))
    home = tmp_path / "runs" / "reviews"
    home.mkdir(parents=True)
    connection = proto.ConnectionConfig()
    connection.sqlite.filename_uri = str(home / "metadata.sqlite")
    return Line(tmp_path, metadata_store.MetadataStore(connection))


@pytest.fixture
def three(line: Line) -> Line:
    """Versions 1, 2 and 3, all there."""
    for number in (1, 2, 3):
        line.run(str(number), f1=number / 10)
    return line


# --- ls -----------------------------------------------------------------------------------------


def test_every_version_and_every_run_without_one_newest_first(three: Line) -> None:
    three.run(blessed=(0, 1), f1=0.05)
    three.run(blessed=(1,))  # stopped behind the Evaluator
    three.run("3")  # it came to the model that is served
    publish_files(three.base / "2000", "by hand")
    os.utime(three.base / "2000", (0, 0))
    three.base.joinpath("1", "saved_model.pb").unlink()
    (three.base / "2").rename(three.folder / "taken away")
    rows = versions.rows(three.config)
    assert [(r.version, r.blessed, r.pushed, r.folder, r.metric) for r in rows] == [
        ("", None, "no", "", 0.5),
        ("", False, "no", "", 0.05),
        ("3", True, "yes", "there", 0.3),
        ("2", True, "yes", "gone", 0.2),
        ("1", True, "yes", "there", 0.1),
        ("2000", None, "by others", "served", None),
    ]
    assert [rows[0].when, rows[1].when] == [three.runs[4], three.runs[3]]
    assert three.runs[2][:21] <= rows[2].when <= three.runs[3]
    assert rows[2].size == sum(map(len, content(three.base / "3").values()))
    assert rows[0].size is rows[3].size is None


def test_ls_prints_a_table(three: Line) -> None:
    done = three.cli("ls")
    day = datetime.now().strftime("%Y-%m-%d")
    lines = [" ".join(re.sub(r"\d+:\d+:\d+", "", n).split()) for n in done.stdout.splitlines()]
    assert lines == [
        "version when blessed pushed folder MB f1",
        f"3 {day} yes yes served 1.0 0.3000",
        f"2 {day} yes yes there 1.0 0.2000",
        f"1 {day} yes yes there 1.0 0.1000",
    ]


def test_ls_and_show_for_a_script(three: Line) -> None:
    rows = json.loads(three.cli("ls", "--json").stdout)
    assert [(row["version"], row["folder"], row["metric"], row["value"]) for row in rows] == [
        ("3", "served", "f1", 0.3), ("2", "there", "f1", 0.2), ("1", "there", "f1", 0.1),
    ]  # fmt: skip
    assert rows[0]["size"] == versions.size_of(three.base / "3")
    lines = three.cli("ls", "--md").stdout.splitlines()
    assert lines[0] == "| version | when | blessed | pushed | folder | MB | f1 |"
    assert lines[1] == "| --- | --- | --- | --- | --- | ---: | ---: |"
    assert len(lines) == 5
    shown = json.loads(three.cli("show", "2", "--json").stdout)
    assert (shown["version"], shown["run"], shown["there"]) == ("2", three.runs[1], True)
    assert {one["name"] for one in shown["components"]} >= {"Evaluator", "Pusher"}
    assert three.cli("show", "2", "--md").stdout.startswith("reviews version 2\n\n- pushed to ")
    refused = three.cli("show", "9", "--json")
    assert (refused.exit_code, refused.stdout) == (2, "")


def test_a_remote_place_is_not_looked_at(three: Line) -> None:
    done = three.cli("ls", "--set", "push.to=gs://bucket/reviews")
    assert [line.split()[5] for line in done.stdout.splitlines()[1:]] == ["remote"] * 3


@pytest.mark.parametrize("command", ["ls", "show", "rollback"])
def test_these_commands_load_no_tensorflow(three: Line, command: str) -> None:
    code = (
        "import sys; from espalier.pipeline.cli import app;"
        "app(sys.argv[1:], standalone_mode=False);"
        "sys.exit(', '.join({'tensorflow', 'tfx', 'apache_beam'} & set(sys.modules)) or 0)"
    )
    command_line = [sys.executable, "-c", code, command, str(three.folder / "job.yaml")]
    done = subprocess.run(command_line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("ls",), ("show",), ("rollback",)])
def test_before_the_first_run(tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "job.yaml").write_text(YAML.format(folder=tmp_path))
    done = CliRunner().invoke(app, [*command, str(tmp_path / "job.yaml")])
    assert done.exit_code == 2
    assert "no run of reviews yet. Run `espalier run` first." in done.output


# --- rollback -----------------------------------------------------------------------------------


def test_the_one_before_is_served_again_under_a_higher_number(three: Line) -> None:
    new = versions.rollback(three.config)
    assert new.version == three.served()
    assert int(new.version) > 3
    assert (new.copy_of, new.run) == ("2", three.runs[1])
    assert content(three.base / new.version) == content(three.base / "2")
    assert len(list(three.base.glob("[0-9]*"))) == 4  # nothing is deleted, though `keep` is 2
    first = versions.rows(three.config)[0]
    assert (first.version, first.pushed, first.folder) == (new.version, "copy of 2", "served")
    assert first.metric == 0.2


def test_going_back_again_goes_further_back(three: Line) -> None:
    assert versions.rollback(three.config).copy_of == "2"
    assert versions.rollback(three.config).copy_of == "1"
    with pytest.raises(ConfigError, match="nothing is left there that was pushed before 1"):
        versions.rollback(three.config)


def test_after_a_new_push_the_copy_is_the_one_before(three: Line) -> None:
    copy = versions.rollback(three.config, "1").version
    three.run(str(int(copy) + 100))
    again = versions.rollback(three.config)
    assert again.copy_of == "1"
    assert versions.rollback(three.config, "3").copy_of == "3"  # forward is no different


def test_a_version_of_others_is_gone_back_from_and_not_to(three: Line) -> None:
    publish_files(three.base / "9", "by hand")
    assert versions.rollback(three.config).copy_of == "3"
    with pytest.raises(ConfigError, match="9: no run of reviews pushed it, so nobody knows"):
        versions.rollback(three.config, "9")


def test_the_next_run_is_compared_with_what_is_served(three: Line) -> None:
    """TFX finds the copy by its pipeline and its node; LastPushed takes the newest push."""
    versions.rollback(three.config, "1")
    artifact = max(three.store.get_artifacts_by_type("PushedModel"), key=lambda a: a.id)
    assert artifact.custom_properties["model_id"].int_value == 10
    assert artifact.custom_properties["pushed"].int_value == 1
    (event,) = three.store.get_events_by_artifact_ids([artifact.id])
    contexts = three.store.get_contexts_by_execution(event.execution_id)
    assert sorted(c.name for c in contexts) == ["reviews", "reviews.Pusher"]
    assert len(versions.read(three.config).runs) == 3


class Killed(BaseException):
    """What kill -9 looks like from inside."""


@pytest.fixture
def killed(three: Line, monkeypatch: pytest.MonkeyPatch) -> str:
    """The copy of a rollback that was killed before it was noted."""

    def note(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(versions, "_note", note)
        with pytest.raises(Killed):
            versions.rollback(three.config)
    assert int(three.served()) > 3
    return three.served()


@pytest.mark.parametrize("again", [(), ("2",)])
def test_a_killed_rollback_is_done_to_its_end(
    three: Line, killed: str, again: tuple[str, ...]
) -> None:
    """To go back once more would bring back what was just taken away."""
    new = versions.rollback(three.config, *again)
    assert (new.version, new.copy_of) == (killed, "2")
    assert three.served() == killed
    assert versions.rollback(three.config).copy_of == "1"


def test_after_a_killed_rollback_one_can_go_back_to_another(three: Line, killed: str) -> None:
    assert versions.rollback(three.config, "1").copy_of == "1"
    assert versions.read(three.config).versions[killed].copy_of == "2"


def test_the_run_after_a_killed_rollback_knows_what_is_served(three: Line, killed: str) -> None:
    versions.finish_rollback(three.config)
    versions.finish_rollback(three.config)
    pushes = three.store.get_artifacts_by_type("PushedModel")
    assert len(pushes) == 4
    newest = max(pushes, key=lambda artifact: artifact.id).custom_properties
    assert newest["pushed_version"].string_value == killed
    assert newest["model_id"].int_value == 20


REFUSED = {
    "never pushed": ("17", "version 17: no run of reviews pushed it. Can be gone back to: 2."),
    "no number": ("../models", "no run of reviews pushed it."),
    "gone": ("1", "version 1: it is no longer in"),
    "served": ("3", "version 3 is served already."),
}


@pytest.mark.parametrize(("version", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_gone_back_to(three: Line, version: str, words: str) -> None:
    publish.remove(str(three.base), "1")
    before = sorted(three.base.iterdir())
    done = three.cli("rollback", version)
    assert done.exit_code == 2
    assert words in done.output
    assert sorted(three.base.iterdir()) == before


def test_a_copy_that_is_served_counts_as_its_original(three: Line) -> None:
    copy = versions.rollback(three.config, "1").version
    with pytest.raises(ConfigError, match=f"version 1 is served already, as {copy}."):
        versions.rollback(three.config, "1")


def test_nothing_is_served(three: Line) -> None:
    with pytest.raises(ConfigError, match="no version is served"):
        versions.rollback(Config.load(three.folder / "job.yaml", ["push.to=elsewhere"]))


@pytest.mark.parametrize("command", [("rollback",), ("rm", "1", "--yes")])
def test_a_remote_place_is_refused(three: Line, command: tuple[str, ...]) -> None:
    name, *arguments = command
    done = three.cli(name, *arguments, "--set", "push.to=gs://bucket/reviews")
    assert done.exit_code == 2
    assert "gs://bucket/reviews is remote" in done.output


def test_what_the_metadata_does_not_take_is_not_served(three: Line) -> None:
    database = sqlite3.connect(three.config.home / "metadata.sqlite")
    database.execute(
        "CREATE TRIGGER full BEFORE INSERT ON Artifact BEGIN SELECT RAISE(ABORT, 'disk full'); END"
    )
    database.commit()
    with pytest.raises(ConfigError, match=r"metadata\.sqlite: cannot be written: .*disk full"):
        versions.rollback(three.config)
    assert three.served() == "3"


# --- rm -----------------------------------------------------------------------------------------


def test_a_version_is_deleted_and_still_known(three: Line) -> None:
    done = three.cli("rm", "2", "--yes")
    assert (done.exit_code, done.stdout) == (0, f"deleted {three.base}/2\n")
    names = {p.name for p in three.base.iterdir()}
    assert names == {"1", "3", publish.LAST_PUSH}
    assert [row.folder for row in versions.rows(three.config)] == ["served", "gone", "there"]
    assert "deleted since" in three.cli("show", "2").stdout


@pytest.mark.parametrize(("answer", "code", "there"), [("y\n", 0, False), ("n\n", 1, True)])
def test_it_asks_first(three: Line, answer: str, code: int, there: bool) -> None:
    done = three.cli("rm", "2", answer=answer)
    assert done.exit_code == code
    assert f"Delete {three.base}/2 (1.0 MB)?" in done.stdout
    assert (three.base / "2").exists() == there


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("3", "version 3 is the one that is served."),
        ("17", "version 17: not in"),
        ("../runs", "version ../runs: not in"),
        (".", "There are: 1, 2, 3."),
    ],
)
def test_what_cannot_be_deleted(three: Line, version: str, words: str) -> None:
    done = three.cli("rm", version, "--yes")
    assert done.exit_code == 2
    assert words in done.output
    assert {p.name for p in three.base.iterdir()} == {"1", "2", "3"}


def test_what_was_gone_back_from_can_be_deleted(three: Line) -> None:
    versions.rollback(three.config)
    versions.remove(three.config, "3")
    assert not (three.base / "3").exists()


def test_a_folder_that_will_not_go_is_a_sentence(three: Line) -> None:
    (three.base / "2").rename(three.folder / "elsewhere")
    (three.base / "2").symlink_to(three.folder / "elsewhere")
    with pytest.raises(ConfigError, match=r"2: cannot be deleted: .*symbolic link"):
        versions.remove(three.config, "2")


# --- show ---------------------------------------------------------------------------------------


def test_a_copy_shows_where_its_model_came_from(three: Line) -> None:
    copy = versions.rollback(three.config, "1").version
    done = three.cli("show")
    text = " ".join(done.stdout.replace("│", " ").split())
    assert f"reviews version {copy}" in text
    assert "a copy of version 1, pushed by the run of" in text
    assert three.runs[0] in text.replace(" ", "")


def test_show_of_a_version_never_pushed(three: Line) -> None:
    done = three.cli("show", "17")
    assert done.exit_code == 2
    assert "no run of reviews pushed version 17; pushed were: 1, 2, 3." in done.output
