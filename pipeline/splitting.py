"""How the rows will fall to splits, counted before anything runs, and what is wrong with it.

The same rule as the components follow (`components/row_split/rule.py`), over the same bytes.
"""

import hashlib
import heapq
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from pathlib import Path
from typing import Any

from ..components.faults import Faults, counted, listed
from ..components.names import SPLITS
from ..components.row_split.rule import END, Cuts, Key, Rule, cut, sample_cuts, time_slices
from .ledger import Ledger
from .row_examples import rows_of

LEFT_OUT = 255  # in place of a split's number: a row that the sample does not have
_LARGEST_GROUP = 0.9  # share of the rows
_FEW = 5  # rows of a split whose score says little


@dataclass
class Keys:
    """The keys of a given split's rows, in their order: see `Rule.key`."""

    ranks: array = field(default_factory=lambda: array("Q"))
    values: array = field(default_factory=lambda: array("q"))
    strata: Iterable[Any] = field(default_factory=lambda: repeat(None))

    def add(self, key: Key) -> None:
        """Keep one row's numbers; its stratum is kept elsewhere."""
        self.ranks.append(key[0])
        self.values.append(key[1])

    def __iter__(self) -> Iterator[Key]:
        return zip(self.ranks, self.values, self.strata, strict=False)


def of_files(
    files: Iterable[Path], kind: str, rule: Rule, ledger: Ledger, types: Mapping[str, int]
) -> Keys:
    """The keys of a split's rows: its files are read once more, now that their types are known.

    Not where files are taken whole, as they were given: then all keys are alike.
    """
    if not rule.ratios and rule.sample is None:
        none = [0] * len(ledger)
        return Keys(array("Q", none), array("q", none))
    faults = Faults("line" if kind == "csv" else "row")
    keys = Keys(strata=ledger.labels) if rule.by == "label" else Keys()
    times = iter(ledger.keys)
    for file in files:
        with faults.of_reading(file):
            for row, features in rows_of(file, kind, types, faults):
                group = features[rule.column] if rule.by == "group" else b""
                digest = hashlib.sha256(row).digest()
                keys.add(rule.key(digest, group=group, time=next(times)))
    faults.raise_if_any()
    return keys


def fall(rule: Rule, keys: Mapping[str, Keys]) -> dict[str, bytearray]:
    """By given split, the split that each row falls to as its place in SPLITS, or LEFT_OUT."""
    highest = dict.fromkeys(keys, END)
    if rule.sample is not None:
        rows = {split: len(found.ranks) for split, found in keys.items()}
        least = {split: heapq.nsmallest(rule.sample, one.ranks) for split, one in keys.items()}
        highest = sample_cuts(rows, least, rule.sample)
    cuts = Cuts()
    if "all" in keys:
        cuts = _cuts(rule, lambda: (key for key in keys["all"] if key[0] <= highest["all"]))
    return {
        split: bytearray(
            SPLITS.index(rule.place(key, cuts, split, keys))
            if key[0] <= highest[split]
            else LEFT_OUT
            for key in found
        )
        for split, found in keys.items()
    }


def _cuts(rule: Rule, keys: Callable[[], Iterable[Key]]) -> Cuts:
    """What `components/row_split/gather.py` finds with Beam."""
    cuts = Cuts()
    if rule.by not in ("label", "time"):
        return cuts
    if rule.by == "time":
        low = min((value for _, value, _ in keys()), default=0)
        cuts = time_slices(low, max((value for _, value, _ in keys()), default=0))
    slices = Counter(
        (stratum, cuts.slice_of(value) if rule.by == "time" else value)
        for _, value, stratum in keys()
    )
    strata: dict[Any, list[tuple[int, int]]] = {}
    for (stratum, value), rows in slices.items():
        strata.setdefault(stratum, []).append((value, rows))
    ratios = [rule.ratios[split] for split in rule.splits]
    cuts.bounds = {stratum: cut(counts, ratios) for stratum, counts in strata.items()}
    return cuts


