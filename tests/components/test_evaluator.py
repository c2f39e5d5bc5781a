"""The Evaluator's limits and verdicts; its run inside a pipeline is in tests/e2e."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import metrics as sklearn_metrics

from espalier import cpu as machine
from espalier.components.evaluator import closer, executor, metrics
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


def test_one_auc_for_two_classes_and_one_each_for_more() -> None:
    settings = {**NONE, "metrics": ["f1", "auc"]}
    two = metrics.eval_config(settings, 2).metrics_specs[-1]
    assert list(two.binarize.class_ids.values) == [1]
    three = metrics.eval_config(settings, 3).metrics_specs[-1]
    assert list(three.binarize.class_ids.values) == [0, 1, 2]
    both = metrics.eval_config(settings, 2, multi_label=True).metrics_specs[-1]
    assert list(both.binarize.class_ids.values) == [0, 1]


@pytest.mark.parametrize("names", [["f1"], ["auc"], ["loss"]])
@pytest.mark.parametrize("limits", [NONE, LIMITS])
def test_tfma_always_gets_a_threshold_that_holds(names: list[str], limits: dict[str, Any]) -> None:
    specs = metrics.eval_config({**limits, "metrics": names}, 3).metrics_specs
    (threshold,) = [m.threshold for s in specs for m in s.metrics if m.HasField("threshold")]
    assert threshold.value_threshold.lower_bound.value < 0
    assert threshold.change_threshold.absolute.value < -1e9


def matrix(truth: list[int], said: list[int]) -> dict[str, Any]:
    """What TFMA's results hold of a confusion matrix; zeros are left out of its JSON."""
    entries = [
        {
            **({"actualClassId": a} if a else {}),
            **({"predictedClassId": b} if b else {}),
            "numWeightedExamples": 1.0,
        }
        for a, b in zip(truth, said, strict=True)
    ]
    return {"multiClassConfusionMatrixAtThresholds": {"matrices": [{"entries": entries}]}}


def test_counts_are_what_scikit_learn_counts() -> None:
    rng = np.random.default_rng(0)
    truth, said = rng.integers(0, 4, 300).tolist(), rng.integers(0, 4, 300).tolist()
    found = [counts.values() for counts in metrics._from_matrix(matrix(truth, said), 4)]
    each = {
        "f1": sklearn_metrics.f1_score(truth, said, average=None),
        "precision": sklearn_metrics.precision_score(truth, said, average=None),
        "recall": sklearn_metrics.recall_score(truth, said, average=None),
    }
    for name, expected in each.items():
        assert [one[name] for one in found] == pytest.approx(expected.tolist())
    against = sklearn_metrics.multilabel_confusion_matrix(truth, said)
    specificity = [tn / (tn + fp) for (tn, fp), _ in against]
    assert [one["specificity"] for one in found] == pytest.approx(specificity)


def test_a_class_never_said_has_no_precision_and_an_f1_of_zero() -> None:
    missed, absent = metrics._from_matrix(matrix([0, 0, 2], [2, 2, 2]), 3)[:2]
    assert missed.values() == {"f1": 0.0, "precision": None, "recall": 0.0, "specificity": 1.0}
    assert absent.values()["f1"] is None and absent.one_sided
    assert metrics._mean([0.5, None, 1.0]) == 0.75
    assert metrics._mean([None]) is None


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


def test_a_baseline_for_another_machine_is_not_loaded(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"avx2"})
    graph = {"cpu": "bf16", "needs": [machine.BFLOAT16]}
    sentence = executor._obstacle({"labels": []}, baseline_with(tmp_path, labels=[], graph=graph))
    assert "export.cpu bf16, and this machine lacks bfloat16 products" in sentence
    assert "--accept" in sentence


def test_an_equal_baseline_is_no_obstacle(tmp_path: Any) -> None:
    facts = {"labels": ["a", "b"], "inputs": ["text"], "label_column": "label"}
    assert executor._obstacle(facts, baseline_with(tmp_path, **facts)) == ""
    assert executor._obstacle(facts, None) == ""


