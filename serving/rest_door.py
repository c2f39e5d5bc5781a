"""The REST door: TensorFlow Serving's paths (model_servers/http_rest_api_util.cc), and a page."""

import asyncio
import contextlib
import errno
import json
import logging
import re
import resource
import socket
import ssl as tls
import tempfile
import threading
import time
import zlib
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import tornado.httpserver
import tornado.netutil
import tornado.web
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    regression_pb2,
)

from ..errors import ConfigError
from . import rest_json
from .frontend import Frontend, guarded
from .predictor import description
from .status import Status, invalid

log = logging.getLogger("espalier.serving")
_WHICH = r"(?:/versions/(\d+)|/labels/([^/:]+))?"
_INFER = re.compile(rf"(?i)/v1/models/([^/:]+){_WHICH}:(classify|regress|predict)")
_LOOK = re.compile(rf"(?i)/v1/models(?:/([^/:]+))?{_WHICH}(?:/(metadata))?")
_PAGE = Path(__file__).parent / "demo.html"
_IDLE_SECONDS = 60.0  # after which a connection that sends nothing, or all too slowly, is closed
_MOST_BODIES = 16  # of the largest size, that are held in memory at once
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True)
class RestOptions:
    """How the REST door is opened; the names are TensorFlow Serving's flags.

    `port` 0 opens none; `metrics_path` "" serves no metrics; `ssl` is an SSLConfig.
    """

    host: str = "0.0.0.0"
    port: int = 8501
    threads: int = 8
    timeout_seconds: float = 30.0
    cors: bool = False
    max_message_bytes: int = 64 * 2**20
    metrics_path: str = ""
    ssl: Any = None


@dataclass
class _Calls:
    """What is under way; only the loop's thread counts."""

    under_way: int = 0
    draining: bool = False
    body_bytes: int = 0


class _Listener(socket.socket):
    """A socket whose `accept` finds nothing for a while when the process is out of files.

    asyncio would come back at once for ever, and log it each time.
    """

    told = False

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return super().accept()
        except OSError as error:
            if error.errno not in _NO_FILES:
                raise
            if not self.told:
                log.error("REST takes no new connections for now: %s", error.strerror)
            self.told = True
            time.sleep(0.05)
            raise BlockingIOError from None


class _Http(tornado.httpserver.HTTPServer):
    """Holds at most half of the files that the process may open: gRPC and the models need some."""

    opened = 0

    def handle_stream(self, stream: Any, address: Any) -> None:
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY and self.opened >= most // 2:
            stream.close()
            return
        self.opened += 1
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: an answer that is not read is dropped
            milliseconds = int(_IDLE_SECONDS * 1000)
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        self.opened -= 1
        super().on_close(server_conn)


class RestDoor:
    """An HTTP server: an event loop reads and writes in one thread, a pool of threads answers.

    Raises:
        ConfigError: the port is taken, or the certificate is none.
    """

    def __init__(self, frontend: Frontend, options: RestOptions) -> None:
        self._options = options
        self._context = _context(options.ssl) if options.ssl is not None else None
        try:
            bound = tornado.netutil.bind_sockets(options.port, options.host)
        except OSError as error:
            raise ConfigError(
                f"REST cannot listen at {options.host}:{options.port}: {error.strerror}. Name "
                "another with --rest_api_port, or 0 for none."
            ) from None
        self._sockets = [_Listener(fileno=one.detach()) for one in bound]
        for listener in self._sockets:
            listener.setblocking(False)
        self._pool = futures.ThreadPoolExecutor(options.threads, thread_name_prefix="rest")
        self._calls = _Calls()
        shared = {
            "frontend": frontend,
            "options": options,
            "pool": self._pool,
            "calls": self._calls,
        }
        routes = [(r"/", _Page, shared), (r"/demo/models", _Names, shared)]
        if options.metrics_path:
            routes.append((re.escape(options.metrics_path), _Metrics, shared))
        self._app = tornado.web.Application(
            [*routes, (r"(?i)/v1/.*", _Api, shared), (r".*", _Nothing, shared)],
            log_function=lambda handler: None,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="rest-loop", daemon=True)
        self._server: _Http | None = None
        self._started = threading.Event()

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()
        self._started.wait()

    def stop(self, grace: float) -> None:
        """Take no new connection, and give calls under way so many seconds."""
        asyncio.run_coroutine_threadsafe(self._drain(grace), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _drain(self, grace: float) -> None:
        assert self._server is not None  # started
        self._server.stop()
        self._calls.draining = True  # connections that are kept alive would go on and on
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._answered(), grace)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._server.close_all_connections(), 1.0)

    async def _answered(self) -> None:
        while self._calls.under_way:
            await asyncio.sleep(0.02)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = _Http(
            self._app,
            ssl_options=self._context,
            max_body_size=self._options.max_message_bytes,
            max_buffer_size=self._options.max_message_bytes + 2**20,
            idle_connection_timeout=_IDLE_SECONDS,
            body_timeout=_IDLE_SECONDS,
        )
        self._server.add_sockets(self._sockets)
        self._loop.call_soon(self._started.set)
        self._loop.run_forever()


