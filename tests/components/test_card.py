"""The model card: everything that was measured, nothing that breaks the page."""

import json
from pathlib import Path
from typing import Any

import pytest

from espalier.components.intervals import wilson
from espalier.components.pusher import card

HOSTILE = "<script>alert(1)</script> | a\n\n# b `c` [d](e)"
YAML = """\
name: reviews
data: {csv: {train: a.csv, eval: b.csv}, text: text, label: label}
card:
  intended_use: Sorting reviews.
  out_of_scope: Anything else.
  limits: It has read short texts only.
  ethics: None known.
  contact: team@example.org
"""
MODEL = {
    "labels": ["bad", HOSTILE],
    "inputs": ["text"],
    "multi_label": False,
    "checkpoint": "a" * 64,
    "model": {"family": "bert", "start": "minilm", "sequence_length": 32},
    "graph": {"needs": ["AVX-512 BF16"]},
}
EVALUATION = {
    "verdict": "Blessed: accuracy 0.9.",
    "candidate": {
        "overall": {"rows": 100, "accuracy": 0.9, "auc": None},
        "slices": {
            "kind=good": {"rows": 60, "accuracy": 0.95},
            f"kind={HOSTILE}": {"rows": 40, "accuracy": 0.8},
        },
    },
}
COMPRESSION = {
    "chosen": "quantize",
    "verdict": "Within the budget.",
    "candidates": [
        {
            "name": name,
            "figures": {"accuracy": 0.9, "bytes": size, "latency_ms": {"1": {"median": 2.5}}},
        }
        for name, size in (("trained", 8_000_000), ("prune", 8_000_000), ("quantize", 2_000_000))
    ],
}


def facts(**changes: Any) -> card.Facts:
    whole: dict[str, Any] = {
        "config": YAML, "when": "2026-11-27", "model": MODEL, "licence": "Apache-2.0",
        "data": {"rows": {"train": 1000, "test": 100}, "anomalies": []},
        "evaluation": EVALUATION, "compression": COMPRESSION, "serving": {"size_bytes": 2_000_000},
    }  # fmt: skip
    return card.Facts(**{**whole, **changes})


def test_all_that_was_measured_and_said_is_on_it() -> None:
    written = card.files(facts())["MODEL_CARD.md"]
    low, high = wilson(0.9, 100)
    for words in (
        "# reviews: model card", "Blessed: accuracy 0.9", "Apache-2.0", "team@example.org",
        "Sorting reviews.", "Not meant for: Anything else.", "| train | 1,000 |", "a.csv, b.csv",
        f"| accuracy | 0.9000 | {low:.4f} to {high:.4f} |", "| kind=good | 60 | 0.9500 |",
        "It has read short texts only.", "it reads 32 tokens", "AVX-512 BF16", "None known.",
        "| quantize | 0.9000 | 2.00 | 2.50 |", "Within the budget.", "aaaaaaaaaaaa (",
    ):  # fmt: skip
        assert words in written, words
    assert "| prune |" not in written and "| auc |" not in written
    assert written.index("alert(1)") < written.index("kind=good"), "the worst slice is first"


def test_what_comes_from_the_data_is_no_markup() -> None:
    written = card.files(facts())["MODEL_CARD.md"]
    assert "<script>" not in written and "\n# b" not in written
    for line in written.splitlines():
        if "alert(1)" in line and line.startswith("|"):
            assert line.replace("\\|", "").count("|") in (3, 4)  # its own cells' borders


def test_the_json_has_the_toolkits_fields() -> None:
    told = json.loads(card.files(facts())["model_card.json"])
    assert told["schema_version"] == "0.0.2"
    assert told["model_details"]["licenses"] == [{"identifier": "Apache-2.0"}]
    assert told["model_details"]["owners"] == [{"contact": "team@example.org"}]
    metrics = told["quantitative_analysis"]["performance_metrics"]
    assert metrics[0]["type"] == "accuracy" and metrics[0]["value"] == "0.9000"
    assert float(metrics[0]["confidence_interval"]["lower_bound"]) < 0.9
    assert {m.get("slice") for m in metrics} == {None, "kind=good", f"kind={HOSTILE}"}
    considered = told["considerations"]
    assert considered["use_cases"] == [{"description": "Sorting reviews."}]
    assert {"description": "Not meant for: Anything else."} in considered["limitations"]
    assert considered["tradeoffs"] == [{"description": "Within the budget."}]


def test_what_nobody_knows_is_said() -> None:
    bare = facts(config="name: a\n", licence="", data={}, evaluation={}, compression={}, serving={})
    written = card.files(bare)["MODEL_CARD.md"]
    for words in (
        "Not evaluated", "licence | not known", "Not stated; `card.intended_use`", "Not measured",
        "an unnamed source",
    ):  # fmt: skip
        assert words in written, words
    assert "small has cost" not in written and "| split |" not in written
    assert json.loads(card.files(bare)["model_card.json"])["model_details"]["licenses"] == []


@pytest.mark.parametrize(
    "content",
    [None, "no json", "{}", "[]", "[" * 9999, '{"model_details": null}',
     '{"model_details": {"licenses": []}}'],
)  # fmt: skip
def test_no_licence_without_a_card(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "assets.extra").mkdir()
    if content is not None:
        (tmp_path / "assets.extra" / card.JSON).write_text(content)
    assert card.licence_of(tmp_path) == ""


def test_the_licence_of_a_version(tmp_path: Path) -> None:
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra" / card.JSON).write_text(card.files(facts())[card.JSON])
    assert card.licence_of(tmp_path) == "Apache-2.0"
