"""Whether what earlier runs made is still as they left it.

TFX's cache looks whether an artifact's folder exists. A file in it that was cut short, edited or
deleted would go on into every later run; so each run notes what it made, and the next one looks.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..files import write_whole
from ..trainer.checkpoints import sha256
from .store import Output

FILE = "contents.json"
Seen = dict[str, list[Any]]  # a file's path -> bytes, time of its last change in ns, SHA-256


def note(home: Path, outputs: Iterable[Output]) -> None:
    """Note what lies in artifacts that were not noted before."""
    known = read(home)
    unknown = [o for o in outputs if str(o.id) not in known and "://" not in o.uri]
    new = {str(o.id): _look(Path(o.uri)) for o in unknown if Path(o.uri).exists()}
    if new:
        write_whole(home / FILE, json.dumps(known | new))


def altered(
    home: Path, outputs: Iterable[Output], known: Mapping[str, Seen] | None = None
) -> dict[int, str]:
    """What has become of artifacts that are no longer as they were noted, in words, by their id.

    `known` is what `read` returned before; the file grows with the runs.
    """
    known, found = read(home) if known is None else known, {}
    for output in outputs:
        if "://" in output.uri:
            continue
        if not Path(output.uri).exists():
            found[output.id] = f"{output.uri} is gone"
        elif words := _difference(Path(output.uri), known.get(str(output.id))):
            found[output.id] = words
    return found


def read(home: Path) -> dict[str, Seen]:
    """What was noted of a pipeline's artifacts, by their ids."""
    with suppress(OSError, ValueError):
        return dict(json.loads((home / FILE).read_text(encoding="utf-8")))
    return {}


def forget(home: Path, live: Collection[int]) -> None:
    """Drop the notes of all artifacts but these: their numbers are given out again where an older
    copy of the metadata was put back."""
    known = read(home)
    kept = {number: seen for number, seen in known.items() if int(number) in live}
    if kept != known:
        write_whole(home / FILE, json.dumps(kept))


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    if place.is_file():
        yield "", place
        return
    for file in sorted(place.rglob("*")):
        if file.is_file():
            yield str(file.relative_to(place)), file


def _look(place: Path) -> Seen:
    found = {}
    for name, file in _files(place):
        status = file.stat()
        found[name] = [status.st_size, status.st_mtime_ns, sha256(file)]
    return found


def _difference(place: Path, seen: Seen | None) -> str:
    if seen is None:  # its run was killed before it could note anything
        return ""
    files = dict(_files(place))
    for name in sorted(seen.keys() | files.keys()):
        if name not in files:
            return f"{place / name} is gone"
        if name not in seen:
            return f"{files[name]} was added"
        size, changed, digest = seen[name]
        status = files[name].stat()
        # A copy of the folder has other times, and the same content.
        same = (status.st_size, status.st_mtime_ns) == (size, changed)
        if not same and (status.st_size != size or sha256(files[name]) != digest):
            return f"{files[name]} was altered"
    return ""
