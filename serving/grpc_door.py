"""The gRPC door: tensorflow.serving's services, health checks, reflection."""

import time
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2,
    prediction_service_pb2_grpc,
)

from ..errors import ConfigError
from .config_files import models
from .frontend import Frontend, guarded
from .patience import Patience, Pool
from .status import Status, invalid

_HEALTH = "grpc.health.v1.Health"
# What the health service answers for, beside the server as a whole (""); those of model_servers/
# server.cc, and the services' own names.
_NAMES = ("", "ModelService", "PredictionService",
          "tensorflow.serving.ModelService", "tensorflow.serving.PredictionService")  # fmt: skip


@dataclass(frozen=True)
class DoorOptions:
    """How the gRPC door is opened; the names are TensorFlow Serving's flags.

    `port` 0 opens none; `ssl` is an SSLConfig.
    """

    host: str = "0.0.0.0"
    port: int = 8500
    socket_path: str = ""
    max_threads: int = 8
    max_message_bytes: int = 64 * 2**20
    channel_arguments: tuple[tuple[str, Any], ...] = field(default_factory=tuple)
    ssl: Any = None


class GrpcDoor:
    """A sync gRPC server: a thread answers a call from its message to its last byte.

    Args:
        frontend: what answers.
        reload: takes a list of ModelConfigs.
        options: see there.

    Raises:
        ConfigError: the port or the socket is taken, or the certificate is none.
    """

    def __init__(
        self, frontend: Frontend, reload: Callable[[Any], None], options: DoorOptions
    ) -> None:
        arguments = [
            ("grpc.max_receive_message_length", options.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),  # a taken port is an error
            # Connections that do nothing; a caller of ours opens another by itself.
            ("grpc.server_handshake_timeout_ms", 20_000),
            ("grpc.max_connection_idle_ms", 600_000),
            *options.channel_arguments,
        ]
        self._pool = Pool(options.max_threads)
        self._patience = Patience(self._pool)
        guards = [_Guard(frontend)] if frontend.guarded else []  # first: they read no message
        self._server = grpc.server(
            self._pool, options=arguments, interceptors=[*guards, self._patience]
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            _Predictions(frontend), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(
            _Models(frontend, reload), self._server
        )
        self._health = _Health()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        services = [
            prediction_service_pb2.DESCRIPTOR.services_by_name["PredictionService"].full_name,
            model_service_pb2.DESCRIPTOR.services_by_name["ModelService"].full_name,
            _HEALTH,
            reflection.SERVICE_NAME,
        ]
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(
            _Reflection(services), self._server
        )
        self.set_ready(False)
        if options.port:
            self._listen(f"{options.host}:{options.port}", options.ssl)
        if options.socket_path:
            self._listen(f"unix:{options.socket_path}", options.ssl)

    def _listen(self, address: str, ssl: Any) -> None:
        try:
            if ssl is None:
                opened = self._server.add_insecure_port(address)
            else:
                opened = self._server.add_secure_port(address, _credentials(ssl))
        except RuntimeError:
            opened = 0
        if not opened:
            why = "or the certificate or its key is none" if ssl else "or not allowed"
            raise ConfigError(
                f"gRPC cannot listen at {address}: it is taken {why}. Name another with --port."
            )

    def start(self) -> None:
        """Begin to answer."""
        self._patience.start()
        self._server.start()

    def set_ready(self, ready: bool) -> None:
        """Tell health checks whether models are served."""
        serving = health_pb2.HealthCheckResponse
        for name in _NAMES:
            self._health.set(name, serving.SERVING if ready else serving.NOT_SERVING)

    def stop(self, grace: float) -> None:
        """Refuse new calls, and give those under way so many seconds."""
        self._health.enter_graceful_shutdown()
        self._server.stop(grace).wait()
        self._patience.stop()
        self._pool.shutdown()


class _Health(health.HealthServicer):
    """Probes are answered however busy the models are."""

    def Check(self, request: Any, context: grpc.ServicerContext) -> Any:
        return super().Check(request, context)

    Check.experimental_thread_pool = futures.ThreadPoolExecutor(32)  # type: ignore[attr-defined]
    Check.patience_seconds = 1.0  # type: ignore[attr-defined]

    def Watch(self, request: Any, context: Any, send_response_callback: Any = None) -> Any:
        if request.service not in _NAMES:  # the names that are watched are kept for ever
            unknown = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            send_response_callback(health_pb2.HealthCheckResponse(status=unknown))
            send_response_callback(None)
            return None
        return super().Watch(request, context, send_response_callback)


class _Reflection(reflection.ReflectionServicer):
    """A stream of reflection holds a thread for as long as it is open: not one of the models'."""

    def ServerReflectionInfo(self, request_iterator: Any, context: grpc.ServicerContext) -> Any:
        return super().ServerReflectionInfo(request_iterator, context)

    ServerReflectionInfo.experimental_thread_pool = futures.ThreadPoolExecutor(16)  # type: ignore[attr-defined]
    ServerReflectionInfo.patience_seconds = 10.0  # type: ignore[attr-defined]


def _credentials(ssl: Any) -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(ssl.server_key.encode(), ssl.server_cert.encode())],
        root_certificates=ssl.custom_ca.encode() or None,
        require_client_auth=ssl.client_verify,
    )


class _Guard(grpc.ServerInterceptor):
    """Asks each caller for the token, but for health checks, which probes make."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        if details.method.startswith(f"/{_HEALTH}/"):
            return continuation(details)
        shown = [value for key, value in details.invocation_metadata if key == "authorization"]
        try:
            self._frontend.admit(shown[0] if len(shown) == 1 else "")
        except Status as status:
            refused = status  # the name of an except clause ends with it

            def refuse(_: Any, context: grpc.ServicerContext) -> None:
                context.abort(refused.code, refused.short)

            # A stream on the server's side alone: it is refused before its message is waited for.
            return grpc.stream_unary_rpc_method_handler(refuse)
        return continuation(details)


class _Predictions:
    """PredictionService."""

    def __init__(self, frontend: Frontend) -> None:
        self._frontend = frontend

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("predict", request, context)

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("classify", request, context)

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("regress", request, context)

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:
        return self._infer("multi_inference", request, context)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _answer(context, self._frontend.plane.metadata, request)

    def _infer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        if not context.is_active():
            context.abort(grpc.StatusCode.CANCELLED, "The caller has gone.")
        left = context.time_remaining()
        # Seconds in a float's far range mean that there is none.
        deadline = None if left is None or left > 1e8 else time.monotonic() + left
        request_id = ""
        for key, value in context.invocation_metadata():
            if key == "x-request-id":
                request_id = str(value)
        return _answer(context, self._frontend.infer, method, request, "GRPC", deadline, request_id)


class _Models:
    """ModelService."""

    def __init__(self, frontend: Frontend, reload: Callable[[Any], None]) -> None:
        self._frontend, self._reload = frontend, reload

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _answer(context, self._frontend.plane.status, request)

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:
        return _answer(context, self._reloaded, request)

    def _reloaded(self, request: Any) -> Any:
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
                "ModelConfigList is currently supported"
            )
        try:
            self._reload(models(request.config))
        except ConfigError as error:
            raise invalid(str(error)) from None
        response = model_management_pb2.ReloadConfigResponse()
        response.status.error_code = 0
        return response


def _answer(context: grpc.ServicerContext, call: Callable[..., Any], *arguments: Any) -> Any:
    """The one place where a Status becomes gRPC's."""
    try:
        return guarded(call, *arguments)
    except Status as status:
        context.abort(status.code, status.short)
