"""Pictures through the whole line: folders of classes, and a CSV with several labels a row."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn import metrics as sklearn_metrics

from espalier import Config, ConfigError, DataError, Predictor, RunResult, run
from espalier.pipeline.explain import explain
from espalier.trainer.explain import TOLERANCE

SIDE = 20
CLASSES = {"bars": 0, "checks": 1, "dots": 2}
CLIENT = """
import json, sys
import tensorflow as tf
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
files = [open(name, "rb").read() for name in sys.argv[2:]]
labels = serve(image_bytes=tf.constant(files))["label"].numpy().tolist()
print(json.dumps([label.decode() for label in labels]))
try:
    serve(image_bytes=tf.constant([b"no picture"]))
except tf.errors.InvalidArgumentError:
    print("INVALID_ARGUMENT")
assert not [m for m in sys.modules if m.split(".")[0] in ("espalier", "tfx")]
"""


def pattern(name: str, rng: np.random.Generator) -> np.ndarray:
    """A noisy picture [SIDE, SIDE, 3] of one of three textures, in any two colours."""
    y, x = np.mgrid[:SIDE, :SIDE] + rng.integers(0, 4, (2, 1, 1))
    mask = {
        "bars": y // 3 % 2 == 0,
        "checks": (y // 4 + x // 4) % 2 == 0,
        "dots": (y % 5 < 2) & (x % 5 < 2),
    }[name]
    colors = rng.integers(0, 100, 3), rng.integers(150, 256, 3)
    picture = np.where(mask[..., None], *colors) + rng.normal(0, 8, (SIDE, SIDE, 3))
    return picture.clip(0, 255).astype(np.uint8)


def write_folders(root: Path, count: int = 240) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        name = list(CLASSES)[number % 3]
        file = root / name / f"{number:03}.{'png' if number % 2 else 'jpg'}"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pattern(name, rng)).save(file)


def image_config(folder: Path, **changes: Any) -> Config:
    base: dict[str, Any] = {
        "name": "textures",
        "data": {"images": f"{folder}/data"},
        "model": {"family": "resnet", "start": "resnet20", "size": 16},
        "train": {
            "epochs": 6, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.05,
            "precision": "float32", "augment": {"flip": True, "crop": 0.1},
        },
        "export": {"cpu": "auto"},
        "evaluate": {"metrics": ["accuracy", "f1", "auc"], "at_least": {"accuracy": 0.6}},
        "push": {"to": f"{folder}/models"},
        "runs": f"{folder}/runs",
    }  # fmt: skip
    return Config(**{**base, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("textures")
    write_folders(folder / "data")
    (folder / "data" / "bars" / "torn.png").write_bytes(
        (folder / "data" / "bars" / "003.png").read_bytes()[:200]
    )
    return folder


COMPRESS = {
    "steps": [
        {"prune": {"sparsity": 0.5, "epochs": 2}},
        {"cluster": {"clusters": 32}},
        {"quantize": {"how": "full"}},
    ],
    # The weights are four times smaller; of so small a model the graph is half.
    "budget": {"size": "1.5x", "gzipped": "3x"},
}


@pytest.fixture(scope="module")
def textures(folder: Path) -> RunResult:
    skipping = {"images": f"{folder}/data", "on_bad_image": "skip"}
    return run(image_config(folder, data=skipping, compress=COMPRESS))


def rows_of(home: Path, split: str) -> list[Any]:
    """The features of a split's Examples."""
    files = sorted(map(str, home.glob(f"artifacts/ExampleGen/examples/*/Split-{split}/*")))
    records = tf.data.TFRecordDataset(files, "GZIP")
    return [tf.train.Example.FromString(r).features.feature for r in records.as_numpy_iterator()]


def test_a_bad_picture_stops_the_run_and_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"torn\.png") as caught:
        run(image_config(folder))
    assert "cut short" in str(caught.value) and "on_bad_image" in str(caught.value)


def test_folders_end_in_a_pushed_model(textures: RunResult) -> None:
    assert textures.status == "pushed", textures.verdict
    assert sum(textures.rows.values()) == 240
    assert textures.skipped == 1
    assert textures.metrics["overall"]["rows"] == textures.rows["test"]
    assert {prediction["label"] for prediction in textures.predictions} <= set(CLASSES)


