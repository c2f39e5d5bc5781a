"""Logged requests against training rows: what is alike, what drifted, what cannot be told."""

import io
import random
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as proto
from PIL import Image
from rich.console import Console
from tensorflow_serving.apis import predict_pb2
from typer.testing import CliRunner

from espalier import Config, ConfigError, DataError
from espalier.pipeline.cli import app
from espalier.pipeline.drift import Drift, Feature, compare
from espalier.pipeline.drift_commands import table
from espalier.pipeline.store import database
from espalier.serving.manager import ModelConfig
from espalier.serving.request_log import Record, RequestLog

THINGS = [f"{colour} {thing}" for colour in ("red", "blue") for thing in ("pan", "lamp", "book")]
Row = tuple[str, str]  # text, label


def rows(count: int, seed: int, longer: int = 0) -> list[Row]:
    """Texts of 5 to 10 words, or of more, one of them in no other row; half of them positive."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        words = [rng.choice(THINGS) for _ in range(rng.randint(2, 4) + longer)]
        label = rng.choice(("positive", "negative"))
        good = "good" * (label == "positive")
        found.append((f"{' '.join(words)} {good} order{10_000 * seed + number}", label))
    return found


def example(**values: bytes) -> bytes:
    """A serialized tf.Example."""
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))
        for name, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_run(config: Config, run: str, version: str, records: Iterable[bytes]) -> None:
    """What a run leaves that is read here: Examples, and in the metadata where they are."""
    folder = config.home / run
    (folder / "Split-train").mkdir(parents=True)
    with tf.io.TFRecordWriter(str(folder / "Split-train" / "data.gz"), "GZIP") as writer:
        for record in records:
            writer.write(record)
    connection = proto.ConnectionConfig()
    connection.sqlite.filename_uri = str(database(config.home))
    connection.sqlite.connection_mode = proto.SqliteMetadataSourceConfig.READWRITE_OPENCREATE
    store = metadata_store.MetadataStore(connection)
    types = {
        name: store.put_context_type(proto.ContextType(name=name))
        for name in ("pipeline_run", "node")
    }
    step = store.put_execution_type(proto.ExecutionType(name="step"))
    kind = store.put_artifact_type(proto.ArtifactType(name="thing"))
    for node, key in (("ExampleGen", "examples"), ("Pusher", "pushed_model")):
        artifact = proto.Artifact(type_id=kind, uri=str(folder))
        artifact.custom_properties["pushed_version"].string_value = version
        event = proto.Event(type=proto.Event.OUTPUT)
        event.path.steps.add().key = key
        names = {"pipeline_run": run, "node": f"{config.name}.{node}"}
        store.put_execution(
            proto.Execution(type_id=step, last_known_state=proto.Execution.COMPLETE),
            [(artifact, event)],
            [proto.Context(type_id=types[type_], name=name) for type_, name in names.items()],
            reuse_context_if_already_exist=True,
        )


def record(
    inputs: dict[str, list[Any]], labels: Sequence[str], model: str = "reviews", version: int = 7
) -> Record:
    """An answered request."""
    request, response = predict_pb2.PredictRequest(), predict_pb2.PredictResponse()
    request.model_spec.name = response.model_spec.name = model
    response.model_spec.version.value = version
    for name, values in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(values))
    if labels:
        response.outputs["label"].CopyFrom(tf.make_tensor_proto(labels, tf.string))
    return Record("predict", request, response, "", 1.0, 1.0, 1.0)


def log(prefix: Path, records: Sequence[Record]) -> str:
    """A server's log of these requests, by its own writer; the folder."""
    lost: list[str] = []
    writer = RequestLog(lost.append)
    names = {one.request.model_spec.name for one in records}
    writer.configure(
        [ModelConfig(n, prefix, log_prefix=f"{prefix}-{n}", log_rate=1) for n in names]
    )
    for one in records:
        writer.add(one.request.model_spec.name, one)
    writer.close()
    assert not lost
    return str(prefix.parent)


