"""What the rows are like, and what is wrong with them, whatever file they came from.

Rows stream through; only counts are kept, so that memory does not grow with the data.
"""

import difflib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError

MAX_LABELS = 10_000
MIN_ROWS = 20  # of one source: 8:1:1 of fewer leaves a split empty too often
_MAX_LABEL = 1_000  # characters
_MAX_SLICES = 200
_SHOWN = 5
_PERCENTILES = (50, 90, 95, 99, 100)


@dataclass
class DataReport:
    """What the data is like.

    Attributes:
        rows: per split; "all" for a source that is split later.
        labels: per split, how many rows each label has.
        columns: the names in the first file.
        words: percentile -> words per text (of both texts of a pair); 100 is the longest.
        fingerprint: SHA-256 (hex) over the files' names and contents.
        bytes: size of all files.
        warnings: what is allowed, and seldom meant.
    """

    rows: dict[str, int] = field(default_factory=dict)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    words: dict[int, int] = field(default_factory=dict)
    fingerprint: str = ""
    bytes: int = 0
    warnings: list[str] = field(default_factory=list)


@dataclass
class _Fault:
    advice: str
    count: int = 0
    places: list[tuple[Path, int, str]] = field(default_factory=list)


class Faults:
    """Rows that cannot be used, gathered by kind: how many, and where the first ones are."""

    def __init__(self) -> None:
        self._kinds: dict[str, _Fault] = {}

    def add(self, what: str, advice: str, file: Path, line: int, found: str = "") -> None:
        """Note one row. `what` names the kind, `found` what this row has."""
        fault = self._kinds.setdefault(what, _Fault(advice))
        fault.count += 1
        if len(fault.places) < _SHOWN:
            fault.places.append((file, line, found))

    def raise_any(self) -> None:
        """Raise one DataError that tells every kind of fault, if there is any."""
        if self._kinds:
            raise DataError("\n".join(_say(what, fault) for what, fault in self._kinds.items()))


def _say(what: str, fault: _Fault) -> str:
    file, line, found = fault.places[0]
    alone = len({place[0] for place in fault.places}) == 1
    more = ""
    if fault.count > 1:
        listed = ", ".join(str(n) if alone else f"{f}:{n}" for f, n, _ in fault.places)
        first = "first on lines" if fault.count > len(fault.places) else "lines"
        more = f" ({fault.count:,} such rows: {first} {listed})"
    return f"{file}:{line}: {what}{found}{more}. {fault.advice}"


