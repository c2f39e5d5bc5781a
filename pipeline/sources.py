"""The user's files: found, and described to TFX's ExampleGens."""

import difflib
import fnmatch
import glob
import os
import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError, DataError

# What a folder of each format holds; other files in it are left alone.
_ENDINGS = {
    "csv": r"\.csv$",
    "parquet": r"\.(parquet|pq)$",
    "tfrecord": r"\.tfrecords?(\.gz)?$|\.gz$|-\d+-of-\d+$",
}
_EXPECTED = {
    "csv": "files that end in .csv",
    "parquet": "files that end in .parquet",
    "tfrecord": "files that end in .tfrecord, .tfrecord.gz or -00000-of-00001",
}
# TFX takes these as wildcards or as a span's place, and knows no way to quote them.
_SPECIAL = re.compile(r"[*?\[\]{}\\]")


def find_sources(sources: dict[str, str], format: str) -> dict[str, list[Path]]:
    """Return the files of each split, sorted.

    Args:
        sources: per split (or "all") a file, a folder (not its subfolders) or a glob.
        format: csv, parquet or tfrecord.

    Raises:
        DataError: nothing is there; says what is.
    """
    return {split: _find(source, _key(format, split), format) for split, source in sources.items()}


def _key(format: str, split: str) -> str:
    return f"data.{format}" if split == "all" else f"data.{format}.{split}"


def _find(source: str, key: str, format: str) -> list[Path]:
    path = Path(source).expanduser()
    try:
        if path.is_dir():
            return _in_folder(path, key, format)
        if path.exists():
            return [path]
        found = sorted(p for p in map(Path, glob.glob(str(path))) if p.is_file())
    except OSError as error:
        raise DataError(f"{key}: {source} cannot be read: {error.strerror}.") from None
    if found:
        return found
    if glob.has_magic(source):
        folder = path.parent
        holds = f"{folder} holds {_listing(folder)}" if folder.is_dir() else f"{folder} is no folder"
        raise DataError(f"{key}: no file fits {source}; {holds}. Hidden files are ignored.")
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, 1)
    hint = f" Did you mean {path.with_name(near[0])}?" if near else ""
    raise DataError(f"{key}: no file or folder {source} in {Path.cwd()}.{hint}")


def _in_folder(folder: Path, key: str, format: str) -> list[Path]:
    found = [
        path
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".")
        and re.search(_ENDINGS[format], path.name, re.IGNORECASE)
        and path.is_file()
    ]
    if found:
        return found
    raise DataError(
        f"{key}: the folder {folder} holds {_listing(folder)}; expected {_EXPECTED[format]}, "
        "directly in it."
    )


def _listing(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    shown = [name for name in names if not name.startswith(".")]
    hidden = len(names) - len(shown)
    words = ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")
    if hidden:
        words = f"{words or 'nothing'} ({hidden} hidden)"
    return words or "nothing"


def input_patterns(files: dict[str, list[Path]]) -> tuple[str, dict[str, str]]:
    """Describe files as an ExampleGen wants them: (input_base, pattern per split).

    Each pattern fits exactly the files of its split among all that lies in their folder,
    hidden files and folders included. Raises ConfigError where no pattern does.
    """
    everything = [path for paths in files.values() for path in paths]
    if len({path.is_absolute() for path in everything}) > 1:
        files = {split: [path.absolute() for path in paths] for split, paths in files.items()}
        everything = [path for paths in files.values() for path in paths]
    for path in everything:
        if found := _SPECIAL.search(str(path)):
            raise ConfigError(
                f"data: {path}: TFX takes the character {found[0]!r} in a path as a wildcard. "
                "Rename the file or folder."
            )
    base = os.path.commonpath([path.parent for path in everything]) or "."
    return base, {split: _pattern(base, split, paths) for split, paths in files.items()}


def _pattern(base: str, split: str, files: list[Path]) -> str:
    folder = files[0].parent
    others = [path.parent for path in files if path.parent != folder]
    if others:
        raise ConfigError(
            f"data: the files of {split!r} lie in {folder} and {others[0]}; TFX reads one folder "
            "for each split. Put them into one."
        )
    names = [path.name for path in files]
    present = os.listdir(folder)
    for pattern in _candidates(names):
        if set(fnmatch.filter(present, pattern)) == set(names):
            within = os.path.relpath(folder, base)
            return pattern if within == "." else f"{within}/{pattern}"
    extra = sorted({n for n in present if not n.startswith(".")} - set(names))
    raise ConfigError(
        f"data: no pattern fits the {len(names)} files of {split!r} in {folder} without "
        f"{', '.join(extra[:5])}, and TFX reads by pattern. Put them into a folder of their own."
    )


def _candidates(names: list[str]) -> Iterable[str]:
    if len(names) == 1:
        yield names[0]
        return
    start = os.path.commonprefix(names)
    end = os.path.commonprefix([name[::-1] for name in names])[::-1]
    extension = Path(names[0]).suffix
    yield f"[!.]*{extension}"
    yield "[!.]*" + "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in extension)
    yield f"{start}*{end}" if start else f"[!.]*{end}"
    yield f"{start}*{extension}" if start else "[!.]*"
