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
    with temporary.open("wb") as opened:
        opened.write(content.encode() if isinstance(content, str) else content)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(temporary, file)


def to_disk(path: Path) -> None:
    """Bring a file to the disk, or a folder and all that is in it; OSError if that fails."""
    for at, _, names in os.walk(path):
        for name in names:
            sync(os.path.join(at, name))
        sync(at)
    if path.is_file():
        sync(path)


def sync(path: "str | Path") -> None:
    """The same of one file, or of the names that stand in one folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of a file system that can do so with files alone
            raise
    finally:
        os.close(opened)
