"""The Pusher: versions appear whole, grow in number, are kept to the newest, or fail cleanly."""

import errno
import json
import os
import threading
from pathlib import Path

import pytest
from tfx.proto import pusher_pb2
from tfx.types import channel_utils, standard_artifacts

from espalier.components.pusher import Pusher, publish
from espalier.components.pusher.executor import Executor
from espalier.errors import ComponentError, ConfigError

NOW = 1_700_000_000
FILES = {
    "saved_model.pb": b"graph",
    "fingerprint.pb": b"print",
    "assets/vocab.txt": b"a\nb\n",
    "variables/variables.index": b"index",
    "variables/variables.data-00000-of-00001": b"weights" * 50_000,
}


@pytest.fixture
def model(tmp_path: Path) -> str:
    """Files laid out as in a SavedModel."""
    for name, content in FILES.items():
        path = tmp_path / "model" / "Format-Serving" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(tmp_path / "model" / "Format-Serving")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Where versions go; not made yet."""
    return tmp_path / "serving" / "reviews"


def push(model: str, base: Path | str, now: int = NOW, **options) -> publish.Version:
    options = {"keep": None} | options
    return publish.publish(model, str(base), now=now, **options)


def versions(base: Path) -> list[int]:
    """What TensorFlow Serving would take for versions, ascending."""
    return sorted(int(name) for name in os.listdir(base) if name.isdecimal())


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_whole(version: publish.Version, extra: dict[str, bytes] | None = None) -> None:
    assert files_of(Path(version.path)) == FILES | (extra or {})


def assert_nothing_half_made(base: Path) -> None:
    """Only versions and the small file with the last number."""
    assert {n for n in os.listdir(base) if not n.isdecimal()} <= {publish.LAST_PUSH}


# --- publishing ---------------------------------------------------------------------------


def test_a_push_is_a_whole_version_numbered_by_the_clock(model, base):
    version = push(model, base)
    assert version == (NOW, str(base / str(NOW)))
    assert_whole(version)
    assert_nothing_half_made(base)


def test_the_config_lies_in_the_version_and_wins_over_the_models_own(model, base):
    Path(model, "assets.extra").mkdir()
    Path(model, "assets.extra", "config.yaml").write_text("old")
    version = push(model, base, added={"config.yaml": "name: café\n"})
    assert_whole(version, {"assets.extra/config.yaml": "name: café\n".encode()})


def test_another_user_may_read_a_version(model, base):
    mode = os.stat(push(model, base).path).st_mode
    assert mode & 0o777 == os.stat(base).st_mode & 0o777


def test_saved_model_is_copied_last(model, base, monkeypatch):
    copied = []
    copy = publish.copy_file
    monkeypatch.setattr(publish, "copy_file", lambda s, t: (copied.append(s), copy(s, t)))
    push(model, base)
    assert len(copied) == len(FILES) and copied[-1].endswith("/saved_model.pb")


def test_a_server_never_sees_part_of_a_version(model, base):
    """A watcher lists the folder as TensorFlow Serving does, all through 20 pushes."""
    base.mkdir(parents=True)
    seen, broken, done = set(), [], threading.Event()

    def watch() -> None:
        while not done.is_set():
            for number in versions(base):
                found = files_of(base / str(number))
                if found != FILES:  # keep=30: no version is retired, so none may ever be partial.
                    broken.append((number, sorted(found)))
                seen.add(number)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        pushed = [push(model, base, keep=30).number for _ in range(20)]
    finally:
        done.set()
        watcher.join()
    assert broken == []
    assert seen & set(pushed), "the watcher never saw a version, so it proved nothing"
    assert pushed == list(range(NOW, NOW + 20)) == versions(base)


def test_pushes_at_once_get_a_version_each(model, base):
    pushed, failed = [], []

    def one() -> None:
        try:
            pushed.append(push(model, base))
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert versions(base) == list(range(NOW, NOW + 8))
    for version in pushed:
        assert_whole(version)
    assert_nothing_half_made(base)


def test_a_number_taken_meanwhile_by_another_program_is_passed_over(model, base, monkeypatch):
    rename = os.rename

    def taken(source: str, to: str) -> None:
        if to.endswith(str(NOW)):
            Path(to).mkdir(exist_ok=True)
            Path(to, "saved_model.pb").write_bytes(b"theirs")
        rename(source, to)

    monkeypatch.setattr(os, "rename", taken)
    assert_whole(push(model, base))
    assert versions(base) == [NOW, NOW + 1]
    assert (base / str(NOW) / "saved_model.pb").read_bytes() == b"theirs"


# --- numbers ------------------------------------------------------------------------------


def test_numbers_grow_within_a_second_and_with_the_clock_set_back(model, base):
    assert [push(model, base, now=now).number for now in (NOW, NOW, NOW - 86_400, NOW + 60)] == [
        NOW,
        NOW + 1,
        NOW + 2,
        NOW + 60,
    ]


def test_numbers_grow_past_a_version_that_was_deleted(model, base):
    push(model, base)
    os.rename(base / str(NOW), base.parent / "gone")
    assert push(model, base, now=NOW - 5).number == NOW + 1


@pytest.mark.parametrize("content", ["", "not a number", "12\n"])
def test_a_spoilt_memory_of_the_last_number_is_no_obstacle(model, base, content):
    base.mkdir(parents=True)
    (base / publish.LAST_PUSH).write_text(content)
    assert push(model, base).number == NOW


# --- keeping ------------------------------------------------------------------------------


def test_only_the_newest_versions_are_kept_and_other_things_are_left_alone(model, base):
    base.mkdir(parents=True)
    (base / "notes.txt").write_text("mine")
    (base / "archive").mkdir()
    (base / "17").mkdir()  # A number, but no model in it.
    for _ in range(5):
        push(model, base, keep=2)
    assert versions(base) == [17, NOW + 3, NOW + 4]
    assert (base / "notes.txt").read_text() == "mine" and (base / "archive").is_dir()
    assert not [name for name in os.listdir(base) if name.startswith(".espalier-old-")]


def test_an_old_version_that_cannot_be_removed_does_not_undo_the_push(model, base, monkeypatch):
    push(model, base)
    rename = os.rename

    def refuse(source: str, to: str) -> None:
        if ".espalier-old-" in to:
            raise PermissionError(errno.EACCES, "Permission denied", source)
        rename(source, to)

    monkeypatch.setattr(os, "rename", refuse)
    assert_whole(push(model, base, keep=1))
    assert versions(base) == [NOW, NOW + 1]


def test_what_a_killed_push_left_is_cleaned_by_the_next(model, base):
    for name in (".espalier-push-dead", f".espalier-old-{NOW}-dead"):
        (base / name / "variables").mkdir(parents=True)
    push(model, base)
    assert_nothing_half_made(base)


# --- failures -----------------------------------------------------------------------------


def fail_copy(monkeypatch, code: int, at: str) -> None:
    copy = publish.copy_file

    def fail(source: str, to: str) -> None:
        if source.endswith(at):
            # As shutil.copyfile reports it: the source's name first.
            raise OSError(code, os.strerror(code), source, None, to)
        copy(source, to)

    monkeypatch.setattr(publish, "copy_file", fail)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "may not write"),
        (errno.EIO, "Input/output error"),
    ],
)
@pytest.mark.parametrize("at", ["variables.index", "saved_model.pb"])
def test_a_copy_that_fails_leaves_the_versions_as_they_were(
    model, base, monkeypatch, code, words, at
):
    first = push(model, base)
    fail_copy(monkeypatch, code, at)
    with pytest.raises(ConfigError, match=words) as caught:
        push(model, base, keep=1)
    assert str(base) in str(caught.value)
    assert versions(base) == [NOW]
    assert_whole(first)
    assert_nothing_half_made(base)


def test_a_disk_that_fills_up_as_the_number_is_noted_loses_no_number(model, base, monkeypatch):
    first = push(model, base)
    publish.remove(str(base), first.name)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(ConfigError, match="disk is full"):
            push(model, base)
    assert push(model, base, now=1).number == NOW + 1


def test_a_note_of_the_last_number_that_is_junk_is_written_anew(model, base):
    push(model, base)
    (base / publish.LAST_PUSH).write_bytes(b"\xff\xfe and more than a number has")
    assert push(model, base, now=1).number == NOW + 1
    assert (base / publish.LAST_PUSH).read_text() == f"{NOW + 1}\n"


def test_a_file_in_the_destinations_place(model, base):
    base.parent.mkdir(parents=True)
    base.write_text("I was here first")
    with pytest.raises(ConfigError, match="a file stands where the folder should be"):
        push(model, base)
    assert base.read_text() == "I was here first"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(model, base):
    base.mkdir(parents=True)
    base.chmod(0o555)
    with pytest.raises(ConfigError, match="may not write"):
        push(model, base)


def test_a_folder_without_a_saved_model_is_not_pushed(tmp_path, base):
    with pytest.raises(ComponentError, match=r"no saved_model\.pb"):
        push(str(tmp_path), base)
    assert not base.exists()


# --- a remote place: TensorFlow's in-memory file system goes the same way as gs:// --------


def test_a_remote_push_numbers_keeps_and_fails_cleanly(model, monkeypatch):
    from tfx.dsl.io import fileio

    base = "ram://bucket/reviews"
    pushed = [push(model, base, keep=2, added={"config.yaml": "a: 1"}).number for _ in range(3)]
    assert pushed == [NOW, NOW + 1, NOW + 2]
    assert sorted(fileio.listdir(base)) == [str(NOW + 1), str(NOW + 2)]
    for name, content in (FILES | {"assets.extra/config.yaml": b"a: 1"}).items():
        assert fileio.open(f"{base}/{NOW + 2}/{name}", "rb").read() == content
    fail_copy(monkeypatch, errno.ENOSPC, "saved_model.pb")
    with pytest.raises(ConfigError, match="disk is full"):
        push(model, base, keep=2)
    assert sorted(fileio.listdir(base)) == [str(NOW + 1), str(NOW + 2)]


def test_a_remote_folder_that_cannot_be_listed_behind_the_push(model, monkeypatch):
    """The push stands: it must be neither reported as failed nor done again."""
    import tensorflow as tf

    def fail(*_: object) -> None:
        raise tf.errors.UnavailableError(None, None, "503")

    monkeypatch.setattr(publish, "_too_old", fail)
    version = push(model, "ram://unlisted/reviews", keep=2)
    assert publish.published(model, "ram://unlisted/reviews") == version


# --- executor and component ---------------------------------------------------------------


class Push:
    """The executor's artifacts, made once and by hand."""

    def __init__(self, model: str, base: Path, tmp_path: Path) -> None:
        self.base, self.path = base, model
        self.model = standard_artifacts.Model()
        self.model.uri = str(Path(model).parent)
        self.blessing = standard_artifacts.ModelBlessing()
        self.infra = standard_artifacts.InfraBlessing()
        self.pushed = standard_artifacts.PushedModel()
        self.pushed.uri = str(tmp_path / "pushed_model")
        self.bless(1, 1)

    def bless(self, model: int, infra: int) -> None:
        self.blessing.set_int_custom_property("blessed", model)
        self.infra.set_int_custom_property("blessed", infra)

    def run(self, custom_config: dict | None) -> None:
        destination = {"filesystem": {"base_directory": str(self.base)}}
        Executor().Do(
            {
                "model": [self.model],
                "model_blessing": [self.blessing],
                "infra_blessing": [self.infra],
            },
            {"pushed_model": [self.pushed]},
            {
                "push_destination": json.dumps(destination),
                "custom_config": json.dumps(custom_config),
            },
        )

    def assert_pushed(self) -> Path:
        (number,) = versions(self.base)
        assert self.pushed.get_int_custom_property("pushed") == 1
        assert self.pushed.get_string_custom_property("pushed_version") == str(number)
        place = self.pushed.get_string_custom_property("pushed_destination")
        assert place == str(self.base / str(number))
        assert files_of(Path(self.pushed.uri)) == FILES
        return Path(place)

    def assert_not_pushed(self, reason: str) -> None:
        assert self.pushed.get_int_custom_property("pushed") == 0
        assert reason in self.pushed.get_string_custom_property("reason")
        assert not self.base.exists() and not Path(self.pushed.uri).exists()


@pytest.fixture
def pushing(model, base, tmp_path) -> Push:
    return Push(model, base, tmp_path)


def test_executor_pushes_a_blessed_model(pushing):
    pushing.run({"keep": 2, "config": "version: 1\n"})
    place = pushing.assert_pushed()
    assert files_of(place) == FILES | {"assets.extra/config.yaml": b"version: 1\n"}


def test_executor_tries_again_what_a_network_failed(pushing, monkeypatch):
    import tensorflow as tf

    monkeypatch.setattr("tenacity.nap.time.sleep", lambda seconds: None)
    copy, failures = publish.copy_file, [tf.errors.UnavailableError(None, None, "503")] * 2

    def fail_twice(source: str, to: str) -> None:
        if to.startswith("ram://") and failures:
            raise failures.pop()
        copy(source, to)

    monkeypatch.setattr(publish, "copy_file", fail_twice)
    pushing.base = "ram://another/reviews"
    with pytest.raises(ConfigError, match="503"):
        pushing.run({"retries": 0})
    pushing.run({"retries": 1})
    assert pushing.pushed.get_int_custom_property("pushed") == 1
    assert publish.newest_anywhere(pushing.base).number > NOW
    assert not failures


def test_executor_finds_what_a_killed_one_has_pushed_to_a_remote_place(pushing, model):
    pushing.base = "ram://killed/reviews"
    version = push(model, pushing.base)  # ram:// lists assets.extra among the assets
    pushing.run({"keep": 2, "config": "version: 1\n"})
    assert publish.newest_anywhere(pushing.base) == version
    assert pushing.pushed.get_string_custom_property("pushed_version") == version.name
    (Path(model) / "saved_model.pb").write_bytes(b"another")
    pushing.run({"keep": 2, "config": "version: 1\n"})
    assert publish.newest_anywhere(pushing.base).number > version.number