def test_pixels_add_up_to_the_score(folder: Path, textures: RunResult) -> None:
    picture = folder / "data" / "dots" / "002.jpg"
    found = explain(str(textures.pushed), image=picture).found
    (served,) = Predictor(str(textures.pushed)).predict([picture])
    assert found.label == served.label
    assert found.score == pytest.approx(served.score, abs=0.02)  # served in bfloat16, maybe
    assert found.parts.shape == (16, 16) and found.gap <= TOLERANCE
    assert found.pixels is not None and found.pixels.shape == (16, 16, 3)


def test_a_recipe_makes_resnet_small(textures: RunResult) -> None:
    report = textures.compression
    assert report is not None and report["chosen"] == "quantize", report
    last = report["candidates"][-1]
    for layer in last["layers"]:
        assert layer["format"] == "int8"
        if layer["layer"] not in ("stem_conv", "logits"):
            assert layer["values"] <= 32 and layer["zeros"] >= 0.48, layer
    trained = report["candidates"][0]["figures"]
    assert trained["gzipped"] > 3 * last["figures"]["gzipped"]
    assert last["figures"]["tflite"]["agreement"] > 0.7
    assert (Path(str(textures.pushed)) / "model.tflite").exists()


def test_means_over_classes_are_what_scikit_learn_computes(
    textures: RunResult, folder: Path
) -> None:
    rows = rows_of(folder / "runs/textures", "test")
    truth = [row["label"].bytes_list.value[0].decode() for row in rows]
    found = Predictor(str(textures.pushed)).predict([r["image"].bytes_list.value[0] for r in rows])
    labels = [one.label for one in found]
    overall = textures.metrics["overall"]
    assert overall["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, labels))
    each = sklearn_metrics.f1_score(truth, labels, average=None, labels=list(CLASSES))
    measured = textures.metrics["labels"]
    assert [measured[name]["f1"] for name in CLASSES] == pytest.approx(each.tolist())
    assert overall["f1"] == pytest.approx(each.mean())


def test_bytes_are_stored_as_they_are(textures: RunResult, folder: Path) -> None:
    row = rows_of(folder / "runs/textures", "eval")[0]
    path = row["path"].bytes_list.value[0].decode()
    assert row["image"].bytes_list.value[0] == (folder / "data" / path).read_bytes()


def test_a_client_without_espalier_sends_files(textures: RunResult, folder: Path) -> None:
    files = [str(folder / "data/bars/000.jpg"), str(folder / "data/dots/005.png")]
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLIENT, str(textures.pushed), *files],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    labels, refusal = done.stdout.splitlines()
    assert json.loads(labels) == ["bars", "dots"]
    assert refusal == "INVALID_ARGUMENT"


