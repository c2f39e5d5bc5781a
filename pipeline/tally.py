"""Count one split's rows, and judge what only all rows together show."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..components.faults import LONGEST_LABEL, Faults, Unreadable, listed
from ..components.row_split.rule import TIME_FORMATS, Rule, is_number, read_time
from .csv_rows import FLOAT, INT, STRING, TYPE_NAMES, UNKNOWN, kind_of
from .ledger import Ledger

MOST_LABELS = 10_000
FEWEST_ROWS = 20  # to be split 8:1:1; of fewer, eval or test is too often left with none
MOST_SLICES = 200  # values of a slice's column before it is doubted
_NO_LABEL = (1 << 32) - 1
_LONGEST_TEXT = 10_000  # words; more are counted as this many
_PERCENTILES = (50, 90, 95, 99, 100)


class Columns(NamedTuple):
    """Which columns are read, and what for."""

    texts: Sequence[str]
    label: str
    slices: Sequence[str] = ()
    rule: Rule = Rule()

    @property
    def used(self) -> list[str]:
        """Every one of them, once."""
        key = [self.rule.column] if self.rule.column else []
        return list(dict.fromkeys([*self.texts, self.label, *self.slices, *key]))


class Tally:
    """One split's counts: rows, labels, words, and each column's type as TFX would infer it."""

    def __init__(
        self, split: str, faults: Faults, columns: Columns, ids: dict[str, int] | None = None
    ) -> None:
        self.split, self.faults = split, faults
        self.texts, self.label, slices, self.rule = columns
        self.columns: list[str] = []
        self.rows = 0
        self.labels: dict[str, int] = {}
        self.first: dict[str, tuple[Path, int]] = {}  # where a label stands first
        self.words: dict[int, int] = {}
        self.types: dict[str, int] = {}
        self.too_many = False  # different labels
        self.slices: dict[str, set[str]] = {name: set() for name in slices}
        self.ledger = Ledger(faults.unit)
        self._ids = {} if ids is None else ids  # of the labels, in all splits
        self._numbers: bool | None = None  # whether times are numbers

    def add(
        self,
        file: Path,
        place: int,
        texts: Sequence[str],
        label: str,
        slices: Sequence[str],
        key: str = "",
    ) -> None:
        """Count one row; note it if a text, its label or what it is split by is of no use."""
        self.rows += 1
        words = 0
        for name, text in zip(self.texts, texts, strict=True):
            count = len(text.split())
            words += count
            if not count:
                self._empty(file, place, name, "text")
        words = min(words, _LONGEST_TEXT)
        self.words[words] = self.words.get(words, 0) + 1
        if label in self.labels:
            self.labels[label] += 1
        else:
            self._new_label(file, place, label)
        for seen, value in zip(self.slices.values(), slices, strict=True):
            if len(seen) <= MOST_SLICES:
                seen.add(value)
        number = self._key(file, place, key) if self.rule.column else 0
        self.ledger.add(file, place, hash(tuple(texts)), self._ids.get(label, _NO_LABEL), number)

    def _key(self, file: Path, place: int, cell: str) -> int:
        """A row's time, or a hash of its group."""
        name, what = self.rule.column, "the column that the rows are split by"
        if not cell.strip():
            advice = "Fill it in or take the row out."
            self.faults.add(file, place, f"empty cell in {name!r}, {what}", advice)
            return 0
        if self.rule.by == "group":
            return hash(cell)
        try:
            number, time = is_number(cell), read_time(cell)
        except ValueError:
            what = f"no time in {name!r}, {what}"
            self.faults.add(file, place, what, f"Expected {TIME_FORMATS}.", f": {cell[:40]!r}")
            return 0
        if self._numbers not in (None, number):
            what = f"{name!r} mixes dates and whole numbers, and is {what}"
            self.faults.add(file, place, what, "Write all of them alike.", f": {cell!r}")
        self._numbers = number
        return time

    def _new_label(self, file: Path, place: int, label: str) -> None:
        if not label or label.isspace():
            self._empty(file, place, self.label, "label")
        elif len(label) > LONGEST_LABEL or "\n" in label or "\r" in label:
            self.faults.add(
                file,
                place,
                f"a label longer than {LONGEST_LABEL} characters or a line, in column "
                f"{self.label!r}",
                "Is it the right column?",
                f": {label[:40]!r}...",
            )
        elif len(self.labels) < MOST_LABELS:
            self.labels[label] = 1
            self._ids.setdefault(label, len(self._ids))
            self.first[label] = (file, place)
        else:
            self.too_many = True

    def _empty(self, file: Path, place: int, name: str, what: str) -> None:
        self.faults.add(
            file, place, f"empty {what} in column {name!r}", "Fill it in or take the row out."
        )

    def swallowed(self, lines: Iterable[str]) -> bool:
        """Whether a line of a row that spans several looks like a row of its own: as many fields
        as columns, and inside the quotes a label that was seen before."""
        quotes, place = 0, self.columns.index(self.label)
        for line in lines:
            fields = line.strip().split(",")
            if len(fields) == len(self.columns) and fields[place] in self.labels:
                inside = (quotes + ",".join(fields[:place]).count('"')) % 2
                if inside:
                    return True
            quotes += line.count('"')
        return False

    def infer(self, cells: Iterable[tuple[str, str]]) -> None:
        """Widen the columns' types by these cells."""
        for name, cell in cells:
            self.types[name] = max(self.types.get(name, UNKNOWN), kind_of(cell))

    def canonical(self, label: str) -> str:
        """The label as it comes out of TFX: without sign, zeros and spaces where all are whole."""
        return str(int(label)) if self.types.get(self.label) == INT else label

    def names(self) -> list[tuple[str, ...]]:
        """Each row's label as it comes out of TFX, in the rows' order."""
        known = [(self.canonical(label),) for label in self._ids]
        return [known[number] for number in self.ledger.labels]

    @property
    def some(self) -> str:
        """A few labels, for a message."""
        return listed(list(self.labels)[:5]) + (", ..." if len(self.labels) > 5 else "")


