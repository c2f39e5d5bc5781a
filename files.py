"""Files that are written whole, or not at all, and that a cut of the power does not empty.

A name may reach the disk long before the bytes do: where one is the sign that something is done,
what it names is brought to the disk first.
"""

import errno
import os
from pathlib import Path


def write_whole(file: Path, content: "str | bytes | memoryview") -> None:
    """Write a file, a text in UTF-8: whoever reads it, and whatever is killed or goes dark, finds
    the old content or the new one."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    sync(temporary)
    os.replace(temporary, file)
    sync(file.parent)


def to_disk(path: Path) -> None:
    """Bring a file to the disk, or a folder and all that is in it; OSError if that fails."""
    for at, _, names in os.walk(path):
        for file in (os.path.join(at, name) for name in names):
            if os.path.isfile(file):
                sync(file)
        sync(at)
    if path.is_file():
        sync(path)


def sync(path: "str | Path") -> None:
    """The same of one file, or of the names that stand in one folder."""
    try:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
    except OSError as error:
        # Network file systems refuse it of folders, each in its own words, and some of files.
        if not os.path.isdir(path) and error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
