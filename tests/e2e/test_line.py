"""The whole line on a small job: what is pushed, what a second run does, what is refused."""

import ast
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from ruamel.yaml import YAML
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from espalier import Client, Config, Predictor, RunResult, run
from espalier.serving.process import MODEL, started, wait_until_served
from espalier.serving.smoke import SAMPLE, smoke

CLIENT = """
import json, sys
import tensorflow as tf
import tensorflow_text
serve = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answer = serve(text=tf.constant(["the soup was lovely, order 7", "the soup was awful, order 8"]))
print(json.dumps([label.decode() for label in answer["label"].numpy()]))
assert not [m for m in sys.modules if m.split(".")[0] in ("espalier", "tfx", "keras_nlp")]
"""


def test_a_blessed_model_is_pushed(job: Any, first_run: RunResult) -> None:
    assert first_run.status == "pushed"
    assert first_run.exit_code == 0
    assert sum(first_run.rows.values()) == 400
    assert set(first_run.rows) == {"train", "eval", "test"}
    assert first_run.metrics["overall"]["rows"] == first_run.rows["test"]
    assert first_run.metrics["overall"]["accuracy"] >= 0.7
    assert set(first_run.metrics["slices"]) == {"category=home", "category=other"}
    assert "accuracy" in first_run.verdict and "0.7" in first_run.verdict
    assert len(first_run.predictions) == 2
    assert [c.name for c in first_run.components if c.state != "done"] == []


def test_the_pushed_version_has_a_model_card(first_run: RunResult) -> None:
    extra = Path(str(first_run.pushed), "assets.extra")
    card = (extra / "MODEL_CARD.md").read_text(encoding="utf-8")
    accuracy = first_run.metrics["overall"]["accuracy"]
    assert first_run.verdict in card and f"| accuracy | {accuracy:.4f} |" in card
    assert f"| train | {first_run.rows['train']} |" in card
    told = json.loads((extra / "model_card.json").read_text(encoding="utf-8"))
    metrics = told["quantitative_analysis"]["performance_metrics"]
    assert metrics[0] == {"type": "accuracy", "value": f"{accuracy:.4f}"} | metrics[0]
    assert len({m.get("slice") for m in metrics}) == 3


def in_a_clean_process(code: str, version: str | None) -> str:
    """What a process without Espalier prints about a version."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(version)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pushed_model_answers_raw_strings_without_espalier(first_run: RunResult) -> None:
    answer = in_a_clean_process(CLIENT, first_run.pushed)
    assert json.loads(answer) == ["positive", "negative"]


WARM_UP = """
import sys, tensorflow as tf, tensorflow_text
from tensorflow_serving.apis import prediction_log_pb2
model = tf.saved_model.load(sys.argv[1])
for record in tf.data.TFRecordDataset(sys.argv[1] + "/assets.extra/tf_serving_warmup_requests"):
    request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
    serve = model.signatures[request.model_spec.signature_name]
    answer = serve(**{k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()})
    print(len(answer["label"]))