def same_columns(file: Path, found: list[str], tally: Tally, columns: Columns) -> None:
    """Note a missing column, or other columns than the split's first file has.

    Raises:
        Unreadable: there was such a fault.
    """
    texts, label, slices, rule = columns
    header = 1 if tally.faults.unit == "line" else None
    key = {rule.column: f"{rule.by} to split by (data.split)"} if rule.column else {}
    uses = {
        **key,
        **dict.fromkeys(slices, "slice"),
        **dict.fromkeys(texts, "text"),
        label: "label",
    }
    missing = [name for name in uses if name not in found]
    for name in missing:
        near = [one for one in found if one.strip().lower() == name.strip().lower()]
        near = near or difflib.get_close_matches(name, found, 1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        tally.faults.add(
            file,
            header,
            f"no column {name!r}, which is to be the {uses[name]}",
            f"{hint}The columns are: {listed(found)}.",
        )
    if missing:
        raise Unreadable
    tally.columns = tally.columns or found
    if found != tally.columns:
        raise tally.faults.stop(
            file,
            header,
            f"other columns than the files before it: {listed(found)}",
            f"Expected {listed(tally.columns)}, in this order.",
        )


def judge(
    tallies: Mapping[str, Tally],
    splits: Mapping[str, Sequence[Path]],
    columns: Columns,
    faults: Faults,
) -> None:
    """Note what only all rows together show; the first split is the one to learn from."""
    trained, *others = tallies.values()
    files = splits[trained.split]
    place = str(files[0] if len(files) == 1 else files[0].parent)
    texts = [name for name in columns[0] if trained.types.get(name) in (INT, FLOAT)]
    for name in texts:
        faults.add(
            place,
            None,
            f"column {name!r} holds nothing but numbers, and it is to be the text",
            f"Is it the right column? The columns are: {listed(trained.columns)}.",
        )
    rule = columns.rule
    if rule.by == "group" and trained.types.get(rule.column) == FLOAT:
        what = f"column {rule.column!r} holds numbers that are not whole, and is to be the group"
        faults.add(place, None, what, "TFX groups by strings and whole numbers: write it as these.")
    if fault := _labels_fault(trained):
        faults.add(place, None, *fault)
    elif trained.split == "all" and trained.rows < FEWEST_ROWS:
        faults.add(
            place,
            None,
            f"{trained.rows} rows cannot be split into train, eval and test",
            f"Give at least {FEWEST_ROWS}; a useful model needs hundreds.",
        )
    for other in others:
        _judge_other(other, trained, str(splits[other.split][0]), faults)


def _labels_fault(tally: Tally) -> tuple[str, str] | None:
    """(what, advice) if these cannot be the labels of classes."""
    kind, column = tally.types.get(tally.label, STRING), f"the label column {tally.label!r}"
    right = f"Is it the right column? The columns are: {listed(tally.columns)}."
    if kind == FLOAT:
        return (
            f"{column} holds numbers that are not whole, or mixes 1 and 1.0 ({tally.some}), and "
            "TFX would read all of it as float32",
            "Espalier tells classes apart: write whole numbers or names.",
        )
    if tally.too_many:
        return f"{column} has more than {MOST_LABELS:,} different values ({tally.some})", right
    if 2 * len(tally.labels) > tally.rows >= FEWEST_ROWS:
        return f"{column} has {len(tally.labels):,} different values in {tally.rows:,} rows", right
    if kind == INT and (same := _same_number(tally.labels)):
        return (
            f"{same[0]!r} and {same[1]!r} in {column} are the same whole number to TFX",
            "Write each label in one way, or with a letter.",
        )
    if len(tally.labels) == 1:
        return (
            f"every row has the same label, {tally.some}",
            "There is nothing to tell apart: give rows of two classes at least.",
        )
    return None


def _same_number(labels: Iterable[str]) -> tuple[str, str] | None:
    seen: dict[int, str] = {}
    for label in labels:
        other = seen.setdefault(int(label), label)
        if other != label:
            return other, label
    return None


def _judge_other(tally: Tally, train: Tally, place: str, faults: Faults) -> None:
    """Note what an eval or test split has that the train split lacks."""
    if sorted(tally.columns) != sorted(train.columns):
        faults.add(
            place,
            None,
            f"{tally.split} has the columns {listed(tally.columns)}, and {train.split} has "
            f"{listed(train.columns)}",
            "Give every split the same columns.",
        )
    for name, kind in tally.types.items():
        expected = train.types.get(name, UNKNOWN)
        if kind != expected and UNKNOWN not in (kind, expected):
            faults.add(
                place,
                None,
                f"column {name!r} holds {TYPE_NAMES[kind]} in {tally.split} and "
                f"{TYPE_NAMES[expected]} in {train.split}, as TFX reads it",
                "Write it alike in both; a letter in a cell makes strings of the whole column.",
            )
    known = set(map(train.canonical, train.labels))
    unknown = [label for label in tally.labels if tally.canonical(label) not in known]
    if unknown:
        count = sum(tally.labels[label] for label in unknown)
        near = difflib.get_close_matches(unknown[0], train.labels, 1)
        faults.add(
            *tally.first[unknown[0]],
            f"label {listed(unknown[:5])} is in {tally.split} ({count:,} rows) and not in "
            f"{train.split}",
            f"{f'Did you mean {near[0]!r}? ' if near else ''}A model cannot know it; "
            f"{train.split} has {train.some}.",
        )


def slice_doubts(slices: Iterable[tuple[str, Collection[str]]]) -> list[str]:
    """A doubt about each column to slice by that has too many values; a column may come twice."""
    many = {name for name, values in slices if len(values) > MOST_SLICES}
    return [
        f"evaluate.slices: {name!r} has more than {MOST_SLICES} different values, and each gets "
        f"metrics of its own."
        for name in sorted(many)
    ]


def percentiles(counts: Mapping[int, int]) -> dict[int, int]:
    """Of a histogram {value: how often}: the least value that so many percent do not exceed."""
    total, seen, found = sum(counts.values()), 0, {}
    wanted = list(_PERCENTILES)
    for value in sorted(counts):
        seen += counts[value]
        while wanted and seen * 100 >= wanted[0] * total:
            found[wanted.pop(0)] = value
    return found
