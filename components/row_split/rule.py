"""How rows fall to splits, said once: the pre-flight check counts by it, components write by it.

A row is three numbers and nothing else here: a rank, by which a sample is chosen, a value, by
which it is placed, and the stratum within which values are compared. All of it is decided by the
row's content, so the same rows are split alike each time and on each machine.
"""

import re
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta, timezone
from hashlib import sha256
from itertools import accumulate
from typing import Any

from ..names import SPLITS

Key = tuple[int, int, Any]  # rank, value, stratum
RATIOS = {"train": 8, "eval": 1, "test": 1}
TIME_FORMATS = "2024-05-31, 2024-05-31 23:59[:59.5][Z or +02:00], or a whole number"

END = (1 << 63) - 1  # no rank, slice or time is beyond it; Beam codes integers of 64 bits
_TENTHS = 10
_SLICE_BITS = 18  # rows are counted in so many slices, not one by one: memory stays bounded
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)"
    r"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:[.,](\d{1,9}))?)?)?"
    r" ?(?:(Z)|([+-])(\d\d):?(\d\d))?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


@dataclass(frozen=True)
class Rule:
    """What `data.split` and `data.sample` come to.

    Attributes:
        ratios: parts by split, in the order train, eval, test; none where files are given by split.
        by: row, group (a hash decides), label (within each label the hash's order decides) or
            time (the newest rows are test, the next newest eval).
        column: the group's or the time's.
        sample: how many rows are taken of all; None takes all.
    """

    ratios: Mapping[str, int] = field(default_factory=lambda: dict(RATIOS))
    by: str = "row"
    column: str = ""
    sample: int | None = None

    @property
    def splits(self) -> list[str]:
        """The splits that are made."""
        return [split for split in SPLITS if split in self.ratios]

    @property
    def is_stock(self) -> bool:
        """Whether TFX's own split configuration does the same."""
        return self.sample is None and self.by in ("row", "group")

    @property
    def bounds(self) -> list[int]:
        """Where the buckets of each split end."""
        return list(accumulate(self.ratios[split] for split in self.splits))

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it; `Rule(**found)` is the same rule."""
        return {**asdict(self), "ratios": dict(self.ratios)}

    def key(self, digest: bytes, *, label: Any = None, group: bytes = b"", time: int = 0) -> Key:
        """The numbers of one row.

        Args:
            digest: SHA-256 of the row.
            label: what is the same for rows of one label, if that is what the split is by.
            group: the bytes that TFX hashes of the group's column, if it is by that.
            time: as `read_time` returns it, if it is by that.
        """
        rank = int.from_bytes(digest[:8], "big") >> 1
        if not self.ratios:
            return rank, int.from_bytes(digest, "big") % _TENTHS, None
        if self.by == "time":
            return rank, time, None
        if self.by == "label":  # other bits than the rank's, which all are low in a sample
            return rank, int.from_bytes(digest[8:12], "big") >> (32 - _SLICE_BITS), label
        decides = sha256(group).digest() if self.by == "group" else digest
        return rank, int.from_bytes(decides, "big") % self.bounds[-1], None

    def place(
        self, key: Key, cuts: "Cuts", split: str = "all", given: Collection[str] = ("all",)
    ) -> str:
        """The split that a row falls to.

        Args:
            key: the row's.
            cuts: of all rows.
            split: the one it is given in; `all` is split by the rule.
            given: all that are given; where eval alone is missing, a tenth of train is it.
        """
        _, value, stratum = key
        if split != "all":
            tenth = split == "train" and "test" in given and "eval" not in given
            return "eval" if tenth and value == _TENTHS - 1 else split
        if self.by in ("row", "group"):
            return self.splits[bisect_right(self.bounds, value)]
        if self.by == "time":
            value = cuts.slice_of(value)
        return self.splits[bisect_right(cuts.bounds[stratum], value)]


@dataclass
class Cuts:
    """What only all rows together say of a split by label or by time.

    Attributes:
        low, shift: times are counted in slices of 2 ** shift from the lowest on.
        bounds: by stratum, the first slice of the second split, of the third.
    """

    low: int = 0
    shift: int = 0
    bounds: dict[Any, list[int]] = field(default_factory=dict)

    def slice_of(self, time: int) -> int:
        """The slice of a time."""
        return (time - self.low) >> self.shift


def time_slices(low: int, high: int) -> Cuts:
    """The slices for times from `low` to `high`: each time has its own where they are few."""
    return Cuts(low, max(0, (high - low).bit_length() - _SLICE_BITS))


def cut(counts: Iterable[tuple[int, int]], ratios: Iterable[int]) -> list[int]:
    """Share the slices of one stratum out, in their order.

    The last split takes slices from the end until one more would bring it further from its share,
    and so the one before it; the first has the rest. Each has one slice at least, the first
    splits before the others where slices are fewer than splits. A slice is never parted.

    Args:
        counts: (slice, rows) pairs.
        ratios: of the splits, in order.

    Returns:
        the first slice of the second split, of the third, ...; END for one that has none.
    """
    slices, parts = sorted(counts), list(ratios)
    total, end = sum(rows for _, rows in slices), len(slices)
    bounds = [END] * (len(parts) - 1)
    for split in range(min(len(parts), len(slices)) - 1, 0, -1):
        share, got, begin = total * parts[split] / sum(parts), 0, end
        while begin > split and (not got or got + slices[begin - 1][1] / 2 <= share):
            begin -= 1
            got += slices[begin][1]
        bounds[split - 1], end = slices[begin][0], begin
    return bounds


def sample_cuts(
    rows: Mapping[str, int], least: Mapping[str, Iterable[int]], sample: int
) -> dict[str, int]:
    """The highest rank that is taken, by given split; each gives its share, and a row at least.

    Args:
        rows: how many there are.
        least: as many of the lowest ranks as there are, or as many as are wanted of all splits.
        sample: how many are wanted of all splits.
    """
    total = sum(rows.values())
    found = {}
    for split, ranks in least.items():
        ordered = sorted(ranks)
        wanted = max(1, round(sample * rows[split] / total)) if total else 1
        found[split] = ordered[wanted - 1] if wanted <= len(ordered) else END
    return found


def read_time(cell: str) -> int:
    """A date, a date and time (UTC where no offset is given) in microseconds since 1970, or a
    whole number as it is.

    Raises:
        ValueError: it is none of TIME_FORMATS.
    """
    cell = cell.strip()
    if is_number(cell):
        return int(cell)
    match = _TIME.fullmatch(cell)
    if match is None:
        raise ValueError(cell)
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    micro = int((match[7] or "0").ljust(6, "0")[:6])
    offset = timedelta(hours=int(match[10] or 0), minutes=int(match[11] or 0))
    when = datetime(year, month, day, hour, minute, second, micro, timezone.utc)
    since = when - _EPOCH - (-offset if match[9] == "-" else offset)
    return since // timedelta(microseconds=1)


def is_number(cell: str) -> bool:
    """Whether a time is a whole number, and no date."""
    return re.fullmatch(r"[+-]?\d{1,18}", cell.strip(), re.ASCII) is not None
