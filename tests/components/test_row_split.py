"""The rule by which rows fall to splits, and Beam's way of gathering what it needs."""

import hashlib
import itertools
import random
from collections import Counter
from datetime import datetime, timezone

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from espalier.components.by_content import pack, unpack
from espalier.components.row_split.gather import find_cuts, find_highest
from espalier.components.row_split.rule import (
    END,
    Cuts,
    Key,
    Rule,
    cut,
    read_time,
    sample_cuts,
    time_slices,
)
from espalier.pipeline import splitting

MICRO = 1_000_000


def seconds(*when: int) -> int:
    return int(datetime(*when, tzinfo=timezone.utc).timestamp()) * MICRO  # type: ignore[misc]


TIMES = {
    "a day": ("2024-05-31", seconds(2024, 5, 31)),
    "minutes": ("2024-05-31 23:59", seconds(2024, 5, 31, 23, 59)),
    "seconds": ("2024-05-31T23:59:58", seconds(2024, 5, 31, 23, 59, 58)),
    "parts of one": (" 2024-05-31T23:59:58.5 ", seconds(2024, 5, 31, 23, 59, 58) + 500_000),
    "pandas' nanoseconds": ("2024-05-31 00:00:00.123456789", seconds(2024, 5, 31) + 123_456),
    "UTC": ("2024-05-31T12:00Z", seconds(2024, 5, 31, 12)),
    "an offset": ("2024-05-31T12:00:00+02:00", seconds(2024, 5, 31, 10)),
    "an offset to the west": ("2024-05-31 12:00 -0530", seconds(2024, 5, 31, 17, 30)),
    "before 1970": ("1969-12-31", seconds(1969, 12, 31)),
    "a number": ("1717200000", 1717200000),
    "a number below 0": ("-5", -5),
}


@pytest.mark.parametrize(("cell", "expected"), TIMES.values(), ids=TIMES.keys())
def test_times(cell: str, expected: int) -> None:
    assert read_time(cell) == expected


@pytest.mark.parametrize(
    "cell",
    ["", "31.05.2024", "05/31/2024", "2024-13-01", "2024-05-31 25:00", "1.5", "1_000", "May", "१"],
)
def test_what_is_no_time(cell: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        read_time(cell)


def shares(counts: list[tuple[int, int]], ratios: list[int]) -> list[int]:
    """How many rows each split gets."""
    bounds = [-END, *cut(counts, ratios), END]
    return [
        sum(rows for place, rows in counts if low <= place < high)
        for low, high in itertools.pairwise(bounds)
    ]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (1, [1, 0, 0]),
        (2, [1, 1, 0]),
        (3, [1, 1, 1]),
        (4, [2, 1, 1]),
        (10, [8, 1, 1]),
        (15, [11, 2, 2]),
        (1000, [800, 100, 100]),
    ],
)
def test_each_split_gets_its_share_and_a_row_at_least(rows: int, expected: list[int]) -> None:
    assert shares([(place, 1) for place in range(rows)], [8, 1, 1]) == expected


def test_a_slice_is_never_parted() -> None:
    assert shares([(0, 50), (1, 50), (2, 50)], [8, 1, 1]) == [50, 50, 50]
    assert shares([(0, 70), (1, 9), (2, 2), (3, 9), (4, 10)], [8, 1, 1]) == [79, 11, 10]
    assert shares([(0, 99)], [8, 1, 1]) == [99, 0, 0]
    assert shares([(5, 40), (9, 60)], [1, 1]) == [40, 60]
    assert shares([(n, 1) for n in range(9)], [1, 5, 5]) == [1, 4, 4]


def test_many_times_are_counted_in_few_slices_and_few_times_in_their_own() -> None:
    few = time_slices(10, 250_000)
    assert (few.slice_of(10), few.slice_of(11), few.slice_of(250_000)) == (0, 1, 249_990)
    many = time_slices(-(10**17), 10**17)
    assert 1 << 17 <= many.slice_of(10**17) < 1 << 18
    assert time_slices(7, 7).slice_of(7) == 0


