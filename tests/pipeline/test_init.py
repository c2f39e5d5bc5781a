"""What `espalier init` proposes is a configuration that loads, and says why it is so."""

import csv
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, DataError
from espalier.pipeline import preflight
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