def test_predict_takes_files_and_says_what_is_no_picture(
    textures: RunResult, folder: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "espalier.pipeline.cli", "predict", str(folder / "models")]
    good = str(folder / "data/checks/001.png")
    done = subprocess.run([*command, "--image", good], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "checks" in done.stdout
    (tmp_path / "text.jpg").write_text("not a picture")
    model = Predictor(str(textures.pushed))
    with pytest.raises(ConfigError, match=r"text\.jpg: not a picture .*: Unknown image file"):
        model.predict([tmp_path / "text.jpg"])
    with pytest.raises(ConfigError, match=r"gone\.png: cannot be read"):
        model.predict([tmp_path / "gone.png"])
    done = subprocess.run([*command, "--text", "words"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--image FILE" in done.stderr


def test_another_score_of_the_same_pictures_is_cached(textures: RunResult, folder: Path) -> None:
    skipping = {"images": f"{folder}/data", "on_bad_image": "skip"}
    assert run(image_config(folder, data=skipping, compress=COMPRESS)).cached


@pytest.fixture(scope="module")
def findings(folder: Path) -> RunResult:
    """A CSV of pictures that show red, green, both or neither; trained in two stages."""
    rng = np.random.default_rng(1)
    table = folder / "findings" / "findings.csv"
    table.parent.mkdir()
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        # A column called label that is not the label: slices by it must be by its values.
        writer.writerow(["path", "finding", "site", "label"])
        for number in range(200):
            labels = [name for name in ("green", "red") if rng.random() < 0.5]
            pixels = rng.integers(0, 90, (SIDE, SIDE, 3))
            for channel, name in ((0, "red"), (1, "green")):
                if name in labels:
                    y, x = rng.integers(0, SIDE - 9, 2)
                    pixels[y : y + 9, x : x + 9, channel] = 250
            Image.fromarray(pixels.astype(np.uint8)).save(table.parent / f"{number}.png")
            writer.writerow([f"{number}.png", "|".join(labels), "AB"[number % 2], "pq"[number % 2]])
        writer.writerow(["gone.png", "red", "A", "p"])
    return run(
        image_config(
            folder,
            name="findings",
            data={
                "images": str(table), "multi_label": True, "label": "finding",
                "on_bad_image": "skip",
            },
            train={
                "batch_size": 16, "optimizer": "adamw", "learning_rate": 3e-3,
                "precision": "float32", "stages": [
                    {"epochs": 1, "freeze": "all"}, {"epochs": 6, "learning_rate": 5e-3},
                ],
            },
            evaluate={
                "metrics": ["accuracy", "f1", "auc", "specificity", "loss"],
                "slices": ["site", "label"],
                "at_least": {"auc": 0.6},
            },
            push={"to": f"{folder}/findings-models"},
        )
    )  # fmt: skip


def test_labels_that_do_not_exclude_each_other(findings: RunResult, folder: Path) -> None:
    assert findings.status == "pushed", findings.verdict
    rows = rows_of(folder / "runs/findings", "test")
    names = ["green", "red"]
    truth = np.array(
        [[n.encode() in row["finding"].bytes_list.value for n in names] for row in rows]
    )
    model = Predictor(str(findings.pushed))
    found = model.predict([row["image"].bytes_list.value[0] for row in rows])
    scores = np.array([one.scores for one in found])
    for one in found:
        assert one.label == "|".join(
            n for n, score in zip(names, one.scores, strict=True) if score >= 0.5
        )
    overall, each = findings.metrics["overall"], findings.metrics["labels"]
    assert overall["accuracy"] == pytest.approx(((scores > 0.5) == truth).mean())
    for place, name in enumerate(names):
        right, said = truth[:, place], scores[:, place] > 0.5
        assert each[name]["f1"] == pytest.approx(sklearn_metrics.f1_score(right, said))
        auc = sklearn_metrics.roc_auc_score(right, scores[:, place])
        assert each[name]["auc"] == pytest.approx(auc, abs=0.02)  # TFMA's has 10,000 steps
        specificity = sklearn_metrics.recall_score(~right, ~said)
        assert each[name]["specificity"] == pytest.approx(specificity)
    assert overall["f1"] == pytest.approx(np.mean([each[name]["f1"] for name in names]))
    clipped = scores.clip(1e-7, 1 - 1e-7)
    loss = -np.where(truth, np.log(clipped), np.log(1 - clipped)).mean()
    assert overall["loss"] == pytest.approx(loss, rel=1e-3)
    assert set(findings.metrics["slices"]) == {"site=A", "site=B", "label=p", "label=q"}
    assert findings.skipped == 1


def test_each_of_several_labels_has_curves_and_mistakes(findings: RunResult, folder: Path) -> None:
    (file,) = folder.glob("runs/findings/artifacts/Evaluator/evaluation/*/closer.json")
    facts = json.loads(file.read_text())
    rows = {row["path"].bytes_list.value[0].decode(): row for row in rows_of(
        folder / "runs/findings", "test")}  # fmt: skip
    given = {path: list(row["finding"].bytes_list.value) for path, row in rows.items()}
    for name in ("green", "red"):
        counts = facts["scores"][name]
        assert sum(counts["with"]) == sum(name.encode() in labels for labels in given.values())
        assert sum(counts["with"]) + sum(counts["without"]) == len(rows)
    model, wrong = Predictor(str(findings.pushed)), {}
    for path, row in rows.items():
        (found,) = model.predict([row["image"].bytes_list.value[0]])
        sure = [
            max(score, 1 - score)
            for name, score in zip(["green", "red"], found.scores, strict=True)
            if (score >= 0.5) != (name.encode() in given[path])
        ]
        wrong |= {path: max(sure)} if sure else {}
    worst = sorted(wrong.values(), reverse=True)[:20]
    assert [one["score"] for one in facts["mistakes"]] == pytest.approx(worst, abs=1e-5)
    assert {one["text"] for one in facts["mistakes"]} <= set(wrong)
    html = Path(findings.report).read_text(encoding="utf-8")
    assert "ROC; the area below it:" in html and "image: width" in html
    assert "could not be drawn" not in html


def test_stages_train_the_head_and_then_everything(findings: RunResult, folder: Path) -> None:
    (file,) = folder.glob("runs/findings/artifacts/Trainer/model_run/*/history.json")
    assert len(json.loads(file.read_text())["epochs"]) == 7
    log = Path(findings.log).read_text()
    assert "Traceback" not in log
