"""The data gate: errors stop the run with a table, warnings are only reported."""

import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest
import tensorflow as tf
import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from espalier.components.data_gate import DataGate, gate
from espalier.components.data_gate.executor import Executor, read_rows
from espalier.errors import ConfigError, DataError

TRAIN = pd.DataFrame(
    {
        "text": ["cheap and good", "bad", "a bag"] * 20,
        "label": ["pos", "neg", "pos"] * 20,
        "category": ["bags", "cars", "bags"] * 20,
        "stars": [5, 1, 4] * 20,
    }
)


@pytest.fixture(scope="module")
def schema() -> schema_pb2.Schema:
    return tfdv.infer_schema(tfdv.generate_statistics_from_dataframe(TRAIN))


def gathered(schema: schema_pb2.Schema, **splits: pd.DataFrame) -> tuple[dict, dict]:
    """Statistics and anomalies by split, as StatisticsGen and ExampleValidator make them."""
    statistics = {
        split: tfdv.generate_statistics_from_dataframe(rows) for split, rows in splits.items()
    }
    anomalies = {
        split: tfdv.validate_statistics(found, schema) for split, found in statistics.items()
    }
    return statistics, anomalies


def refusal(report: gate.Report) -> str:
    with pytest.raises(DataError) as caught:
        gate.raise_if_refused(report, "label")
    return str(caught.value)


def table(message: str) -> dict[str, tuple[str, str, str]]:
    """The message's table: by feature, the split, what was found and what to do, unwrapped."""
    lines = message.splitlines()
    (ruler,) = [i for i, line in enumerate(lines) if line.startswith("---")]
    assert max(map(len, lines[ruler:])) <= 120
    spans = [match.span() for match in re.finditer("-+", lines[ruler])]
    assert lines[ruler - 1].split() == [
        "feature",
        "split",
        "what",
        "was",
        "found",
        "what",
        "to",
        "do",
    ]
    rows: list[list[str]] = []
    for line in lines[ruler + 1 :]:
        cells = [line[begin:end].strip() for begin, end in spans]
        if cells[1]:  # Only a row's first line names the split.
            rows.append(cells)
        else:
            rows[-1] = [" ".join(pair).strip() for pair in zip(rows[-1], cells, strict=True)]
    return {row[0]: (row[1], row[2], row[3]) for row in rows}


def write_examples(
    folder: Path, labels: dict[str, list], text: str = "cheap, schön"
) -> standard_artifacts.Examples:
    """Raw examples with that column, as ExampleGen writes them; None is a missing value."""
    for split, values in labels.items():
        path = folder / f"Split-{split}" / "data_tfrecord-00000-of-00001.gz"
        path.parent.mkdir(parents=True)
        with tf.io.TFRecordWriter(str(path), "GZIP") as writer:
            for value in values:
                example = tf.train.Example()
                example.features.feature["text"].bytes_list.value.append(text.encode())
                feature = example.features.feature["label"]
                if isinstance(value, int):
                    feature.int64_list.value.append(value)
                elif value is not None:
                    feature.bytes_list.value.append(value.encode())
                writer.write(example.SerializeToString())
    artifact = standard_artifacts.Examples()
    artifact.uri = str(folder)
    artifact.split_names = artifact_utils.encode_split_names(list(labels))
    return artifact


def test_labels_that_training_does_not_see_stop_the_run(tmp_path):
    examples = write_examples(
        tmp_path, {"train": ["a", "b"], "eval": ["a"], "test": ["b", "rare", "rare"]}
    )
    with pytest.raises(DataError, match=r"'rare': 2 rows in test, none in train"):
        gate.raise_if_unseen(read_rows(examples, "label")[0], "label")


def test_integer_labels_are_counted_and_a_missing_one_is_zero(tmp_path):
    examples = write_examples(tmp_path, {"train": [None, 1, 2], "test": [None]})
    labels, _ = read_rows(examples, "label")
    assert labels == {"train": {"0": 1, "1": 1, "2": 1}, "test": {"0": 1}}
    gate.raise_if_unseen(labels, "label")


# --- judging --------------------------------------------------------------------------------


