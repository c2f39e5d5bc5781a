"""What each column of a table looks like, for guessing which is the text and which the label."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..components.faults import Faults
from .csv_rows import FLOAT, INT, STRING, UNKNOWN, CsvFile, kind_of

MOST_VALUES = 1000  # different ones that are told apart; a label has no more
_LONGEST_VALUE = 100  # characters of a value that are kept


@dataclass
class Column:
    """Counts of one column; values are kept only while they are few and short."""

    name: str
    kind: int = UNKNOWN
    cells: int = 0
    blank: int = 0
    words: int = 0
    characters: int = 0
    values: dict[str, int] = field(default_factory=dict)
    many: bool = False  # more than MOST_VALUES different ones

    def add(self, cell: str) -> None:
        """Count one cell."""
        self.cells += 1
        if not cell or cell.isspace():
            self.blank += 1
            return
        self.words += cell.count(" ") + 1
        self.characters += len(cell)
        if self.kind < STRING:
            self.kind = max(self.kind, kind_of(cell))
        if self.many:
            return
        value = cell[:_LONGEST_VALUE]
        self.values[value] = self.values.get(value, 0) + 1
        if len(self.values) > MOST_VALUES:
            self.many = True
            self.values.clear()

    @property
    def mean_words(self) -> float:
        """Words per cell that is not blank, by its spaces."""
        return self.words / max(1, self.cells - self.blank)

    @property
    def mean_characters(self) -> float:
        """Characters per cell that is not blank."""
        return self.characters / max(1, self.cells - self.blank)

    @property
    def is_text(self) -> bool:
        """Whether it could be what is read: several words, mostly different."""
        different = self.many or 2 * len(self.values) > self.cells - self.blank
        return self.kind == STRING and different and self.mean_words >= 2

    @property
    def is_class(self) -> bool:
        """Whether it could be a label or a slice: a few values, each of them repeated."""
        return (
            self.kind in (INT, STRING)
            and 2 <= len(self.values) <= max(2, (self.cells - self.blank) // 2)
            and not self.many
            and self.mean_words < 4
        )

    def describe(self) -> str:
        """One line for a person."""
        nature = {UNKNOWN: "empty", INT: "whole numbers", FLOAT: "numbers", STRING: "strings"}
        if self.many:
            values = f"more than {MOST_VALUES} different"
        else:
            shown = ", ".join(repr(value) for value in list(self.values)[:5])
            values = f"{len(self.values)} different ({shown}{', ...' * (len(self.values) > 5)})"
        words = f", {self.mean_words:.0f} words on average" if self.kind == STRING else ""
        blank = f", {self.blank:,} empty" if self.blank else ""
        return f"{self.name!r}: {nature[self.kind]}{words}, {values}{blank}"


def look_at(files: Sequence[Path], kind: str) -> list[Column]:
    """Every column of these CSV or Parquet files, in one pass.

    Raises:
        DataError: files that TFX could not read, with the messages of the pre-flight check.
    """
    faults = Faults("line" if kind == "csv" else "row")
    columns: dict[str, Column] = {}
    for file in files:
        with faults.of_reading(file):
            for names, cells in (_csv if kind == "csv" else _parquet)(file, faults):
                for name, cell in zip(names, cells, strict=True):
                    if name not in columns:
                        columns[name] = Column(name)
                    columns[name].add(cell)
    faults.raise_if_any()
    return list(columns.values())


Row = tuple[Sequence[str], Iterable[str]]


def _csv(file: Path, faults: Faults) -> Iterator[Row]:
    with CsvFile(file, faults) as table:
        for _, row in table.rows():
            yield table.columns, row


def _parquet(file: Path, faults: Faults) -> Iterator[Row]:
    from .parquet_rows import rows

    return rows(file, faults)
