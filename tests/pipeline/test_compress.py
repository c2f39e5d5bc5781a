"""The commands on a pushed version: what they refuse, and in which words; tables and pictures."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from espalier.errors import ConfigError, DataError
from espalier.pipeline import charts
from espalier.pipeline import compress as work
from espalier.pipeline.cli import app
from espalier.pipeline.compress import Sensitivity, open_trained, write_recipe
from espalier.pipeline.config import load_section
from espalier.pipeline.raw_rows import find_rows
from espalier.trainer.compression.measure import Figures
from espalier.trainer.compression.search import Found, Point
from espalier.trainer.compression.settings import Compress

FACTS: dict[str, Any] = {
    "labels": ["bad", "good"],
    "inputs": ["text"],
    "label_column": "label",
    "kind": "text",
    "multi_label": False,
    "model": {"family": "bert"},
    "learned": {},
    "graph": {"wanted": "any", "cpu": "any", "needs": []},
}


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def write_rows(file: Path, labels: tuple[str, ...] = ("good", "bad"), head: str = "text") -> Path:
    lines = [f"the film was {n} words long,{labels[n % len(labels)]}" for n in range(40)]
    return write(file, "\n".join([f"{head},label", *lines]) + "\n")


def make_version(folder: Path, **facts: Any) -> Path:
    """What is looked at before a version is loaded."""
    write(folder / "saved_model.pb", "")
    write(folder / "assets.extra" / "espalier.json", json.dumps({**FACTS, **facts}))
    return folder


# --- recipes ------------------------------------------------------------------------------------

STEPS = "steps:\n  - prune: {sparsity: 0.5}\n  - quantize: {}\n"


def test_a_recipe_is_a_file_of_its_own_or_a_section(tmp_path: Path) -> None:
    alone = load_section(write(tmp_path / "a.yaml", STEPS), "compress", Compress)
    inside = "name: x\ndata: {csv: x.csv}\ncompress:\n" + "".join(
        f"  {line}\n" for line in STEPS.splitlines()
    )
    within = load_section(write(tmp_path / "b.yaml", inside), "compress", Compress)
    assert [entry.kind for entry in alone.steps] == ["prune", "quantize"]
    assert within == alone


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "steps:\n  - quantize: {}\n  - prune: {}\n",
            r"r\.yaml:1: steps: prune comes after quantize and would undo it; the order is",
        ),
        ("steps:\n  - prune: {sparcity: 0.5}\n", r"r\.yaml:2: steps\.0\.prune\.sparcity: .*mean "),
        (
            "name: x\ndata: {csv: a}\ncompress:\n  steps:\n    - prune: {sparsity: 2}\n",
            r"r\.yaml:5: compress\.steps\.0\.prune\.sparsity: should be less than 1; found 2",
        ),
        ("step: []\n", r"r\.yaml:1: step: unknown key 'step'; did you mean steps\?"),
        ("name: x\ndata: {csv: a}\n", r"r\.yaml: a configuration without `compress:`"),
        ("name: x\ncompress: null\n", r"r\.yaml: a configuration without `compress:`"),
        ("- prune\n", r"r\.yaml: expected `key: value` lines"),
    ],
)
def test_a_bad_recipe_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_section(write(tmp_path / "r.yaml", text), "compress", Compress)


def test_the_wrong_order_in_a_configuration_has_its_line(tmp_path: Path) -> None:
    text = "name: x\ncompress:\n  steps:\n  - cluster: {}\n  - distill: {layers: 1}\n"
    with pytest.raises(ConfigError, match=r"r\.yaml:3: compress\.steps: distill comes after cl"):
        load_section(write(tmp_path / "r.yaml", text), "compress", Compress)


# --- versions -----------------------------------------------------------------------------------


def test_a_compressed_version_is_refused(tmp_path: Path) -> None:
    make_version(tmp_path / "1", compression={"after": "quantize", "layers": None})
    with pytest.raises(ConfigError, match="this version was compressed already"):
        open_trained(tmp_path)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"kind": "sound"}, r"kind: Input should be 'text' or 'image'"),
        ({"inputs": None}, r"inputs: Input should be a valid list"),
        ({"labels": [["a"]]}, r"labels\.0: Input should be a valid string"),
    ],
)
def test_a_strange_description_is_refused(tmp_path: Path, facts: dict[str, Any], said: str) -> None:
    make_version(tmp_path / "1", **facts)
    with pytest.raises(ConfigError, match=rf"not as Espalier writes it \({said}.*another version"):
        open_trained(tmp_path)


def test_a_version_without_its_configuration_is_refused(tmp_path: Path) -> None:
    make_version(tmp_path / "1")
    with pytest.raises(ConfigError, match=r"no assets\.extra/config\.yaml.*`espalier run`"):
        open_trained(tmp_path)
    with pytest.raises(ConfigError, match="no pushed version here"):
        open_trained(tmp_path / "nothing")


# --- rows ---------------------------------------------------------------------------------------


def test_rows_are_split_by_what_is_read_of_them(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    rows = find_rows(str(write_rows(tmp_path / "a.csv")), FACTS)
    spec = {name: tf.io.FixedLenFeature([1], tf.string) for name in ("text", "label")}
    found = list(rows.read(spec))
    assert len(found) == 40
    text = "the film was 0 words long"
    assert found[0].digest == hashlib.sha256(json.dumps([text]).encode()).hexdigest()
    features = tf.train.Example.FromString(found[0].example()).features.feature
    assert features["text"].bytes_list.value[:] == [text.encode()]
    assert features["label"].bytes_list.value[:] == [b"good"]


def test_whole_numbers_stay_numbers(tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    file = write_rows(tmp_path / "a.csv", ("01", "0"))
    rows = find_rows(str(file), {**FACTS, "labels": ["0", "1"]})
    spec = {
        "text": tf.io.FixedLenFeature([1], tf.string),
        "label": tf.io.FixedLenFeature([1], tf.int64),
    }
    examples = [tf.train.Example.FromString(row.example()) for row in rows.read(spec)]
    values = {one.features.feature["label"].int64_list.value[0] for one in examples}
    assert values == {0, 1}


def test_an_unknown_column_is_named_with_its_like(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.csv", head="Text")
    with pytest.raises(DataError, match=r"a\.csv:1: no column 'text'.*Did you mean 'Text'\?"):
        find_rows(str(file), FACTS)


def test_unknown_labels_are_named_by_line(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.csv", ("good", "bad", "god", "bad"))
    with pytest.raises(DataError) as caught:
        find_rows(str(file), FACTS)
    assert "a.csv:4: the label 'god', which the model does not know" in str(caught.value)
    assert "(10 rows: lines 4, 8, 12, 16, 20, ...)" in str(caught.value)
    assert "Did you mean 'good'? Its labels are: 'bad', 'good'." in str(caught.value)


def test_pictures_are_held_against_the_models_labels(tmp_path: Path) -> None:
    for number in range(24):
        file = tmp_path / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 10 * number, np.uint8)).save(file)
    facts = {**FACTS, "kind": "image", "inputs": ["image"], "labels": ["cat", "dog"]}
    rows = list(find_rows(str(tmp_path), facts).read({}))
    assert len({row.digest for row in rows}) == 24
    assert (tmp_path / "cat" / "0.png").read_bytes() in rows[0].example()
    facts["labels"] = ["cat", "dogs"]
    with pytest.raises(DataError, match=r"12 pictures with the label 'dog'.*Did you mean 'dogs'\?"):
        find_rows(str(tmp_path), facts)


# --- tables and pictures --------------------------------------------------------------------------


def losses(*values: float) -> dict[str, dict[str, float]]:
    kinds = ("prune", "quantize")
    return {
        kind: {"accuracy_drop": value / 10, "loss_rise": value}
        for kind, value in zip(kinds, values, strict=True)
    }


SENSITIVITY = Sensitivity(
    [
        {"layer": "transformer_layer_0_query", "parameters": 1024, "steps": losses(0.1, 0.02)},
        {"layer": "logits", "parameters": 64, "steps": losses(-0.01, 0.3)},
    ],
    {"prune": "prune 0.5", "quantize": "quantize int8"},
    512,
    "reviews",
)


def text_of(table: Any) -> str:
    console = Console(width=160)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_the_costliest_layer_of_each_step_is_marked(tmp_path: Path) -> None:
    query, logits = text_of(charts.sensitivity_table(SENSITIVITY)).splitlines()[-2:]
    assert query.split() == [
        "transformer_layer_0_query", "1,024", "-0.0100", "+0.1000", "<", "-0.0020", "+0.0200",
    ]  # fmt: skip
    assert logits.split()[-3:] == ["-0.0300", "+0.3000", "<"]
    charts.sensitivity_picture(SENSITIVITY, tmp_path / "s.svg")
    assert "<svg" in (tmp_path / "s.svg").read_text(encoding="utf-8")


def found() -> Found:
    def figures(accuracy: float, gzipped: int) -> Figures:
        times = {size: {"median": 2.0, "p99": 3.0} for size in ("1", "32")}
        return Figures(50, accuracy, accuracy, 1.0, 9, 9, gzipped, gzipped, times, 0, {})

    trained, points = figures(0.9, 4_000_000), [("int8", 0.9, 1_000_000), ("other", 0.8, 2_000_000)]
    measured = [Point(n, 1.0, figures(a, g), trained, float(n == "other")) for n, a, g in points]
    best = Compress.model_validate({"steps": [{"quantize": {}}], "budget": {"size": "3x"}})
    return Found(measured, ["int8"], best, {})


def test_the_front_is_shown(tmp_path: Path) -> None:
    lines = text_of(charts.recipes_table(found())).splitlines()
    assert lines[-2].split() == [
        "1", "int8", "100%", "0.9000", "1.00", "(4.0x)", "2.00", "(1.0x)", "kept", "yes",
    ]  # fmt: skip
    assert lines[-1].split()[-1] == "over"
    charts.recipes_picture(found(), "reviews", tmp_path / "r.png")
    with Image.open(tmp_path / "r.png") as picture:
        assert picture.width > 1000


def test_sensitivity_and_recipes_for_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(work, "sensitivity", lambda *given: SENSITIVITY)
    monkeypatch.setattr(work, "recipes", lambda *given: found())
    done = CliRunner().invoke(app, ["sensitivity", "m", "--data", "d", "--json"])
    told = json.loads(done.stdout)
    assert told["layers"] == SENSITIVITY.layers and told["steps"] == SENSITIVITY.steps
    assert done.stderr.strip() == "picture: sensitivity.svg"
    done = CliRunner().invoke(app, ["recipes", "m", "--data", "d", "--json"])
    told = json.loads(done.stdout)
    assert [one["name"] for one in told["points"]] == ["int8", "other"]
    assert told["points"][0]["figures"]["gzipped"] == 1_000_000
    assert told["best"] == {"steps": [{"quantize": {}}], "budget": {"size": "3x"}}
    assert told["front"] == ["int8"] and "best recipe: best-recipe.yaml" in done.stderr
    done = CliRunner().invoke(app, ["sensitivity", "m", "--data", "d", "--md"])
    assert "| logits | 64 | +0.0010 | -0.0100 | -0.0300 | +0.3000 \\< |" in done.stdout


def test_compress_for_a_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {
        "accuracy": 0.9, "agreement": 1.0, "bytes": 4e6, "gzipped": 4e6, "tflite": {},
        "latency_ms": {size: {"median": 2.0} for size in ("1", "32")},
    }  # fmt: skip
    report = {"verdict": "Over: a [b]", "chosen": "int8", "candidates": [
        {"name": "trained", "figures": figures}, {"name": "int8", "figures": figures},
    ]}  # fmt: skip
    done = work.Compressed(report, False, Path("v"), tmp_path)
    monkeypatch.setattr(work, "compress", lambda *given: done)
    command = ["compress", "m", "--data", "d", "--recipe", "r.yaml"]
    ended = CliRunner().invoke(app, [*command, "--json"])
    assert ended.exit_code == 4
    assert json.loads(ended.stdout) == {"published": False, "version": "v", "report": report}
    lines = CliRunner().invoke(app, [*command, "--md"]).stdout.splitlines()
    assert lines[2] == "| after | accuracy | agrees | MB | gzipped | 1 row, ms | 32 rows |"
    assert lines[-3:] == ["Over: a [b]", "", "not published; the best candidate is v"]


def test_the_best_recipe_is_one_that_compress_takes(tmp_path: Path) -> None:
    write_recipe(found(), tmp_path / "best.yaml")
    read = load_section(tmp_path / "best.yaml", "compress", Compress)
    assert read == found().best
    assert (tmp_path / "best.yaml").read_text().startswith("# int8: the best of 2 recipes")
    assert YAML(typ="safe").load(tmp_path / "best.yaml")["budget"] == {"size": "3x"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sensitivity", "m", "--data", "d", "-o", "x.txt"], "cannot be drawn as .txt"),
        (["recipes", "m", "--data", "d", "-o", "taken.yaml"], "exists already; name another"),
        (["compress", "m", "--data", "d", "--recipe", "taken.yml"], "Did you mean taken.yaml?"),
    ],
)
def test_what_cannot_be_written_or_read_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "taken.yaml", STEPS)
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "taken.yaml"]
