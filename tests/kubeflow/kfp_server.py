"""A loopback server that speaks Kubeflow Pipelines' v2beta1 as its backend does.

What it answers and refuses was read in kubeflow/pipelines: backend/src/apiserver/main.go (paths),
server/ (calls, errors), template/v2_template.go (what a spec must be), storage/ (unique names).
No cluster is behind it: a run's tasks move on a step each time the run is read.
"""

import contextlib
import datetime
import email.parser
import email.policy
import itertools
import json
import re
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

LOGIN_PAGE = "<!doctype html><html><title>Log in</title><body>Grüezi</body></html>"
_KINDS = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 500: 13}  # HTTP's status -> gRPC's code


class Refusal(Exception):
    """An answer that is an error: status, what is said outside, and where it happened."""

    def __init__(self, status: int, words: str, trail: str = "Failed") -> None:
        super().__init__(words)
        self.status, self.words, self.trail = status, words, trail


@dataclass
class Backend:
    """What a server holds, and how it should behave.

    Attributes:
        token: callers must show it, if set.
        token_lasts: so many reads of a run; then it is refused.
        multi_user: whether namespaces count; then those in `namespaces` may be written, those in
            `readers` be read.
        v1_only: paths of v2beta1 are unknown.
        login_page: a page answers everything, as a proxy before the login does: 200 or a status.
        redirect: everything is redirected there.
        drops: so many reads of runs end with the connection cut.
        breaks: so many reads of runs get 503.
        fails: the task that fails, with `error` if that is told.
        fails_in_driver: it fails before its container starts.
        cut: the connection is cut when a run is created, after it was.
        received: method, path, query and body of each call; a multipart file as its text.
    """

    token: str = ""
    token_lasts: int | None = None
    multi_user: bool = False
    namespaces: tuple[str, ...] = ("ann",)
    readers: tuple[str, ...] = ()
    v1_only: bool = False
    login_page: int = 0
    redirect: str = ""
    cut: bool = False
    drops: int = 0
    breaks: int = 0
    fails: str = ""
    fails_in_driver: bool = False
    error: str = ""
    received: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    experiments: dict[str, dict[str, Any]] = field(default_factory=dict)
    pipelines: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    schedules: dict[str, dict[str, Any]] = field(default_factory=dict)
    reads: int = 0
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def id(self) -> str:
        """A new one."""
        return f"00000000-0000-4000-8000-{next(self._numbers):012d}"

    def calls(self, method: str, path: str) -> list[tuple[dict[str, str], Any]]:
        """Query and body of the calls of one path below /apis/v2beta1/."""
        return [
            (query, body)
            for verb, where, query, body in self.received
            if verb == method and where == f"/apis/v2beta1/{path}"
        ]


@contextlib.contextmanager
def serving(backend: Backend, tls: tuple[Path, Path] | None = None) -> Iterator[str]:
    """Serve at a free port of this machine; yields the address.

    Args:
        backend: what is served.
        tls: PEM files of a certificate and its key.
    """
    handler = type("Handler", (_Handler,), {"backend": backend})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def check_spec(text: str) -> dict[str, Any]:
    """What the backend demands of an upload; returns the spec. See template/v2_template.go."""
    from google.protobuf import json_format
    from kfp.pipeline_spec import pipeline_spec_pb2

    try:
        documents = [one for one in yaml.safe_load_all(text) if isinstance(one, dict)]
    except yaml.YAMLError as error:
        raise Refusal(400, f"failed to parse pipeline spec YAML: {error}") from None
    specs = []
    for one in documents:
        with contextlib.suppress(json_format.ParseError):
            spec = json_format.ParseDict(one, pipeline_spec_pb2.PipelineSpec())
            if spec.pipeline_info.name and spec.HasField("root"):
                specs.append((one, spec))
    if not specs:
        raise Refusal(400, "unknown template format")
    if len(specs) > 1:
        raise Refusal(400, "multiple pipeline specs provided")
    raw, spec = specs[0]
    if spec.schema_version != "2.1.0":
        raise Refusal(
            400,
            "KFP only supports schema version 2.1.0, but the pipeline spec has version "
            f"{spec.schema_version}",
        )
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,127}", spec.pipeline_info.name):
        raise Refusal(
            400,
            "pipeline's name must contain only lowercase alphanumeric characters or '-' and must "
            "start with alphanumeric characters",
        )
    return raw


