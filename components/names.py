"""What the name of a file or folder says: its split, and whether TFX can read it."""

import os
import re
from pathlib import Path

from ..errors import ConfigError

# Words in a file's or folder's name that say which split it is.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "eval": ("eval", "dev", "valid", "val", "validation", "development", "evaluation"),
    "test": ("test", "testing", "heldout"),
}
SPLITS = tuple(SPLIT_WORDS)


def split_of(path: Path) -> str | None:
    """The split that a file or folder is named after: train, eval or test."""
    words = re.split(r"[^a-z]+", (path.stem if path.is_file() else path.name).lower())
    found = [split for split, known in SPLIT_WORDS.items() if set(known) & set(words)]
    return found[0] if len(found) == 1 else None


def plain(file: Path) -> Path:
    """The path without `.` and `..`, if TFX takes each of its characters for itself.

    Raises:
        ConfigError: it does not.
    """
    plain = Path(os.path.normpath(file))
    if set("\\{}") & set(str(plain)):
        raise ConfigError(
            f"{file}: TFX gives \\, {{ and }} in a path a meaning of their own. Rename it."
        )
    return plain
