"""Files reach the disk before the names that say they are done."""

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from espalier.components.pusher import publish
from espalier.files import sync, to_disk, write_whole
from espalier.pipeline.on_disk import on_disk_first


@pytest.fixture
def story(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of what is brought to the disk, and of what gets another name, in their order."""
    told: list[str] = []

    def tell(name: str, what: Callable[..., Path]) -> None:
        stock = getattr(os, name)

        def do(*given: object) -> object:
            told.append(f"{name} {what(*given).name}")
            return stock(*given)

        monkeypatch.setattr(os, name, do)

    tell("fsync", lambda opened: Path(os.readlink(f"/proc/self/fd/{opened}")))
    tell("replace", lambda _, new: Path(new))
    tell("rename", lambda _, new: Path(new))
    return told


def test_a_file_is_on_the_disk_before_it_has_its_name(story: list[str], tmp_path: Path) -> None:
    for content in ("text", b"bytes"):
        write_whole(tmp_path / "file", content)
    assert story == ["fsync .file.new", "replace file", f"fsync {tmp_path.name}"] * 2
    assert (tmp_path / "file").read_text() == "bytes"


def test_a_folder_is_brought_there_with_all_that_is_in_it(story: list[str], tmp_path: Path) -> None:
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "one" / "two" / "file").touch()
    (tmp_path / "one" / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "one" / "pipe")
    to_disk(tmp_path / "one")
    assert sorted(story) == ["fsync file", "fsync one", "fsync two"]
    to_disk(tmp_path / "one" / "two" / "file")
    assert story[3:] == ["fsync file"]


@pytest.mark.parametrize(
    ("code", "of", "raises"),
    [(errno.EBADF, "folder", False), (errno.EINVAL, "file", False), (errno.EIO, "file", True)],
)
def test_a_file_system_that_cannot_is_no_reason_to_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, of: str, raises: bool
) -> None:
    def refuse(opened: int) -> None:
        raise OSError(code, os.strerror(code))

    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input") if raises else contextlib.nullcontext():
        sync(tmp_path / of)


def test_a_version_is_there_before_it_can_be_seen(story: list[str], tmp_path: Path) -> None:
    (tmp_path / "model" / "variables").mkdir(parents=True)
    (tmp_path / "model" / publish.SAVED_MODEL).touch()
    (tmp_path / "model" / "variables" / "weights").touch()
    base = str(tmp_path / "base")
    publish.publish(str(tmp_path / "model"), base, keep=None, now=7, added={"card": "x"})
    first = story.index("rename 7")
    synced = {one.removeprefix("fsync ") for one in story[:first]}
    assert synced >= {publish.SAVED_MODEL, "weights", "card", "variables", publish.EXTRA}
    assert any(one.startswith(".espalier-push-") for one in synced) and publish.LAST_PUSH in synced
    assert story[first + 1] == "fsync base"


def test_an_artifact_is_there_before_its_component_is_noted_as_done(
    story: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tfx.orchestration.portable import execution_publish_utils as publishing

    def stock(**given: object) -> dict[str, object]:
        story.append("noted")
        return given

    monkeypatch.setattr(publishing, "publish_succeeded_execution", stock)
    (tmp_path / "file").touch()
    uris = [str(tmp_path / "file"), str(tmp_path / "never written"), "gs://far/away"]
    outputs = {"one": [SimpleNamespace(uri=uri) for uri in uris]}
    with on_disk_first():
        given = publishing.publish_succeeded_execution(execution_id=1, output_artifacts=outputs)
        publishing.publish_succeeded_execution(execution_id=2)  # one that makes nothing
    assert story == ["fsync file", "noted", "noted"]
    assert given == {"execution_id": 1, "output_artifacts": outputs}
    assert publishing.publish_succeeded_execution is stock