class Tally:
    """Counts one split's rows.

    Args:
        split: the split's name.
        text, label, slices: the columns that are used.
        faults: where unusable rows are noted.
        guess: whether the columns' types will be guessed from their values, as
            CsvExampleGen does: a column of numbers alone becomes one of numbers.
    """

    def __init__(
        self,
        split: str,
        text: Sequence[str],
        label: str,
        slices: Sequence[str],
        faults: Faults,
        guess: bool = False,
    ) -> None:
        self.split, self.text, self.label, self.slices = split, text, label, slices
        self.rows, self.columns = 0, list[str]()
        self.words: Counter[int] = Counter()
        self.labels: dict[str, int] = {}
        self.first: dict[str, tuple[Path, int]] = {}
        self.kind = "text"
        self.slice_values: dict[str, set[str]] = {name: set() for name in slices}
        self._faults, self._guess = faults, guess
        self._numbers = set(text) if guess else set()
        self._file = Path()

    def begin(self, file: Path, columns: list[str]) -> None:
        """Start a file. Raises DataError when a column is missing or the file's differ."""
        check_header(file, columns)
        for role, name in self._needed():
            if name not in columns:
                raise DataError(f"{file}: {_missing(role, name, columns)}")
        if self.columns and columns != self.columns:
            raise DataError(
                f"{file}: the columns are {', '.join(columns)}, and in {self._file} they are "
                f"{', '.join(self.columns)}. The files of a split must have the same columns in "
                "the same order."
            )
        self.columns, self._file = columns, file
        self._text_at = [columns.index(name) for name in self.text]
        self._label_at = columns.index(self.label)
        self._slices_at = [(columns.index(name), self.slice_values[name]) for name in self.slices]

    def _needed(self) -> Iterable[tuple[str, str]]:
        yield from (("data.text", name) for name in self.text)
        yield "data.label", self.label
        yield from (("evaluate.slices", name) for name in self.slices)

    def add(self, row: Sequence[str], line: int) -> None:
        """Count one row; its values are strings, "" for a missing one."""
        self.rows += 1
        words = 0
        for at in self._text_at:
            count = len(row[at].split())
            if not count:
                self._empty("text", self.columns[at], line, row[at])
            words += count
        self.words[words] += 1
        label = row[self._label_at]
        if label in self.labels:
            self.labels[label] += 1
        else:
            self._new_label(label, line)
        for at, values in self._slices_at:
            if len(values) <= _MAX_SLICES:
                values.add(row[at])
        if self._numbers:
            self._numbers = {n for n in self._numbers if is_number(row[self.columns.index(n)])}

    def _empty(self, what: str, column: str, line: int, value: str) -> None:
        found = ": it holds only spaces" if value else ""
        self._faults.add(
            f"the {what} (column {column!r}) is empty",
            f"Fill in the {what}, or delete the row.",
            self._file,
            line,
            found,
        )

    def _new_label(self, label: str, line: int) -> None:
        if not label.strip():
            self._empty("label", self.label, line, label)
            return
        if "\n" in label or "\r" in label or len(label) > _MAX_LABEL:
            raise DataError(
                f"{self._file}:{line}: the label (column {self.label!r}) has "
                f"{len(label):,} characters over {len(label.splitlines())} lines: {label[:60]!r}... "
                "A label is one short word or phrase. Is this the right column?"
            )
        if len(self.labels) >= MAX_LABELS:
            raise DataError(
                f"{self._file}:{line}: the label's column {self.label!r} has more than "
                f"{MAX_LABELS:,} different values by this line. Is this the right column?"
            )
        self.labels[label] = 1
        self.first[label] = (self._file, line)

    def finish(self) -> None:
        """Judge the split as a whole. Raises DataError."""
        if not self.rows:
            raise DataError(f"{self._file}: no rows below the header, in the split {self.split!r}.")
        if self._numbers:
            name = sorted(self._numbers)[0]
            raise DataError(
                f"{self._file}: every value of the text's column {name!r} is a number, which TFX "
                "would read as a number and not as text. Is this the right column? The columns "
                f"are {', '.join(self.columns)}."
            )
        if self._guess:
            self._guess_labels()
        elif self.kind == "decimal":
            self._refuse_decimals(next(iter(self.labels)))

    def _guess_labels(self) -> None:
        """Do with the labels what CsvExampleGen will: whole numbers are made numbers."""
        if not all(map(is_number, self.labels)):
            return
        decimal = next((label for label in self.labels if not is_whole(label)), None)
        if decimal is not None:
            self._refuse_decimals(decimal)
        self.kind, counts = "whole", Counter[str]()
        for label, count in self.labels.items():
            counts[str(int(label))] += count
            self.first.setdefault(str(int(label)), self.first[label])
        self.labels = dict(counts)

    def _refuse_decimals(self, label: str) -> None:
        file, line = self.first[label]
        raise DataError(
            f"{file}:{line}: the label (column {self.label!r}) is {label}, a decimal number. A "
            "label is a word or a whole number: write classes as 0, 1, 2 or as words. To predict "
            "a quantity is another task, which Espalier does not do."
        )


def check_header(file: Path, columns: Sequence[str]) -> None:
    """Raise DataError for a column that has no name, or the name of another."""
    for number, name in enumerate(columns, 1):
        if not name.strip():
            raise DataError(
                f"{file}:1: column {number} has no name. Name it, or leave it out (pandas: "
                "to_csv(index=False))."
            )
        if name in columns[: number - 1]:
            raise DataError(
                f"{file}:1: the column {name!r} stands in the header twice, as columns "
                f"{list(columns).index(name) + 1} and {number}. Rename or remove one."
            )


def _missing(role: str, name: str, columns: Sequence[str]) -> str:
    has = f"the file has {', '.join(map(repr, columns))}"
    for column in columns:
        if column.strip() == name.strip():
            return (
                f"no column {name!r} ({role}), but {column!r}: take the spaces out of the header."
            )
    if len(columns) == 1:
        for mark, word in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
            if mark in columns[0]:
                return f"no column {name!r} ({role}): its columns are parted by {word}, and commas were expected. Save it as comma-separated."  # fmt: skip
    near = difflib.get_close_matches(name, columns, 1) or [
        column for column in columns if column.lower() == name.lower()
    ]
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"no column {name!r} ({role}); {has}.{hint}"


