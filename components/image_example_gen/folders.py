"""List the pictures of class folders: `cat/1.jpg` is a cat."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..faults import LONGEST_LABEL, Faults, counted
from ..names import split_of
from .sample import Picture

SUFFIXES = (".jpg", ".jpeg", ".png", ".gif", ".bmp")
LAYOUT = "Expected one folder a class, with its pictures in it: cat/1.jpg, dog/1.jpg."
_SHOWN = 5


class _Entry(NamedTuple):
    """A visible file, or a folder that was looked into, below a source."""

    path: str  # relative to the source, posix
    file: str


def is_picture(name: str) -> bool:
    """Whether a file is meant to be a picture, by its name."""
    return name.lower().endswith(SUFFIXES)


def visible(folder: Path) -> list[Path]:
    """What is in a folder, sorted by name, without hidden files.

    Raises:
        OSError: it cannot be listed.
    """
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith(".")]


def split_folders(root: Path) -> dict[str, list[Path]]:
    """The folders that are named after splits, if they are meant so: train and one more."""
    found: dict[str, list[Path]] = {}
    for folder in visible(root):
        if folder.is_dir() and (split := split_of(folder)):
            found.setdefault(split, []).append(folder)
    return found if "train" in found and len(found) > 1 else {}


def readable(name: str) -> str:
    """A name for a message, on one line, whatever its bytes are."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ClassFolders:
    """The pictures of one source, or of one split's folder in it.

    Args:
        root: the folder that holds the classes' folders.
        prefix: what stands before each path: `train/` for a split's folder.
        faults: gets what is wrong.

    Attributes:
        pictures: in the order of their paths.
        others: how many files were left alone, by suffix.
    """

    def __init__(self, root: Path, prefix: str, faults: Faults) -> None:
        self.root, self.prefix, self.faults = root, prefix, faults
        self.pictures: list[Picture] = []
        self.others: Counter[str] = Counter()
        self._lost: set[str] = set()  # classes that have a fault of their own
        with faults.of_reading(root):
            self._list()

    def _list(self) -> None:
        entries = visible(self.root)
        folders = [one for one in entries if one.is_dir()]
        beside = [one for one in entries if not one.is_dir()]
        for folder in folders:
            self._read_class(folder)
        classes = Counter(picture.labels[0] for picture in self.pictures)
        if not classes:
            self._none([one.name for one in beside if is_picture(one.name)], folders)
            return
        for file in beside:
            self.others[f"{file.suffix.lower() or file.name} beside the class folders"] += 1
        if self._is_misplaced(folders):
            return
        for folder in folders:
            if folder.name not in classes and folder.name not in self._lost:
                self._empty(folder)
        if len(classes) == 1:
            (name,) = classes
            self.faults.add(
                self.root,
                None,
                f"one class only, {name!r}",
                "There is nothing to tell apart: give pictures of two classes at least.",
            )

    def _read_class(self, folder: Path) -> None:
        label = folder.name
        if len(label) > LONGEST_LABEL or label.splitlines() != [label]:
            what = f"a class name longer than {LONGEST_LABEL} characters or a line"
            self._fault(folder, what, "Rename the folder.")
            return
        for entry in self._walk(folder, f"{self.prefix}{label}", [_identity(self.root)]):
            if is_picture(entry.path):
                self.pictures.append(Picture(entry.path, entry.file, None, (label,)))
            else:
                self.others[Path(entry.path).suffix.lower() or Path(entry.path).name] += 1

    def _walk(self, folder: Path, path: str, above: list[tuple[int, int]]) -> Iterator[_Entry]:
        """Every visible file below, links followed, sorted; what cannot be followed is a fault."""
        try:
            own = _identity(folder)
            names = sorted(os.listdir(folder))
        except OSError as error:
            self._fault(folder, f"cannot be read: {error.strerror}", "Check the folder.")
            return
        if own in above:
            self._fault(folder, "a link to a folder that it lies in itself", "Take it out.")
            return
        for name in names:
            if name.startswith("."):
                continue
            if not _is_utf8(name):
                self._fault(
                    folder / name,
                    "a name that is not UTF-8",
                    "Rename it (convmv -f latin1 -t utf-8 -r FOLDER).",
                )
            else:
                yield from self._enter(folder / name, f"{path}/{name}", [*above, own])

    def _enter(self, place: Path, path: str, above: list[tuple[int, int]]) -> Iterator[_Entry]:
        if place.is_dir():
            yield from self._walk(place, path, above)
        elif place.is_file():
            yield _Entry(path, str(place))
        elif place.is_symlink():
            self._fault(place, "a link that leads nowhere", "Mend it or take it out.")
        else:
            self.others[f"{place.name}, which is no file"] += 1

    def _fault(self, place: Path, what: str, advice: str) -> None:
        self.faults.add(readable(str(place)), None, what, advice)
        inside = place.relative_to(self.root).parts if place.is_relative_to(self.root) else ()
        self._lost.update(inside[:1])

    def _none(self, beside: list[str], folders: list[Path]) -> None:
        """Say why there is no class at all."""
        if self._lost:
            return
        if beside:
            tables = [one.name for one in visible(self.root) if one.suffix.lower() == ".csv"]
            what = f"{counted(len(beside), 'picture')} without a class folder ({_some(beside)})"
            hint = f" Or name the CSV that labels them: {self.root / tables[0]}." if tables else ""
            self.faults.add(self.root, None, what, LAYOUT + hint)
            return
        seen = ", ".join(one.name for one in [*folders, *visible(self.root)][:_SHOWN])
        what = f"no picture ({' '.join(SUFFIXES)}) in it"
        self.faults.add(self.root, None, what, f"{LAYOUT} It holds {seen or 'nothing'}.")

    def _is_misplaced(self, folders: list[Path]) -> bool:
        """Whether the classes lie a level deeper or higher than they should; the fault is noted."""
        start = len(self.prefix)
        parts = [picture.path[start:].split("/")[:-1] for picture in self.pictures]
        second = sorted({inner[1] for inner in parts if len(inner) > 1})
        deeper = all(len(inner) > 1 for inner in parts)
        splits = {split_of(Path(name)) for name in second} - {None}
        if len({inner[0] for inner in parts}) == 1 and deeper and len(second) > 1:
            inside = self.root / parts[0][0]
            what = f"one folder, {inside.name}, which holds the class folders ({_some(second)})"
            self.faults.add(self.root, None, what, f"Did you mean {inside}?")
            return True
        if deeper and "train" in splits and len(splits) > 1:
            what = f"class folders that hold split folders ({'/'.join(parts[0][:2])})"
            advice = "Expected the other way round: train/cat/1.jpg, test/cat/1.jpg."
            self.faults.add(self.root, None, what, advice)
            return True
        return False

    def _empty(self, folder: Path) -> None:
        others = sorted(one.name for one in visible(folder))
        seen = f": it holds {_some(others)}" if others else ""
        what = f"a class folder without pictures ({' '.join(SUFFIXES)})"
        self.faults.add(folder, None, what, "Fill it or take it out.", seen)


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _some(names: list[str]) -> str:
    shown = ", ".join(map(readable, names[:3]))
    return f"{shown}, ..." if len(names) > 3 else shown