def test_each_given_split_gives_its_share_of_a_sample() -> None:
    ranks = {"train": range(1000, 1900), "eval": range(100)}
    assert sample_cuts({"train": 900, "eval": 100}, ranks, 50) == {"train": 1044, "eval": 4}
    assert sample_cuts({"train": 900, "eval": 100}, ranks, 5000) == {"train": END, "eval": END}
    assert sample_cuts({"train": 9000, "eval": 1}, {"train": range(9), "eval": [7]}, 9)["eval"] == 7


def digests(count: int) -> list[bytes]:
    return [hashlib.sha256(str(number).encode()).digest() for number in range(count)]


RULES = {
    "label": Rule(by="label"),
    "time": Rule(by="time", column="day"),
    "ratios": Rule({"eval": 3, "train": 5}, by="label"),
    "sample": Rule(by="label", sample=500),
    "newest of a sample": Rule(by="time", column="day", sample=300),
    "row": Rule(sample=400),
}


def keys(rule: Rule, count: int = 2000) -> list[Key]:
    rng = random.Random(1)
    return [
        rule.key(digest, label=rng.choice("aaaaab"), time=rng.randrange(-(10**17), 10**17))
        for digest in digests(count)
    ]


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_beam_finds_what_the_preflight_check_finds(rule: Rule) -> None:
    rows = keys(rule)
    columns = splitting.Keys(strata=[stratum for _, _, stratum in rows])
    for key in rows:
        columns.add(key)
    expected = splitting.fall(rule, {"all": columns})["all"]
    with beam.Pipeline() as pipeline:
        whole = pipeline | beam.Create(rows)
        if rule.sample is not None:
            highest = beam.pvalue.AsSingleton(find_highest({"all": whole}, rule.sample))
            whole = whole | beam.Filter(lambda key, highest: key[0] <= highest["all"], highest)
        cuts = Cuts() if rule.by == "row" else beam.pvalue.AsSingleton(find_cuts(whole, rule))
        placed = whole | beam.Map(lambda key, cuts: (key[0], rule.place(key, cuts)), cuts)
        named = [
            (key[0], splitting.SPLITS[code])
            for key, code in zip(rows, expected, strict=True)
            if code != splitting.LEFT_OUT
        ]
        assert len(named) == (rule.sample or 2000)
        assert_that(placed, equal_to(named))


def test_labels_are_split_alike_in_a_small_sample_of_many_rows() -> None:
    rule = Rule(by="label", sample=200)
    columns = splitting.Keys(strata=["a", "b"] * 20_000)
    for digest in digests(40_000):
        columns.add(rule.key(digest))
    fallen = splitting.Splits.of(rule, {"all": columns}, {"all": [("a",), ("b",)] * 20_000})
    assert fallen.rows["train"] == pytest.approx(160, abs=1)
    for label, rows in fallen.labels["eval"].items():
        assert rows == pytest.approx(fallen.labels["train"][label] / 8, abs=1)


def test_the_rule_survives_its_way_to_the_executor() -> None:
    for rule in RULES.values():
        config = pack({"rule": rule.to_dict(), "label": "label"})
        from google.protobuf import json_format

        found = unpack(json_format.MessageToJson(config))
        assert (Rule(**found["rule"]), found["label"]) == (rule, "label")


def test_a_hash_splits_by_the_ratios_and_names_every_split() -> None:
    rule = Rule({"train": 2, "eval": 1, "test": 1})
    found = Counter(rule.place(rule.key(digest), Cuts()) for digest in digests(4000))
    assert {split: round(rows / 1000) for split, rows in found.items()} == {
        "train": 2,
        "eval": 1,
        "test": 1,
    }
    assert Rule({"test": 1, "eval": 1, "train": 8}).splits == ["train", "eval", "test"]
