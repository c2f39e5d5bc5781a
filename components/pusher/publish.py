"""Publishes a SavedModel as a numbered version of a folder that TensorFlow Serving watches.

TensorFlow Serving looks at the folder every second and loads the highest number it sees. So a
version must appear at once and whole, under a number above all before it.
"""

import fcntl
import filecmp
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from absl import logging

from ...errors import ComponentError
from ...files import sync, to_disk
from ...serving.predictor import find_newest, is_version
from . import card
from .failures import destination_errors

SAVED_MODEL = "saved_model.pb"
# TensorFlow Serving reads only what it knows in assets.extra and ignores the rest.
EXTRA, CONFIG = "assets.extra", "config.yaml"
# What a push adds to the model's files.
_ADDED = {os.path.join(EXTRA, name) for name in (CONFIG, card.MARKDOWN, card.JSON)}
# Hidden names: TensorFlow Serving takes only names that are whole numbers for versions.
LAST_PUSH = ".espalier-last"
_STAGING = ".espalier-push-"
_RETIRED = ".espalier-old-"
_PART = 1 << 20  # bytes that are compared at once
_LARGEST = 2**63 - 1  # TensorFlow Serving reads a version's number as an int64.


class Version(NamedTuple):
    """A version of a model: its number and its folder's path."""

    number: int
    path: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return os.path.basename(self.path)


def publish(
    model: str, base: str, *, keep: int | None, now: int, added: Mapping[str, str] | None = None
) -> Version:
    """Copies the SavedModel in `model` to the next version below `base`, created if missing.

    Args:
        model: a SavedModel's folder, local or remote (gs://...).
        base: the folder of versions, local or remote.
        keep: how many of the newest versions stay; None keeps all.
        now: the time in whole seconds, the version's number unless a higher one was used.
        added: texts to put beside the model's files, by their names in assets.extra.

    Raises:
        ConfigError: `base` cannot be written, or is full; nothing half-made stays there.
        ComponentError: `model` is not a readable SavedModel.
    """
    if not _exists(os.path.join(model, SAVED_MODEL)):
        raise ComponentError(
            f"Pusher: there is no {SAVED_MODEL} in {model}, so this is not a model that "
            "TensorFlow Serving can load. Run the Trainer again (--from Trainer)."
        )
    with destination_errors(base, model):
        if is_remote(base):
            return _publish_remote(model, base.rstrip("/"), keep, now, added or {})
        return _publish_local(model, base, keep, now, added or {})


def archive(model: str, to: str) -> None:
    """Copies the SavedModel to the pushed_model artifact, as TFX's Pusher does.

    Raises ConfigError if it cannot be written there.
    """
    with destination_errors(to, model):
        write_version(model, to, {})


def refresh(version: Version, added: Mapping[str, str], *, keep: int | None) -> None:
    """Brings the texts in a version's assets.extra up to date, each whole or not at all; a remote
    version, where nothing is put in place at once, stays as it is.

    A push that was killed behind its publishing is done to its end: `keep` is as of `publish`.
    Raises ConfigError if they cannot be written.
    """
    if is_remote(version.path):
        return
    base = os.path.dirname(version.path)
    with destination_errors(version.path, ""), _only_push(base):
        # Outside the version, or what a kill leaves would be one of its files for ever.
        staging = Path(base, _STAGING + uuid.uuid4().hex)
        staging.mkdir()
        try:
            for name, text in added.items():
                file = Path(version.path, EXTRA, name)
                if not file.exists() or file.read_text(encoding="utf-8") != text:
                    file.parent.mkdir(exist_ok=True)
                    (staging / name).write_text(text, encoding="utf-8")
                    sync(staging / name)
                    (staging / name).replace(file)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        sync(base)  # the version's own name, too: the push may have been killed right behind it
        _retire_local(base, keep, version)


def remove(base: str, name: str) -> None:
    """Removes one version of a local folder, for a server at once; OSError if it cannot.

    A push that goes on meanwhile is waited for: it would clean up behind us.
    """
    with _only_push(base):
        _remove(base, name)


def clean(base: str) -> None:
    """Removes what killed pushes and removals have left in a local folder, hidden."""
    if any(name.startswith((_STAGING, _RETIRED)) for name in os.listdir(base)):
        with _only_push(base):
            pass


def newest(base: str) -> Version | None:
    """The version that TensorFlow Serving serves by default; None for a remote folder too."""
    found = None if is_remote(base) else find_newest(Path(base))
    return Version(int(found.name), os.path.join(base, found.name)) if found else None


def newest_anywhere(base: str) -> Version | None:
    """The same of a local or a remote folder."""
    if not is_remote(base):
        return newest(base)
    fileio = _fileio()
    whole = _whole(base, fileio.listdir(base)) if fileio.exists(base) else []
    return whole[-1] if whole else None


def published(model: str, base: str) -> Version | None:
    """The newest version below `base`, if it is `model` already: pushed by an earlier run, or by
    one that was killed just behind it. Raises ConfigError if it cannot be read."""
    with destination_errors(base, model):
        found = newest_anywhere(base)
        return found if found and is_copy(found.path, model) else None


def is_copy(version: str, model: str) -> bool:
    """Whether a version holds the very files of `model`, what a push adds aside."""
    names = [set(_files(folder)) - _ADDED for folder in (version, model)]
    # In this order the small files, which differ first, come before the weights.
    return names[0] == names[1] and all(
        _is_same(os.path.join(version, name), os.path.join(model, name))
        for name in sorted(names[0])
    )


def _is_same(one: str, two: str) -> bool:
    """Whether two files have the same bytes."""
    if not is_remote(one) and not is_remote(two):
        return filecmp.cmp(one, two, shallow=False)
    with _open(one, "rb") as first, _open(two, "rb") as second:
        while (part := first.read(_PART)) == second.read(_PART):
            if not part:
                return True
        return False


def is_remote(path: str) -> bool:
    """Whether the path belongs to a remote file system (gs://, hdfs://, s3://)."""
    return "://" in path


def write_version(model: str, to: str, added: Mapping[str, str]) -> None:
    """Copies a SavedModel's files, saved_model.pb last, after texts for assets.extra.

    saved_model.pb is the sign that a version is complete, for TensorFlow Serving and for us.
    """
    names = set(_files(model)) - {SAVED_MODEL}
    for name, text in added.items():
        names -= {os.path.join(EXTRA, name)}
        _make_folder(os.path.join(to, EXTRA))
        with _open(os.path.join(to, EXTRA, name), "wb") as file:
            file.write(text.encode())
    for name in [*sorted(names), SAVED_MODEL]:
        _make_folder(os.path.dirname(os.path.join(to, name)))
        copy_file(os.path.join(model, name), os.path.join(to, name))


def copy_file(source: str, to: str) -> None:
    """Copies one file's bytes, over an older one if there is any."""
    if is_remote(source) or is_remote(to):
        _fileio().copy(source, to, overwrite=True)
    else:
        shutil.copyfile(source, to)


# --- a local folder: staged, then renamed ---------------------------------------------------


def _publish_local(
    model: str, base: str, keep: int | None, now: int, added: Mapping[str, str]
) -> Version:
    os.makedirs(base, exist_ok=True)
    with _only_push(base) as last:
        # Not tempfile.mkdtemp: its mode 0700 would lock out a server run by another user.
        staging = os.path.join(base, _STAGING + uuid.uuid4().hex)
        try:
            write_version(model, staging, added)
            to_disk(Path(staging))
            version = _rename_to_next(staging, base, last, now)
            sync(base)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        _retire_local(base, keep, version)
        return version


@contextmanager
def _only_push(base: str) -> Iterator[IO[str]]:
    """Yields the file that remembers the last number, once what killed pushes left is gone.

    The kernel lets go of the lock when a pusher is killed. On a file system without locks (some
    NFS mounts) others may be at work: then what they may be writing is left alone.
    """
    # Neither "a+", which writes at the end alone, nor "w+", which begins by losing the number.
    file = os.open(os.path.join(base, LAST_PUSH), os.O_RDWR | os.O_CREAT, 0o666)
    with open(file, "r+", encoding="ascii", errors="replace") as last:
        try:
            fcntl.flock(last, fcntl.LOCK_EX)
        except OSError:
            pass
        else:
            _clean(base)
        yield last


def _clean(base: str) -> None:
    """Removes what killed pushes left. Only while no other push can be at work."""
    for name in os.listdir(base):
        if name.startswith((_STAGING, _RETIRED)):
            shutil.rmtree(os.path.join(base, name), ignore_errors=True)


def _rename_to_next(staging: str, base: str, last: IO[str], now: int) -> Version:
    """Gives the staged folder the next number: above every name there, and the last push's."""
    # The file keeps numbers growing past versions that somebody deleted.
    number = max(now, _read_number(last) + 1, *(n + 1 for n, _ in _numbered(os.listdir(base))))
    while True:
        version = Version(number, os.path.join(base, str(number)))
        _write_number(last, number)
        try:
            os.rename(staging, version.path)
            return version
        except OSError:
            # Another program took this number since we looked: the next one, then.
            if not os.path.lexists(version.path):
                raise
            number += 1