def check_compiles(spec: dict[str, Any]) -> None:
    """What only shows when a run is created: the backend compiles the spec for Argo then."""
    for name, task in spec["root"]["dag"]["tasks"].items():
        component = spec.get("components", {}).get(task["componentRef"]["name"])
        if component is None:
            raise Refusal(500, "", f"component spec for {name!r} not found")
        label = component.get("executorLabel")
        executor = spec.get("deploymentSpec", {}).get("executors", {}).get(label)
        if executor is None:
            raise Refusal(500, "", f"executor with label {label!r} not found")
        if "resolver" in executor:
            raise Refusal(500, "", "resolver executors not implemented")
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    for name, one in inputs.items():
        if "defaultValue" not in one and not one.get("isOptional"):
            raise Refusal(400, f"parameter {name} is not optional, yet has neither default value")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two packets: 40 ms a call otherwise
    backend: Backend

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        body = self._body()
        self.backend.received.append((method, url.path, query, body))
        try:
            self._gate(url.path)
            answer = _route(self.backend, method, url.path, query, body)
            self._send(200, "application/json", json.dumps(answer).encode())
        except Refusal as refusal:
            self._refuse(refusal, "/upload" in url.path)
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.close()

    def _body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/form-data"):
            head = f"Content-Type: {kind}\r\n\r\n".encode()
            message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + raw)
            return {
                part.get_param("name", header="content-disposition"): (
                    part.get_filename(),
                    part.get_payload(decode=True).decode(),
                )
                for part in message.iter_parts()
            }
        return json.loads(raw) if raw else None

    def _gate(self, path: str) -> None:
        """What stands before the backend: a login, a proxy."""
        backend = self.backend
        if backend.redirect:
            raise Refusal(302, backend.redirect)
        if backend.login_page:
            raise Refusal(backend.login_page, LOGIN_PAGE)
        expired = backend.token_lasts is not None and backend.reads >= backend.token_lasts
        if backend.token and (
            expired or self.headers.get("Authorization") != f"Bearer {backend.token}"
        ):
            raise Refusal(401, "Jwt is expired" if expired else "RBAC: access denied", "text")
        if backend.v1_only and not path.startswith("/apis/v1beta1/"):
            raise Refusal(404, "Not Found")

    def _refuse(self, refusal: Refusal, upload: bool) -> None:
        status, words = refusal.status, refusal.words
        if status == 302:
            self.send_response(302)
            self.send_header("Location", words)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif words == LOGIN_PAGE:
            self._send(status, "text/html", words.encode("latin-1"))
        elif refusal.trail == "text":
            self._send(status, "text/plain", words.encode())
        elif upload:
            told = {"error_message": words, "error_details": f"{words}\nmain.go:1"}
            self._send(status, "application/json", json.dumps(told).encode())
        else:
            message = f"{refusal.trail}: InvalidInputError: {words}: pipeline spec is invalid"
            outer = words
            if not words:  # an error of Go's own, with its stack
                outer = message = f"Internal error: {refusal.trail}\nmain.run\n\t/go/main.go:7"
            detail = {"@type": "type.googleapis.com/google.rpc.Status", "message": outer}
            told = {"code": _KINDS.get(status, 2), "message": message, "details": [detail]}
            self._send(status, "application/json", json.dumps(told).encode())

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _route(backend: Backend, method: str, path: str, query: dict[str, str], body: Any) -> Any:
    if path in ("/apis/v1beta1/healthz", "/apis/v2beta1/healthz"):
        return {"commit_sha": "abc", "tag_name": "2.5.0", "multi_user": backend.multi_user}
    if not path.startswith("/apis/v2beta1/"):
        raise Refusal(404, "Not Found")
    parts = path.removeprefix("/apis/v2beta1/").split("/")
    for verb, shape, call in _CALLS:
        if verb == method and len(shape) == len(parts):
            pairs = list(zip(shape, parts, strict=True))
            if all(known in ("*", part) for known, part in pairs):
                ids = [part for known, part in pairs if known == "*"]
                return call(backend, *ids, query=query, body=body)
    raise Refusal(404, "Not Found")


def _may(backend: Backend, namespace: str, *, write: bool) -> None:
    """The subject access review."""
    if not backend.multi_user:
        return
    if not namespace:
        raise Refusal(400, "An experiment cannot have an empty namespace in multi-user mode")
    if namespace not in backend.namespaces and (write or namespace not in backend.readers):
        raise Refusal(403, f"User 'ann' is not authorized with reason:  (namespace {namespace})")


def _listed(
    backend: Backend, name: str, rows: list[dict[str, Any]], query: dict[str, str]
) -> dict[str, Any]:
    """Filtered, sorted, the first page."""
    text = urllib.parse.unquote_plus(query.get("filter", "") or "{}")
    for predicate in json.loads(text).get("predicates", ()):
        key, wanted = predicate["key"], predicate["stringValue"]
        equal = predicate["operation"] == "EQUALS"
        assert equal or predicate["operation"] == "NOT_EQUALS"
        # MySQL's collation does not tell capitals apart.
        rows = [row for row in rows if (str(row.get(key)).lower() == wanted.lower()) == equal]
    if query.get("sort_by") == "created_at desc":
        rows = rows[::-1]
    rows = rows[: int(query.get("page_size") or 20)]
    return {name: rows, "total_size": len(rows)} if rows else {}