def is_number(value: str) -> bool:
    """Whether CsvExampleGen takes the value for a number; an empty one does not count against."""
    try:
        float(value.encode() or b"0")
        return True
    except ValueError:
        return False


def is_whole(value: str) -> bool:
    """Whether CsvExampleGen takes the value for an integer of 64 bits."""
    try:
        return -(2**63) <= int(value.encode() or b"0") < 2**63
    except ValueError:
        return False


def report(tallies: dict[str, Tally], fingerprint: str, size: int) -> DataReport:
    """Hold the splits against each other. Raises DataError; gathers warnings."""
    for tally in tallies.values():
        tally.finish()
    first = next(iter(tallies.values()))
    _check_classes(first)
    for tally in list(tallies.values())[1:]:
        _check_against(first, tally)
    if "all" in tallies and first.rows < MIN_ROWS:
        raise DataError(
            f"{first._file}: {first.rows} rows are too few to be split into train, eval and "
            f"test. Give at least {MIN_ROWS}, better some hundreds; or name separate files "
            "({train:, eval:, test:})."
        )
    words = sum((tally.words for tally in tallies.values()), Counter[int]())
    return DataReport(
        rows={split: tally.rows for split, tally in tallies.items()},
        labels={split: dict(sorted(tally.labels.items())) for split, tally in tallies.items()},
        columns=first.columns,
        words=percentiles(words),
        fingerprint=fingerprint,
        bytes=size,
        warnings=[warning for tally in tallies.values() for warning in _warnings(tally, first)],
    )


def _check_classes(train: Tally) -> None:
    if len(train.labels) < 2:
        only = next(iter(train.labels))
        where = "" if train.split == "all" else f" of the split {train.split!r}"
        raise DataError(
            f"{train._file}: all {train.rows:,} rows{where} have the label {only!r} (column "
            f"{train.label!r}). A classifier needs at least two."
        )


def _check_against(train: Tally, tally: Tally) -> None:
    unknown = [label for label in tally.labels if label not in train.labels]
    if unknown:
        file, line = tally.first[unknown[0]]
        count = sum(tally.labels[label] for label in unknown)
        names = ", ".join(map(repr, unknown[:_SHOWN])) + (", ..." if len(unknown) > _SHOWN else "")
        near = difflib.get_close_matches(unknown[0], train.labels, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise DataError(
            f"{file}:{line}: the label {names} is in {tally.split!r} ({count:,} rows) and not in "
            f"{train.split!r}, so that it cannot be learned.{hint} Correct it, or move such rows "
            f"to {train.split!r}."
        )
    if tally.kind != train.kind:
        raise DataError(
            f"{tally._file}: the labels of {tally.split!r} are all numbers and those of "
            f"{train.split!r} are not; TFX would read them as different types. Use words in both."
        )


def _warnings(tally: Tally, train: Tally) -> Iterable[str]:
    folded: dict[str, str] = {}
    for label in tally.labels:
        other = folded.setdefault(label.strip().lower(), label)
        if other != label:
            yield (
                f"{tally._file}: the labels {other!r} and {label!r} differ only in case or spaces, "
                "and count as two."
            )
    single = [label for label, count in tally.labels.items() if count == 1]
    if single and tally is train:
        names = ", ".join(map(repr, single[:_SHOWN]))
        yield f"only one row has the label {names}; it cannot be learned and measured from one."
    for name, values in tally.slice_values.items():
        if len(values) > _MAX_SLICES:
            yield (
                f"evaluate.slices: the column {name!r} has more than {_MAX_SLICES} different "
                "values, and each gets its own row of metrics."
            )
    if set(tally.columns) != set(train.columns):
        names = ", ".join(sorted(set(tally.columns) ^ set(train.columns)))
        yield f"{tally.split!r} and {train.split!r} do not both have the column {names}."


def percentiles(counts: Counter[int]) -> dict[int, int]:
    """Percentile -> value, out of how often each value stands."""
    total, seen, found = sum(counts.values()), 0, dict[int, int]()
    for value in sorted(counts):
        seen += counts[value]
        for percentile in _PERCENTILES:
            if percentile not in found and seen * 100 >= percentile * total:
                found[percentile] = value
    return found


Progress = Callable[[str], None]
Digest = Any  # what hashlib.sha256() gives