"""


def test_the_version_answers_its_own_warm_up_requests(first_run: RunResult) -> None:
    answer = in_a_clean_process(WARM_UP, first_run.pushed)
    assert answer.split() == ["1"] * 3 + ["32"] * 3


def test_a_server_answers_the_sample_that_the_version_carries(
    first_run: RunResult, tmp_path: Path
) -> None:
    version = Path(str(first_run.pushed))
    with started(version) as server, Client(server.target, MODEL) as client:
        assert wait_until_served(server, client) == ""
        compared = smoke(client, version, named=False)
        assert {one.output for one in compared if one.alike} == {"label", "scores"}, compared
        sample = json.loads((version / SAMPLE).read_text())
        request = predict_pb2.PredictRequest()
        json_format.ParseDict(sample["grpc"]["request"], request)
        request.model_spec.name = MODEL
        with grpc.insecure_channel(server.target) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            answer = stub.Predict(request, timeout=60)
        assert answer.outputs["label"].string_val[0].decode() == sample["outputs"]["label"][0]
        assert json.loads(sample["curl"].split("'")[1]) == {"inputs": sample["inputs"]}
        assert client.predict(literal(sample["python"]))["label"] == sample["outputs"]["label"]
    assert server.process.poll() is not None


def literal(line: str) -> Any:
    """What stands between predict( and the last bracket."""
    return ast.literal_eval(line.split(".predict(")[1][:-1])


def test_the_serving_graph_was_proven(first_run: RunResult) -> None:
    assert re.fullmatch(
        r"The serving graph for any: (\d+) of \1 rows are answered alike, logits differ by \S+ at "
        r"most.",
        first_run.graph,
    )


def test_predictor_agrees_with_the_serving_check(first_run: RunResult) -> None:
    row = first_run.predictions[0]
    (prediction,) = Predictor(str(first_run.pushed)).predict([row["text"]])
    assert prediction.label == row["label"]
    assert prediction.score == pytest.approx(row["score"], abs=1e-4)
    assert sum(prediction.scores) == pytest.approx(1, abs=1e-5)


def test_the_version_carries_its_resolved_configuration(job: Any, first_run: RunResult) -> None:
    stored = YAML(typ="safe").load(
        (Path(str(first_run.pushed)) / "assets.extra" / "config.yaml").read_text()
    )
    assert Config(**stored) == job.config
    assert stored["train"]["weight_decay"] == 0.01  # a default


def test_the_trainer_left_tensorboard_logs_and_no_checkpoints(
    job: Any, first_run: RunResult
) -> None:
    assert list(
        job.folder.glob("runs/small/artifacts/Trainer/model_run/*/tensorboard/**/*tfevents*")
    )
    assert not (job.folder / "runs/small/training").exists() or not list(
        (job.folder / "runs/small/training").iterdir()
    )


def test_an_unchanged_rerun_is_cached_and_loads_no_tfx(job: Any, first_run: RunResult) -> None:
    code = (
        "import sys; from espalier import Config, run;"
        "r = run(Config.load(sys.argv[1])); print(r.cached, r.pushed);"
        "print([m for m in sys.modules if m.split('.')[0] in ('tfx', 'tensorflow')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(job.yaml)], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"True {first_run.pushed}", "[]"], done.stderr


def test_show_names_the_run_and_the_verdict(job: Any, first_run: RunResult) -> None:
    done = job.cli("show", str(job.yaml))
    assert done.returncode == 0, done.stderr
    version = Path(str(first_run.pushed)).name
    for fact in (version, first_run.run, "Blessed: accuracy", "epochs: 4", first_run.data):
        assert str(fact) in done.stdout


def test_predict_prints_a_table(job: Any, first_run: RunResult) -> None:
    done = job.cli("predict", str(job.folder / "models"), "--text", "the pan was great, order 1")
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout


def test_a_worse_model_is_refused_and_the_blessed_one_stays(job: Any, first_run: RunResult) -> None:
    before = job.versions()
    worse = ("--set", "train.epochs=1", "--set", "train.learning_rate=1e-7")
    done = job.cli("run", str(job.yaml), *worse)
    assert done.returncode == 4, done.stdout + done.stderr
    assert "Not blessed: accuracy" in done.stdout
    assert "the blessed model has" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert job.versions() == before


def test_a_missing_component_is_named(job: Any) -> None:
    done = job.cli("run", str(job.yaml), "--to", "Trainr", "--set", "train.epochs=2")
    assert done.returncode == 2
    assert "Did you mean Trainer?" in done.stderr


def test_the_beam_runner_and_a_part_of_the_line(job: Any, first_run: RunResult) -> None:
    result = run(job.config, runner="beam", to_node="SchemaGen", cache=True)
    assert result.status == "partial"
    assert {c.name for c in result.components} >= {"ExampleGen", "StatisticsGen", "SchemaGen"}
    assert "Trainer" not in {c.name for c in result.components}


def test_a_script_gets_the_result_alone(job: Any, first_run: RunResult) -> None:
    done = job.cli("run", str(job.yaml), "--to", "SchemaGen", "--no-cache", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["status"] == "partial"
    assert {"ExampleGen", "SchemaGen"} <= {one["name"] for one in told["components"]}
    assert re.search(r"StatisticsGen +done", done.stderr)
    assert not re.search(r"INFO|WARNING|tensorflow/core", done.stderr)
    done = job.cli("run", str(job.yaml), "--to", "Nowhere", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_a_terminal_shows_lines_and_none_of_tfxs_own_output(job: Any, first_run: RunResult) -> None:
    command = [sys.executable, "-m", "espalier.pipeline.cli", "run", str(job.yaml)]
    screen = on_a_terminal([*command, "--to", "SchemaGen", "--no-cache"])
    assert "loading TFX" in screen
    assert re.search(r"StatisticsGen +.*done", screen), screen
    assert not re.search(r"INFO|WARNING|Warning|tensorflow/core", screen)


def on_a_terminal(command: list[str]) -> str:
    """All that a command writes when a terminal of 120 columns is its screen."""
    main, worker = pty.openpty()
    fcntl.ioctl(worker, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(command, stdin=worker, stdout=worker, stderr=worker)
    os.close(worker)
    written = b""
    while True:
        try:
            chunk = os.read(main, 65536)
        except OSError:  # the last writer is gone
            break
        written += chunk
        if not chunk:
            break
    os.close(main)
    assert process.wait() == 0, written.decode()
    return written.decode()
