"""Submitting, following, listing and scheduling, over HTTP against a server that acts as KFP's."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from espalier.errors import ConfigError, ServerError
from espalier.kubeflow import cron, watching
from espalier.kubeflow import server as servers
from espalier.kubeflow import spec as specs
from espalier.kubeflow.submit_commands import commands

_found = importlib.util.spec_from_file_location(
    "espalier_tests_kfp_server", Path(__file__).with_name("kfp_server.py")
)
assert _found and _found.loader
kfp_server = importlib.util.module_from_spec(_found)
sys.modules[_found.name] = kfp_server
_found.loader.exec_module(kfp_server)
Backend, serving = kfp_server.Backend, kfp_server.serving

SPEC = """\
pipelineInfo: {name: reviews}
schemaVersion: 2.1.0
sdkVersion: tfx-1.16.0
defaultPipelineRoot: minio://mlpipeline/espalier
root:
  dag:
    tasks:
      ExampleGen:
        taskInfo: {name: ExampleGen}
        componentRef: {name: ExampleGen}
      Trainer:
        taskInfo: {name: Trainer}
        componentRef: {name: Trainer}
        dependentTasks: [ExampleGen]
components:
  ExampleGen: {executorLabel: exec-ExampleGen}
  Trainer: {executorLabel: exec-Trainer}
deploymentSpec:
  executors:
    exec-ExampleGen: {container: {image: "espalier:1", command: [python]}}
    exec-Trainer: {container: {image: "espalier:1", command: [python]}}
"""


@pytest.fixture
def backend() -> Any:
    return Backend()


@pytest.fixture
def host(backend: Any) -> Iterator[str]:
    with serving(backend) as address:
        yield address


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    file = tmp_path / "reviews-spec.yaml"
    file.write_text(SPEC, encoding="utf-8")
    return file


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing waits; what it would have waited, in seconds."""
    found: list[float] = []
    monkeypatch.setattr(watching.time, "sleep", found.append)
    return found


def espalier(*arguments: object) -> Result:
    """Run a command and return what it printed."""
    return CliRunner().invoke(commands, [str(one) for one in arguments])


