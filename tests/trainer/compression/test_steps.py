"""Each step on tiny models of both families: what it must leave behind, and what it refuses."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier.errors import ConfigError
from espalier.trainer.compression import job as job_module
from espalier.trainer.compression import recipe, tflite
from espalier.trainer.compression.cluster import cluster
from espalier.trainer.compression.distill import distill, inherit
from espalier.trainer.compression.job import Candidate, Job, compiled, kernels, layer_report
from espalier.trainer.compression.prune import prune
from espalier.trainer.compression.quantize import quantize
from espalier.trainer.compression.sensitivity import accuracy, sensitivity
from espalier.trainer.compression.settings import Cluster, Compress, Distill, Entry, Prune, Quantize
from espalier.trainer.compression.teach import answers_loss, cut, hint_loss
from espalier.trainer.input import batches

FAMILIES = ("bert", "resnet")
Trained = Callable[[str], tuple[Job, Candidate]]


def weights(candidate: Candidate) -> list[np.ndarray]:
    return [weight.numpy() for weight in candidate.model.weights]


def same(before: list[np.ndarray], after: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_unrolled_it_is_the_same_function(name: str, make_job: Callable[..., Job]) -> None:
    job = make_job(name)
    model = job.family.build(job.settings, 2, job.learned)
    unrolled = job.build()
    job.family.adopt(model, unrolled)
    for features, _ in batches(job.evaluation, 16).take(2):
        np.testing.assert_allclose(
            compiled(unrolled)(features), compiled(model)(features), atol=1e-6
        )


@pytest.mark.parametrize("name", FAMILIES)
def test_distill_makes_a_shallower_student_that_agrees(name: str, trained: Trained) -> None:
    job, before = trained(name)
    frozen = weights(before)
    # What a cut of the power leaves; a run that is killed leaves less.
    cache = job.folder / "teacher" / "1-0"
    cache.mkdir(parents=True)
    for empty in ("outputs.index", "outputs.data-00000-of-00001"):
        (cache / empty).touch()
    after = distill(before, job, Distill(layers=1, epochs=3))
    assert after.layers == 1
    assert after.model.count_params() < 0.8 * before.model.count_params()
    assert accuracy(job, after.model) >= 0.9 * accuracy(job, before.model)
    assert same(frozen, weights(before)), "the trained model was changed"
    # In the second epoch the teacher's outputs came from the disk.
    assert list(cache.glob("outputs*.index")) and (cache / "whole").exists()


def test_a_student_begins_as_evenly_spaced_layers(trained: Trained) -> None:
    job, before = trained("resnet")
    student = job.build(2)
    inherit(student, before.model, job)
    for ours, theirs in (("stage2_block1_1_conv",) * 2, ("stage2_block2_1_conv",) * 2):
        np.testing.assert_array_equal(
            student.get_layer(ours).get_weights()[0],
            before.model.get_layer(theirs).get_weights()[0],
        )


def test_the_loss_of_answers_is_least_where_student_and_teacher_agree() -> None:
    logits = np.array([[2.0, -1.0], [0.5, 0.0]], np.float32)
    label = np.array([[1.0, 0.0], [1.0, 0.0]], np.float32)
    for multi_label in (False, True):
        outputs = {"logits": logits, "label": label}
        other = {"logits": logits[:, ::-1], "label": label}
        near = answers_loss(logits, outputs, 2.0, multi_label).numpy()
        assert near < answers_loss(logits, other, 2.0, multi_label).numpy()
        assert near < answers_loss(-logits, outputs, 2.0, multi_label).numpy()
    # By hand: half the cross-entropy with the label, half four times that of softened answers.
    soft = np.exp(logits / 2) / np.exp(logits / 2).sum(1, keepdims=True)
    hard = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = 0.5 * 4 * -(soft * np.log(soft)).sum(1).mean() + 0.5 * -np.log(hard[:, 0]).mean()
    found = answers_loss(logits, {"logits": logits, "label": label}, 2.0, False).numpy()
    assert found == pytest.approx(expected, rel=1e-5)


def test_hints_count_real_tokens_alone() -> None:
    mask = np.array([[1.0, 0.0]], np.float32)
    ours, theirs = np.zeros((2, 3), np.float32), np.array([[1.0] * 3, [9.0] * 3], np.float32)
    assert hint_loss("hidden_0", ours, theirs, mask).numpy() == pytest.approx(1.0)
    even = np.full((1, 1, 2, 2), 0.5, np.float32)
    sharp = np.array([[[[0.9, 0.1], [0.1, 0.9]]]], np.float32)
    assert hint_loss("attention_0", even, even, mask).numpy() == pytest.approx(0.0, abs=1e-6)
    kl = 0.9 * np.log(0.9 / 0.5) + 0.1 * np.log(0.1 / 0.5)
    assert hint_loss("attention_0", even, sharp, mask).numpy() == pytest.approx(kl, rel=1e-3)


def test_a_piece_of_a_text_keeps_its_ends() -> None:
    import tensorflow as tf

    tf.random.set_seed(0)
    text = [101, 1, 2, 3, 4, 5, 102, 0, 0]
    ids = tf.constant([text] * 200)
    found = cut({"token_ids": ids}, None)[0]["token_ids"].numpy()
    seen = set()
    for row in found:
        length = np.count_nonzero(row)
        assert row[0] == 101 and row[length - 1] == 102 and not row[length:].any()
        piece = row[1 : length - 1].tolist()
        assert piece == list(range(piece[0], piece[0] + len(piece)))
        seen.add(tuple(piece))
    assert {(1, 2, 3, 4, 5), (1,), (5,), (2, 3)} <= seen


@pytest.mark.parametrize(("name", "schedule"), [("bert", "polynomial"), ("resnet", "constant")])
def test_prune_reaches_its_sparsity(name: str, schedule: str, trained: Trained) -> None:
    job, before = trained(name)
    job.train = job.train.model_copy(update={"precision": "bfloat16"})
    frozen = weights(before)
    after = prune(before, job, Prune(sparsity=0.6, schedule=schedule, epochs=2))
    assert after.facts["zeros"] == pytest.approx(0.6, abs=0.01)
    for row in layer_report(after):
        spared = row["layer"] in (*job.family.SPARED, "token_embedding")
        assert row["zeros"] == pytest.approx(0.0 if spared else 0.6, abs=0.02), row
    assert same(frozen, weights(before)), "the trained model was changed"
    assert accuracy(job, after.model) > 0.8


def test_two_of_four_neighbours_are_zero(trained: Trained) -> None:
    job, before = trained("bert")
    after = prune(before, job, Prune(sparsity=0.5, pattern="2:4", epochs=1))
    kernel = kernels(after.model)["transformer_layer_0_intermediate"].numpy()
    # TF-MOT's fours lie along the inputs: the rows of a kernel, where the transposed ones run.
    fours = kernel.T.reshape(-1, 4)
    assert ((fours == 0).sum(axis=1) == 2).mean() > 0.99


def test_blocks_are_zero_together_and_convolutions_are_refused(trained: Trained) -> None:
    job, before = trained("bert")
    after = prune(before, job, Prune(sparsity=0.5, pattern="block", epochs=1))
    kernel = kernels(after.model)["transformer_layer_0_query"].numpy()
    blocks = kernel.reshape(8, 4, 8, 4).transpose(0, 2, 1, 3).reshape(64, 16)
    assert set((blocks == 0).sum(axis=1)) == {0, 16}
    job, before = trained("resnet")
    with pytest.raises(ConfigError, match="layer stage1_block1_1_conv has .3, 3, 16, 16."):
        prune(before, job, Prune(pattern="block"))


def test_each_attempt_without_the_costliest_layers_has_a_state_of_its_own(
    make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed one would go on with what others had trained, with other layers left out."""
    tried: list[tuple[list[str], str]] = []

    def fit(*_: Any, state_dir: Path, **__: Any) -> None:
        tried[-1][0].append(state_dir.name)

    def work(before: Candidate, job: Job, settings: Prune) -> Candidate:
        tried.append(([], ",".join(settings.exclude)))
        job.tune(None, "prune", 1, 0.1)  # type: ignore[arg-type]
        return Candidate("prune", "pruned")  # type: ignore[arg-type]

    monkeypatch.setattr(job_module, "fit", fit)
    monkeypatch.setitem(recipe._STEPS, "prune", work)
    monkeypatch.setattr(recipe, "accuracy", lambda _, model: 0.5 if model == "pruned" else 0.9)
    monkeypatch.setattr(recipe, "costliest", lambda *_: ["a", "b", "c", "d", "e"])
    given = Compress.model_validate(
        {"steps": [{"prune": {"exclude": "auto"}}], "budget": {"accuracy_drop": 0.1}}
    )
    trained = Candidate("trained", "whole")  # type: ignore[arg-type]
    recipe._tried(make_job("resnet"), trained, trained, given.steps[0], given)
    assert [(states[0], excluded) for states, excluded in tried] == [
        ("prune", ""), ("prune-1", "a"), ("prune-2", "a,b"), ("prune-4", "a,b,c,d"),
    ]  # fmt: skip