def _no_unknown(body: dict[str, Any], *known: str) -> None:
    """The gateway refuses fields that it does not know."""
    for name in body:
        if name not in known:
            raise Refusal(400, f'proto: (line 1:2): unknown field "{name}"')


def _list_experiments(backend: Backend, query: Any, body: Any) -> Any:
    _may(backend, query.get("namespace", ""), write=False)
    return _listed(backend, "experiments", list(backend.experiments.values()), query)


def _create_experiment(backend: Backend, query: Any, body: Any) -> Any:
    _no_unknown(body, "display_name", "description", "namespace")
    _may(backend, body.get("namespace", ""), write=True)
    if any(one["display_name"] == body["display_name"] for one in backend.experiments.values()):
        raise Refusal(409, f"The name {body['display_name']} already exists")
    made = {**body, "experiment_id": backend.id(), "storage_state": "AVAILABLE"}
    backend.experiments[made["experiment_id"]] = made
    return made


def _pipeline_by_name(backend: Backend, name: str, query: Any, body: Any) -> Any:
    _may(backend, query.get("namespace", ""), write=False)
    for one in backend.pipelines.values():
        if one["display_name"] == urllib.parse.unquote(name):
            return one
    raise Refusal(404, f"Pipeline {name} not found")


def _list_versions(backend: Backend, pipeline: str, query: Any, body: Any) -> Any:
    rows = [one for one in backend.versions.values() if one["pipeline_id"] == pipeline]
    return _listed(backend, "pipeline_versions", rows, query)


def _file(body: Any) -> str:
    if not isinstance(body, dict) or "uploadfile" not in body:
        raise Refusal(400, "Failed to read pipeline from file")
    name, text = body["uploadfile"]
    if not name.endswith((".yaml", ".yml", ".json")):
        raise Refusal(400, "Failed to read a pipeline spec file")
    return str(text)


def _may_upload(backend: Backend, namespace: str, words: str) -> None:
    try:
        _may(backend, namespace, write=True)
    except Refusal:
        raise Refusal(400, words) from None  # as the upload says it, whatever the reason


def _upload(backend: Backend, query: Any, body: Any) -> Any:
    text = _file(body)
    _may_upload(backend, query.get("namespace", ""), "Failed to create a pipeline")
    spec = check_spec(text)
    if any(one["display_name"] == query["name"] for one in backend.pipelines.values()):
        raise Refusal(409, "Failed to create a pipeline and a pipeline version")
    made = {"pipeline_id": backend.id(), "display_name": query["name"]}
    made |= {"description": query.get("description", "")}
    backend.pipelines[made["pipeline_id"]] = made
    _add_version(backend, made["pipeline_id"], query, spec)
    return made


def _upload_version(backend: Backend, query: Any, body: Any) -> Any:
    text = _file(body)
    if query.get("pipelineid") not in backend.pipelines:
        raise Refusal(400, "Failed to create a pipeline version")
    spec = check_spec(text)
    rows = backend.versions.values()
    if any(
        (v["pipeline_id"], v["display_name"]) == (query["pipelineid"], query["name"]) for v in rows
    ):
        raise Refusal(409, "Failed to create a pipeline version")
    return _add_version(backend, query["pipelineid"], query, spec)


def _add_version(backend: Backend, pipeline: str, query: Any, spec: Any) -> dict[str, Any]:
    made = {
        "pipeline_id": pipeline,
        "pipeline_version_id": backend.id(),
        "display_name": query["name"],
        "description": query.get("description", ""),
        "pipeline_spec": spec,
    }
    backend.versions[made["pipeline_version_id"]] = made
    return made


def _check_job(backend: Backend, body: Any) -> dict[str, Any]:
    """What a run and a recurring run share; returns the spec."""
    reference = body["pipeline_version_reference"]
    version = backend.versions.get(reference["pipeline_version_id"])
    if version is None or version["pipeline_id"] != reference["pipeline_id"]:
        raise Refusal(404, "PipelineVersion not found")
    experiment = backend.experiments.get(body.get("experiment_id", ""))
    if experiment is None:
        raise Refusal(404, "Experiment not found")
    _may(backend, experiment.get("namespace", ""), write=True)
    _no_unknown(body["runtime_config"], "parameters", "pipeline_root")
    check_compiles(version["pipeline_spec"])
    spec: dict[str, Any] = version["pipeline_spec"]
    return spec


