"""`espalier check`: every fault at once, what is odd in the rows, and what a run will take."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from espalier import Config
from espalier.pipeline.check import Check, _all_trainings, check
from espalier.pipeline.cli import app
from espalier.trainer import trial

YAML = """\
version: 2
name: looked-at
data: {{csv: {folder}/rows.csv, text: text, label: label}}
model: {{family: bert, start: tiny, sequence_length: 16}}
train: {{epochs: 2, batch_size: 16}}
push: {{to: {folder}/models}}
runs: {folder}/runs
"""
GOOD = [f"text number {n},{('yes', 'no')[n % 2]},{n}" for n in range(200)]


def write(folder: Path, rows: list[str], yaml: str = YAML) -> Path:
    (folder / "rows.csv").write_text("\n".join(["text,label,id", *rows]) + "\n", encoding="utf-8")
    file = folder / "job.yaml"
    file.write_text(yaml.format(folder=folder), encoding="utf-8")
    return file


def look(folder: Path, rows: list[str], *overrides: str) -> Check:
    return check(write(folder, rows), overrides, trial=False)


def test_sound_data(tmp_path: Path) -> None:
    found = look(tmp_path, GOOD, "data.split={by: label}")
    assert (found.faults, found.warnings, found.exit_code) == ([], [], 0)
    assert found.rows == {"train": 160, "eval": 20, "test": 20}
    assert found.labels["eval"] == {"yes": 10, "no": 10}
    assert found.words[50] == 3
    assert (found.duplicates, found.conflicts, found.leaks, found.cut) == (0, 0, {}, 0.0)
    assert [Path(place.path).name for place in found.places] == ["looked-at", "models"]
    assert all(place.free > place.needed > 0 for place in found.places)
    assert not (tmp_path / "runs").exists()


def test_every_fault_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = write(tmp_path, [*GOOD, ",yes,1", "a,,2"])
    overrides = [
        f"runs={tmp_path}/file/runs",
        f"data.schema={tmp_path}/none.pbtxt",
        f"model.start={tmp_path}/no-checkpoint",
        "compress={steps: [{prune: {}}]}",
    ]
    found = check(file, overrides)
    assert found.exit_code == 2
    assert found.estimate is None
    said = "\n".join(found.faults)
    for words in (
        "data.schema: ",
        "no-checkpoint",
        "rows.csv:202: empty text",
        "rows.csv:203: empty label",
        "file is a file, and a folder is needed there",
    ):
        assert said.count(words) == 1, words
    assert len(found.faults) == 5
    assert "compress: zeros and clusters" in found.warnings[0]


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    found = check(write(tmp_path, GOOD, YAML + "trian: {{}}\n"), ["model.sequence_length=few"])
    assert len(found.faults) == 2
    assert "job.yaml:8: trian: unknown key 'trian'; did you mean train?" in found.faults[1]
    assert check(tmp_path / "none.yaml").exit_code == 2


def test_copies_conflicts_and_leaks(tmp_path: Path) -> None:
    parts = {
        "train": ["one,yes,1", "two,no,2", "two,no,3", "three,yes,4", "three,no,5", "four,yes,6"],
        "eval": ["one,yes,7", "new,no,8", "four,no,9"],
        "test": ["one,no,10", "new,yes,11", "other,no,12"],
    }
    for split, rows in parts.items():
        extra = [f"{split} filler {n},{('yes', 'no')[n % 2]},{n}" for n in range(40)]
        text = "\n".join(["text,label,id", *rows, *extra])
        (tmp_path / f"{split}.csv").write_text(text + "\n")
    files = ", ".join(f"{split}: {tmp_path}/{split}.csv" for split in parts)
    found = look(tmp_path, [], f"data.csv={{{files}}}")
    assert found.rows == {"train": 46, "eval": 43, "test": 43}
    assert found.duplicates == 2  # `two` in train, `one` in train and eval
    assert found.conflicts == 2 + 2 + 3 + 2  # three, four, one, new
    assert found.leaks == {"train and eval": 2, "train and test": 1, "eval and test": 2}
    said = "\n".join(found.warnings)
    place = str(tmp_path)
    assert f"2 rows with the text and the label of another: {place}/train.csv:2 and " in said
    assert f"9 rows with the text of another and not its label: {place}/train.csv:" in said
    assert (
        "2 rows in both train and eval, 1 row in both train and test, 2 rows in both eval and test "
        f"({place}/train.csv:2 and {place}/eval.csv:2)" in said
    )
    assert "Take the copies out." in said


def test_copies_in_one_source_can_be_kept_together(tmp_path: Path) -> None:
    rows = [f"text {n % 100},{('yes', 'no')[n % 2]},{n}" for n in range(400)]
    apart = look(tmp_path, rows)
    assert apart.duplicates == 300
    assert apart.leaks["train and test"] > 0
    assert any("data.split: {group: text}" in one for one in apart.warnings)
    assert look(tmp_path, rows, "data.split={group: text}").leaks == {}


def test_rows_that_a_sample_leaves_out_do_not_count(tmp_path: Path) -> None:
    rows = [f"text {n % 300},{('yes', 'no')[n % 2]},{n}" for n in range(600)]
    found = look(tmp_path, rows, "data.sample=100")
    assert sum(found.rows.values()) == 100
    assert found.duplicates < 40
    assert look(tmp_path, rows).duplicates == 300


def test_long_texts_and_rare_labels(tmp_path: Path) -> None:
    rows = [
        f"{'word ' * (20 if n < 30 else 5)}{n},{'no' if n % 20 else 'yes'},{n}" for n in range(300)
    ]
    found = look(tmp_path, rows, "data.split={by: label}")
    assert found.cut == pytest.approx(0.1)
    cut, rare = found.warnings
    assert "sequence_length is 16 tokens, and 5 % of the rows have 21 words or more" in cut
    assert "train has 227 rows of 'no' and 11 of 'yes'" in rare
    balanced = look(tmp_path, rows, "data.split={by: label}", "train.class_weight=balanced")
    assert not any("train has" in one for one in balanced.warnings)


def test_pictures(tmp_path: Path) -> None:
    from PIL import Image

    rng = random.Random(0)
    for label in ("cat", "dog"):
        (tmp_path / "p" / label).mkdir(parents=True)
        for n in range(60):
            image = Image.new("RGB", (4, 4), tuple(rng.randrange(256) for _ in range(3)))
            image.save(tmp_path / f"p/{label}/{n}.png")
    for n in (1, 2):
        shutil.copy(tmp_path / "p/cat/0.png", tmp_path / f"p/cat/copy{n}.png")
    shutil.copy(tmp_path / "p/dog/0.png", tmp_path / "p/cat/dog.png")
    file = tmp_path / "job.yaml"
    file.write_text(
        f"name: p\ndata: {{images: {tmp_path}/p}}\npush: {{to: {tmp_path}/m}}\n"
        f"model: {{family: resnet, start: resnet20}}\nruns: {tmp_path}/runs\n"
    )
    found = check(file, trial=False)
    assert found.faults == []
    assert sum(found.rows.values()) == 123
    assert (found.duplicates, found.conflicts, found.leaks) == (2, 2, {})
    assert any("p/cat/0.png and " in one for one in found.warnings)


# --- the command --------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    file = str(write(tmp_path, GOOD))
    done = CliRunner().invoke(app, ["check", file, "--no-trial", "--set", "data.sample=150"])
    assert done.exit_code == 0, done.output
    for words in ("split", "train", "yes", "words", "copies", "disk", "It can run."):
        assert words in done.output
    assert "time" not in done.output
    done = CliRunner().invoke(
        app, ["check", file, "--json", "--no-trial", "--set", "model.start=x"]
    )
    assert done.exit_code == 2
    answer = json.loads(done.stdout)
    assert answer["rows"]["train"] > 100
    assert len(answer["faults"]) == 1


def test_it_imports_no_tensorflow(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from espalier.pipeline.check import check;"
        f"assert check({str(write(tmp_path, GOOD))!r}, trial=False).rows;"
        "sys.exit(', '.join({'tensorflow', 'tfx', 'apache_beam'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- the trial ----------------------------------------------------------------------------------


def test_the_estimate(tmp_path: Path, small_bert: Path) -> None:
    found = check(write(tmp_path, GOOD), [f"model.start={small_bert}"])
    assert found.faults == []
    assert found.estimate is not None
    assert found.estimate.steps == 2 * -(-found.rows["train"] // 16)
    assert 0 < found.estimate.step < found.estimate.training < found.estimate.run


def test_a_search_and_time_limits_count(tmp_path: Path) -> None:
    def seconds(*changes: str) -> float:
        return _all_trainings(Config.load(write(tmp_path, GOOD), changes), 600)

    search = "tune={trials: 5, over: {train.learning_rate: {from: 1e-5, to: 1e-3}}"
    assert seconds() == 600
    assert seconds("train.time_limit=2") == 120
    assert seconds(search + "}") == 6 * 600
    assert seconds(search + ", time_limit: 10}") == 2 * 600


@pytest.mark.parametrize(
    ("model", "pair", "classes"),
    [
        ({"family": "bert", "start": "tiny", "sequence_length": 16}, True, 3),
        ({"family": "resnet", "start": "resnet20", "size": 16, "color": "grey"}, False, 10),
        ({"family": "inception", "start": "inceptionv3", "size": 75}, False, 2),
    ],
    ids=["a pair of texts, no checkpoint", "pictures normalised by the data", "inception"],
)
def test_each_family_can_be_tried(model: dict[str, Any], pair: bool, classes: int) -> None:
    model.pop("start") if model["family"] == "inception" else None
    train = {"batch_size": 4, "precision": "float32", "freeze": "all"}
    found = trial.measure(
        model, train, classes=classes, pair=pair, length=8, multi_label=pair is False
    )
    assert found["first"] > 0
    assert found["step"] > 0


def test_a_trial_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path, GOOD)
    monkeypatch.setattr("espalier.pipeline.check._TRIAL", "espalier.trainer.no_such_module")
    found = check(file)
    assert found.exit_code == 2
    assert "a trial step of training failed: " in found.faults[0]
    assert "no_such_module" in found.faults[0]
