"""Sizes: exact ends and mean, and counts whose room does not grow with the rows."""

import random

import pytest

from espalier.components.sizes import Sizes, merged, to_json


def test_what_is_counted_in_parts_is_what_is_counted_at_once() -> None:
    rng = random.Random(0)
    numbers = [rng.randrange(100_000) for _ in range(3000)] + [0, 0, 1, 10, 100]
    whole, parts = Sizes(), [Sizes() for _ in range(3)]
    for place, number in enumerate(numbers):
        whole.add(number)
        parts[place % 3].add(number)
    together = merged([{"train": {"text": part}} for part in [*parts, Sizes()]])
    assert together == {"train": {"text": whole}}
    facts = to_json(together)["train"]["text"]
    assert (facts["least"], facts["most"]) == (0, max(numbers))
    assert facts["mean"] == pytest.approx(sum(numbers) / len(numbers))
    assert len(facts["buckets"]) <= 51
    assert facts["buckets"][0] == [0, 1, 2]
    for (low, high, rows), (begin, *_) in zip(facts["buckets"], facts["buckets"][1:], strict=False):
        assert high == begin
        assert rows == sum(low <= number < high for number in numbers)


def test_of_nothing_there_is_nothing() -> None:
    assert Sizes().to_json() == {"rows": 0, "mean": 0, "least": 0, "most": 0, "buckets": []}
    one = Sizes()
    one.merge(Sizes())
    one.add(7, rows=3)
    assert (one.least, one.most, one.rows, one.total) == (7, 7, 3, 21)