def _context(config: Any) -> tls.SSLContext:
    context = tls.SSLContext(tls.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as key, tempfile.NamedTemporaryFile() as certificate:
        # ssl reads a chain from files alone; these can be read by this user only.
        Path(key.name).write_text(config.server_key)
        Path(certificate.name).write_text(config.server_cert)
        try:
            context.load_cert_chain(certificate.name, key.name, password=lambda: "")
            if config.custom_ca:
                context.load_verify_locations(cadata=config.custom_ca)
        except (tls.SSLError, ValueError) as error:
            raise ConfigError(f"the SSL config's certificates cannot be used: {error}.") from None
    if config.client_verify:
        context.verify_mode = tls.CERT_REQUIRED
    return context


@tornado.web.stream_request_body  # or tornado would read JSON as a form, which curl calls it
class _Handler(tornado.web.RequestHandler):
    open_to_all = False  # whether no token is asked for

    def initialize(
        self,
        frontend: Frontend,
        options: RestOptions,
        pool: futures.Executor,
        calls: _Calls,
    ) -> None:
        self.frontend, self.door, self.pool, self.calls = frontend, options, pool, calls
        self.refusal: Status | None = None
        self.body = bytearray()

    def prepare(self) -> None:
        """Look at the token before the body comes: a stranger's fills no memory."""
        try:
            if not self.open_to_all and self.request.method != "OPTIONS":
                self.frontend.admit(self.request.headers.get("Authorization", ""))
        except Status as status:
            self.refusal = status

    def data_received(self, chunk: bytes) -> None:
        """Keep a part of the body, if there is room; one that is refused is read and dropped."""
        if self.calls.body_bytes + len(chunk) > _MOST_BODIES * self.door.max_message_bytes:
            self.refusal = Status(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many large requests at once."
            )
        if self.refusal is None:
            self.calls.body_bytes += len(chunk)
            self.body += chunk

    def on_connection_close(self) -> None:
        """The caller has gone, perhaps amid its body."""
        super().on_connection_close()
        self._forget()

    def on_finish(self) -> None:
        """It is answered."""
        self._forget()

    def _forget(self) -> None:
        self.calls.body_bytes -= len(self.body)
        self.body = bytearray()

    def set_default_headers(self) -> None:
        self.clear_header("Server")

    def write_error(self, status_code: int, **_: Any) -> None:
        """Errors that tornado finds itself, such as a method that a path does not have."""
        self.say(status_code, json.dumps({"error": self._reason}))

    def say(self, code: int, body: str) -> None:
        """Answer with JSON."""
        self.set_status(code)
        self.set_header("Content-Type", "application/json")
        if self.door.cors:
            self.set_header("Access-Control-Allow-Origin", "*")
            self.set_header("Access-Control-Allow-Methods", "POST, GET")
            self.set_header("Access-Control-Allow-Headers", "Content-Type")
        self.write(body)

    def fail(self, status: Status) -> None:
        """Answer with an error."""
        self.say(status.http, json.dumps({"error": status.short}))

    async def answer(self, call: Any, *arguments: Any) -> None:
        """The one place where a Status becomes HTTP's."""
        if self.calls.draining:
            self.set_header("Connection", "close")
            self.say(503, json.dumps({"error": "The server is stopping."}))
            return
        if self.refusal is not None:
            self.fail(self.refusal)
            return
        self.calls.under_way += 1
        try:
            loop = asyncio.get_running_loop()
            self.say(200, await loop.run_in_executor(self.pool, guarded, call, *arguments))
        except Status as status:
            self.fail(status)
        finally:
            self.calls.under_way -= 1


class _Api(_Handler):
    async def post(self) -> None:
        # Counted from when the request was read, not from when a thread is free.
        deadline = time.monotonic() + self.door.timeout_seconds
        await self.answer(self._infer, deadline, time.time())

    async def get(self) -> None:
        await self.answer(self._look)

    async def options(self) -> None:  # type: ignore[override]
        self.say(200, "")

    def _infer(self, deadline: float, received: float) -> str:
        found = _INFER.fullmatch(self.request.path)
        if not found:
            raise invalid(f"Malformed request: POST {self.request.path}")
        method = found[4].lower()
        try:
            spec = _spec(*found.groups()[:3])
            request, by_row = self._read(method, spec)
        except Status as status:
            self.frontend.refused(method, unquote(found[1]), "REST", status)
            raise
        request_id = self.request.headers.get("X-Request-Id", "")
        answer = self.frontend.infer(method, request, "REST", deadline, request_id, received)
        if method == "predict":
            return rest_json.predictions(answer.outputs, by_row)
        if method == "classify":
            return rest_json.classifications(answer.result)
        return rest_json.regressions(answer.result)

    def _read(self, method: str, spec: Any) -> tuple[Any, bool]:
        """The request that the body holds, and whether it is in the row form."""
        document = rest_json.parse(self._body())
        rest_json.fill_signature(document, spec)
        if method == "predict":
            request = predict_pb2.PredictRequest(model_spec=spec)
            infos = self.frontend.plane.inputs(spec)
            return request, rest_json.fill_inputs(document, infos, request)
        kind = (
            classification_pb2.ClassificationRequest
            if method == "classify"
            else regression_pb2.RegressionRequest
        )
        request = kind(model_spec=spec)
        rest_json.fill_examples(document, request.input)
        return request, False

    def _body(self) -> bytes | bytearray:
        if "gzip" not in self.request.headers.get("Content-Encoding", ""):
            return self.body
        most = self.door.max_message_bytes
        zipped = zlib.decompressobj(zlib.MAX_WBITS | 16)  # 16: gzip's header
        try:
            body = zipped.decompress(self.body, most + 1)
        except zlib.error:
            raise invalid("Failed to uncompress the gzipped body") from None
        if len(body) > most:
            raise invalid(f"The body, uncompressed, has more than {most} bytes")
        if not zipped.eof:
            raise invalid("Failed to uncompress the gzipped body")
        return body

    def _look(self) -> str:
        found = _LOOK.fullmatch(self.request.path)
        if not found:
            raise invalid(f"Malformed request: GET {self.request.path}")
        name, version, label, what = found.groups()
        if not name:
            raise invalid("Missing model name in request.")
        spec = _spec(name, version, label)
        if not what:
            request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
            return rest_json.message(self.frontend.plane.status(request))
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=spec, metadata_field=["signature_def"]
        )
        response = self.frontend.plane.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return rest_json.metadata(response, signatures)


