"""Other kinds of input through the line: pairs, integer labels, Parquet, TFRecord, a schema."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from espalier import Config, DataError, Predictor, RunResult, run

THINGS = ("room", "soup")
WORDS = {0: "no", 1: "maybe", 2: "yes"}


def write_pairs(folder: Path, labels: dict[int, str]) -> None:
    """Three Parquet files of (question, answer, grade); the answer's word gives the grade."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(4)
    for split, rows in (("train", 240), ("eval", 48), ("test", 60)):
        grades = [rng.choice(sorted(labels)) for _ in range(rows)]
        columns = {
            "question": [f"is the {rng.choice(THINGS)} lovely, {split} {i}" for i in range(rows)],
            "answer": [f"{labels[grade]} {labels[grade]} the order" for grade in grades],
            "grade": grades,
        }  # fmt: skip
        pq.write_table(pa.table(columns), folder / f"{split}.parquet")


def pair_config(folder: Path, start: Path) -> Config:
    return Config(
        name="pairs",
        data={
            "parquet": {s: f"{folder}/data/{s}.parquet" for s in ("train", "eval", "test")},
            "text": ["question", "answer"],
            "label": "grade",
        },
        model={"family": "bert", "start": str(start), "sequence_length": 24},
        train={"epochs": 3, "batch_size": 16, "learning_rate": 5e-3, "precision": "float32"},
        evaluate={"metrics": ["accuracy", "f1", "auc", "loss"]},
        push={"to": f"{folder}/models"},
        runs=f"{folder}/runs",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="module")
def pairs(folder: Path, small_bert: Path) -> RunResult:
    write_pairs(folder / "data", WORDS)
    return run(pair_config(folder, small_bert))


def test_pairs_with_integer_labels_from_parquet(pairs: RunResult) -> None:
    assert pairs.status == "pushed"
    assert pairs.rows == {"train": 240, "eval": 48, "test": 60}
    assert pairs.metrics["overall"]["rows"] == 60  # the test rows, not the eval rows
    assert "no lowest value is set" in pairs.verdict
    assert set(pairs.metrics["overall"]) == {"rows", "accuracy", "f1", "auc", "loss"}
    model = Predictor(str(pairs.pushed))
    (one,) = model.predict(["is the soup lovely, 5"], ["yes yes the order"])
    assert one.label in {"0", "1", "2"}
    assert len(one.scores) == 3
    assert np.sum(one.scores) == pytest.approx(1, abs=1e-5)


def test_changed_labels_need_accept(pairs: RunResult, folder: Path, small_bert: Path) -> None:
    write_pairs(folder / "data", {0: "no", 2: "yes"})
    config = pair_config(folder, small_bert)
    refused = run(config)
    assert refused.status == "not_blessed"
    assert refused.exit_code == 4
    assert "label set changed from 0, 1, 2 to 0, 2" in refused.verdict
    assert "--accept" in refused.verdict
    accepted = run(config, accept=True)
    assert accepted.status == "pushed"
    assert int(Path(str(accepted.pushed)).name) > int(Path(str(pairs.pushed)).name)
    states = {c.name: c.state for c in accepted.components}
    assert states["Trainer"] == "cached"


def test_tfrecords_are_read(job: Any, first_run: RunResult, tmp_path: Path) -> None:
    # Given by split: all of what a hash put into train would land in train again.
    records = job.folder / "runs/small/artifacts/ExampleGen/examples/1"
    splits = {split: f"{records}/Split-{split}" for split in ("train", "eval")}
    changes = {
        "data": {"tfrecord": splits, "text": "text", "label": "label"},
        "runs": f"{tmp_path}/runs",
    }
    config = Config(**{**job.config.model_dump(by_alias=True), **changes})
    result = run(config, to_node="DataGate")
    assert result.status == "partial"
    assert result.rows == {split: first_run.rows[split] for split in ("train", "eval")}


def test_a_curated_schema_stops_drifting_data(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=100)
    schema = tmp_path / "schema.pbtxt"
    text = (
        'feature { name: "text" type: BYTES presence { min_fraction: 1.0 min_count: 1 } }\n'
        'feature { name: "category" type: BYTES domain: "category" }\n'
        'feature { name: "label" type: BYTES presence { min_fraction: 1.0 min_count: 1 } }\n'
        'string_domain { name: "category" value: "home" value: "other" }\n'
    )
    schema.write_text(text)
    config = Config.load(job.yaml, [f"data.schema={schema}"])
    assert run(config, to_node="DataGate").exit_code == 0
    schema.write_text(text.replace(' value: "other"', ""))  # under the same path
    with pytest.raises(DataError) as caught:
        run(config, to_node="DataGate")
    assert "category" in str(caught.value)
    assert "other" in str(caught.value)
    assert caught.value.exit_code == 2


def test_bad_rows_stop_before_anything_runs(
    tmp_path: Path, small_bert: Path, make_job: Callable[..., Any]
) -> None:
    job = make_job(tmp_path, small_bert, count=50)
    file = tmp_path / "data" / "reviews.csv"
    file.write_text(file.read_text() + ",home,positive\n")
    done = job.cli("run", str(job.yaml))
    assert done.returncode == 2
    assert "reviews.csv" in done.stderr
    assert "52" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("runs/**/artifacts"))
