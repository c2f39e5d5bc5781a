"""What runs: the configuration, the DAG, the local runners and the command line."""

import functools
import hashlib
from pathlib import Path

FOLDERS = ("components", "pipeline", "serving", "trainer")


@functools.cache
def code_digest(*folders: str) -> str:
    """SHA-256 of the package's own source: changed code must not be served old results."""
    root, digest = Path(__file__).parent.parent, hashlib.sha256()
    for folder in folders or FOLDERS:
        for file in sorted((root / folder).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
