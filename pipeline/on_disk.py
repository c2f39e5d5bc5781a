"""What a component made is on the disk before ML Metadata says that it is done.

SQLite brings that word to the disk at once, and nobody the artifacts: after a cut of the power the
cache would give empty files to every later run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import to_disk


@contextmanager
def on_disk_first() -> Iterator[None]:
    """Components that end inside have their local artifacts on the disk when they are noted."""
    from tfx.orchestration.portable import execution_publish_utils as publishing

    stock = publishing.publish_succeeded_execution

    def publish(*args: Any, output_artifacts: Any = None, **named: Any) -> Any:
        for artifacts in (output_artifacts or {}).values():
            for place in (Path(one.uri) for one in artifacts if "://" not in one.uri):
                if place.exists():
                    to_disk(place)
        return stock(*args, output_artifacts=output_artifacts, **named)

    publishing.publish_succeeded_execution = publish
    try:
        yield
    finally:
        publishing.publish_succeeded_execution = stock
