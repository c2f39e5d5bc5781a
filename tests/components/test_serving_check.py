"""The serving check: a server of its own answers raw rows, and anything else is a sentence."""

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf
from tfx.types import artifact_utils, channel_utils, standard_artifacts

from espalier import cpu as machine
from espalier.components.serving_check import ServingCheck, check, probe
from espalier.components.serving_check.executor import Executor, read_rows
from espalier.errors import ComponentError, ConfigError
from espalier.serving.grpc_door import DoorOptions
from espalier.serving.manager import ModelConfig
from espalier.serving.process import MODEL, ServerProcess
from espalier.serving.rest_door import RestOptions
from espalier.serving.server import Options, Server
from espalier.trainer import serving_ops

LABELS = ["bad", "good"]
TEXTS = ["good and cheap", "bad", "a good, good bag", "broken after a day"]


class Tiny(tf.Module):
    """Scores a text by its length: a stand-in for an exported model, with its faults to order."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.weight = tf.Variable([0.05, -0.05])
        self.labels = tf.constant(["", ""] if fault == "empty label" else LABELS)

    def answer(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        length = tf.cast(tf.strings.length(text), tf.float32)
        if self.fault == "batch":  # A row's scores depend on its neighbours.
            length += tf.reduce_max(length)
        if self.fault == "empty text":
            with tf.control_dependencies([tf.debugging.assert_positive(length, "no text")]):
                length = tf.identity(length)
        logits = tf.clip_by_value(length, 0, 1000)[:, None] * self.weight  # [B, 2]
        scores = {"logits": logits, "nan": logits * float("nan")}.get(
            self.fault, tf.nn.softmax(logits)
        )
        label = tf.gather(self.labels, tf.argmax(scores, axis=1))
        return {"scores": scores, "label": label[:, None] if self.fault == "shape" else label}


def save(folder: str, fault: str = "", names: tuple[str, ...] = ("text",)) -> str:
    """A SavedModel with the three signatures, written as the Trainer writes them."""
    module = Tiny(fault)
    strings = [tf.TensorSpec([None], tf.string, name=name) for name in names]

    @tf.function(input_signature=strings)
    def serving_default(*texts):
        return module.answer(tf.strings.join(texts))

    def parse(examples):
        spec = {name: tf.io.FixedLenFeature([], tf.string, "") for name in ("review", "reply")}
        return tf.io.parse_example(examples, spec)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(examples):
        raw = parse(examples)
        text = tf.strings.join([raw["review"], raw["reply"]][: len(names)])
        return module.answer(tf.strings.upper(text) + "!" if fault == "differ" else text)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def transform_features(examples):
        return {"token_ids": tf.strings.length(parse(examples)["review"])}

    signatures = {
        "serving_default": serving_default,
        "serve_examples": serve_examples,
        "transform_features": transform_features,
    }
    if fault == "no examples":
        del signatures["serve_examples"]
    tf.saved_model.save(module, folder, signatures=signatures)
    return folder


def row(review: str | None, reply: str | None = "thanks") -> bytes:
    """A serialized tf.Example, as ExampleGen writes rows of a CSV."""
    example = tf.train.Example()
    for name, value in (("review", review), ("reply", reply)):
        if value is not None:
            example.features.feature[name].bytes_list.value.append(value.encode())
    return example.SerializeToString()


ROWS = [row(text) for text in TEXTS]
ONE = {"text": "review"}
PAIR = {"text": "review", "text_pair": "reply"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save(str(tmp_path_factory.mktemp("tiny") / "Format-Serving"))


@pytest.fixture
def binary(tmp_path: Path) -> Callable[[str], str]:
    """Writes a model server that does as told."""

    def write(code: str) -> str:
        path = tmp_path / "tensorflow_model_server"
        path.write_text(f"#!{sys.executable}\nimport os, sys, time\n{code}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return str(path)

    return write


class Running(subprocess.Popen):
    """Stands for the process of a server that runs in this one."""

    def __init__(self) -> None:
        super().__init__(["true"])
        self.wait()

    def poll(self) -> None:
        return None


def outcome(
    model: str, inputs: dict[str, str], rows: list[bytes] | None = None, **kind: bool
) -> dict:
    """What the probe finds, with the server in this process: it spares TensorFlow's import."""
    base, socket = Path(f"{model}-served"), f"{model}.s"
    base.mkdir(exist_ok=True)
    if not (base / "1").exists():
        (base / "1").symlink_to(model)
    server = Server(
        Options(
            models=[ModelConfig(MODEL, base)],
            grpc=DoorOptions(port=0, socket_path=socket),
            rest=RestOptions(port=0),
        )
    )
    server.start()
    running = ServerProcess(f"unix:{socket}", Running(), Path("log"), time.monotonic() + 60)
    try:
        return {"failures": [], **probe.probe(running, rows or ROWS, inputs, kind)}
    except probe.Refusal as refusal:
        return {"failures": [str(refusal)]}
    finally:
        server.stop(1)


def assert_refused(report: check.Report, *words: str) -> None:
    assert not report.blessed
    assert report.verdict.startswith("The model cannot be served: ")
    for word in words:
        assert word in report.verdict


# --- a sound model --------------------------------------------------------------------------


def test_a_sound_model_is_blessed_with_numbers(model):
    report = check.check_serving(model, ROWS, ONE)
    assert report.blessed, report.verdict
    assert report.verdict.startswith("The model can be served: 4 raw rows answered alike")
    result = json.loads(report.to_json())
    assert result["rows"] == 4 and result["classes"] == 2 and result["failures"] == []
    assert result["size_bytes"] == sum(
        os.path.getsize(os.path.join(place, name))
        for place, _, names in os.walk(model)
        for name in names
    )
    assert result["largest_difference"] <= 1e-4
    assert result["ready_seconds"] > 0 and result["latency_ms"] > 0
    assert [p["text"] for p in result["predictions"]] == TEXTS[:2]
    assert all(p["label"] in LABELS and 0.5 <= p["score"] <= 1 for p in result["predictions"])


def test_a_pair_of_texts_is_sent_as_two(tmp_path):
    model = save(str(tmp_path / "pair"), names=("text", "text_pair"))
    answered = outcome(model, PAIR)
    assert answered["failures"] == []
    assert answered["predictions"][0]["text"] == [TEXTS[0], "thanks"]


# --- faults of a model ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("differ", "serve_examples and serving_default differ by"),
        ("nan", "not finite"),
        ("logits", "not a softmax"),
        ("shape", "label [4, 1]"),
        ("empty label", "an empty label"),
        ("batch", "alone and in a batch differ by"),
        ("empty text", "an empty text makes it fail: model at unix:"),
        ("no examples", "no signature 'serve_examples' (found: serving_default"),
    ],
)
def test_a_fault_is_named(tmp_path, fault, words):
    (failure,) = outcome(save(str(tmp_path / "m"), fault), ONE)["failures"]
    assert words in failure


def test_a_pair_is_not_a_single_text(model):
    (failure,) = outcome(model, PAIR)["failures"]
    assert failure == "serving_default takes ['text'], and should take ['text', 'text_pair']."


def test_a_fault_found_by_the_server_is_the_verdict(tmp_path):
    model = save(str(tmp_path / "m"), "empty text")
    report = check.check_serving(model, ROWS, ONE)
    assert_refused(report, "an empty text makes it fail", "no text", "INVALID_ARGUMENT")


def test_ops_that_tensorflow_serving_lacks_are_named(model, monkeypatch):
    monkeypatch.setattr(serving_ops, "unknown_ops", lambda folder: ["TFText>RoundRobinTrim"])
    report = check.check_serving(model, ROWS, ONE)
    assert_refused(report, "does not know the op(s) TFText>RoundRobinTrim")
    assert report.unknown_ops == ["TFText>RoundRobinTrim"] and report.size_bytes > 0


def test_a_folder_without_a_model(tmp_path):
    assert_refused(check.check_serving(str(tmp_path), ROWS, ONE), str(tmp_path))


def test_a_truncated_model(model, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "saved_model.pb").write_bytes(Path(model, "saved_model.pb").read_bytes()[:1000])
    assert_refused(check.check_serving(str(broken), ROWS, ONE))


def test_no_rows(model):
    assert_refused(check.check_serving(model, [], ONE), "no row with a value in 'review'")


# --- a process that does not come back with an answer ---------------------------------------


def test_a_crash_is_told_with_its_last_words(model, binary):
    server = binary("print('lots of noise', file=sys.stderr); raise RuntimeError('no kernel')")
    report = check.check_serving(model, ROWS, ONE, server=server)
    assert_refused(report, "exit code 1", "RuntimeError: no kernel")


def test_an_abort_is_told_by_its_signal(model, binary):
    server = binary("print('terminate called', file=sys.stderr, flush=True); os.abort()")
    report = check.check_serving(model, ROWS, ONE, server=server)
    assert_refused(report, "ended by SIGABRT", "terminate called")