def test_executor_brings_the_config_of_the_same_model_up_to_date(pushing):
    pushing.run({"config": "version: 1\n"})
    pushing.run({"config": "version: 1  # again\n"})
    place = pushing.assert_pushed()
    assert files_of(place) == FILES | {"assets.extra/config.yaml": b"version: 1  # again\n"}


def test_what_a_killed_push_left_undone_is_done_by_the_next_one(pushing):
    """Killed once its version was there: before older ones went, or as the config was written."""
    for number in (1, 2):
        publish.write_version(pushing.path, str(pushing.base / str(number)), {})
    pushing.run({"config": "version: 1\n"})
    before = versions(pushing.base)
    old, part = (pushing.base / name for name in (".espalier-old-1-x", ".espalier-push-x"))
    for folder in (old, part):
        folder.mkdir()
        (folder / "saved_model.pb").write_bytes(b"half")
    pushing.run({"config": "version: 2\n", "keep": 2})
    assert versions(pushing.base) == before[-2:]
    assert_nothing_half_made(pushing.base)
    place = pushing.base / str(before[-1])
    assert files_of(place) == FILES | {"assets.extra/config.yaml": b"version: 2\n"}


def test_a_kill_leaves_no_part_of_a_text_in_a_version(model, base, monkeypatch):
    """Else it would be one of the model's files, and the same model another one."""
    version = push(model, base)
    seen = []
    monkeypatch.setattr(Path, "replace", lambda part, file: seen.append(files_of(file.parents[1])))
    publish.refresh(version, {"config.yaml": "version: 1\n"}, keep=None)
    assert seen == [FILES]


