"""Calls a model server over gRPC: TensorFlow Serving or our own, the client cannot tell them apart.

Imports no TensorFlow and needs none installed.

    >>> from espalier import Client
    >>> client = Client("localhost:8500", "reviews")
    >>> client.predict({"text": ["Not bad at all."]})["label"]
    array(['positive'], dtype=object)
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
import numpy as np

from ..errors import ConfigError, EspalierError, ServerError
from .protos import message
from .tensors import BFLOAT16, STRING, numpy_type, to_numpy, to_proto, type_name
from .token_file import check_token

_PREDICTIONS, _MODELS = "tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"
_CALLS = {
    # The call -> its service, the message it takes, the message it gives.
    "Predict": (_PREDICTIONS, "PredictRequest", "PredictResponse"),
    "Classify": (_PREDICTIONS, "ClassificationRequest", "ClassificationResponse"),
    "Regress": (_PREDICTIONS, "RegressionRequest", "RegressionResponse"),
    "GetModelMetadata": (_PREDICTIONS, "GetModelMetadataRequest", "GetModelMetadataResponse"),
    "GetModelStatus": (_MODELS, "GetModelStatusRequest", "GetModelStatusResponse"),
}
_SERVICE_CONFIG = {
    # A headless service has an address for each pod, and all should work.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # The one code that says to try again; a connection that breaks midway has it too.
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}

Inputs = Mapping[str, Any] | np.ndarray | Sequence[Any]
Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Connection:
    """How a client reaches a server.

    Args:
        timeout: seconds that a call may take; each call has a deadline.
        tls: encrypt, and see that the server is who its certificate says.
        ca: a PEM file of the authority that signed that certificate; else the system's. Sets tls.
        certificate: PEM files of the client's own certificate and key, for mTLS. Sets tls.
        token: sent as `authorization: Bearer TOKEN`.
        wait: predict, classify and regress wait for a server that has answered before and is gone,
            until their deadline; else they fail at once.
        max_message_bytes: of an answer; requests are bounded by the server.
    """

    timeout: float = 30.0
    tls: bool = False
    ca: str | Path | None = None
    certificate: tuple[str | Path, str | Path] | None = None
    token: str | None = field(default=None, repr=False)
    wait: bool = True
    max_message_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.token:
            check_token(self.token, "token")

    @property
    def encrypted(self) -> bool:
        """Whether TLS is used."""
        return bool(self.tls or self.ca or self.certificate)

    def credentials(self) -> grpc.ChannelCredentials:
        """gRPC's own.

        Raises:
            ConfigError: a file cannot be read, or holds no PEM.
        """
        certificate, key = self.certificate or (None, None)
        _check_pems(self.ca, certificate, key)  # gRPC would say nothing, and wait
        return grpc.ssl_channel_credentials(_bytes(self.ca), _bytes(key), _bytes(certificate))

    def channel(self, target: str, of: Any = grpc, **options: Any) -> Any:
        """A channel to a server.

        Args:
            target: its address.
            of: grpc, or grpc.aio.
            options: gRPC's that differ, without the `grpc.` in front.

        Raises:
            ConfigError: a certificate's file cannot be used.
        """
        own = {
            "service_config": json.dumps(_SERVICE_CONFIG),
            "enable_retries": 1,
            "max_receive_message_length": self.max_message_bytes,
            "max_send_message_length": -1,
            # A server that is started anew is found soon; the usual pauses grow to two minutes.
            "initial_reconnect_backoff_ms": 200,
            "max_reconnect_backoff_ms": 2000,
            # What is larger is not kept, and so not sent again; pictures exceed the usual 256 KiB.
            "per_rpc_retry_buffer_size": 2**26,
        }
        given = [(f"grpc.{name}", value) for name, value in (own | options).items()]
        if self.encrypted:
            return of.secure_channel(target, self.credentials(), given)
        return of.insecure_channel(target, given)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()


@dataclass(frozen=True)
class _Which:
    """Which version and signature are asked for."""

    signature: str = "serving_default"
    version: int | None = None
    label: str = ""


class _Messages:
    """What the two clients share: protos out of arrays, arrays out of protos."""

    def __init__(self, target: str, model: str, connection: Connection) -> None:
        self.target, self.model, self._connection = target, model, connection
        self._infos: dict[Any, Mapping[str, Any]] = {}
        self._met = False  # whether the server has ever answered

    def _spec(self, spec: Any, which: _Which) -> None:
        spec.name = self.model
        spec.signature_name = which.signature
        if which.version is not None:
            spec.version.value = which.version
        if which.label:
            spec.version_label = which.label

    def _metadata_request(self, which: _Which) -> Any:
        request = message("GetModelMetadataRequest")(metadata_field=["signature_def"])
        self._spec(request.model_spec, which)
        return request

    def _signatures(self, response: Any) -> Mapping[str, Any]:
        packed = response.metadata["signature_def"]
        return message("SignatureDefMap").FromString(packed.value).signature_def

    def _learn_all(self, response: Any) -> Mapping[str, Any]:
        """The signatures of the newest version, remembered: `predict` need not ask again."""
        signatures = self._signatures(response)
        for name, one in signatures.items():
            self._infos[_Which(name)] = dict(one.inputs)
        return signatures

    def _learn(self, which: _Which, response: Any) -> Mapping[str, Any]:
        signatures = self._signatures(response)
        if which.signature not in signatures:
            raise ServerError(
                "FAILED_PRECONDITION",
                f'{self.model}: there is no signature "{which.signature}"; there is '
                f"{', '.join(sorted(signatures))}.",
            )
        infos = self._infos[which] = dict(signatures[which.signature].inputs)
        return infos

    def _predict_request(
        self, given: Inputs, infos: Mapping[str, Any], which: _Which, outputs: Sequence[str]
    ) -> Any:
        if not isinstance(given, Mapping):
            if len(infos) != 1:
                raise ConfigError(
                    f"{self.model} takes {', '.join(sorted(infos))}: give a dict with these."
                )
            given = dict.fromkeys(infos, given)
        if set(given) != set(infos):
            raise ConfigError(
                f"{self.model} takes {', '.join(sorted(infos))}; found "
                f"{', '.join(sorted(map(str, given))) or 'nothing'}."
            )
        request = message("PredictRequest")(output_filter=outputs)
        self._spec(request.model_spec, which)
        for name, value in given.items():
            dtype = infos[name].dtype
            to_proto(as_array(name, value, dtype), request.inputs[name], dtype)
        return request

    def _examples_request(
        self, kind: str, examples: Sequence[Mapping[str, Any]], which: Any
    ) -> Any:
        request = message(kind)()
        self._spec(request.model_spec, which)
        for example in examples:
            fill_example(example, request.input.example_list.examples.add())
        return request

    def _read(self, response: Any) -> Outputs:
        try:
            return {name: text(to_numpy(proto)) for name, proto in response.outputs.items()}
        except ValueError as error:
            raise ServerError("INTERNAL", f"{self.target}: an answer is broken: {error}") from None

    def _status_request(self) -> Any:
        request = message("GetModelStatusRequest")()
        request.model_spec.name = self.model
        return request

    def _options(self, deadline: float | None) -> dict[str, Any]:
        """What a call is sent with. Without a deadline of its own, it waits for no server."""
        left = (deadline or self._deadline(None)) - time.monotonic()
        return {
            "timeout": max(left, 0.0),
            "metadata": self._connection.metadata(),
            "wait_for_ready": self._connection.wait and self._met and deadline is not None,
        }

    def _deadline(self, timeout: float | None) -> float:
        """When a call must have ended, by time.monotonic()."""
        return time.monotonic() + (self._connection.timeout if timeout is None else timeout)

    def _failure(self, error: Any) -> ServerError:
        code, words = error.code().name, error.details() or "no reason given"
        if code == "UNAVAILABLE" and ("onnect" in words or "resol" in words):
            why = words.rpartition(": ")[2]
            if self._connection.encrypted:
                return ServerError(
                    code,
                    f"{self.target}: no connection by TLS ({why}). Is a server there that speaks "
                    f"it? Its certificate must be valid today, name this host, and be signed by "
                    f"{self._connection.ca or 'an authority of this system'}; if it asks for a "
                    f"client's, it must take yours.",
                )
            return ServerError(
                code, f"{self.target}: no server answers there ({why}). Start one: espalier serve."
            )
        return ServerError(code, f"{self.model} at {self.target}: {words} ({code})")


class Client(_Messages):
    """A connection to one model of a server, for any number of threads.

    Args:
        target: "host:port", "dns:///service:port" for all addresses of a headless service, or
            "unix:path".
        model: its name there.
        connection: see there; `Client(target, model, timeout=5, token="...")` makes one.

    Raises:
        ConfigError: a certificate's file cannot be used, or the token cannot stand in a header.
    """

    def __init__(self, target: str, model: str, **connection: Any) -> None:
        super().__init__(target, model, Connection(**connection))
        self._channel = self._connection.channel(target)
        self._calls = {name: _stub(self._channel, name) for name in _CALLS}

    def predict(
        self,
        inputs: Inputs,
        *,
        signature: str = "serving_default",
        version: int | None = None,
        label: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Outputs:
        """Predict a batch.

        Args:
            inputs: by their names: arrays, or lists of numbers, strings or bytes; the value alone
                where the model takes one. They are converted to the type that the model takes.
            signature: which of the model's to call.
            version: ask this version; else the newest.
            label: ask the version of this label.
            outputs: names of those wanted; else all.
            timeout: seconds; else the connection's.

        Returns:
            arrays by their names; strings are str in arrays of objects, and what is not UTF-8 in
            them comes back by .encode("utf-8", "surrogateescape").

        Raises:
            ConfigError: the inputs do not fit the model.
            ServerError: the server refused, or did not answer in time.
        """
        which, deadline = _Which(signature, version, label), self._deadline(timeout)
        known = self._infos.get(which)
        infos = known or self._learn(which, self._ask_metadata(which, deadline))
        try:
            request = self._predict_request(inputs, infos, which, outputs)
            return self._read(self._call("Predict", request, deadline))
        except (ConfigError, ServerError) as error:
            if known is None or not _may_be_stale(error):
                raise
            # A new version may take other inputs.
            infos = self._learn(which, self._ask_metadata(which, deadline))
            if infos == known:
                raise
        request = self._predict_request(inputs, infos, which, outputs)
        return self._read(self._call("Predict", request, deadline))

    def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "serving_default",
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Classify tf.Examples, given as dicts; of each, (label, score) pairs."""
        which = _Which(signature, version, label)
        request = self._examples_request("ClassificationRequest", examples, which)
        return _pairs(self._call("Classify", request, self._deadline(timeout)))

    def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "serving_default",
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> np.ndarray:
        """Regress tf.Examples, given as dicts: float32 [B]."""
        which = _Which(signature, version, label)
        request = self._examples_request("RegressionRequest", examples, which)
        return _numbers(self._call("Regress", request, self._deadline(timeout)))

    def metadata(self) -> Mapping[str, Any]:
        """The model's SignatureDefs by their names. Raises ServerError."""
        request = self._metadata_request(_Which(signature=""))
        return self._learn_all(self._call("GetModelMetadata", request))

    def status(self) -> dict[int, str]:
        """The state of each version: {3: "AVAILABLE"}. Raises ServerError."""
        return _states(self._call("GetModelStatus", self._status_request()))

    def reasons(self) -> dict[int, str]:
        """Of each version that could not be loaded, why. Raises ServerError."""
        return _reasons(self._call("GetModelStatus", self._status_request()))

    def _ask_metadata(self, which: _Which, deadline: float) -> Any:
        return self._call("GetModelMetadata", self._metadata_request(which), deadline)

    def _call(self, name: str, request: Any, deadline: float | None = None) -> Any:
        try:
            answer = self._calls[name](request, **self._options(deadline))
            self._met = True
            return answer
        except grpc.RpcError as error:
            raise self._failure(error) from None
        except ValueError:
            raise ConfigError(f"{self.target}: this client is closed.") from None

    def close(self) -> None:
        """Let go of the connection."""
        self._channel.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncClient(_Messages):
    """The same for asyncio: `await client.predict(...)`. Made and used inside one event loop."""

    def __init__(self, target: str, model: str, **connection: Any) -> None:
        super().__init__(target, model, Connection(**connection))
        self._channel = self._connection.channel(target, grpc.aio)
        self._calls = {name: _stub(self._channel, name) for name in _CALLS}

    async def predict(
        self,
        inputs: Inputs,
        *,
        signature: str = "serving_default",
        version: int | None = None,
        label: str = "",
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Outputs:
        """Predict a batch, as `Client.predict`."""
        which, deadline = _Which(signature, version, label), self._deadline(timeout)
        known = self._infos.get(which)
        infos = known or self._learn(which, await self._ask_metadata(which, deadline))
        try:
            request = self._predict_request(inputs, infos, which, outputs)
            return self._read(await self._call("Predict", request, deadline))
        except (ConfigError, ServerError) as error:
            if known is None or not _may_be_stale(error):
                raise
            infos = self._learn(which, await self._ask_metadata(which, deadline))
            if infos == known:
                raise
        request = self._predict_request(inputs, infos, which, outputs)
        return self._read(await self._call("Predict", request, deadline))

    async def classify(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "serving_default",
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> list[list[tuple[str, float]]]:
        """Classify tf.Examples, as `Client.classify`."""
        which = _Which(signature, version, label)
        request = self._examples_request("ClassificationRequest", examples, which)
        return _pairs(await self._call("Classify", request, self._deadline(timeout)))

    async def regress(
        self,
        examples: Sequence[Mapping[str, Any]],
        *,
        signature: str = "serving_default",
        version: int | None = None,
        label: str = "",
        timeout: float | None = None,
    ) -> np.ndarray:
        """Regress tf.Examples, as `Client.regress`."""
        which = _Which(signature, version, label)
        request = self._examples_request("RegressionRequest", examples, which)
        return _numbers(await self._call("Regress", request, self._deadline(timeout)))

    async def metadata(self) -> Mapping[str, Any]:
        """The model's SignatureDefs by their names."""
        request = self._metadata_request(_Which(signature=""))
        return self._learn_all(await self._call("GetModelMetadata", request))

    async def status(self) -> dict[int, str]:
        """The state of each version."""
        return _states(await self._call("GetModelStatus", self._status_request()))

    async def reasons(self) -> dict[int, str]:
        """Of each version that could not be loaded, why."""
        return _reasons(await self._call("GetModelStatus", self._status_request()))

    async def _ask_metadata(self, which: _Which, deadline: float) -> Any:
        return await self._call("GetModelMetadata", self._metadata_request(which), deadline)

    async def _call(self, name: str, request: Any, deadline: float | None = None) -> Any:
        try:
            answer = await self._calls[name](request, **self._options(deadline))
            self._met = True
            return answer
        except grpc.RpcError as error:
            raise self._failure(error) from None
        except ValueError:
            raise ConfigError(f"{self.target}: this client is closed.") from None

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()


def as_array(name: str, value: Any, dtype: int) -> np.ndarray:
    """An input as the array that the model takes.

    Args:
        name: the input's, for the error.
        value: an array or nested lists.
        dtype: the DataType that the signature declares.

    Raises:
        ConfigError: it cannot be converted without loss of kind: 0.5 to int64, a text to float.
    """
    if dtype == STRING:
        return _strings(name, value)
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{name}: is no array: {error}.") from None
    kind = numpy_type(dtype)
    fits = kind is not None and array.dtype.kind in "biufc" and _castable(array, kind)
    if not fits and array.size:
        raise ConfigError(f"{name}: {array.dtype} found; the model takes {type_name(dtype)}.")
    if dtype == BFLOAT16:
        return _bfloat16(np.ascontiguousarray(array, np.float32))
    with np.errstate(over="ignore"):
        converted = array.astype(kind, copy=False)
    if array.dtype.kind == "f" and np.isinf(converted).sum() != np.isinf(array).sum():
        raise ConfigError(f"{name}: a number is too large for {type_name(dtype)}.")
    return converted


def _bfloat16(array: np.ndarray) -> np.ndarray:
    """The bits of bfloat16, rounded to the nearest, ties to even."""
    bits = array.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def _castable(array: np.ndarray, kind: Any) -> bool:
    if array.dtype.kind in "iu" and np.dtype(kind).kind in "iu" and array.size:
        limits = np.iinfo(kind)
        return bool(limits.min <= array.min() and array.max() <= limits.max)
    return np.can_cast(array.dtype, kind, "same_kind")


def _strings(name: str, value: Any) -> np.ndarray:
    array = value if isinstance(value, np.ndarray) else np.array(value, object)
    flat = np.empty(array.size, object)
    for place, one in enumerate(array.ravel().tolist()):
        if isinstance(one, str):
            flat[place] = _encoded(name, one)
        elif isinstance(one, bytes):
            flat[place] = one
        else:
            raise ConfigError(
                f"{name}: {type(one).__name__} found at place {place}; a string is expected."
            )
    return flat.reshape(array.shape)


def _encoded(name: str, value: str) -> bytes:
    try:
        return value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ConfigError(f"{name}: {value!r} holds half of a character.") from None


def text(array: np.ndarray) -> np.ndarray:
    """Strings as str; other arrays as they are."""
    if array.dtype != object:
        return array
    decoded = np.empty(array.size, object)
    decoded[:] = [one.decode("utf-8", "surrogateescape") for one in array.ravel()]
    return decoded.reshape(array.shape)


def fill_example(values: Mapping[str, Any], example: Any) -> None:
    """Fill a tf.Example out of a dict of numbers, strings, bytes, or lists of those.

    Raises:
        ConfigError: a value is none of these.
    """
    for name, value in values.items():
        several = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
        kinds = {_feature_kind(name, one) for one in several}
        kind = "float" if kinds == {"int64", "float"} else "".join(kinds)
        if len(kinds) > 1 and kind != "float":
            raise ConfigError(f"{name}: numbers and strings in one feature.")
        feature = example.features.feature[name]
        if kind == "bytes":
            feature.bytes_list.value.extend(
                _encoded(name, one) if isinstance(one, str) else one for one in several
            )
        elif kind == "float":
            feature.float_list.value.extend(float(one) for one in several)
        elif kind:
            feature.int64_list.value.extend(int(one) for one in several)


def _feature_kind(name: str, value: Any) -> str:
    if isinstance(value, bool | int | np.integer | np.bool_):
        return "int64"
    if isinstance(value, float | np.floating):
        return "float"
    if isinstance(value, str | bytes):
        return "bytes"
    raise ConfigError(f"{name}: {type(value).__name__} found; a number or a string is expected.")


def _stub(channel: Any, name: str) -> Any:
    service, takes, gives = _CALLS[name]
    return channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=message(takes).SerializeToString,
        response_deserializer=message(gives).FromString,
    )


def _pairs(response: Any) -> list[list[tuple[str, float]]]:
    return [
        [(one.label, one.score) for one in row.classes] for row in response.result.classifications
    ]


def _numbers(response: Any) -> np.ndarray:
    return np.array([one.value for one in response.result.regressions], np.float32)


def _states(response: Any) -> dict[int, str]:
    states = response.DESCRIPTOR.file.message_types_by_name["ModelVersionStatus"]
    names = states.enum_types_by_name["State"].values_by_number
    return {one.version: names[one.state].name for one in response.model_version_status}


def _reasons(response: Any) -> dict[int, str]:
    told = response.model_version_status
    return {one.version: one.status.error_message for one in told if one.status.error_code}


def _may_be_stale(error: EspalierError) -> bool:
    """Whether another signature than the one remembered could be why."""
    return isinstance(error, ConfigError) or getattr(error, "code", "") == "INVALID_ARGUMENT"


def _check_pems(ca: Any, certificate: Any, key: Any) -> None:
    import ssl

    for path in (ca, certificate, key):
        _bytes(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        if ca is not None:
            context.load_verify_locations(ca)
    except ssl.SSLError:
        raise ConfigError(f"{ca}: holds no certificate in PEM; an authority's is needed.") from None
    try:
        if certificate is not None:
            context.load_cert_chain(certificate, key, password=lambda: "")
    except (ssl.SSLError, ValueError):
        raise ConfigError(
            f"{certificate} and {key}: a certificate and its own key are needed, both in PEM, the "
            f"key without a password."
        ) from None


def _bytes(path: str | Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