def test_a_model_over_its_budget_is_not_blessed() -> None:
    from espalier.components.compressor import CompressionReport
    from espalier.components.evaluator.executor import _within_budget

    report = CompressionReport()
    report.set_string_custom_property("verdict", "Over the budget: size 0.3, at most 0.15.")
    report.set_int_custom_property("kept", 0)
    blessed, sentence = _within_budget([report], True, "Blessed: accuracy 0.9.")
    assert not blessed
    assert sentence == "Not blessed: Over the budget: size 0.3, at most 0.15."
    report.set_int_custom_property("kept", 1)
    assert _within_budget([report], True, "Blessed.") == (True, "Blessed.")
    assert _within_budget([report], False, "Not blessed.") == (False, "Not blessed.")
    assert _within_budget(None, True, "Blessed.") == (True, "Blessed.")


def test_the_closer_look_is_put_off_by_nothing(tmp_path: Path) -> None:
    rows = closer.Gather(["a", "b"], multi_label=False)
    seen = rows.create_accumulator()
    scores = [[0.9, 0.1], [0.2, 0.8], [float("nan")] * 2, [1.0, 0.0]]
    examples = [tf.train.Example() for _ in scores]
    examples[0].features.feature["path"].bytes_list.value.append(b"a column of the user's")
    for example, label, row in zip(examples, (1, 1, 0, -1), scores, strict=True):
        seen = rows.add_input(seen, (example.SerializeToString(), np.array([label]), np.array(row)))
    whole = rows.merge_accumulators([seen, rows.create_accumulator()])
    closer._write(whole, ["a", "b"], ["text"], False, str(tmp_path))
    facts = json.loads((tmp_path / closer.FILE).read_text())
    assert [m["is"] for m in facts["mistakes"]] == ["a label that training did not see", "b"]
    assert [m["text"] for m in facts["mistakes"]] == ["", ""]
    assert sum(facts["scores"]["a"]["with"] + facts["scores"]["a"]["without"]) == 3


def test_of_several_labels_a_row_counts_the_one_that_was_surest_and_wrong(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = ["fire", "sea", "tree"]
    scores, has = rng.random((300, 3)), rng.random((300, 3)) < 0.4
    scores[0], has[0] = [0.9, 0.001, 0.6], [True, True, False]
    scores[1], has[1] = [float("nan"), 0.1, 0.9], [False, False, True]
    rows = closer.Gather(names, multi_label=True)
    parts = [rows.create_accumulator(), rows.create_accumulator()]
    for place, (given, row) in enumerate(zip(has, scores, strict=True)):
        example = tf.train.Example()
        example.features.feature["text"].bytes_list.value.append(str(place).encode())
        rows.add_input(parts[place % 2], (example.SerializeToString(), given.astype("f4"), row))
    closer._write(rows.merge_accumulators(parts), names, ["text"], False, str(tmp_path))
    facts = json.loads((tmp_path / closer.FILE).read_text())

    by_row = {int(mistake["text"]): mistake for mistake in facts["mistakes"]}
    assert len(by_row) == closer.MISTAKES
    assert by_row[0] == {"text": "0", "is": "sea", "said": "not sea", "score": 0.999}
    assert 1 not in by_row, "no number is no yes"
    said = np.nan_to_num(scores) >= 0.5
    sure = np.where(said != has, np.where(said, scores, 1 - scores), 0).max(axis=1)
    assert sorted(by_row) == sorted(np.argsort(-sure)[: closer.MISTAKES].tolist())
    for place, mistake in by_row.items():
        words = {mistake["is"], mistake["said"]}
        (name,) = words & set(names)
        assert words == {name, f"not {name}"}
        assert (mistake["is"] == name) == has[place][names.index(name)]
    for place, name in enumerate(names):
        counts = facts["scores"][name]
        assert sum(counts["with"]) == has[:, place].sum()
        assert sum(counts["without"]) == (~has[:, place]).sum()


def test_a_picture_that_pil_refuses_has_no_thumbnail(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 10_000)).save(huge)
    assert closer._thumbnail(huge.read_bytes()) == ""
    assert closer._thumbnail(b"no picture") == ""
    Image.new("L", (300, 100)).save(huge)
    assert closer._thumbnail(huge.read_bytes())
