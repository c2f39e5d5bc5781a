"""What `espalier init` proposes is a configuration that loads, and says why it is so."""

import csv
import gzip
import random
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from espalier import Config, DataError
from espalier.pipeline import image_rows, preflight
from espalier.pipeline.cli import app
from espalier.pipeline.init import propose

RNG = random.Random(0)
WORDS = [f"word{n}" for n in range(300)]


def text(words: int = 8) -> str:
    """A text that hardly repeats."""
    return " ".join(RNG.choices(WORDS, k=words))


def table(count: int = 150, **columns: Any) -> dict[str, list[Any]]:
    """Columns by name: a function makes each value, a list is repeated."""
    return {
        name: [make() if callable(make) else make[row % len(make)] for row in range(count)]
        for name, make in columns.items()
    }


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def proposed(path: Path) -> tuple[Config, str]:
    """The proposal, loaded, once its data has passed the check; and its text."""
    found = propose(path)
    file = path.parent / "job.yaml"
    file.write_text(found, encoding="utf-8")
    config = Config.load(file)
    data = config.data
    sources = preflight.find_sources(data.sources, data.format)
    preflight.input_patterns(sources)
    look = preflight.check_csv if data.format == "csv" else preflight.check_parquet
    look(sources, data.texts, data.label, config.evaluate.slices)
    return config, found


def test_a_file(tmp_path: Path) -> None:
    columns = table(
        number=lambda: RNG.random(),
        text=lambda: text(14),
        place=["de", "fr"],
        label=["a", "b", "a"],
    )
    columns["id"] = list(range(150))
    file = write(tmp_path / "My Reviews.csv", columns)
    config, found = proposed(file)
    assert config.name == "my-reviews"
    assert config.data.sources == {"all": str(file)}
    assert config.data.texts == ["text"]
    assert config.data.label == "label"
    assert config.evaluate.slices == ["place"]
    assert config.model.start == "minilm"
    assert config.model.sequence_length == 32
    assert config.push.to == "models/my-reviews"
    assert "150 rows; one source, split 8:1:1" in found
    assert "rows of a: 100, b: 50" in found
    assert "14 words in the middle, and 95 % of them 14 or fewer" in found
    assert "Always answering a reaches 0.67" in found
    assert config.evaluate.at_least == {"accuracy": 0.67}


@pytest.mark.parametrize(
    ("words", "length"), [(3, 32), (22, 32), (23, 40), (40, 56), (100, 144), (379, 512), (900, 512)]
)
def test_the_length_follows_the_texts(tmp_path: Path, words: int, length: int) -> None:
    data = table(120, text=lambda: text(words), label=["a", "b"])
    config, found = proposed(write(tmp_path / "a.csv", data))
    assert config.model.sequence_length == length
    assert ("longer rows are cut" in found) == (words == 900)