def test_clean_data_passes_with_its_rows_counted(schema):
    report = gate.judge(*gathered(schema, train=TRAIN, eval=TRAIN[:9]))
    assert report == gate.Report({"train": 60, "eval": 9}, [])
    gate.raise_if_refused(report, "label")


def test_every_error_is_in_the_table_with_what_to_do(schema):
    spoilt = TRAIN.drop(columns="category").assign(stars="five", added="x")
    spoilt.loc[::3, "label"] = "positive"
    report = gate.judge(*gathered(schema, train=TRAIN, eval=spoilt))
    assert [(a.feature, a.split, a.severity) for a in report.anomalies] == [
        ("added", "eval", "ERROR"),
        ("category", "eval", "ERROR"),
        ("label", "eval", "ERROR"),
        ("stars", "eval", "ERROR"),
    ]
    message = refusal(report)
    assert "does not fit its schema: 4 errors" in message and "`data.schema`" in message
    assert table(message) == {
        "added": (
            "eval",
            "New column (column in data but not in schema)",
            "take the column out of the data, or add it to the schema",
        ),
        "category": (
            "eval",
            "Column is completely missing",
            "put the column back into the data, or take it out of the schema",
        ),
        "label (the label)": (
            "eval",
            "Examples contain values missing from the schema: positive (~33%).",
            "correct the labels; a new label needs rows in train and a place in the schema",
        ),
        "stars": (
            "eval",
            "Expected data of type: INT but got STRING",
            "correct the values, or the feature's type in the schema",
        ),
    }


def test_an_unknown_label_is_quoted(schema):
    spoilt = TRAIN.assign(label=["pos", "neg", "neutral"] * 20)
    message = refusal(gate.judge(*gathered(schema, eval=spoilt)))
    assert "1 error." in message
    _, found, todo = table(message)["label (the label)"]
    assert "neutral (~33%)" in found and "a new label needs rows in train" in todo


def test_too_few_rows_for_the_schema_is_an_error_of_the_split(schema):
    demanding = schema_pb2.Schema()
    demanding.CopyFrom(schema)
    demanding.dataset_constraints.min_examples_count = 100
    message = refusal(gate.judge(*gathered(demanding, train=TRAIN)))
    _, found, todo = table(message)[gate.DATASET]
    assert "60 examples, which is fewer than expected" in found and "give more rows" in todo


def test_drift_is_told_once_with_its_numbers(schema):
    strict = schema_pb2.Schema()
    strict.CopyFrom(schema)
    tfdv.get_feature(strict, "label").drift_comparator.infinity_norm.threshold = 0.01
    now = tfdv.generate_statistics_from_dataframe(TRAIN.assign(label="pos"))
    before = tfdv.generate_statistics_from_dataframe(TRAIN)
    anomalies = tfdv.validate_statistics(now, strict, previous_statistics=before)
    report = gate.judge({"train": now}, {"train": anomalies})
    assert len(report.anomalies) == 1
    _, found, todo = table(refusal(report))["label (the label)"]
    assert "0.333333" in found and "above the threshold 0.01" in found
    assert "raise the threshold" in todo


def test_a_measurement_over_its_threshold_is_an_error_even_alone():
    anomalies = anomalies_pb2.Anomalies()
    skew = anomalies.drift_skew_info.add()
    skew.path.step.append("category")
    skew.skew_measurements.add(type="L_INFTY", value=0.3, threshold=0.1)
    skew.skew_measurements.add(type="L_INFTY", value=0.05, threshold=0.1)
    report = gate.judge({}, {"train": anomalies})
    (found,) = report.anomalies
    assert (found.feature, found.severity, found.short) == ("category", "ERROR", "High skew")
    _, found, _ = table(refusal(report))["category"]
    assert found == "skew 0.3 (L_INFTY) is above the threshold 0.1"