def test_a_hang_is_ended(model, binary):
    server = binary("time.sleep(60)")
    begin = time.monotonic()
    report = check.check_serving(model, ROWS, ONE, timeout=1, server=server)
    assert_refused(report, "not ready in time")
    assert time.monotonic() - begin < 20


def test_a_server_that_cannot_be_run(model, tmp_path):
    with pytest.raises(ComponentError, match="nothing cannot be run: No such file"):
        check.check_serving(model, ROWS, ONE, server=str(tmp_path / "nothing"))


def test_what_is_no_fault_of_the_model_is_no_verdict(model, binary, monkeypatch):
    """TFX's cache would keep it, and the model would never be pushed."""
    server = binary("import signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(ComponentError, match="killed from outside. Is there memory enough"):
        check.check_serving(model, ROWS, ONE, server=server)
    server = binary("sys.exit(120)")
    usage = shutil.disk_usage(model)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ComponentError, match="the disk of temporary files is full: .* TMPDIR"):
        check.check_serving(model, ROWS, ONE, server=server)


def test_a_named_server_is_started_with_tensorflow_servings_flags(model, binary, monkeypatch):
    """The binary that is named is what answers; here it hands its own flags on to ours."""
    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "1")
    server = binary(
        "assert [k for k in os.environ if k.startswith('TF_')] == ['TF_CPP_MIN_LOG_LEVEL']\n"
        "assert os.environ['CUDA_VISIBLE_DEVICES'] == ''\n"
        "ours = [sys.executable, '-m', 'espalier.serving', 'serve']\n"
        "os.execv(sys.executable, [*ours, *sys.argv[1:]])"
    )
    report = check.check_serving(model, ROWS, ONE, server=server)
    assert report.blessed, report.verdict
    assert report.measured["server"] == server


# --- executor and component -----------------------------------------------------------------


class Checking:
    """The executor's artifacts, made once and by hand."""

    def __init__(self, model: str, folder: Path) -> None:
        self.model = standard_artifacts.Model()
        self.model.uri = str(Path(model).parent)
        self.examples = standard_artifacts.Examples()
        self.examples.uri = str(folder / "examples")
        self.examples.split_names = artifact_utils.encode_split_names(["train", "eval"])
        self.write("train", [row("a train row")])
        self.write("eval", [row(None), *ROWS])
        self.blessing = standard_artifacts.InfraBlessing()
        self.blessing.uri = str(folder / "blessing")

    def write(self, split: str, rows: list[bytes]) -> None:
        folder = Path(self.examples.uri, f"Split-{split}")
        folder.mkdir(parents=True)
        path = str(folder / "data_tfrecord-00000-of-00001.gz")
        with tf.io.TFRecordWriter(path, "GZIP") as writer:
            for record in rows:
                writer.write(record)

    def run(self, rows: int = 2, server: str = "") -> dict:
        Executor().Do(
            {"model": [self.model], "examples": [self.examples]},
            {"blessing": [self.blessing]},
            {"inputs": '{"text": "review"}', "rows": rows, "server": server},
        )
        return json.loads(Path(self.blessing.uri, "serving_check.json").read_text())

    def assert_marked(self, blessed: bool) -> None:
        marker = "INFRA_BLESSED" if blessed else "INFRA_NOT_BLESSED"
        assert set(os.listdir(self.blessing.uri)) == {marker, "serving_check.json"}
        assert self.blessing.get_int_custom_property("blessed") == int(blessed)


def test_executor_blesses_with_rows_of_the_eval_split(model, tmp_path):
    checking = Checking(model, tmp_path)
    result = checking.run(rows=2)
    checking.assert_marked(blessed=True)
    # The row without text is passed over.
    assert [p["text"] for p in result["predictions"]] == TEXTS[:2] and result["rows"] == 2
    assert checking.blessing.get_string_custom_property("verdict") == result["verdict"]


def test_executor_marks_a_refusal(model, tmp_path, binary):
    checking = Checking(model, tmp_path)
    result = checking.run(server=binary("os.abort()"))
    checking.assert_marked(blessed=False)
    assert not result["blessed"] and "SIGABRT" in result["verdict"]


def test_rows_of_a_column_that_is_no_text(tmp_path):
    path = str(tmp_path / "plain")
    with tf.io.TFRecordWriter(path) as writer:
        writer.write(row("text"))
    assert len(read_rows([path], ["review"], 3)) == 1
    assert read_rows([path], ["stars"], 3) == []


