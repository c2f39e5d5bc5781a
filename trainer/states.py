"""Folders in which a killed training finds what it had.

One goes when what was made of it is recorded: until then a kill, or metadata that cannot be
written, would cost the whole training.
"""

import shutil
from pathlib import Path

from ..files import write_whole

_MADE = "made.txt"
_GONE = ".gone-"


def finish(folder: Path, made: str) -> None:
    """Note that a training is over, and the URI of the artifact that came of it."""
    write_whole(folder / _MADE, made)


def made(folder: Path) -> str:
    """What came of the training; "" if it is not over."""
    file = folder / _MADE
    return file.read_text(encoding="utf-8") if file.exists() else ""


def discard(folder: Path) -> None:
    """Remove a folder, for whoever looks at once: of half a state no training could go on."""
    gone = folder.with_name(_GONE + folder.name)
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone)


def clear(base: Path) -> None:
    """Remove what calls of `discard` that were killed have left in a folder."""
    for gone in base.glob(f"{_GONE}*"):
        shutil.rmtree(gone, ignore_errors=True)
