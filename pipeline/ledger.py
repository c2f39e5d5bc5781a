"""A few numbers of each row, in the order in which the rows are read: some 30 bytes a row."""

from array import array
from bisect import bisect_right
from pathlib import Path


class Ledger:
    """What is kept of one split's rows.

    Args:
        unit: what a place in a file is called: line or row.

    Attributes:
        texts: a hash of the row's texts, or of its picture; the same within this process only.
        labels: the label, as a number.
        lines: where the row begins in its file; 0 where it is the file.
        keys: its time, or a hash of its group; 0 without such a column.
    """

    def __init__(self, unit: str = "line") -> None:
        self._unit = unit
        self.texts, self.keys = array("q"), array("q")
        self.labels, self.lines = array("I"), array("I")
        self._files: list[tuple[int, Path | str]] = []  # the first row of each

    def __len__(self) -> int:
        return len(self.lines)

    def add(self, file: Path | str, line: int, text: int, label: int, key: int) -> None:
        """Keep one row."""
        if not self._files or self._files[-1][1] is not file:
            self._files.append((len(self), file))
        self.lines.append(line)
        self.texts.append(text)
        self.labels.append(label)
        self.keys.append(key)

    def place(self, row: int) -> str:
        """Where a person finds a row; rows are counted from 0."""
        _, file = self._files[bisect_right(self._files, row, key=lambda one: one[0]) - 1]
        line = self.lines[row]
        if not line:
            return str(file)
        return f"{file}:{line}" if self._unit == "line" else f"{file}, row {line}"
