"""The folders that a run writes to: can they be written, and is there room?"""

import contextlib
import errno
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import CheckpointError, ConfigError
from ..files import write_whole

if TYPE_CHECKING:
    from .config import Config

_NOTE = ".temporary"  # names the folder of the process that writes to this one
_PREFIX = "espalier-"
_MAKE_ROOM = "Make room (`espalier gc` shows what of earlier runs can go)"
_FULL = 1 << 20  # bytes; with fewer left, nothing of use can be written


def check_places(config: "Config", rows: int) -> None:
    """Raise ConfigError unless a run finds room for what it leaves; see `needed`."""
    for path, size in needed(config, rows).items():
        check_writable(path, size)


def needed(config: "Config", rows: int) -> dict[Path, int]:
    """Bytes that a run leaves, by folder.

    The rows in four forms, the weights with their optimizer's state (three times), then twice
    as a SavedModel, and once more where it is pushed.

    Args:
        config: the job.
        rows: bytes of the user's rows.
    """
    weights = _start_bytes(config)
    return {
        config.home: 4 * rows + 6 * weights + 100_000_000,
        Path(config.push.to): 2 * weights + 20_000_000,
    }


def _start_bytes(config: "Config") -> int:
    """The size of the checkpoint's files; 0 where training starts from scratch."""
    from ..trainer import checkpoints

    weights = Path(str(getattr(config.model, "weights", None))).expanduser()
    if weights.is_file():
        return weights.stat().st_size
    try:
        folder = checkpoints.resolve(str(getattr(config.model, "start", "")))
    except CheckpointError:
        return 0
    return sum(file.stat().st_size for name in checkpoints.FILES for file in folder.glob(name))


def check_writable(path: Path, needed_bytes: int) -> None:
    """Raise ConfigError unless there is room; see `room`."""
    room(path, needed_bytes)


def room(path: Path, needed_bytes: int) -> int:
    """Really write to the folder, or the nearest one above it that exists, and look at its space.

    Returns:
        the bytes that are free.

    Raises:
        ConfigError: not writable, or too little space; says which folder.
    """
    folder = _there(path)
    if not folder.is_dir():
        raise ConfigError(f"{path}: {folder} is a file, and a folder is needed there.")
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"\0")
            probe.flush()
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        raise ConfigError(
            f"{path}: the folder {folder} cannot be written to: {error.strerror}. "
            f"{_MAKE_ROOM if is_full else 'Change its permissions'} or name another place."
        ) from None
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ConfigError(
            f"{path}: about {size_in_words(needed_bytes)} are needed, and {size_in_words(free)} "
            f"are free in {folder}. {_MAKE_ROOM} or name another place."
        )
    return free


def full(places: Iterable[Path]) -> list[Path]:
    """Those of the places whose disk has no room left, be it for bytes or for names of files."""
    found = []
    for place in places:
        disk = os.statvfs(_there(place))
        no_names = disk.f_files > 0 and disk.f_favail == 0
        if no_names or disk.f_bavail * disk.f_frsize < _FULL:
            found.append(place)
    return found


def _there(path: Path) -> Path:
    """The place itself, or the nearest one above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


@contextlib.contextmanager
def temporary(home: Path) -> Iterator[None]:
    """Give the temporary files of this process and its children a folder of their own.

    It is removed at the end. What is killed in between leaves it, and the next call with the same
    `home` removes it: libraries leave much there, and would leave more with every kill.

    Args:
        home: a folder that nobody else uses meanwhile.

    Raises:
        ConfigError: there can be no such folder.
    """
    note, before = home / _NOTE, (tempfile.tempdir, os.environ.get("TMPDIR"))
    with contextlib.suppress(OSError, ValueError):
        left = Path(note.read_text(encoding="utf-8"))
        if re.fullmatch(_PREFIX + "[0-9a-f]{12}", left.name):  # else it is no note of ours
            shutil.rmtree(left, ignore_errors=True)
    # A name that nobody can foresee, and noted first.
    folder = Path(tempfile.gettempdir(), f"{_PREFIX}{uuid.uuid4().hex[:12]}")
    try:
        write_whole(note, str(folder))
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise ConfigError(
            f"{error.filename}: cannot be made, and temporary files need it: {error.strerror}. "
            f"Make room there, or set TMPDIR to another folder."
        ) from None
    tempfile.tempdir = os.environ["TMPDIR"] = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before[0]
        os.environ.pop("TMPDIR")
        if before[1] is not None:
            os.environ["TMPDIR"] = before[1]
        shutil.rmtree(folder, ignore_errors=True)
        note.unlink(missing_ok=True)


def is_unfinished(home: Path) -> bool:
    """Whether a block of `temporary` has not come to its end: it was killed, or goes on."""
    return (home / _NOTE).exists()


def size_in_words(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
