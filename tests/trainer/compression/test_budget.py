"""Budgets: what they allow, how candidates rank, and what is refused before anything runs."""

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from espalier.trainer.compression import budget as budgets
from espalier.trainer.compression.measure import Figures
from espalier.trainer.compression.settings import Budget, Compress

TRAINED = Figures(
    rows=100, accuracy=0.9, f1=0.8, agreement=1.0, parameters=100, nonzero=100, bytes=1_000_000,
    gzipped=900_000, latency_ms={"1": {"median": 10.0, "p99": 12.0}}, memory_bytes=0, tflite={},
)  # fmt: skip
SMALL = replace(
    TRAINED, accuracy=0.88, f1=0.79, bytes=250_000, gzipped=90_000,
    latency_ms={"1": {"median": 4.0, "p99": 5.0}},
)  # fmt: skip


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        ({"accuracy_drop": 0.02}, True),
        ({"accuracy_drop": 0.019}, False),
        ({"accuracy_drop": "3%"}, True),  # of 0.9: 0.027
        ({"accuracy_drop": "2%"}, False),
        ({"accuracy_drop": -0.01}, False),
        ({"f1_drop": 0.011}, True),
        ({"size": 0.25}, True),
        ({"size": "4x"}, True),
        ({"size": "5x"}, False),
        ({"size": "0.3MB"}, True),
        ({"size": "200kB"}, False),
        ({"gzipped": "10x"}, True),
        ({"latency": 0.5}, True),
        ({"latency": "3x"}, False),
        ({"latency": "4ms"}, True),
        ({}, True),
    ],
)
def test_limits(budget: dict[str, Any], kept: bool) -> None:
    found, sentence = budgets.verdict(Budget(**budget), TRAINED, SMALL)
    assert found == kept, sentence


def test_the_sentence_says_by_how_much_and_what_would_have_done() -> None:
    _, sentence = budgets.verdict(Budget(accuracy_drop=0.01, size=0.2), TRAINED, SMALL)
    assert "accuracy_drop 0.0200, at most 0.0100" in sentence
    assert "size 0.25 of the trained model's, at most 0.2" in sentence
    assert "would have been met: accuracy_drop: 0.0200, size: 0.250" in sentence


def test_within_the_budget_the_later_step_is_better_over_it_the_nearer() -> None:
    figures = {"trained": TRAINED, "prune": replace(TRAINED, accuracy=0.895), "quantize": SMALL}
    assert budgets.rank(Budget(accuracy_drop=0.05), figures) == ["quantize", "prune"]
    assert budgets.rank(Budget(accuracy_drop=0.01), figures) == ["prune", "quantize"]
    assert budgets.rank(Budget(accuracy_drop=0.001), figures) == ["prune", "quantize"]


@pytest.mark.parametrize(
    ("compress", "message"),
    [
        ({"steps": [{"quantize": {}}, {"prune": {}}]}, "prune comes after quantize and would undo"),
        ({"steps": [{"prune": {}}, {"prune": {}}]}, "prune twice"),
        ({"steps": [{"prune": {}, "cluster": {}}]}, "found prune and cluster"),
        ({"steps": [{}]}, "found none"),
        ({"steps": []}, "at least 1 item"),
        ({"steps": [{"prune": {"sparsity": 1.0}}]}, "less than 1"),
        ({"steps": [{"prune": {"pattern": "2:4", "sparsity": 0.6}}]}, "leaves half"),
        ({"steps": [{"quantize": {"to": "float16", "how": "qat"}}]}, "qat is for int8"),
        ({"steps": [{"quantize": {"how": "full", "exclude": ["x"]}}]}, "converts the model as a"),
        ({"steps": [{"cluster": {"clusters": 1}}]}, "greater than or equal to 2"),
        ({"steps": [{"prune": {}}], "budget": {"size": 0.5}}, "leave 1 of the bytes"),
        ({"steps": [{"quantize": {}}], "budget": {"size": "5x"}}, "leave 0.25 of the bytes"),
        ({"steps": [{"quantize": {}}], "budget": {"latency": 0.9}}, "Distill to fewer layers"),
        ({"steps": [{"quantize": {}}], "budget": {"latency": "5MB"}}, "expected a number"),
        ({"steps": [{"quantize": {}}], "budget": {"size": -1}}, "must be above 0"),
    ],
)
def test_what_cannot_be_is_refused_before_it_runs(compress: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Compress(**compress)
