"""List the pictures of a CSV: a column of paths, one of labels, and others to slice metrics by.

Read more leniently than TFX reads CSV, which has no part in it: a byte order mark is skipped, and
cells are strings without the spaces around them.
"""

import csv
import difflib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..faults import LONGEST_LABEL, Faults, Unreadable, counted, listed
from .folders import readable
from .sample import FEATURES, Picture

PATH_COLUMNS = ("path", "file", "filename", "image")


class LabelTable:
    """A CSV's pictures.

    Args:
        file: the CSV; its paths are relative to its folder.
        label: the label's column.
        multi_label: whether a label cell holds any number of labels, `|` between them.
        skip_missing: keep a row whose picture is not there; it counts as a bad picture.
        faults: gets what is wrong, with line numbers.

    Attributes:
        pictures: in the order of the lines.
        columns: the header's names; the cells of all but two of them are the pictures' `columns`.
        warnings: sentences about what is odd and no fault.
    """

    def __init__(
        self, file: Path, label: str, multi_label: bool, skip_missing: bool, faults: Faults
    ) -> None:
        self.file, self.label, self.multi_label, self.faults = file, label, multi_label, faults
        self.skip_missing = skip_missing
        self.columns: list[str] = []
        self.pictures: list[Picture] = []
        self.warnings: list[str] = []
        self._seen: dict[str, int] = {}  # where each file stands first
        self._inodes: dict[tuple[int, int], str] = {}
        self._bars = 0
        with faults.of_reading(file):
            self._read()
        if self._bars:
            self.warnings.append(
                f"{file}: {counted(self._bars, 'label')} with a | in it, taken as one: set "
                f"data.multi_label: true if a picture can have several."
            )

    def _read(self) -> None:
        rows = self._rows()
        header = next(rows, None)
        if header is None:
            raise self.faults.stop(self.file, None, "an empty file", self._expected)
        self.columns = [name.strip() for name in header[1]]
        path, label = self._places()
        others = [(i, name) for i, name in enumerate(self.columns) if i not in (path, label)]
        for line, cells in rows:
            if len(cells) != len(self.columns):
                self._fault(
                    line,
                    "wrong number of fields",
                    "Put quotes around what holds a comma.",
                    f": {len(cells)}, and the header names {len(self.columns)}",
                )
                continue
            place, labels = self._locate(line, cells[path]), self._labels(line, cells[label])
            if place and labels is not None:
                columns = tuple((name, cells[i].strip()) for i, name in others)
                self.pictures.append(Picture(*place, None, labels, columns))
        if not self.pictures and not self.faults:
            self._fault(None, "a header and no rows", "There is nothing to learn from.")

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """(line it begins on, cells) of each row that is not blank."""
        with self.file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            line = 1
            try:
                for cells in reader:
                    if any("\udc80" <= c <= "\udcff" for cell in cells for c in cell):
                        self._fault(line, "not UTF-8", "Convert it: iconv -f latin1 -t utf-8.")
                    elif any(cell.strip() for cell in cells):
                        yield line, cells
                    line = reader.line_num + 1
            except csv.Error as error:
                advice = "Is it CSV in UTF-8, with every quote closed?"
                raise self.faults.stop(self.file, line, f"not CSV: {error}", advice) from None

    def _fault(self, line: int | None, what: str, advice: str, detail: str = "") -> None:
        self.faults.add(self.file, line, what, advice, detail)

    @property
    def _expected(self) -> str:
        return f"Expected a first line that names the columns: {PATH_COLUMNS[0]},{self.label}."

    def _places(self) -> tuple[int, int]:
        """Where the path's and the label's columns are.

        Raises:
            Unreadable: one is not there, or a name is not usable; the fault is noted.
        """
        lower = [name.lower() for name in self.columns]
        path = next((lower.index(name) for name in PATH_COLUMNS if name in lower), None)
        if path is None:
            near = _near(PATH_COLUMNS, self.columns)
            hint = f"Rename {near!r}? " if near else ""
            self._fault(
                1,
                f"no column of paths ({', '.join(PATH_COLUMNS)})",
                f"{hint}{self._expected} It names {listed(self.columns)}.",
            )
        if self.label not in self.columns:
            near = _near([self.label], [n for i, n in enumerate(self.columns) if i != path])
            hint = f"Did you mean data.label: {near}? " if near else ""
            self._fault(
                1, f"no column {self.label!r}", f"{hint}The columns are: {listed(self.columns)}."
            )
        if path is None or self.label not in self.columns:
            raise Unreadable
        label = self.columns.index(self.label)
        if label == path:
            what = f"column {self.label!r} cannot be both path and label"
            raise self.faults.stop(self.file, 1, what, self._expected)
        counts = Counter(self.columns)
        for i, name in enumerate(self.columns):
            if i in (path, label):
                continue
            twice = counts[name] > 1
            if not name or twice or name in FEATURES:
                what = "named twice" if twice else "a name that Espalier uses for another thing"
                what = f"column {i + 1}, {name!r}: {what if name else 'no name'}"
                raise self.faults.stop(self.file, 1, what, "Rename it or take it out.")
        return path, label

    def _locate(self, line: int, cell: str) -> tuple[str, str] | None:
        """(path as shown, file) of a row's picture; none if there is none, or it is not new."""
        cell = cell.strip()
        if not cell:
            self._fault(line, "empty path", "Fill it in or take the row out.")
            return None
        # macOS writes letters and their accents apart, and other systems do not.
        forms = dict.fromkeys([cell, *(unicodedata.normalize(f, cell) for f in ("NFC", "NFD"))])
        for form in forms:
            file = os.path.normpath(self.file.parent / form)
            if os.path.isfile(file):
                break
        else:
            if self.skip_missing:
                return os.path.normpath(cell), os.path.normpath(self.file.parent / cell)
            self._missing(line, cell)
            return None
        return (os.path.normpath(form), file) if self._is_new(line, file, cell) else None

    def _missing(self, line: int, cell: str) -> None:
        what = "a picture that is not there"
        advice = f"Paths are relative to the CSV's folder, {self.file.parent}."
        place = self.file.parent / cell
        if len(cell) > 1000:  # longer than any path that could be looked up
            pass
        elif place.is_dir():
            what = "a folder in place of a picture"
        elif "\\" in cell:
            advice = "Write / between folders."
        elif near := difflib.get_close_matches(place.name, _names(place.parent), 1):
            advice += f" Did you mean {os.path.normpath(Path(cell).with_name(near[0]))}?"
        self._fault(line, what, advice, f": {readable(cell)}")

    def _is_new(self, line: int, file: str, cell: str) -> bool:
        status = os.stat(file)
        other = self._inodes.setdefault((status.st_dev, status.st_ino), file)
        # Hard links are copies, and allowed; links and other spellings are the same file.
        if other != file and os.path.realpath(other) == os.path.realpath(file):
            file = other
        first = self._seen.setdefault(file, line)
        if first != line:
            advice = "Keep one of its rows." if self.multi_label else "Give it one row."
            self._fault(line, "a picture named before", advice, f": {cell}, on line {first}, too")
        return first == line

    def _labels(self, line: int, cell: str) -> tuple[str, ...] | None:
        """A row's labels; none where there was a fault."""
        if self.multi_label:
            labels = tuple(dict.fromkeys(filter(None, map(str.strip, cell.split("|")))))
        else:
            labels = (cell.strip(),)
            self._bars += "|" in cell
        if labels == ("",):
            self._fault(
                line, f"empty label in column {self.label!r}", "Fill it in or take the row out."
            )
            return None
        for one in labels:
            if len(one) > LONGEST_LABEL or one.splitlines() != [one]:
                what = f"a label longer than {LONGEST_LABEL} characters or a line"
                self._fault(line, what, "Is it the right column?", f": {one[:40]!r}...")
                return None
        return labels


def _near(wanted: Sequence[str], names: Sequence[str]) -> str | None:
    """The name that is most like one of those wanted."""
    low = {name.lower(): name for name in names}
    for one in wanted:
        holds = [name for name in low if one.lower() in name]
        if near := difflib.get_close_matches(one.lower(), low, 1) or holds[:1]:
            return low[near[0]]
    return None


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []
