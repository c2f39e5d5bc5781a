"""`espalier predict` and `espalier smoke`: by a server or in this process, rows in their order."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from typer.testing import CliRunner

from espalier import ConfigError, DataError, Predictor, ServerError
from espalier.pipeline.cli import app
from espalier.serving.csv_stream import predict_csv
from espalier.serving.manager import ModelConfig
from espalier.serving.predictor import parse_address

COUNT = 333  # rows: more than ten requests, and no multiple of them


class Lengths(tf.Module):
    """Says how long a text is: by its label, and by scores that sum to one."""

    def __init__(self) -> None:
        super().__init__()
        self.half = tf.Variable(0.5)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "text")])
    def serve(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.strings.length(text)
        none = 0 * self.half * tf.cast(length, tf.float32)
        return {"scores": tf.stack([none, none + 1], 1), "label": tf.strings.as_string(length)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def other(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": x * self.half}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base path with one version, which carries a sample."""
    base = tmp_path_factory.mktemp("lengths")
    module = Lengths()
    tf.saved_model.save(module, str(base / "7"), {"serving_default": module.serve})
    (base / "7" / "assets.extra").mkdir()
    write_sample(base / "7", "3")
    other = base.parent / "other"
    tf.saved_model.save(module, str(other / "1"), {"serving_default": module.other})
    return base


def write_sample(version: Path, label: str) -> None:
    sample = {
        "inputs": {"text": ["abc"]},
        "outputs": {"label": [label], "scores": [[0.0, 1.0]]},
        "tolerance": 0.001,
    }
    (version / "assets.extra" / "sample_request.json").write_text(json.dumps(sample))


@pytest.fixture
def address(base: Path, open_door: Callable[..., Any]) -> str:
    return f"{open_door(ModelConfig('lengths', base)).target}/lengths"


def run(*arguments: str | Path, stdin: str = "") -> Any:
    return CliRunner().invoke(app, [str(one) for one in arguments], input=stdin)


def write_csv(path: Path, texts: list[str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        writer.writerows([[n, text] for n, text in enumerate(texts)])
    return path


@pytest.mark.parametrize("where", ["loaded", "served"])
def test_texts_are_predicted_alike_here_and_by_a_server(
    base: Path, address: str, where: str
) -> None:
    target = address if where == "served" else base
    found = Predictor(target).predict(["a", "bcd"])
    assert [(one.label, one.score, one.scores) for one in found] == [
        ("1", 1.0, [0.0, 1.0]),
        ("3", 1.0, [0.0, 1.0]),
    ]
    done = run("predict", target, "--text", "four")
    assert done.exit_code == 0 and "four" in done.stdout and "1.0000" in done.stdout
    assert "abcde" in run("predict", target, stdin="abcde\n").stdout
    told = json.loads(run("predict", target, "--text", "four", "--json").stdout)
    assert told == [{"text": "four", "label": "4", "score": 1.0, "scores": [0.0, 1.0]}]
    assert run("predict", target, "--text", "f|r", "--md").stdout.splitlines()[2:] == [
        "| f\\|r | 3 | 1.0000 |"
    ]


def test_a_csv_comes_back_in_its_order(tmp_path: Path, address: str) -> None:
    texts = ["x" * (n * 7 % 50) + ('"\n,' if n % 10 == 0 else "") for n in range(COUNT)]
    file = write_csv(tmp_path / "rows.csv", texts)
    out, told = io.StringIO(), []
    assert predict_csv(Predictor(address), file, ["text"], out, told.append) == COUNT
    rows = list(csv.DictReader(io.StringIO(out.getvalue(), newline="")))
    assert [row["id"] for row in rows] == [str(n) for n in range(COUNT)]
    assert [row["text"] for row in rows] == texts
    assert [int(row["predicted"]) for row in rows] == [len(text) for text in texts]
    assert sum(told) == COUNT and len(told) > 5


def test_the_command_writes_a_file_and_never_over_one(tmp_path: Path, address: str) -> None:
    file, out = write_csv(tmp_path / "rows.csv", ["a", "bb"]), tmp_path / "out.csv"
    done = run("predict", address, "--csv", file, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert out.read_text().splitlines() == ["id,text,predicted,score", "0,a,1,1", "1,bb,2,1"]
    refused = run("predict", address, "--csv", file, "--json")
    assert refused.exit_code == 2 and "--csv writes a CSV" in refused.stderr
    done = run("predict", address, "--csv", file, "-o", out)
    assert done.exit_code == 2 and "exists already" in done.stderr.replace("\n", " ")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("id,review\n1,a\n", "has no column text; it has id, review"),
        ("id,text\n1,a\n2,b,c\n", r"rows.csv:3: 3 values found, 2 expected"),
        ('id,text\n1,"a\n', "is no CSV"),
        ("", "has no column text; it has none"),
    ],
)
def test_a_csv_that_is_wrong_is_named_with_its_line(
    tmp_path: Path, base: Path, content: str, words: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(content)
    out = io.StringIO()
    with pytest.raises(DataError, match=words):
        predict_csv(Predictor(base), file, ["text"], out)
    if "3 values" in words:  # the good row before it is not lost
        assert out.getvalue().splitlines()[-1] == "1,a,1,1"


def test_what_a_predictor_cannot_use_is_said(base: Path, address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="takes x and gives y, so it is not a model that Espal"):
        Predictor(base.parent / "other")
    with pytest.raises(ConfigError, match="no pushed version here"):
        Predictor(tmp_path)
    with pytest.raises(ConfigError, match="takes text: name a column for each"):
        predict_csv(Predictor(base), tmp_path / "x.csv", ["a", "b"], io.StringIO())
    with pytest.raises(ServerError, match="Servable not found"):
        Predictor(address.replace("/lengths", "/nobody"))


@pytest.mark.parametrize(
    ("target", "parts"),
    [
        ("localhost:8500/reviews", ("localhost:8500", "reviews")),
        ("dns:///reviews.svc:8500/reviews", ("dns:///reviews.svc:8500", "reviews")),
        ("unix:/run/socket/reviews", ("unix:/run/socket", "reviews")),
        ("[::1]:8500/reviews", ("[::1]:8500", "reviews")),
        ("models/reviews", None),
        ("models", None),
    ],
)
def test_an_address_is_told_from_a_folder(target: str, parts: Any) -> None:
    assert parse_address(target) == parts


def test_smoke_compares_the_answer_with_the_samples(base: Path, address: str) -> None:
    done = run("smoke", address, base)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("alike") == 2
    told = json.loads(run("smoke", address, base, "--json").stdout)
    assert [(one["output"], one["alike"]) for one in told] == [("label", True), ("scores", True)]
    write_sample(base / "7", "4")
    done = run("smoke", address, base)
    assert done.exit_code == 5 and '["4"]' in done.stdout and "differs" in done.stdout
    (base / "7" / "assets.extra" / "sample_request.json").unlink()
    done = run("smoke", address, base)
    assert done.exit_code == 2 and "no readable sample" in done.stderr.replace("\n", " ")
