"""The Evaluator's limits and verdicts; its run inside a pipeline is in tests/e2e."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from espalier.components.evaluator import executor, metrics
from espalier.components.evaluator.metrics import Measured

LIMITS = {
    "metrics": ["accuracy", "loss"],
    "slices": [],
    "at_least": {"accuracy": 0.85, "loss": 0.5},
    "worse_than_blessed_by_at_most": {"accuracy": 0.01},
}
NONE = {**LIMITS, "at_least": {}, "worse_than_blessed_by_at_most": {"accuracy": 0.0}}


def measured(accuracy: float | None, loss: float = 0.3) -> Measured:
    return Measured(overall={"accuracy": accuracy, "loss": loss, "rows": 100})


@pytest.mark.parametrize(
    ("settings", "candidate", "baseline", "blessed", "words"),
    [
        (
            LIMITS,
            measured(0.9),
            None,
            True,
            ["accuracy 0.9000", "at least 0.85", "no earlier model"],
        ),
        (LIMITS, measured(0.9), measured(0.905), True, ["the blessed model has 0.9050"]),
        (LIMITS, measured(0.89), measured(0.905), False, ["may be worse by 0.01"]),
        (LIMITS, measured(0.84), None, False, ["accuracy 0.8400, at least 0.85 needed"]),
        (LIMITS, measured(0.9, 0.6), None, False, ["loss 0.6000, at most 0.5 needed"]),
        (NONE, measured(0.2), None, True, ["no lowest value is set", "no earlier model"]),
        (LIMITS, measured(None), None, False, ["accuracy (not defined), at least 0.85"]),
        (NONE, measured(None), measured(0.9), False, ["(not defined), the blessed model has"]),
        ({**LIMITS, "accepted": True}, measured(0.9), None, True, ["(--accept)"]),
        (NONE, measured(0.9), measured(0.9), True, ["(may not be worse)"]),
        (NONE, measured(0.89), measured(0.9), False, ["0.8900, the blessed model has 0.9000"]),
    ],
)
def test_the_verdict_is_a_sentence_with_numbers(
    settings: dict[str, Any],
    candidate: Measured,
    baseline: Measured | None,
    blessed: bool,
    words: list[str],
) -> None:
    verdict = metrics.verdict(settings, candidate, baseline)
    assert verdict[0] is blessed
    for word in words:
        assert word in verdict[1]


def test_two_classes_measure_the_second_and_more_the_mean() -> None:
    settings = {**LIMITS, "metrics": ["f1"], "at_least": {}, "worse_than_blessed_by_at_most": {}}
    two = metrics.eval_config(settings, 2).metrics_specs[-1]
    assert list(two.binarize.class_ids.values) == [1]
    assert not two.aggregate.macro_average
    three = metrics.eval_config(settings, 3).metrics_specs[-1]
    assert list(three.binarize.class_ids.values) == [0, 1, 2]
    assert three.aggregate.macro_average


def test_tfma_always_gets_a_threshold() -> None:
    specs = metrics.eval_config(NONE, 2).metrics_specs
    thresholds = [m.threshold for spec in specs for m in spec.metrics if m.HasField("threshold")]
    assert any(t.HasField("value_threshold") for t in thresholds)


def baseline_with(folder: Any, **facts: Any) -> list[Any]:
    model = folder / "Format-Serving" / "assets.extra"
    model.mkdir(parents=True)
    (model / "espalier.json").write_text(json.dumps(facts))
    return [SimpleNamespace(uri=str(folder), type_name="Model")]


@pytest.fixture(autouse=True)
def _plain_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        executor, "_model_path", lambda artifacts: f"{artifacts[0].uri}/Format-Serving"
    )


def test_a_baseline_with_other_labels_cannot_be_compared(tmp_path: Any) -> None:
    candidate = {"labels": ["a", "b", "c"], "inputs": ["text"], "label_column": "label"}
    before = baseline_with(tmp_path, **{**candidate, "labels": ["a", "b"]})
    sentence = executor._obstacle(candidate, before)
    assert "label set changed from a, b to a, b, c" in sentence
    assert "--accept" in sentence


def test_a_baseline_that_is_gone_is_said_and_does_not_crash(tmp_path: Any) -> None:
    gone = [SimpleNamespace(uri=str(tmp_path / "gone"))]
    assert "gone or broken" in executor._obstacle({"labels": []}, gone)


def test_an_equal_baseline_is_no_obstacle(tmp_path: Any) -> None:
    facts = {"labels": ["a", "b"], "inputs": ["text"], "label_column": "label"}
    assert executor._obstacle(facts, baseline_with(tmp_path, **facts)) == ""
    assert executor._obstacle(facts, None) == ""