def requests(data: Sequence[Row], batch: int = 50, **spec: Any) -> list[Record]:
    """Requests of so many rows each."""
    batches = [data[at : at + batch] for at in range(0, len(data), batch)]
    return [record({"text": [t for t, _ in b]}, [label for _, label in b], **spec) for b in batches]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A job with a run that pushed version 7 out of 3,000 rows, and a later one."""
    folder = tmp_path_factory.mktemp("job")
    text = (
        "{version: 2, name: reviews, data: {csv: x.csv, text: text, label: label}, "
        f"model: {{family: bert, start: tiny}}, push: {{to: {folder}/m}}, runs: {folder}/runs}}"
    )
    (folder / "job.yaml").write_text(text)
    config = Config.load(folder / "job.yaml")
    data = [("so very long " * 5000, "positive"), *rows(2999, seed=0)]
    for run, version, some in (("a", "7", data), ("b", "8", rows(1000, seed=5, longer=20))):
        records = [example(text=t.encode(), label=label.encode()) for t, label in some]
        write_run(config, run, version, records)
    return config


def by_name(drift: Drift) -> dict[str, Feature]:
    return {one.name: one for one in drift.features}


def test_rows_like_the_training_rows_give_no_alarm(config: Config, tmp_path: Path) -> None:
    drift = compare(config, log(tmp_path / "r", requests(rows(1000, seed=1))))
    assert {one.name: one.verdict for one in drift.features} == {
        "text: words": "ok",
        "text: characters": "ok",
        "text: new words": "ok",
        "text: empty": "ok",
        "label: answered": "ok",
    }
    assert all(one.distance < 0.05 for one in drift.features)
    assert (drift.rows, drift.training_rows, drift.version) == (1000, 3000, "7")
    assert drift.exit_code == 0 and drift.verdict.startswith("No alarm: 1,000 logged rows")


@pytest.mark.parametrize(
    ("data", "alarms"),
    [
        (rows(1000, 1, longer=3), ["text: words", "text: characters"]),
        ([(text, "positive") for text, _ in rows(1000, 1)], ["label: answered"]),
        ([(f"neu{t[3:]}", label) for t, label in rows(1000, 1)], ["text: new words"]),
        ([*rows(800, 1), *[("", "negative")] * 200], ["text: empty"]),
    ],
    ids=["longer", "one label", "other words", "empty"],
)
def test_rows_that_changed_give_alarm(
    config: Config, tmp_path: Path, data: list[Row], alarms: list[str]
) -> None:
    drift = compare(config, log(tmp_path / "r", requests(data)))
    assert set(alarms) <= set(drift.alarms)
    assert "label: answered" in alarms or "label: answered" not in drift.alarms
    assert drift.exit_code == 6
    assert drift.verdict.startswith("Alarm: 1,000 logged rows differ from the 3,000 training rows")


def test_few_rows_are_no_alarm(config: Config, tmp_path: Path) -> None:
    drift = compare(config, log(tmp_path / "r", requests(rows(12, 1, longer=3))))
    assert by_name(drift)["text: words"].verdict == "too few"
    assert by_name(drift)["text: words"].noise > 0.1
    assert drift.exit_code == 0 and "12 logged rows beside the 3,000" in drift.verdict


def test_the_rows_are_those_of_the_version_that_answered(config: Config, tmp_path: Path) -> None:
    long = log(tmp_path / "8" / "r", requests(rows(500, 1, longer=20), version=8))
    assert compare(config, long).version == "8"
    assert compare(config, long).alarms == []
    unknown = log(tmp_path / "9" / "r", requests(rows(500, 1, longer=20), version=9))
    drift = compare(config, unknown)
    assert (drift.version, drift.run) == ("", "b")
    assert "of the run of b" in drift.verdict


def test_answers_without_labels_are_compared_by_their_inputs(
    config: Config, tmp_path: Path
) -> None:
    records = [record({"text": [text for text, _ in rows(200, 1)]}, labels=[])]
    assert "label: answered" not in by_name(compare(config, log(tmp_path / "r", records)))


def test_the_command_prints_a_table_and_exits_by_six(config: Config, tmp_path: Path) -> None:
    yaml = str(config.home.parent.parent / "job.yaml")
    alike = log(tmp_path / "a" / "r", requests(rows(500, 1)))
    assert CliRunner().invoke(app, ["drift", yaml, alike]).exit_code == 0
    longer = log(tmp_path / "b" / "r", requests(rows(500, 1, longer=3)))
    done = CliRunner().invoke(app, ["drift", yaml, f"{longer}/*.tfrecord"])
    assert done.exit_code == 6, done.output
    assert "text: words" in done.output and "Jensen-Shannon" in done.output
    assert "positive 5" in done.output and "Alarm: 500 logged rows" in done.output
    done = CliRunner().invoke(app, ["drift", yaml, longer, "--threshold", "1"])
    assert done.exit_code == 0


def test_the_table_prints_names_as_they_are() -> None:
    feature = Feature("[red]a", "L-infinity", 0.5, 0.01, 0.1, "[b] 100%", "c 100%")
    console = Console(file=io.StringIO(), width=120)
    console.print(table(Drift("n", "r", "7", 10, 10, [feature])))
    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    assert "[red]a" in written and "[b] 100%" in written and "alarm" in written


# --- what cannot be compared ---------------------------------------------------------------


def no_log(folder: Path) -> str:
    return str(folder / "nothing")


def empty_folder(folder: Path) -> str:
    return str(folder)


def empty_file(folder: Path) -> str:
    (folder / "a.tfrecord").touch()
    return str(folder)


def cut_off(folder: Path) -> str:
    log(folder / "r", requests(rows(100, 1)))
    (file,) = folder.glob("*.tfrecord")
    file.write_bytes(file.read_bytes()[:-3])
    return str(file)


def no_tfrecord(folder: Path) -> str:
    (folder / "a.tfrecord").write_text("text,label\nno record at all,positive\n")
    return str(folder)


def examples(folder: Path) -> str:
    with tf.io.TFRecordWriter(str(folder / "a.tfrecord")) as writer:
        writer.write(example(text=b"a", label=b"b"))
    return str(folder)


def another_models(folder: Path) -> str:
    return log(folder / "r", [record({"x": [1.0]}, [], model="half")])


def two_models(folder: Path) -> str:
    log(folder / "a", requests(rows(10, 1)))
    return log(folder / "b", requests(rows(10, 1), model="other"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_log, "no such file or folder"),
        (empty_folder, "holds no file named *.tfrecord"),
        (empty_file, "no request was logged"),
        (cut_off, r"\.tfrecord: damaged or cut off after record 1"),
        (no_tfrecord, r"a\.tfrecord: damaged or cut off after record 0"),
        (examples, r"a\.tfrecord, record 1: not a PredictionLog"),
        (another_models, "a request to the model 'half' with 'x'; reviews takes 'text'"),
        (two_models, "a request to the model 'other' with 'text', in a log of 'reviews'"),
    ],
)
def test_a_log_that_cannot_be_used_is_named(
    config: Config, tmp_path: Path, make: Callable[[Path], str], words: str
) -> None:
    with pytest.raises(DataError, match=words.replace("*", r"\*")) as caught:
        compare(config, make(tmp_path))
    assert caught.value.exit_code == 2 and "\n" not in str(caught.value)


def test_without_a_run_there_is_nothing_to_compare_with(config: Config, tmp_path: Path) -> None:
    other = config.model_copy(update={"runs": str(tmp_path / "runs")})
    with pytest.raises(ConfigError, match="no run of reviews yet"):
        compare(other, str(tmp_path))


# --- other inputs --------------------------------------------------------------------------


def picture(rng: random.Random, light: int) -> bytes:
    file = io.BytesIO()
    size = (rng.randint(20, 40), rng.randint(20, 40))
    Image.new("RGB", size, (rng.randint(light, light + 80),) * 3).save(file, "PNG")
    return file.getvalue()


def test_pictures_are_compared_by_size_and_brightness(tmp_path: Path) -> None:
    config = Config(
        name="pictures",
        data={"images": "x"},
        model={"family": "resnet", "start": "resnet20"},
        push={"to": str(tmp_path / "m")},
        runs=str(tmp_path / "runs"),
    )
    rng = random.Random(0)
    write_run(config, "a", "7", [example(image=picture(rng, 0), label=b"a") for _ in range(1000)])
    for light, alarms in ((0, []), (120, ["image: brightness"])):
        files = [picture(rng, light) for _ in range(400)]
        one = record({"image_bytes": files}, ["a"] * 400, model="pictures")
        drift = compare(config, log(tmp_path / str(light) / "p", [one]))
        assert drift.alarms == alarms, drift.features
        assert "image: width" in by_name(drift)


def test_pairs_and_integer_labels(tmp_path: Path) -> None:
    config = Config(
        name="pairs",
        data={"csv": "x.csv", "text": ["q", "a"], "label": "grade"},
        model={"family": "bert", "start": "tiny"},
        push={"to": str(tmp_path / "m")},
        runs=str(tmp_path / "runs"),
    )
    data = rows(1000, 2)
    records = []
    for place, (text, _) in enumerate(data):
        row = tf.train.Example.FromString(example(q=text.encode(), a=b"yes"))
        if place % 2:  # TFX's Parquet reader drops zeros
            row.features.feature["grade"].int64_list.value.append(1)
        records.append(row.SerializeToString())
    write_run(config, "a", "7", records)
    inputs = {"text": [text for text, _ in rows(400, 3)], "text_pair": ["yes yes yes"] * 400}
    drift = compare(config, log(tmp_path / "p", [record(inputs, ["0", "1"] * 200, model="pairs")]))
    assert drift.alarms == ["a: words", "a: characters"]
    assert by_name(drift)["grade: answered"].training == "0 50%, 1 50%"