# Columns, and which of them are chosen: text, label, slices.
COLUMNS: dict[str, tuple[dict[str, Any], str | list[str], str, list[str]]] = {
    "by the label's name": (
        {"a": ["x", "y"], "sentiment": ["p", "n", "o"], "words": text}, "words", "sentiment", ["a"],
    ),
    "the only class": ({"t": text, "c": ["x", "y"]}, "t", "c", []),
    "a name that holds the word": (
        {"t": text, "gold_label": ["x", "y"], "b": ["u", "v"]}, "t", "gold_label", ["b"],
    ),
    "the longest text": (
        {"title": lambda: text(3), "body": lambda: text(30), "label": [0, 1]}, "body", "label", [],
    ),
    "a pair by its names": (
        {"premise": text, "hypothesis": text, "label": [0, 1, 2]},
        ["premise", "hypothesis"], "label", [],
    ),
    "names that YAML would misread": (
        {"the text": text, "yes": ["u", "v"], "y": ["1", "2"]}, "the text", "y", ["yes"],
    ),
    "names with YAML's own marks": (
        {"a: b # c": text, "{label}": ["x", "y"], "- d": ["u", "v"]},
        "a: b # c", "{label}", ["- d"],
    ),
    "other scripts": (
        {"текст": text, "label": ["ja", "nein"], "größe": ["k", "m"]}, "текст", "label", ["größe"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("columns", "texts", "label", "slices"), COLUMNS.values(), ids=COLUMNS)
def test_columns(
    tmp_path: Path,
    columns: dict[str, Any],
    texts: str | list[str],
    label: str,
    slices: list[str],
) -> None:
    config, _ = proposed(write(tmp_path / "a.csv", table(**columns)))
    assert config.data.text == texts
    assert config.data.label == label
    assert config.evaluate.slices == slices


LABELS: dict[str, list[str]] = {
    "YAML's marks": ["a: b", "# c", "{d", '"e'],
    "control characters": ["a\x07", "b"],
    "other scripts": ["да", "нет"],
}


@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_labels_do_not_break_the_comments(tmp_path: Path, labels: Sequence[str]) -> None:
    config, _ = proposed(write(tmp_path / "a.csv", table(text=text, label=labels)))
    assert config.data.label == "label"


def test_many_slices_are_not_all_taken(tmp_path: Path) -> None:
    columns = {f"c{n}": ["u", "v"] for n in range(6)}
    data = table(text=text, label=["x", "y"], town=[f"t{n}" for n in range(50)], **columns)
    config, _ = proposed(write(tmp_path / "a.csv", data))
    assert config.evaluate.slices == ["c0", "c1", "c2"]


def test_rare_labels_change_the_metrics_and_the_weights(tmp_path: Path) -> None:
    data = table(200, text=text, spam=[1, *[0] * 19])
    config, found = proposed(write(tmp_path / "a.csv", data))
    assert config.train.class_weight == "balanced"
    assert config.evaluate.metrics[0] == "f1"
    assert "19 times the rows of the rarest" in found


# Files by name with their rows; the mapping that is proposed.
FOLDERS: dict[str, tuple[dict[str, int], dict[str, str]]] = {
    "one file": ({"reviews.csv": 100, ".hidden.csv": 5, "notes.txt": 5}, {"all": ""}),
    "several files": ({"a.csv": 100, "b.csv": 100}, {"all": ""}),
    "three splits": (
        {"train.csv": 100, "validation.csv": 30, "test.csv": 30},
        {"train": "train.csv", "eval": "validation.csv", "test": "test.csv"},
    ),
    "dev for eval": (
        {"x-train.csv": 100, "x-dev.csv": 30},
        {"train": "x-train.csv", "eval": "x-dev.csv"},
    ),
    "no eval": (
        {"train.csv": 100, "test.csv": 30},
        {"train": "train.csv", "eval": "test.csv"},
    ),
    "shards": (
        {"train-1.csv": 100, "train-2.csv": 100, "eval.csv": 30},
        {"train": "train-*.csv", "eval": "eval.csv"},
    ),
    "folders": (
        {"train/a.csv": 100, "train/b.csv": 100, "valid/a.csv": 30},
        {"train": "train", "eval": "valid"},
    ),
    "upper case": ({"TRAIN.CSV": 100, "TEST.CSV": 30}, {"train": "TRAIN.CSV", "eval": "TEST.CSV"}),
}


@pytest.mark.parametrize(("files", "expected"), FOLDERS.values(), ids=FOLDERS)
def test_folders(tmp_path: Path, files: dict[str, int], expected: dict[str, str]) -> None:
    folder = tmp_path / "some-data"
    for name, count in files.items():
        write(folder / name, table(count, text=text, label=["a", "b"]))
    config, found = proposed(folder)
    assert config.name == "some-data"
    assert config.data.sources == {
        split: str(folder / name) if name else str(folder) for split, name in expected.items()
    }
    assert ("their score flatters" in found) == (expected.get("eval", "").lower() == "test.csv")


def test_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = pa.table(table(text=text, label=[0, 1], place=["u", "v"], price=[1.5, 2.5]))
    for name in ("a.parquet", "b.pq"):
        folder = tmp_path / name[0]
        folder.mkdir()
        pq.write_table(data, folder / name)
        for path in (folder, folder / name):
            config, _ = proposed(path)
            assert config.data.parquet == str(path)
            assert config.data.label == "label"
            assert config.evaluate.slices == ["place"]


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        propose(path)
    return str(caught.value)


UNDECIDED: dict[str, tuple[dict[str, Any], Iterable[str]]] = {
    "two classes": (
        {"t": text, "a": ["x", "y"], "b": ["u", "v", "w"]},
        (
            "more than one column could be the label",
            "'t': strings, 8 words on average, ",
            "'a': strings, 1 words on average, 2 different ('x', 'y')",
            "'b': strings, 1 words on average, 3 different ('u', 'v', 'w')",
        ),
    ),
    "no text": (
        {"x": range(150), "y": [0.5, 1.5]},
        ("no column looks like the text", "'x': whole numbers, ", "'y': numbers, 2"),
    ),
    "no label": (
        {"t": text, "x": range(150), "void": [""]},
        ("no column looks like a label", "'void': empty, 0 different (), 150 empty"),
    ),
}


@pytest.mark.parametrize(("columns", "expected"), UNDECIDED.values(), ids=UNDECIDED)
def test_what_cannot_be_told_is_listed(
    tmp_path: Path, columns: dict[str, Any], expected: Iterable[str]
) -> None:
    message = refusal(write(tmp_path / "a.csv", table(**columns)))
    for fragment in (*expected, "a.csv: ", "data.text and data.label"):
        assert fragment in message


def test_faults_in_the_data_are_told_as_before_a_run(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    rows = b"".join(b"%s,%d\n" % (text().encode(), n % 2) for n in range(30))
    file.write_bytes(b"text,label\n" + rows + b"caf\xe9,1\n")
    assert f"{file}:32: not UTF-8" in refusal(file)
    file.write_bytes(b"text,label\n" + rows + b",1\n")
    assert f"{file}:32: empty text in column 'text'" in refusal(file)
    file.write_bytes(b"")
    assert f"{file}: the file is empty" in refusal(file)
    file.write_bytes(b"text,label\n")
    assert f"{file}: " in refusal(file)
    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no file named *.csv" in refusal(empty)


# --- pictures -------------------------------------------------------------------------------


def draw(folder: Path, names: Iterable[str], *shape: int, step: int = 0) -> Path:
    """Pictures, no two alike."""
    random = np.random.default_rng(step)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, shape, dtype=np.uint8)).save(folder / name)
    return folder


def proposed_images(path: Path) -> tuple[Config, str]:
    """The proposal, loaded, once its pictures have passed the check; and its text."""
    found = propose(path)
    file = path.parent / "job.yaml"
    file.write_text(found, encoding="utf-8")
    config = Config.load(file)
    data = config.data
    image_rows.check_images(
        data.sources,
        label=data.label or "label",
        multi_label=data.multi_label,
        on_bad_image=data.on_bad_image,
    )
    return config, found


def test_class_folders_of_small_grey_pictures(tmp_path: Path) -> None:
    names = [f"{digit}/{n}.png" for digit in range(3) for n in range(20)]
    folder = draw(tmp_path / "Digits", names, 8, 9)
    config, found = proposed_images(folder)
    assert config.name == "digits"
    assert config.data.sources == {"all": str(folder)}
    assert (config.model.family, config.model.start) == ("resnet", "resnet20")
    assert (config.model.size, config.model.color) == (8, "grey")
    assert (config.train.optimizer, config.train.decay) == ("sgd", "cosine")
    assert config.train.learning_rate == 0.1
    assert config.train.augment.flip and config.train.augment.crop == 0.125
    assert config.evaluate.metrics == ["accuracy", "f1"]
    assert config.evaluate.at_least == {"accuracy": 0.34}
    assert "60 pictures; split 8:1:1 by a hash of each picture's content" in found
    assert "Pictures of 0: 20, 1: 20, 2: 20." in found
    assert "Always answering 0 reaches 0.33" in found


def test_split_folders_of_large_pictures_some_of_them_bad(tmp_path: Path) -> None:
    names = [f"{split}/{n % 7 // 6}/{n}.jpg" for split in ("train", "val") for n in range(70)]
    folder = draw(tmp_path / "x-rays", names, 90, 99, 3)
    (folder / "train" / "0" / "bad.jpg").write_text("no picture")
    config, found = proposed_images(folder)
    assert config.data.sources == {"all": str(folder)}
    assert config.data.on_bad_image == "skip"
    assert (config.model.start, config.model.weights, config.model.size) == (
        "resnet50",
        "imagenet",
        224,
    )
    assert config.model.color == "rgb"
    assert config.train.class_weight == "balanced"
    assert config.evaluate.metrics == ["f1", "accuracy"]
    assert "70 + 70 pictures; separate, by their names; none for test" in found
    assert "1 cannot be used; `fail` names them" in found
    assert "the pictures are 99 x 90 pixels" in found


def test_idx_files(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = random.integers(0, 255, (40, 28, 28), dtype=np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", images[:, 0, 0] % 2)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            folder = tmp_path / "fashion"
            folder.mkdir(exist_ok=True)
            file = folder / f"{split}-{kind}-ubyte.gz"
            file.write_bytes(gzip.compress(head + array.tobytes(), 1))
    config, found = proposed_images(tmp_path / "fashion")
    assert (config.model.start, config.model.size, config.model.color) == ("resnet20", 28, "grey")
    assert "40 + 40 pictures; separate, by their names; a tenth of train is eval" in found


def test_tables_of_pictures(tmp_path: Path) -> None:
    draw(tmp_path, [f"p/{n}.png" for n in range(40)], 40, 40, 3)
    rows = {
        "path": [f"p/{n}.png" for n in range(40)],
        "age": [20 + n % 30 for n in range(40)],
        "findings": [("", "a", "a|b", "b")[n % 4] for n in range(40)],
    }
    file = write(tmp_path / "scans.csv", rows)
    config, found = proposed_images(file)
    assert config.data.sources == {"all": str(file)}
    assert (config.data.label, config.data.multi_label) == ("findings", True)
    assert config.evaluate.metrics == ["auc", "f1"]
    assert config.train.class_weight == "none"
    assert "cells of the label's column hold a |" in found

    folder = tmp_path / "one label"
    draw(folder, rows["path"], 40, 40, 3, step=1)
    write(folder / "labels.csv", {"path": rows["path"], "kind": ["x", "y"] * 20})
    config, _ = proposed_images(folder)
    assert config.data.sources == {"all": str(folder / "labels.csv")}
    assert (config.data.label, config.data.multi_label) == ("kind", False)


def test_faults_in_pictures_are_told_as_before_a_run(tmp_path: Path) -> None:
    draw(tmp_path / "wrap", [f"images/{n % 2}/{n}.png" for n in range(40)], 8, 8)
    assert f"Did you mean {tmp_path}/wrap/images?" in refusal(tmp_path / "wrap")
    draw(tmp_path / "flat", ["1.png"], 8, 8)
    assert "1 picture without a class folder" in refusal(tmp_path / "flat")


def test_a_proposal_that_cannot_be_written_whole_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same command would find a file in its way once there is room."""
    output = tmp_path / "job.yaml"
    rows = "".join(f"some words {n},{'yes' if n % 2 else 'no'}\n" for n in range(50))
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}")
    command = ["init", str(tmp_path / "data.csv"), "-o", str(output)]
    real = Path.open

    def full(path: Path, *args: Any, **options: Any) -> Any:
        if path != output:
            return real(path, *args, **options)
        real(path, "x").close()
        return real(Path("/dev/full"), "w")

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        done = CliRunner().invoke(app, command)
    assert done.exit_code == 2 and "No space left on device" in done.output
    assert not output.exists()
    assert CliRunner().invoke(app, command).exit_code == 0
