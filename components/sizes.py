"""How long texts are, how large pictures: counted in the same room for any number of rows."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

_STEPS = 10  # buckets from 1 to 10, from 10 to 100 and so on: each ends at 1.26 times its start


@dataclass
class Sizes:
    """What is kept of some whole numbers.

    Attributes:
        rows, total: how many they are, and their sum.
        least, most: their ends; 0 if there are none.
        buckets: how many are in each; bucket -1 holds the zeros.
    """

    rows: int = 0
    total: int = 0
    least: int = 0
    most: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def add(self, size: int, rows: int = 1) -> None:
        """One more number, or the same one several times."""
        self._widen(size, size)
        self.rows, self.total = self.rows + rows, self.total + size * rows
        self.buckets[math.floor(_STEPS * math.log10(size)) if size else -1] += rows

    def merge(self, other: "Sizes") -> None:
        """What was counted elsewhere, too."""
        if other.rows:
            self._widen(other.least, other.most)
        self.rows, self.total = self.rows + other.rows, self.total + other.total
        self.buckets.update(other.buckets)

    def _widen(self, least: int, most: int) -> None:
        self.least = min(self.least, least) if self.rows else least
        self.most = max(self.most, most)

    def to_json(self) -> dict[str, Any]:
        """{"rows", "mean", "least", "most", "buckets": [[from, to, rows]]}, with no gap between."""
        places = range(min(self.buckets, default=0), max(self.buckets, default=-1) + 1)
        return {
            "rows": self.rows,
            "mean": self.total / max(1, self.rows),
            "least": self.least,
            "most": self.most,
            "buckets": [[_begin(k), _begin(k + 1), self.buckets[k]] for k in places],
        }


def _begin(bucket: int) -> float:
    return round(10 ** (bucket / _STEPS), 2) if bucket >= 0 else 0.0


def merged(parts: Iterable[dict[str, dict[str, Sizes]]]) -> dict[str, dict[str, Sizes]]:
    """Sizes by split and by name, gathered in several places, together."""
    whole: dict[str, dict[str, Sizes]] = {}
    for part in parts:
        for split, named in part.items():
            for name, sizes in named.items():
                whole.setdefault(split, {}).setdefault(name, Sizes()).merge(sizes)
    return whole


def to_json(sizes: dict[str, dict[str, Sizes]]) -> dict[str, Any]:
    """Sizes by split and by name, each as `Sizes.to_json`."""
    return {
        split: {name: one.to_json() for name, one in named.items()}
        for split, named in sizes.items()
    }
