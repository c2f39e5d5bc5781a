"""Why a model says what it says: the parts add up, and they are the integral of the gradients."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from espalier import ConfigError, Predictor, RunResult
from espalier.pipeline import explain as explaining
from espalier.pipeline import page
from espalier.pipeline.explain import explain
from espalier.pipeline.store import Store
from espalier.trainer.explain import TOLERANCE, Explanation, _joined, heat

TEXT = "the soup was lovely, order 12"
TEXTS = (TEXT, "the train was awful, order 3", "unheard of words", "", "lovely " * 60)


@pytest.fixture(scope="module")
def version(first_run: RunResult) -> str:
    return str(first_run.pushed)


@pytest.mark.parametrize("text", TEXTS)
def test_the_words_add_up_to_the_score(version: str, text: str) -> None:
    found = explain(version, texts=[text]).found
    (served,) = Predictor(version).predict([text])
    assert (found.label, found.score) == (served.label, pytest.approx(served.score, abs=1e-4))
    assert found.gap <= TOLERANCE
    if text:
        assert found.baseline + found.parts.sum() == pytest.approx(served.score, abs=0.011)
    else:
        assert found.words == () and found.score == pytest.approx(found.baseline)


def test_the_parts_are_the_integral_of_the_gradients(version: str) -> None:
    found = explain(version, texts=[TEXT]).found
    # Said again with other means: the sum at many points, over a table of embeddings.
    from espalier.trainer.restore import restore

    restored = restore(version)
    model, table = restored.model, restored.model.get_layer("token_embedding")
    example = explaining._example({"text": TEXT.encode()})
    given = restored.loaded.signatures["transform_features"](examples=tf.constant([example]))
    ids = tf.cast(given["token_ids"], tf.int32)
    length = int(tf.math.count_nonzero(ids))
    inner = tf.gather(table.embeddings, ids)
    nothing = tf.where(ids == 0, ids, tf.constant(0))
    nothing = tf.concat([ids[:, :1], nothing[:, 1 : length - 1], ids[:, length - 1 :]], axis=1)
    base, steps = tf.gather(table.embeddings, nothing), 400
    total = np.zeros(inner.shape[1:])
    for point in (np.arange(steps) + 0.5) / steps:
        value = tf.Variable(base + point * (inner - base))
        object.__setattr__(table, "call", lambda _, value=value: tf.identity(value))
        with tf.GradientTape() as tape:
            logits = model({"token_ids": ids}, training=False)
            score = tf.nn.softmax(logits)[0, restored.facts["labels"].index(found.label)]
        total += tape.gradient(score, value)[0].numpy() / steps
    parts = ((inner - base)[0].numpy() * total).sum(axis=-1)
    words, sums = _joined(restored.family.pieces(version, {"token_ids": ids}), parts)
    assert words == found.words
    np.testing.assert_allclose(sums, found.parts, atol=0.01)
    assert words[int(np.abs(sums).argmax())] == "lovely"


def test_of_two_labels_one_is_the_other_ones_mirror(version: str) -> None:
    one, other = (explain(version, texts=[TEXT], label=v).found for v in ("negative", "positive"))
    assert one.score + other.score == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(one.parts, -other.parts, atol=1e-4)


def test_a_row_of_the_data_and_what_it_is(job: Any, version: str) -> None:
    lines = (job.folder / "data" / "reviews.csv").read_text().splitlines()
    asked = explain(version, row=3).asked
    assert asked.place.endswith("reviews.csv:4")
    assert lines[3].endswith(asked.label)


def test_the_command(job: Any, version: str) -> None:
    done = job.cli("explain", version, "--text", TEXT, "-o", "why.html")
    assert done.returncode == 0, done.stderr
    assert "lovely" in done.stdout and "a text that says nothing scores" in done.stdout
    html = (job.folder / "why.html").read_text()
    assert (
        "lovely" in html and 'class="for"' in html and "http" not in html.replace("http-equiv", "")
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of --text, --image and --row"),
        (("--text", "a", "--row", "1"), "give one of --text, --image and --row"),
        (("--text", "a", "--pair", "b"), "give what this model reads: --text TEXT"),
        (("--text", "a", "--label", "neutral"), "'neutral' is no label of this model"),
        (("--image", "a.png"), "this model reads no pictures"),
        (("--row", "100000"), "there are 400 rows"),
        (("--row", "1", "--data", "none.csv"), "none.csv"),
    ],
)
def test_what_cannot_be_explained(
    job: Any, version: str, arguments: tuple[str, ...], words: str
) -> None:
    done = job.cli("explain", version, *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert words in done.stderr


def test_no_version_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no pushed version here"):
        explain(tmp_path, texts=[TEXT])


def test_the_report_says_why_of_its_worst_mistakes(job: Any, first_run: RunResult) -> None:
    nodes = {node.name: node for node in Store(job.config.home).nodes(first_run.run)}
    evaluation = nodes["Evaluator"].outputs["evaluation"]
    mistakes = evaluation.read_json("closer.json")["mistakes"]
    why = evaluation.read_json("why.json")
    assert why["problem"] == ""
    assert len(why["explanations"]) == min(5, len(mistakes))
    for mistake, told in zip(mistakes, why["explanations"], strict=False):
        assert told["label"] == mistake["said"]
        assert told["score"] == pytest.approx(mistake["score"], abs=1e-4)
    html = Path(first_run.report).read_text(encoding="utf-8")
    assert ("Why it said so" in html) == bool(mistakes)


def test_a_picture_in_two_colours() -> None:
    pixels, parts = np.zeros((4, 6, 1), np.uint8), np.zeros((4, 6))
    parts[0, 0], parts[3, 5] = 1.0, -1.0
    import io

    from PIL import Image

    drawn = np.asarray(Image.open(io.BytesIO(heat(Explanation("a", 1, 0, parts, pixels=pixels)))))
    assert drawn.shape[1] == 192 and drawn.shape[2] == 3
    (red, _, blue), (red_, _, blue_) = drawn[0, 0].astype(int), drawn[-1, -1].astype(int)
    assert blue > red and red_ > blue_
    middle = drawn[drawn.shape[0] // 2, drawn.shape[1] // 2]
    assert len(set(middle.tolist())) == 1  # grey


def test_shades_of_nothing_are_none() -> None:
    assert page.shades([0.0, 0.0]) == [0, 0] and page.shades([]) == []
    assert page.shades([0.5, -0.25]) == [1, -0.5]


def test_hostile_words_are_escaped() -> None:
    told = {"words": [["<script>alert(1)</script>", 0.5]], "label": "a"}
    html = page.render(
        "t", "", "", "", [page.Section("Why", [page.why(json.loads(json.dumps(told)))])]
    )
    assert "<script>alert" not in html