def refusal(result: Result, code: int) -> str:
    """The one message of a command that failed with that code, without a traceback."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


# Submitting.


def test_the_first_time_makes_the_pipeline_and_runs_it(host: str, backend: Any, spec: Path) -> None:
    result = espalier("submit", "--spec", spec, "--host", host)
    assert result.exit_code == 0, result.output
    ((query, body),) = backend.calls("POST", "pipelines/upload")
    assert query["name"] == "reviews" and "namespace" not in query
    assert body["uploadfile"] == ("pipeline.yaml", SPEC)
    assert backend.calls("POST", "experiments") == [({}, {"display_name": "Default"})]
    ((_, run),) = backend.calls("POST", "runs")
    assert re.fullmatch(r"reviews-\d{8}-\d{6}", run["display_name"])
    assert run["experiment_id"] in backend.experiments
    (version,) = backend.versions.values()
    assert run["pipeline_version_reference"] == {
        "pipeline_id": version["pipeline_id"],
        "pipeline_version_id": version["pipeline_version_id"],
    }
    # The server does not look at the spec's own root.
    assert run["runtime_config"] == {"pipeline_root": "minio://mlpipeline/espalier"}
    (id,) = backend.runs
    assert f"run       {host}/#/runs/details/{id}" in result.output
    assert "pipeline  reviews, version reviews\n" in result.output


def test_a_change_is_a_new_version_and_the_same_is_none(
    host: str, backend: Any, spec: Path
) -> None:
    espalier("submit", "--spec", spec, "--host", host)
    spec.write_text(SPEC.replace("espalier:1", "espalier:2"), encoding="utf-8")
    result = espalier("submit", "--spec", spec, "--host", host, "--root", "s3://other/place")
    ((query, body),) = backend.calls("POST", "pipelines/upload_version")
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{8}", query["name"])
    assert query["pipelineid"] in backend.pipelines
    assert "espalier:2" in body["uploadfile"][1]
    assert f"version {query['name']}\n" in result.output
    _, (_, run) = backend.calls("POST", "runs")
    assert run["runtime_config"] == {"pipeline_root": "s3://other/place"}

    # Laid out otherwise, but the same.
    spec.write_text(SPEC + "\n# a remark\n", encoding="utf-8")
    result = espalier("submit", "--spec", spec, "--host", host)
    assert "version reviews (it was there already)" in result.output
    assert len(backend.versions) == 2 and len(backend.pipelines) == 1
    assert len(backend.runs) == 3 and len(backend.experiments) == 1


def test_somebody_else_may_be_faster(
    host: str, backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, compiled = servers.Server(host), specs.read_spec(SPEC, "spec")
    asked, answers = server._pipeline, iter([""])

    def late(name: str) -> str:
        for answer in answers:  # no pipeline yet; but by the upload there is one
            other = SPEC.replace("espalier:1", "espalier:9")
            servers.Server(host).upload(specs.read_spec(other, "spec"))
            return answer
        return asked(name)

    monkeypatch.setattr(server, "_pipeline", late)
    version = server.upload(compiled)
    assert version.new and version.name.endswith(compiled.digest[:8])
    assert len(backend.pipelines) == 1 and len(backend.versions) == 2


def test_a_configuration_is_compiled(
    host: str, backend: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def compile_pipeline(config: Any, **options: Any) -> str:
        given.update(options, name=config.name, epochs=config.train.epochs)
        return SPEC

    compiling = type(sys)("espalier.kubeflow.compiling")
    compiling.compile_pipeline = compile_pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "espalier.kubeflow.compiling", compiling)
    file = tmp_path / "reviews.yaml"
    file.write_text(
        "{version: 2, name: reviews, data: {csv: rows.csv, text: text, label: label}, "
        "model: {family: bert, start: tiny}, push: {to: models/reviews}}"
    )
    result = espalier(
        "submit", file, "--host", host, "--image", "me/espalier:3", "--root", "gs://a/b",
        "--no-cache", "--set", "train.epochs=7",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    expected = {"image": "me/espalier:3", "root": "gs://a/b", "cache": False}
    assert given == {**expected, "name": "reviews", "epochs": 7}
    ((_, run),) = backend.calls("POST", "runs")
    assert run["runtime_config"] == {"pipeline_root": "gs://a/b"}


def test_several_users(backend: Any, host: str, spec: Path) -> None:
    backend.multi_user, backend.readers = True, ("bob",)
    call = ("submit", "--spec", spec, "--host", host)
    assert "several users; say whose pipelines these are with --namespace" in refusal(
        espalier(*call), 2
    )
    words = refusal(espalier(*call, "--namespace", "nobody"), 5)
    assert 'not allowed in the namespace "nobody", or there is no such namespace (403' in words
    words = refusal(espalier(*call, "--namespace", "bob"), 5)
    assert 'not allowed in the namespace "bob"' in words
    assert not backend.runs and not backend.pipelines

    assert espalier(*call, "--namespace", "ann").exit_code == 0
    ((query, _),) = backend.calls("POST", "pipelines/upload")
    assert query["namespace"] == "ann"
    (experiment,) = backend.experiments.values()
    assert experiment["namespace"] == "ann"


def test_an_upload_that_is_refused_without_a_reason(host: str, backend: Any) -> None:
    backend.multi_user, backend.readers = True, ("bob",)
    server = servers.Server(host, namespace="bob")
    with pytest.raises(ServerError, match="no more to one who may not create pipelines here"):
        server.upload(specs.read_spec(SPEC, "spec"))


# Waiting.


def test_waiting_tells_each_task_as_it_changes(host: str, spec: Path, pauses: list[float]) -> None:
    result = espalier("submit", "--spec", spec, "--host", host, "--wait")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[2:] == [
        "ExampleGen  running",
        "ExampleGen  succeeded  12 s",
        "Trainer     running",
        "Trainer     succeeded  12 s",
        "the run succeeded after 24 s",
    ]
    assert set(pauses) == {5.0}


@pytest.mark.parametrize("in_driver", [False, True])
def test_a_run_that_fails(
    host: str, backend: Any, spec: Path, pauses: list[float], in_driver: bool
) -> None:
    backend.fails, backend.fails_in_driver = "Trainer", in_driver
    result = espalier("submit", "--spec", spec, "--host", host, "--wait")
    words = refusal(result, 3)
    (run,) = backend.runs
    assert "Trainer failed: the server does not say why" in words
    assert f"the task's log is at {host}/#/runs/details/{run}" in words
    assert "the run failed after 24 s" in words


def test_a_run_that_fails_and_says_why(
    host: str, backend: Any, spec: Path, pauses: list[float]
) -> None:
    backend.fails, backend.error = "ExampleGen", "No rows in [red]rows.csv[/red]."
    words = refusal(espalier("submit", "--spec", spec, "--host", host, "--wait"), 3)
    assert "ExampleGen failed: No rows in [red]rows.csv[/red]." in words


def test_a_connection_that_drops_and_comes_back(
    host: str, backend: Any, spec: Path, pauses: list[float]
) -> None:
    backend.drops, backend.breaks = 3, 2
    result = espalier("submit", "--spec", spec, "--host", host, "--wait")
    assert result.exit_code == 0, result.output
    assert result.output.count("Trying again.") == 1
    assert result.output.count("The server answers again.") == 1
    assert pauses[:5] == [5.0, 10.0, 20.0, 40.0, 60.0]
    assert "the run succeeded" in result.output


def test_a_server_that_does_not_come_back(host: str, backend: Any, pauses: list[float]) -> None:
    server, compiled = servers.Server(host), specs.read_spec(SPEC, "spec")
    run = _run(server, compiled)
    backend.drops = 10**6
    with pytest.raises(ServerError, match=f"The run goes on on the cluster: .*{run}"):
        _watch(server, run, compiled, patience=0.05)


def test_a_token_that_expires_while_waiting(
    host: str, backend: Any, spec: Path, tmp_path: Path, pauses: list[float]
) -> None:
    backend.token, backend.token_lasts = "s3cret", 2
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    result = espalier("submit", "--spec", spec, "--host", host, "--token-file", file, "--wait")
    words = refusal(result, 5)
    (run,) = backend.runs
    assert "the token expired while waiting (401)" in words
    assert f"The run goes on on the cluster: {host}/#/runs/details/{run}" in words
    assert f"with a new token, `espalier runs --host {host}` says how it ended" in words
    assert "s3cret" not in words


def test_a_token_that_is_renewed_in_its_file(
    host: str, backend: Any, tmp_path: Path, pauses: list[float]
) -> None:
    backend.token = "old"
    file = tmp_path / "token"
    file.write_text("old")
    server, compiled = servers.Server(host, token_file=file), specs.read_spec(SPEC, "spec")
    run = _run(server, compiled)
    backend.token = "new"
    file.write_text("new")
    assert _watch(server, run, compiled).exit_code == 0


def test_a_run_that_is_deleted_meanwhile(host: str, backend: Any) -> None:
    server, compiled = servers.Server(host), specs.read_spec(SPEC, "spec")
    run = _run(server, compiled)
    backend.runs.clear()
    with pytest.raises(ServerError, match=f"the run {run} was deleted meanwhile"):
        _watch(server, run, compiled)


def test_ctrl_c_leaves_the_run_alone(
    host: str, backend: Any, spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(watching.time, "sleep", interrupt)
    result = espalier("submit", "--spec", spec, "--host", host, "--wait")
    assert result.exit_code == 130
    assert "stopped waiting; the run goes on on the cluster" in result.output


def _run(server: Any, compiled: Any) -> str:
    experiment = server.experiment("Default", create=True)
    run: str = server.run(compiled, server.upload(compiled), experiment=experiment)
    return run


def _watch(server: Any, run: str, compiled: Any, **options: Any) -> Any:
    return watching.watch(server, run, compiled.tasks, lambda *_: None, lambda _: None, **options)


# Refusals.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("2.1.0", "2.0.0"), "schemaVersion is 2.0.0; Kubeflow Pipelines takes 2.1.0 alone"),
        (("name: reviews}", "name: Reviews}"), 'pipelineInfo.name is "Reviews"'),
        (("root:\n", "notroot:\n"), "no pipeline spec in it"),
        (("pipelineInfo: {", "pipelineInfo: {{"), "not YAML"),
        (("sdkVersion", "---\npipelineInfo: {name: b}\nroot: {}\n---\nx"), "2 pipeline specs"),
    ],
)
def test_a_spec_that_is_none(spec: Path, change: tuple[str, str], words: str) -> None:
    spec.write_text(SPEC.replace(*change), encoding="utf-8")
    result = espalier("submit", "--spec", spec, "--host", "localhost:1")
    assert words in refusal(result, 2) and str(spec) in result.output.replace("\n", "")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pipelineSpec: {pipelineInfo: {name: a}}", "a PipelineJob, which is Vertex AI's"),
        ("apiVersion: argoproj.io/v1alpha1\nkind: Workflow", "an Argo Workflow, of KFP 1"),
        ("data: {csv: a}\nmodel: {family: bert}", "give it without --spec"),
        ("", "no pipeline spec in it"),
    ],
)
def test_something_else_than_a_spec(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        specs.read_spec(text, "a.yaml")


def test_what_the_server_refuses_is_told_in_its_words(host: str, spec: Path) -> None:
    spec.write_text(SPEC + "unknownField: 1\n", encoding="utf-8")
    words = refusal(espalier("submit", "--spec", spec, "--host", host), 5)
    assert f"{host}: refused (400): unknown template format" in words

    resolver = SPEC.replace('exec-Trainer: {container: {image: "espalier:1", command: [python]}}',
                            "exec-Trainer: {resolver: {}}")  # fmt: skip
    spec.write_text(resolver, encoding="utf-8")
    words = refusal(espalier("submit", "--spec", spec, "--host", host), 5)
    assert "refused (500): Internal error: resolver executors not implemented" in words
    assert "main.run" not in words


def test_a_run_whose_answer_is_lost(host: str, backend: Any, spec: Path) -> None:
    backend.cut = True
    words = refusal(espalier("submit", "--spec", spec, "--host", host), 5)
    ((_, body),) = backend.calls("POST", "runs")  # not sent again
    assert "The run may be there all the same: look with `espalier runs` for " in words
    assert body["display_name"] in words


def test_an_archived_experiment(host: str, backend: Any, spec: Path) -> None:
    espalier("submit", "--spec", spec, "--host", host, "--experiment", "100% + more")
    (experiment,) = backend.experiments.values()
    experiment["storage_state"] = "ARCHIVED"
    call = ("submit", "--spec", spec, "--host", host, "--experiment", "100% + more")
    assert '"100% + more" is archived; restore it there' in refusal(espalier(*call), 2)
    assert len(backend.runs) == 1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((), "give a CONFIG, or a compiled pipeline with --spec FILE"),
        (("a.yaml", "--spec", "b.yaml"), "one of them"),
        (("--spec", "nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (("--spec", "b.yaml", "--no-cache", "--set", "a=1"), "--no-cache, --set: says how"),
        (("nowhere.yaml",), "nowhere.yaml: no such file"),
    ],
)
def test_what_is_given_does_not_fit(given: tuple[str, ...], words: str) -> None:
    assert words in refusal(espalier("submit", *given, "--host", "http://localhost:1"), 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--token", "a", "--token-file", "b"), "--token or --token-file, not both"),
        (("--token", "a b"), "the token: has a space"),
        (("--token-file", "nowhere"), "nowhere: the token cannot be read"),
        (("--ca", "nowhere"), "--ca nowhere: cannot be read"),
        (("--ca", __file__), "holds no certificate"),
    ],
)
def test_access_that_cannot_be_used(spec: Path, options: tuple[str, ...], words: str) -> None:
    result = espalier("runs", "--host", "http://localhost:1", *options)
    assert words in refusal(result, 2)


@pytest.mark.parametrize(
    ("token", "words"), [("", "the token is missing, wrong or expired (401"), ("bad", "(401")]
)
def test_a_server_that_asks_for_a_token(host: str, backend: Any, token: str, words: str) -> None:
    backend.token = "s3cret"
    options = ("--token", token) if token else ()
    told = refusal(espalier("runs", "--host", host, *options), 5)
    assert words in told and "--token-file" in told and "RBAC: access denied" in told


@pytest.mark.parametrize("status", [200, 401, 403, 404])
def test_a_login_page(host: str, backend: Any, status: int) -> None:
    backend.login_page = status
    words = refusal(espalier("runs", "--host", host), 5)
    assert "token" in words and "<html" not in words
    if status == 200:
        assert "a web page answers, as a login page does" in words


def test_a_redirect(host: str, backend: Any) -> None:
    with serving(Backend()) as other:
        backend.redirect = f"{other}/apis/v2beta1/healthz"
        words = refusal(espalier("runs", "--host", host), 5)
        assert f"redirects to {other}; give that as --host" in words
        backend.redirect = f"{other}/login"
        words = refusal(espalier("runs", "--host", host), 5)
        assert "nothing is found at the API's path" in words


def test_a_server_of_version_one(host: str, backend: Any) -> None:
    backend.v1_only = True
    words = refusal(espalier("runs", "--host", host), 5)
    assert "speaks the API v1beta1 alone; v2beta1 is needed" in words


def test_nobody_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begun = time.monotonic()
    words = refusal(espalier("runs", "--host", f"http://127.0.0.1:{port}"), 5)
    assert f"http://127.0.0.1:{port}: no answer (" in words and "Connection refused" in words
    assert "HTTPConnectionPool" not in words and "object at" not in words
    assert time.monotonic() - begun < 20  # kfp.Client would try for 25 s
    words = refusal(espalier("runs", "--host", "http://nowhere.invalid"), 5)
    assert "http://nowhere.invalid: no answer (" in words


def test_a_host_without_a_scheme(host: str) -> None:
    result = espalier("runs", "--host", host.removeprefix("http://"))
    assert result.exit_code == 0 and f"no scheme; taken as {host}" in result.output
    assert servers.full_address("localhost") == "http://localhost"
    assert servers.full_address("localhost/pipeline/") == "http://localhost/pipeline"
    assert servers.full_address("[::1]:80") == "http://[::1]:80"
    assert servers.full_address("kfp.example.com/pipeline") == "https://kfp.example.com/pipeline"
    assert servers.full_address("http://kfp:8888/#/") == "http://kfp:8888"


@pytest.mark.parametrize("bad", ["", "ftp://a", "http://", "http://a:x", "a b", "http://u:p@a"])
def test_a_host_that_is_none(bad: str) -> None:
    assert "not an address" in refusal(espalier("runs", "--host", bad), 2)


def test_tls(tmp_path: Path, backend: Any) -> None:
    files = certificate, key = tmp_path / "ca.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", certificate, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(backend, tls=files) as address:
        result = espalier("runs", "--host", address, "--ca", certificate)
        assert result.exit_code == 0, result.output
        words = refusal(espalier("runs", "--host", address), 5)
        assert "CERTIFICATE_VERIFY_FAILED" in words and "with --ca" in words
    with serving(backend) as address:
        words = refusal(espalier("runs", "--host", address.replace("http", "https")), 5)
        assert "Does it speak TLS there? Else write http://" in words


# Listing.


def test_runs(host: str, backend: Any, spec: Path, pauses: list[float]) -> None:
    assert espalier("runs", "--host", host).output == "no runs\n"
    assert espalier("runs", "--host", host, "--json").output == "[]\n"
    espalier("submit", "--spec", spec, "--host", host)
    espalier("submit", "--spec", spec, "--host", host, "--experiment", "Nightly")
    first, second = backend.runs
    backend.runs[first] |= {"state": "SUCCEEDED", "finished_at": "2026-11-24T07:18:41.5Z"}
    head, *rows = espalier("runs", "--host", host).output.splitlines()
    assert head.split() == ["name", "state", "begun", "took", "link"]
    assert [row.split()[-1] for row in rows] == [
        f"{host}/#/runs/details/{id}" for id in (second, first)
    ]
    assert "pending" in rows[0] and "2:01:01" not in rows[0]
    assert "succeeded" in rows[1] and "2:01:01" in rows[1]
    told = json.loads(espalier("runs", "--host", host, "--json").stdout)
    assert [(one["id"], one["seconds"]) for one in told] == [(second, None), (first, 7261.0)]
    assert espalier("runs", "--host", host, "--md").stdout.count("\n") == 4

    only = espalier("runs", "--host", host, "--experiment", "Nightly").output
    assert second in only and first not in only
    assert first not in espalier("runs", "--host", host, "--limit", "1").output
    backend.runs[second]["storage_state"] = "ARCHIVED"
    assert second not in espalier("runs", "--host", host).output
    words = refusal(espalier("runs", "--host", host, "--experiment", "nightly"), 2)
    assert 'no experiment "nightly". There is: Nightly, Default.' in words
    assert len(backend.experiments) == 2


# Scheduling.


def test_schedule(host: str, backend: Any, spec: Path) -> None:
    call = ("schedule", "--spec", spec, "--host", host, "--cron", "0 3 * * *")
    result = espalier(*call)
    assert result.exit_code == 0, result.output
    ((_, body),) = backend.calls("POST", "recurringruns")
    assert body["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * *"}}
    assert body["mode"] == "ENABLE" and body["max_concurrency"] == "1" and body["no_catchup"]
    assert body["runtime_config"] == {"pipeline_root": "minio://mlpipeline/espalier"}
    (version,) = backend.versions
    assert body["pipeline_version_reference"]["pipeline_version_id"] == version
    (made,) = backend.schedules
    assert f"schedule  {host}/#/recurringrun/details/{made}" in result.output
    assert "cron      0 0 3 * * * (with 0 for the seconds in front" in result.output
    assert "older schedule" not in result.output and not backend.runs
    assert "1 older schedule(s) of reviews go on" in espalier(*call).output


def test_a_schedule_that_kfp_does_not_take(backend: Any, host: str, spec: Path) -> None:
    words = refusal(espalier("schedule", "--spec", spec, "--host", host, "--cron", "daily"), 2)
    assert '--cron "daily": 1 fields; five are expected' in words
    assert not backend.received


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("0 3 * * *", "0 0 3 * * *"),
        ("30  0 3 * * *", "30 0 3 * * *"),
        ("*/15 8-18 ? jan-MAR,12 mon-fri", "0 */15 8-18 ? jan-MAR,12 mon-fri"),
        ("5/20 0-12/3 1 1 0", "0 5/20 0-12/3 1 1 0"),
        ("@daily", "@daily"),
        ("@every 1h30m", "@every 1h30m"),
    ],
)
def test_cron_expressions(given: str, taken: str) -> None:
    assert cron.six_fields(given) == taken


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "0 fields"),
        ("0 0 3 * * * 2027", "7 fields"),
        ("60 3 * * *", 'the minute "60": 0 to 59 is expected'),
        ("0 3 * * 7", "0 to 6 is expected; Sunday is 0"),
        ("0 3 0 * *", 'the day of the month "0": 1 to 31'),
        ("0 3 * jam *", 'the month "jam": 1 to 12'),
        ("*/0 3 * * *", "a step is at least 1"),
        ("9-5 3 * * *", "the range ends before it begins"),
        ("1,,2 3 * * *", "a number, a range"),
        ("0 3 * * 5L", "0 to 6 is expected"),
        ("TZ=UTC 0 3 * * *", "a number, a range"),
        ("@fortnightly", "@weekly"),
        ("@every 0s", "@every 1h30m"),
        ("@every day", "@every 1h30m"),
    ],
)
def test_cron_expressions_that_are_refused(given: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        cron.six_fields(given)


# Small things.


def test_times() -> None:
    assert servers.instant("1970-01-01T00:00:00Z") is None and servers.instant(None) is None
    assert servers.seconds("2026-11-24T05:17:40Z", "2026-11-24T05:18:40.123456789Z") == 60
    assert servers.seconds("2026-11-24T05:17:40Z", "1970-01-01T00:00:00Z") is None


def test_a_state_of_a_later_server() -> None:
    detail = {"display_name": "Trainer", "state": "HIBERNATING"}
    run = {"run_details": {"task_details": [detail]}}
    assert watching.tasks_of(run, ["Trainer", "Pusher"]) == {
        "Trainer": watching.Task("HIBERNATING"),
        "Pusher": watching.Task(),
    }


def test_the_digest_is_of_the_content() -> None:
    spec = specs.read_spec(SPEC, "spec")
    import yaml

    again = specs.read_spec(json.dumps(yaml.safe_load(SPEC)), "spec")
    assert spec.digest == again.digest
    assert spec.tasks == ("ExampleGen", "Trainer") and spec.root == "minio://mlpipeline/espalier"


@pytest.mark.parametrize("command", ["submit", "runs", "schedule"])
def test_help(command: str) -> None:
    assert "--host" in espalier(command, "--help").output
