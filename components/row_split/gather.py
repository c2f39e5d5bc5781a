"""What Beam has to gather of all rows before one can be placed: a sample's ranks, slices' counts.

What lies in one place at a time is bounded: the ranks of the sample, or a count per slice.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import apache_beam as beam

from .rule import END, Cuts, Key, Rule, cut, sample_cuts, time_slices

Least = tuple[int, list[int]]  # how many there are, the lowest ranks


def find_highest(keys: Mapping[str, beam.PCollection], sample: int) -> beam.PCollection:
    """The one dictionary with the highest rank that the sample takes, by given split."""
    looked = [
        part
        | f"Rank[{split}]" >> beam.Map(_rank)
        | f"Least[{split}]" >> beam.CombineGlobally(_Least(sample))
        | f"Named[{split}]" >> beam.Map(_named, split)
        for split, part in keys.items()
    ]
    return (
        looked
        | "LookedRanks" >> beam.Flatten()
        | "GatherRanks" >> beam.combiners.ToList()
        | "Sample" >> beam.Map(_sample_cuts, sample)
    )


def find_cuts(keys: beam.PCollection, rule: Rule) -> beam.PCollection:
    """The one Cuts for these keys, of a rule by label or by time."""
    if rule.by == "time":
        begin = (
            keys
            | "TimeRange" >> beam.CombineGlobally(_Range())
            | "TimeSlices" >> beam.Map(_time_slices)
        )
    else:
        begin = keys.pipeline | "NoTimes" >> beam.Create([Cuts()])
    return (
        keys
        | "Slice" >> beam.Map(_slice, rule, beam.pvalue.AsSingleton(begin))
        | "CountSlices" >> beam.combiners.Count.PerElement()
        | "ByStratum" >> beam.Map(_by_stratum)
        | "Strata" >> beam.GroupByKey()
        | "Cut" >> beam.Map(_cut, rule)
        | "Bounds" >> beam.combiners.ToDict()
        | "Cuts" >> beam.Map(_cuts, beam.pvalue.AsSingleton(begin))
    )


def _rank(key: Key) -> int:
    return key[0]


def _named(found: Least, split: str) -> tuple[str, Least]:
    return split, found


def _sample_cuts(looked: list[tuple[str, Least]], sample: int) -> dict[str, int]:
    rows = {split: count for split, (count, _) in looked}
    return sample_cuts(rows, {split: ranks for split, (_, ranks) in looked}, sample)


def _time_slices(found: tuple[int, int]) -> Cuts:
    return time_slices(*found)


def _slice(key: Key, rule: Rule, begin: Cuts) -> tuple[Any, int]:
    _, value, stratum = key
    return stratum, begin.slice_of(value) if rule.by == "time" else value


def _by_stratum(counted: tuple[tuple[Any, int], int]) -> tuple[Any, tuple[int, int]]:
    (stratum, place), rows = counted
    return stratum, (place, rows)


def _cut(counts: tuple[Any, Iterable[tuple[int, int]]], rule: Rule) -> tuple[Any, list[int]]:
    return counts[0], cut(counts[1], [rule.ratios[split] for split in rule.splits])


def _cuts(bounds: dict[Any, list[int]], begin: Cuts) -> Cuts:
    return Cuts(begin.low, begin.shift, bounds)


class _Least(beam.CombineFn):
    """How many there are, and as many of the lowest ranks as are wanted."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted

    def create_accumulator(self) -> Least:
        return 0, []

    def add_input(self, found: Least, rank: int) -> Least:
        count, ranks = found
        ranks.append(rank)
        return count + 1, self._trim(ranks, 2 * self.wanted + 1000)

    def merge_accumulators(self, found: Iterable[Least]) -> Least:
        total, least = 0, []  # type: ignore[var-annotated]
        for count, ranks in found:
            total, least = total + count, self._trim(least + ranks, self.wanted)
        return total, least

    def extract_output(self, found: Least) -> Least:
        return found[0], self._trim(found[1], self.wanted)

    def _trim(self, ranks: list[int], most: int) -> list[int]:
        return sorted(ranks)[: self.wanted] if len(ranks) > most else ranks


class _Range(beam.CombineFn):
    """The lowest and the highest time."""

    def create_accumulator(self) -> tuple[int, int]:
        return END, -END

    def add_input(self, found: tuple[int, int], key: Key) -> tuple[int, int]:
        return min(found[0], key[1]), max(found[1], key[1])

    def merge_accumulators(self, found: Iterable[tuple[int, int]]) -> tuple[int, int]:
        lows, highs = zip(*found, strict=True)
        return min(lows), max(highs)

    def extract_output(self, found: tuple[int, int]) -> tuple[int, int]:
        return found