def make(**arguments) -> ServingCheck:
    channels = {
        "model": channel_utils.as_channel([standard_artifacts.Model()]),
        "examples": channel_utils.as_channel([standard_artifacts.Examples()]),
    }
    return ServingCheck(**(channels | {"inputs": ONE} | arguments))


def test_component_is_a_drop_in_for_infra_validator():
    component = make()
    assert component.outputs["blessing"].type is standard_artifacts.InfraBlessing
    assert component.exec_properties == {
        "inputs": '{"text": "review"}',
        "rows": 8,
        "server": "",
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"inputs": {}}, r"Received: \{\}"),
        ({"inputs": "review"}, "Received: 'review'"),
        ({"inputs": {"words": "review"}}, "image_bytes"),
        ({"rows": 0}, "Received: 0"),
    ],
)
def test_component_refuses_bad_arguments_at_construction(arguments, words):
    with pytest.raises(ConfigError, match=words):
        make(**arguments)


class Lenient(tf.Module):
    """Takes bytes for a picture, whatever they are, unless it is told to look."""

    def __init__(self, strict: bool, scores: list[float]) -> None:
        super().__init__()
        self.strict, self.scores = strict, tf.Variable(scores)

    def answer(self, data: tf.Tensor) -> dict[str, tf.Tensor]:
        if self.strict:
            decode = lambda one: tf.cast(tf.size(tf.io.decode_image(one)), tf.int32)  # noqa: E731
            sizes = tf.map_fn(decode, data, fn_output_signature=tf.int32)
        else:
            sizes = tf.strings.length(data)
        scores = self.scores + 0.0 * tf.cast(sizes, tf.float32)[:, None]
        return {"scores": scores, "label": tf.fill([tf.shape(data)[0]], "")}


def picture_model(folder: str, strict: bool = True, scores: tuple[float, ...] = (0.9, 0.8)) -> str:
    module = Lenient(strict, list(scores))
    strings = tf.TensorSpec([None], tf.string)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serving_default(image_bytes):
        return module.answer(image_bytes)

    @tf.function(input_signature=[strings])
    def serve_examples(examples):
        spec = {"image": tf.io.FixedLenFeature([], tf.string)}
        return module.answer(tf.io.parse_example(examples, spec)["image"])

    signatures = {"serving_default": serving_default, "serve_examples": serve_examples}
    tf.saved_model.save(module, folder, signatures=signatures)
    return folder


def picture_row() -> bytes:
    example = tf.train.Example()
    pixels = tf.io.encode_png(tf.zeros([2, 2, 3], tf.uint8)).numpy()
    for name, value in (("image", pixels), ("path", b"cat/1.png")):
        example.features.feature[name].bytes_list.value.append(value)
    return example.SerializeToString()


def ask(model: str, multi_label: bool) -> dict:
    return outcome(model, {"image_bytes": "image"}, [picture_row()], multi_label=multi_label)


def test_pictures_are_sent_and_named_by_their_path(tmp_path):
    answered = ask(picture_model(str(tmp_path / "m")), multi_label=True)
    assert answered["failures"] == []
    (prediction,) = answered["predictions"]
    assert prediction["text"] == "cat/1.png"
    assert prediction["score"] == pytest.approx(0.9)


def test_a_model_that_answers_what_is_no_picture_is_refused(tmp_path):
    (failure,) = ask(picture_model(str(tmp_path / "m"), strict=False), True)["failures"]
    assert "answered as if it were a picture" in failure


def test_scores_are_held_to_the_kind_of_head(tmp_path):
    (failure,) = ask(picture_model(str(tmp_path / "one")), multi_label=False)["failures"]
    assert "not a softmax" in failure
    beyond = picture_model(str(tmp_path / "two"), scores=(1.2, 0.1))
    (failure,) = ask(beyond, multi_label=True)["failures"]
    assert "do not lie between 0 and 1" in failure


def test_a_machine_without_the_instructions_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save(str(tmp_path / "model"))
    facts = {"graph": {"cpu": "bf16", "needs": [machine.BFLOAT16], "verdict": "All is well."}}
    (tmp_path / "model" / "assets.extra").mkdir()
    (tmp_path / "model" / "assets.extra" / "espalier.json").write_text(json.dumps(facts))
    monkeypatch.setattr(machine, "_cpu_flags", lambda: {"avx2"})
    report = check.check_serving(model, ROWS, ONE)
    assert not report.blessed
    assert "made for export.cpu bf16, and this machine lacks bfloat16 products" in report.verdict
    monkeypatch.setattr(machine, "lacking", lambda needs: "")
    assert check.check_serving(model, ROWS, ONE).measured["graph"] == "All is well."