def test_excluded_layers_stay_as_they_are(trained: Trained) -> None:
    job, before = trained("bert")
    after = prune(before, job, Prune(epochs=1, exclude=["*_query", "transformer_layer_0_output"]))
    found = {row["layer"]: row["zeros"] for row in layer_report(after)}
    assert found["transformer_layer_1_query"] < 0.01 and found["transformer_layer_0_output"] < 0.01
    assert found["transformer_layer_1_key"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(ConfigError, match="prune.exclude: 'quer_' fits no layer. The layers"):
        prune(before, job, Prune(exclude=["quer_"]))


@pytest.mark.parametrize("name", FAMILIES)
def test_clusters_and_int8_keep_what_pruning_has_made(name: str, trained: Trained) -> None:
    job, before = trained(name)
    pruned = prune(before, job, Prune(sparsity=0.5, epochs=1))
    clustered = cluster(pruned, job, Cluster(clusters=16))
    small = quantize(clustered, job, Quantize())
    for row in layer_report(small):
        assert row["format"] == "int8"
        if row["layer"] not in job.family.SPARED:
            assert row["values"] <= 16, row
            assert row["zeros"] >= 0.48 or row["layer"] == "token_embedding", row
    assert accuracy(job, small.model) > 0.8


def test_more_clusters_than_weights_are_refused(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, before = trained("resnet")
    monkeypatch.setattr(job.family, "SPARED", ("logits",))
    with pytest.raises(ConfigError, match="cluster.clusters is 256, and the layer stem_conv"):
        cluster(before, job, Cluster(clusters=256))


@pytest.mark.parametrize(("name", "how"), [("bert", "full"), ("bert", "qat"), ("resnet", "full")])
def test_int8_arithmetic_agrees_with_the_trained_model(
    name: str, how: str, trained: Trained
) -> None:
    job, before = trained(name)
    after = quantize(before, job, Quantize(how=how, epochs=2))
    assert after.tflite is not None
    score = tflite.scorer(after.tflite)
    ask, ours, theirs = compiled(before.model), [], []
    for features, _ in batches(job.evaluation, 16, group=False):
        ours.append(score({k: v.numpy() for k, v in features.items()}).argmax(1))
        theirs.append(ask(features).numpy().argmax(1))
    assert (np.concatenate(ours) == np.concatenate(theirs)).mean() > 0.9
    assert int8_weights(after.tflite) > 0.8


def int8_weights(file: Any) -> float:
    """The share of a TFLite file's dense layers and convolutions whose weights are int8."""
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(str(file))
    kinds = {one["index"]: np.dtype(one["dtype"]).name for one in interpreter.get_tensor_details()}
    found = [
        kinds[operation["inputs"][1]] == "int8"
        for operation in interpreter._get_ops_details()
        if operation["op_name"] in ("FULLY_CONNECTED", "CONV_2D")
    ]
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("name", "kind"), [("bert", "both"), ("bert", "clustered"), ("resnet", "pruned")]
)
def test_training_for_int8_keeps_zeros_and_clusters(name: str, kind: str, trained: Trained) -> None:
    job, before = trained(name)
    if kind != "clustered":
        before = prune(before, job, Prune(sparsity=0.5, epochs=1))
    if kind != "pruned":
        before = cluster(before, job, Cluster(clusters=16, epochs=0))
    after = quantize(before, job, Quantize(how="qat"))
    for row in layer_report(after):
        if row["layer"] in job.family.SPARED:
            continue
        if kind != "clustered" and row["layer"] != "token_embedding":
            assert row["zeros"] >= 0.48, row
        if kind != "pruned" and name == "bert":
            assert row["values"] <= 16, row


@pytest.mark.parametrize("to", ["float16", "bfloat16"])
def test_half_precision_halves_what_is_stored(to: str, trained: Trained) -> None:
    job, before = trained("bert")
    after = quantize(before, job, Quantize(to=to, exclude=["logits"]))
    assert set(after.formats.values()) == {to} and "logits" not in after.formats
    assert accuracy(job, after.model) == pytest.approx(accuracy(job, before.model), abs=0.03)


def test_a_diverging_step_is_named(trained: Trained) -> None:
    job, before = trained("bert")
    with pytest.raises(ConfigError, match="prune: .*diverged.*prune.learning_rate, 1e"):
        prune(before, job, Prune(learning_rate=1e30))


def test_a_family_without_students_and_one_no_smaller(trained: Trained) -> None:
    job, before = trained("bert")
    with pytest.raises(ConfigError, match="distill.layers is 2, and the trained model has 2"):
        distill(before, job, Distill(layers=2))


def test_the_time_limit_ends_a_step_early(trained: Trained) -> None:
    job, before = trained("bert")
    job.deadline = time.monotonic() - 1
    begin = time.monotonic()
    after = prune(before, job, Prune(epochs=1000))
    assert time.monotonic() - begin < 60
    assert after.name == "prune"


@pytest.mark.parametrize("name", FAMILIES)
def test_sensitivity_finds_the_layer_that_matters(name: str, trained: Trained) -> None:
    job, before = trained(name)
    frozen = weights(before)
    entries = [Entry(prune=Prune(sparsity=0.9)), Entry(cluster=Cluster(clusters=2)),
               Entry(quantize=Quantize())]  # fmt: skip
    found = sensitivity(job, before.model, entries)
    assert [one["layer"] for one in found] == list(kernels(before.model))
    for one in found:
        assert set(one["steps"]) == {"prune", "cluster", "quantize"}
        assert abs(one["steps"]["quantize"]["loss_rise"]) < 0.05
    assert max(one["steps"]["prune"]["loss_rise"] for one in found) > 0.05
    assert same(frozen, weights(before)), "the model was changed"