def _create_run(backend: Backend, query: Any, body: Any) -> Any:
    _no_unknown(
        body, "display_name", "experiment_id", "pipeline_version_reference", "runtime_config"
    )
    spec = _check_job(backend, body)
    made = {
        **body,
        "run_id": backend.id(),
        "state": "PENDING",
        "storage_state": "AVAILABLE",
        "created_at": "2026-11-24T05:17:40Z",
        "finished_at": "1970-01-01T00:00:00Z",  # not yet
    }
    backend.runs[made["run_id"]] = {**made, "steps": _steps(backend, made, spec)}
    if backend.cut:
        raise ConnectionAbortedError
    return made


def _steps(backend: Backend, run: dict[str, Any], spec: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The run as it is read time after time: task by task, running, then over."""
    clock = datetime.datetime.fromisoformat(run["created_at"][:19])
    details = [_detail("espalier-x7k2p", "RUNNING"), _detail("root-driver", "SUCCEEDED")]
    for name in spec["root"]["dag"]["tasks"]:
        begun, over = clock, clock + datetime.timedelta(seconds=12)
        bad = name == backend.fails
        clock = over
        driver = _detail(f"{name}-driver", "RUNNING", begun)
        yield {**run, "state": "RUNNING", "run_details": {"task_details": [*details, driver]}}
        ended = "FAILED" if bad and backend.fails_in_driver else "SUCCEEDED"
        details.append(_detail(f"{name}-driver", ended, begun, begun))
        if ended == "SUCCEEDED":
            half = [_detail(name, "RUNNING", begun), _detail("executor", "RUNNING", begun)]
            yield {**run, "state": "RUNNING", "run_details": {"task_details": details + half}}
            state = "FAILED" if bad else "SUCCEEDED"
            details += [_detail(one, state, begun, over) for one in (name, "executor")]
        if bad:
            if backend.error:
                told = {"state": "FAILED", "error": {"code": 2, "message": backend.error}}
                details[-2]["state_history"] = [{"state": "RUNNING"}, told]
            break
    end = {"finished_at": f"{clock.isoformat()}Z", "run_details": {"task_details": details}}
    while True:
        yield {**run, "state": "FAILED" if backend.fails else "SUCCEEDED", **end}


def _detail(name: str, state: str, *times: datetime.datetime) -> dict[str, Any]:
    stamps = [f"{time.isoformat()}Z" for time in times] + 2 * ["1970-01-01T00:00:00Z"]
    return {"display_name": name, "state": state, "start_time": stamps[0], "end_time": stamps[1]}


def _get_run(backend: Backend, run: str, query: Any, body: Any) -> Any:
    if backend.drops:
        backend.drops -= 1
        raise ConnectionAbortedError
    if backend.breaks:
        backend.breaks -= 1
        raise Refusal(503, "upstream connect error", "text")
    if run not in backend.runs:
        raise Refusal(404, f"Run {run} not found")
    backend.reads += 1
    return next(backend.runs[run]["steps"])


def _list_runs(backend: Backend, query: Any, body: Any) -> Any:
    if not query.get("experiment_id"):
        _may(backend, query.get("namespace", ""), write=False)
    rows = [{k: v for k, v in run.items() if k != "steps"} for run in backend.runs.values()]
    if query.get("experiment_id"):
        rows = [run for run in rows if run["experiment_id"] == query["experiment_id"]]
    return _listed(backend, "runs", rows, query)


def _list_schedules(backend: Backend, query: Any, body: Any) -> Any:
    return _listed(backend, "recurringRuns", list(backend.schedules.values()), query)


def _create_schedule(backend: Backend, query: Any, body: Any) -> Any:
    _no_unknown(
        body, "display_name", "experiment_id", "pipeline_version_reference", "runtime_config",
        "trigger", "mode", "max_concurrency", "no_catchup",
    )  # fmt: skip
    if not 1 <= int(body["max_concurrency"]) <= 10:
        raise Refusal(400, "Max concurrency of a recurring run must be at least 1 and at most 10.")
    _check_job(backend, body)
    made = {**body, "recurring_run_id": backend.id(), "status": "ENABLED"}
    backend.schedules[made["recurring_run_id"]] = made
    return made


_CALLS: list[tuple[str, list[str], Any]] = [
    ("GET", ["experiments"], _list_experiments),
    ("POST", ["experiments"], _create_experiment),
    ("POST", ["pipelines", "upload"], _upload),
    ("POST", ["pipelines", "upload_version"], _upload_version),
    ("GET", ["pipelines", "names", "*"], _pipeline_by_name),
    ("GET", ["pipelines", "*", "versions"], _list_versions),
    ("POST", ["runs"], _create_run),
    ("GET", ["runs"], _list_runs),
    ("GET", ["runs", "*"], _get_run),
    ("POST", ["recurringruns"], _create_schedule),
    ("GET", ["recurringruns"], _list_schedules),
]
