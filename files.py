"""Files that are written whole, or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a text to a file, in UTF-8: whoever reads it, and whatever is killed, finds the old
    content or the new one."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
