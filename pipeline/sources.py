"""Which files the data's source names, and how ExampleGen is told to read exactly those.

TFX globs twice: with TensorFlow (CSV, and every format's fingerprint) and with Beam (Parquet and
TFRecord). Of the patterns that leave hidden files out, `[!.]*` means the same to both; `[^.]*` is
"a caret or a dot" to Beam. Both read a plain `*.csv` as if hidden files were data
(tensorflow/tfx#778).
"""

import difflib
import fnmatch
import glob
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..components.names import plain
from ..errors import ConfigError, DataError

# Globs of how a file's name ends, in lower case.
SUFFIXES = {
    "csv": (".csv",),
    "parquet": (".parquet", ".pq"),
    "tfrecord": (".tfrecord", ".tfrecords", ".gz", "-of-[0-9]*"),
}
_SHOWN = 5


def find_sources(sources: Mapping[str, str], kind: str) -> dict[str, list[Path]]:
    """The files of each split.

    Args:
        sources: a file, folder or glob per split (`all` when it is to be split later).
        kind: csv, parquet or tfrecord.

    Raises:
        DataError: a source names no file.
        ConfigError: two splits share a file.
    """
    found = {split: find_files(path, SUFFIXES[kind]) for split, path in sources.items()}
    owner: dict[Path, str] = {}
    for split, files in found.items():
        for file in files:
            other = owner.setdefault(file.resolve(), split)
            if other != split:
                raise ConfigError(
                    f"data: {split} and {other} both read {file}. A row that is trained on says "
                    f"nothing when it is tested on: give each split its own files, or one source "
                    f"for all, which is split 8:1:1."
                )
    return found


def find_files(path: str, suffixes: tuple[str, ...]) -> list[Path]:
    """The visible files that a file, a folder (not its subfolders) or a glob names, sorted.

    Raises:
        DataError: none; says what is there instead.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        return _in_folder(place, suffixes)
    if place.is_file():
        return [place]
    if glob.has_magic(path):
        matches = [Path(name) for name in sorted(glob.glob(str(place)))]
        files = [one for one in matches if one.is_file() and not one.name.startswith(".")]
        if files:
            return files
        raise DataError(
            f"{path}: the pattern names no visible file. {_seen(place.parent)} "
            f"Expected {_expected(suffixes)}."
        )
    near = difflib.get_close_matches(place.name, _names(place.parent), 1)
    hint = f" Did you mean {place.with_name(near[0])}?" if near else f" {_seen(place.parent)}"
    raise DataError(f"{path}: no such file or folder.{hint}")


def _in_folder(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    names = [name for name in _names(folder) if is_named(name, suffixes)]
    if files := [folder / name for name in names if (folder / name).is_file()]:
        return files
    packed = any(name.endswith((".gz", ".zip", ".bz2", ".xz")) for name in _names(folder))
    raise DataError(
        f"{folder}: this folder holds no {_expected(suffixes)} (subfolders and hidden files are "
        f"not read). {_seen(folder)}{' Unpack what is compressed.' if packed else ''}"
    )


def is_named(name: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a file's name ends in one of these globs, in either case."""
    return any(fnmatch.fnmatchcase(name.lower(), f"*{suffix}") for suffix in suffixes)


def _expected(suffixes: tuple[str, ...]) -> str:
    return f"file named {' or '.join(f'*{suffix}' for suffix in suffixes)}"


def _names(folder: Path) -> list[str]:
    """The visible names in a folder, sorted; none where there is no folder."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError:
        return []


def _seen(folder: Path) -> str:
    if not folder.is_dir():
        return f"The folder {folder} does not exist."
    names = _names(folder)
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{folder} holds {shown}{more}." if names else f"{folder} is empty."


def input_patterns(splits: Mapping[str, Sequence[Path]]) -> tuple[str, dict[str, str]]:
    """How `example_gen_pb2.Input` names exactly these files.

    Returns:
        input_base: the deepest folder that holds all of them, glob characters escaped.
        patterns: a glob per split, relative to input_base.

    Raises:
        ConfigError: no single pattern names a split's files and no others.
    """
    files = {split: [plain(file) for file in found] for split, found in splits.items()}
    everything = [file for found in files.values() for file in found]
    if any(file.is_absolute() for file in everything):
        files = {split: [file.absolute() for file in found] for split, found in files.items()}
        everything = [file.absolute() for file in everything]
    base = os.path.commonpath([file.parent for file in everything])
    patterns = {split: _pattern(split, found, base) for split, found in files.items()}
    return glob.escape(base) or ".", patterns


def _pattern(split: str, files: Sequence[Path], base: str) -> str:
    folders = {file.parent for file in files}
    if len(folders) > 1:
        raise ConfigError(
            f"data: the files of {split!r} lie in {len(folders)} folders "
            f"({', '.join(sorted(map(str, folders))[:3])}); ExampleGen reads a split from one. "
            f"Put them into one folder."
        )
    (folder,) = folders
    names = sorted(file.name for file in files)
    present = os.listdir(folder)
    for name_pattern in _candidates(names):
        if sorted(fnmatch.filter(present, name_pattern)) == names:
            inside = os.path.relpath(folder, base or ".")
            return name_pattern if inside == "." else f"{glob.escape(inside)}/{name_pattern}"
    raise ConfigError(
        f"data: no pattern names these files of {split!r} in {folder} and no others: "
        f"{', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}. Put them into a "
        f"folder of their own and name the folder."
    )


def _candidates(names: Sequence[str]) -> list[str]:
    """Patterns that may name them all, the plainest first; a single file goes by its name."""
    if len(names) == 1:
        return [glob.escape(names[0])]
    start = _shared_start(names)
    end = _shared_start([name[len(start) :][::-1] for name in names])[::-1]
    suffix = Path(names[0]).suffix
    any_case = "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)
    return [
        f"[!.]*{glob.escape(suffix)}",
        f"[!.]*{any_case}",
        f"{glob.escape(start)}*{glob.escape(end)}" if start else f"[!.]*{glob.escape(end)}",
    ]


def _shared_start(names: Sequence[str]) -> str:
    first, last = min(names), max(names)
    pairs = enumerate(zip(first, last, strict=False))
    return first[: next((place for place, (a, b) in pairs if a != b), len(first))]