def _read_number(last: IO[str]) -> int:
    last.seek(0)
    text = last.read().strip()
    return int(text) if text.isdecimal() else 0


def _write_number(last: IO[str], number: int) -> None:
    # Over the old one, and cut only then: a disk that fills up must not leave the file empty.
    os.pwrite(last.fileno(), f"{number}\n".encode("ascii"), 0)
    os.truncate(last.fileno(), len(f"{number}\n"))
    os.fsync(last.fileno())


def _retire_local(base: str, keep: int | None, pushed: Version) -> None:
    """Removes all but the newest `keep` versions. A failure is logged: the push stands."""
    for old in _too_old(base, os.listdir(base), keep, pushed):
        try:
            _remove(base, old.name)
        except OSError as error:
            logging.warning("Could not remove the old version %s: %s", old.path, error)


def _remove(base: str, name: str) -> None:
    # Renamed first, so that nobody loads a version that is half gone.
    hidden = os.path.join(base, f"{_RETIRED}{name}-{uuid.uuid4().hex}")
    os.rename(os.path.join(base, name), hidden)
    shutil.rmtree(hidden)


# --- a remote folder: no rename is atomic there, so saved_model.pb comes last ----------------


def _publish_remote(
    model: str, base: str, keep: int | None, now: int, added: Mapping[str, str]
) -> Version:
    fileio = _fileio()
    fileio.makedirs(base)
    number = max(now, *(n + 1 for n, _ in _numbered(fileio.listdir(base))), 1)
    version = Version(number, f"{base}/{number}")
    try:
        write_version(model, version.path, added)
    except BaseException:
        with suppress(Exception):
            fileio.rmtree(version.path)
        raise
    _retire_remote(base, keep, version)
    return version


def _retire_remote(base: str, keep: int | None, pushed: Version) -> None:
    """As `_retire_local`; what fails must not seem to be the push, which would be done again."""
    fileio = _fileio()
    try:
        old_ones = _too_old(base, fileio.listdir(base), keep, pushed)
    except Exception as error:  # each file system has its own
        logging.warning("Could not look for old versions below %s: %s", base, error)
        return
    for old in old_ones:
        try:
            fileio.remove(os.path.join(old.path, SAVED_MODEL))
            fileio.rmtree(old.path)
        except Exception as error:
            logging.warning("Could not remove the old version %s: %s", old.path, error)


# --- both ------------------------------------------------------------------------------------


def _numbered(names: list[str]) -> list[tuple[int, str]]:
    """(number, name) of the names that TensorFlow Serving would take for versions, ascending."""
    stripped = [name.rstrip("/") for name in names]  # gs:// lists folders as "name/".
    decimal = [name for name in stripped if is_version(name)]
    return sorted((int(name), name) for name in decimal if int(name) < _LARGEST)


def _too_old(base: str, names: list[str], keep: int | None, pushed: Version) -> list[Version]:
    """The whole versions beyond the newest `keep`, never the one just pushed."""
    if keep is None:
        return []
    whole = _whole(base, names)
    return [version for version in whole[:-keep] if version.number != pushed.number]


def _whole(base: str, names: list[str]) -> list[Version]:
    """The versions that are complete, the newest last."""
    versions = [Version(number, os.path.join(base, name)) for number, name in _numbered(names)]
    return [v for v in versions if _exists(os.path.join(v.path, SAVED_MODEL))]


def _fileio() -> Any:
    """TFX's remote file systems; they load TensorFlow, and a local folder can do without."""
    from tfx.dsl.io import fileio

    return fileio


def _files(root: str) -> Iterator[str]:
    """Paths of all files below `root`, relative to it."""
    root = root.rstrip("/")
    for folder, _, names in _fileio().walk(root) if is_remote(root) else os.walk(root):
        inside = folder[len(root) :].strip("/")
        yield from (os.path.join(inside, name) for name in names)


def _exists(path: str) -> bool:
    return _fileio().exists(path) if is_remote(path) else os.path.exists(path)


def _make_folder(path: str) -> None:
    if is_remote(path):
        _fileio().makedirs(path)
    else:
        os.makedirs(path, exist_ok=True)


def _open(path: str, mode: str) -> Any:
    return _fileio().open(path, mode) if is_remote(path) else open(path, mode)