def test_executor_needs_no_custom_config(pushing):
    pushing.run(None)
    assert files_of(pushing.assert_pushed()) == FILES


def test_executor_says_who_refused_and_why(pushing):
    pushing.bless(0, 1)
    pushing.blessing.set_string_custom_property("verdict", "accuracy 0.71, needed 0.85.")
    pushing.run({"keep": 2})
    pushing.assert_not_pushed("the Evaluator did not bless the model. accuracy 0.71, needed 0.85.")


def test_executor_heeds_the_serving_check(pushing):
    pushing.bless(1, 0)
    pushing.run({"keep": 2})
    pushing.assert_not_pushed("the serving check did not bless the model.")


def test_a_full_disk_at_the_archive_publishes_nothing(pushing, monkeypatch):
    fail_copy(monkeypatch, errno.ENOSPC, "variables.index")
    with pytest.raises(ConfigError, match=r"pushed_model.*disk is full"):
        pushing.run(None)
    assert not pushing.base.exists()


def make(**arguments) -> Pusher:
    destination = pusher_pb2.PushDestination()
    destination.filesystem.base_directory = "models/reviews"
    model = channel_utils.as_channel([standard_artifacts.Model()])
    return Pusher(**({"model": model, "push_destination": destination} | arguments))


def test_component_takes_stock_arguments():
    pusher = make(custom_config={"keep": 3, "config": "version: 1"})
    assert pusher.outputs["pushed_model"].type is standard_artifacts.PushedModel
    assert json.loads(pusher.exec_properties["custom_config"])["keep"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"custom_config": {"keep": 0}}, "1 or more. Received: 0"),
        ({"custom_config": {"keep": True}}, "Received: True"),
        ({"custom_config": {"retries": -1}}, "0 or more. Received: -1"),
        ({"custom_config": {"kep": 3}}, r"Received: \['kep'\]"),
        ({"custom_config": {"config": {"a": 1}}}, "Received: dict"),
        ({"push_destination": pusher_pb2.PushDestination()}, "must name a folder"),
        ({"push_destination": None}, "must name a folder"),
    ],
)
def test_component_refuses_bad_arguments_at_construction(arguments, words):
    with pytest.raises(ConfigError, match=words):
        make(**arguments)