def _spec(name: str, version: str | None, label: str | None) -> Any:
    spec = model_pb2.ModelSpec(name=unquote(name))
    if version:
        digits = version.lstrip("0") or "0"  # Python refuses thousands of them
        if len(digits) > 19 or int(digits) >= 2**63:
            raise invalid(f"Failed to convert version: {version} to numeric.")
        spec.version.value = int(digits)
    if label:
        spec.version_label = unquote(label)
    return spec


class _Metrics(_Handler):
    async def get(self) -> None:
        if self.refusal is not None:
            self.fail(self.refusal)
            return
        self.set_header("Content-Type", "text/plain")
        self.write(self.frontend.metrics.page())


class _Page(_Handler):
    open_to_all = True

    async def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        # Nothing from elsewhere, whatever a label or a text holds.
        self.set_header(
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
            "connect-src 'self'; img-src data: blob:; form-action 'none'; base-uri 'none'; "
            "frame-ancestors 'none'",
        )
        self.write(_PAGE.read_bytes())


class _Names(_Handler):
    """What the page must know of the models: name, version, and what Espalier's export says."""

    async def get(self) -> None:
        await self.answer(self._models)

    def _models(self) -> str:
        found = []
        for config in self.frontend.plane.manager.configs():
            try:
                with self.frontend.plane.manager.hold(config.name, None, "") as version:
                    facts, number = description(version.path), version.number
            except Status as status:
                if status.code is not grpc.StatusCode.NOT_FOUND:
                    raise
                continue
            told = {key: facts.get(key) for key in ("kind", "labels", "inputs", "multi_label")}
            found.append({"name": config.name, "version": number, **told})
        return json.dumps(found)


class _Nothing(_Handler):
    def prepare(self) -> None:
        self.refusal = Status(grpc.StatusCode.NOT_FOUND, "Not Found")

    async def get(self) -> None:
        await self.answer(None)

    head = post = put = patch = delete = options = get  # type: ignore[assignment]
