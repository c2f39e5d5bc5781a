"""Files that are written whole, or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, content: "str | bytes | memoryview") -> None:
    """Write a file, a text in UTF-8: whoever reads it, and whatever is killed, finds the old
    content or the new one."""
    temporary = file.with_name(f".{file.name}.new")
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(temporary, file)