@dataclass(frozen=True)
class Splits:
    """How the rows fall.

    Attributes:
        rule: by which.
        given: the splits that the data came in, or `all`.
        codes: by given split, each row's split as its place in SPLITS, or LEFT_OUT.
        rows: how many each split has.
        labels: rows by label by split, the most frequent label first.
    """

    rule: Rule
    given: list[str]
    codes: dict[str, bytearray]
    rows: dict[str, int]
    labels: dict[str, dict[str, int]]

    @classmethod
    def of(
        cls, rule: Rule, keys: Mapping[str, Keys], labels: Mapping[str, Iterable[Sequence[str]]]
    ) -> "Splits":
        """Let rows fall by their keys; `labels` has those of each row, by given split."""
        codes = fall(rule, keys)
        return cls(rule, list(keys), codes, *_count(codes, labels))

    def judge(self, place: str, expected: Iterable[str], unit: str, faults: Faults) -> list[str]:
        """Note what a run would fail on; return what is only odd.

        Args:
            place: the data, for a message.
            expected: the splits that there should be.
            unit: what a row is called.
            faults: gets a split without rows, and labels that training does not see.
        """
        doubts = []
        for split in expected:
            rows = self.rows.get(split, 0)
            if not rows:
                falls = "is left in" if split in self.given else "falls to"
                faults.add(place, None, f"no {unit} {falls} {split}", self._more(unit))
            elif split != "train" and rows < _FEW:
                doubts.append(
                    f"{split} has {counted(rows, unit)}: a score of so few says little. "
                    f"{self._more(unit)}"
                )
        known = self.labels.get("train", {})
        others = [(split, self.labels[split]) for split in self.labels if split != "train"]
        unseen = Counter[str]()
        for split, found in others:
            unseen.update({name: rows for name, rows in found.items() if name not in known})
            if lacking := [name for name in known if name not in found]:
                doubts.append(
                    f"{split} has no {unit} of {listed(lacking[:5])}: nothing will be known there "
                    f"of how well the model tells it."
                )
        if unseen and known:
            shown = ", ".join(f"{name!r} ({rows})" for name, rows in unseen.most_common(5))
            what = f"no {unit} to train on has the label {shown}"
            faults.add(place, None, what, self._more(unit, "of it, or take it out"))
        return doubts

    def _more(self, unit: str, of: str = "") -> str:
        if self.rule.sample is not None:
            return "Take a larger data.sample."
        advice = f"Give more {unit}s{f' {of}' if of else ''}"
        ways = {
            "row": ", or split each label by itself (data.split: {by: label})",
            "group": f"; groups, by column {self.rule.column!r}, fall whole to one split",
            "time": f"; those of one time, by column {self.rule.column!r}, fall to one split",
        }
        return f"{advice}{ways.get(self.rule.by, '') if 'all' in self.given else ''}."


def judge_groups(place: str, rule: Rule, keys: Iterable[int], faults: Faults) -> list[str]:
    """Note a group that has nearly all rows; doubt groups of a row each."""
    groups = Counter(keys)
    rows, largest = sum(groups.values()), max(groups.values(), default=0)
    if largest >= _LARGEST_GROUP * rows:
        what = f"one group, by column {rule.column!r}, has {largest:,} of {rows:,} rows"
        faults.add(place, None, what, "It cannot be parted: split by another column (data.split).")
    elif largest == 1:
        return [
            f"data.split: each row has a value of its own in {rule.column!r}, so it keeps nothing "
            f"together. Is it the right column?"
        ]
    return []


def _count(
    codes: Mapping[str, bytearray], labels: Mapping[str, Iterable[Sequence[str]]]
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    rows: Counter[str] = Counter()
    found: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for given, numbers in codes.items():
        pairs: Counter[tuple[int, Sequence[str]]] = Counter()
        pairs.update(zip(numbers, labels[given], strict=True))
        for (code, names), number in pairs.items():
            if code != LEFT_OUT:
                rows[SPLITS[code]] += number
                for name in names:
                    found[SPLITS[code]][name] += number
    here = [split for split in SPLITS if split in rows]
    return (
        {split: rows[split] for split in here},
        {split: dict(found[split].most_common()) for split in here},
    )