def test_warnings_are_reported_and_let_pass():
    anomalies = anomalies_pb2.Anomalies()
    anomalies.anomaly_info["text"].severity = anomalies_pb2.AnomalyInfo.WARNING
    anomalies.anomaly_info["text"].short_description = "Odd"
    report = gate.judge({}, {"eval": anomalies})
    gate.raise_if_refused(report, "label")
    (warning,) = json.loads(report.to_json())["anomalies"]
    assert warning == {
        "split": "eval",
        "feature": "text",
        "severity": "WARNING",
        "short": "Odd",
        "long": "",
        "kinds": [],
    }


def test_an_empty_split_is_refused_in_one_sentence(schema):
    report = gate.judge(*gathered(schema, train=TRAIN, eval=TRAIN[:0]))
    message = refusal(report)
    assert "No rows in eval (rows: train 60, eval 0)." in message
    assert "schema" not in message, "what is missing from no rows is no news"


def test_rows_are_those_of_the_whole_split_where_slices_are_counted_too():
    statistics = tfdv.generate_statistics_from_dataframe(TRAIN)
    statistics.datasets[0].name = "All Examples"
    statistics.datasets.add(name="category_bags", num_examples=40)
    assert gate.count_rows(statistics) == 60
    del statistics.datasets[:]
    assert gate.count_rows(statistics) == 0


# --- executor and component -----------------------------------------------------------------


class Gate:
    """The executor's artifacts, made once and by hand, in the files of TFX's own components."""

    def __init__(self, folder: Path, statistics: dict, anomalies: dict) -> None:
        self.statistics = standard_artifacts.ExampleStatistics()
        self.anomalies = standard_artifacts.ExampleAnomalies()
        self.report = standard_artifacts.String()
        self.report.uri = str(folder / "report")
        for artifact, name, contents in (
            (self.statistics, "FeatureStats.pb", statistics),
            (self.anomalies, "SchemaDiff.pb", anomalies),
        ):
            artifact.uri = str(folder / name)
            artifact.split_names = artifact_utils.encode_split_names(list(contents))
            for split, content in contents.items():
                path = Path(artifact.uri, f"Split-{split}", name)
                path.parent.mkdir(parents=True)
                path.write_bytes(content.SerializeToString())

        self.examples = write_examples(folder / "examples", {"train": ["pos", "neg"]})

    def run(self) -> None:
        Executor().Do(
            {
                "examples": [self.examples],
                "statistics": [self.statistics],
                "anomalies": [self.anomalies],
            },
            {"report": [self.report]},
            {"label": "label", "texts": '["text", "stars"]'},
        )

    def reported(self) -> dict:
        return json.loads(Path(self.report.uri).read_text())


def test_executor_reports(schema, tmp_path):
    gating = Gate(tmp_path, *gathered(schema, train=TRAIN, eval=TRAIN[:9]))
    gating.run()
    report = gating.reported()
    assert report["rows"] == {"train": 60, "eval": 9} and report["anomalies"] == []
    lengths = {"rows": 2, "mean": 12, "least": 12, "most": 12, "buckets": [[10, 12.59, 2]]}
    assert report["lengths"] == {"train": {"text": lengths}}, "characters; stars are no text"


def test_executor_refuses_and_still_reports(schema, tmp_path):
    gating = Gate(tmp_path, *gathered(schema, train=TRAIN, eval=TRAIN.drop(columns="text")))
    with pytest.raises(DataError, match=r"text .* eval .* missing"):
        gating.run()
    assert [a["feature"] for a in gating.reported()["anomalies"]] == ["text"]
    assert os.path.exists(gating.report.uri)


def make(label) -> DataGate:
    return DataGate(
        examples=channel_utils.as_channel([standard_artifacts.Examples()]),
        statistics=channel_utils.as_channel([standard_artifacts.ExampleStatistics()]),
        anomalies=channel_utils.as_channel([standard_artifacts.ExampleAnomalies()]),
        label=label,
    )


def test_component_writes_a_string():
    component = make("label")
    assert component.outputs["report"].type is standard_artifacts.String
    assert component.exec_properties == {"label": "label", "texts": "[]"}


@pytest.mark.parametrize("label", ["", None, 3])
def test_component_refuses_a_label_that_is_no_name(label):
    with pytest.raises(ConfigError, match="label must be a feature's name"):
        make(label)
