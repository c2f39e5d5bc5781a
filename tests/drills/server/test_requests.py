"""A seeded fuzzer at both doors, of requests that are framed well and hold what nobody would send.

A caller's fault is told as the caller's: nothing is INTERNAL, UNKNOWN or 5xx, nothing goes without
an answer, and no answer names a path of the server's disk or holds a stack trace.
"""

import gzip
import json
import random
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

DEADLINE = 60.0  # seconds that an answer may take, on a busy machine
PREDICTIONS, MODELS = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
KINDS = {
    PREDICTIONS + "Predict": predict_pb2.PredictRequest,
    PREDICTIONS + "Classify": classification_pb2.ClassificationRequest,
    PREDICTIONS + "Regress": regression_pb2.RegressionRequest,
    PREDICTIONS + "MultiInference": inference_pb2.MultiInferenceRequest,
    PREDICTIONS + "GetModelMetadata": get_model_metadata_pb2.GetModelMetadataRequest,
    MODELS + "GetModelStatus": get_model_status_pb2.GetModelStatusRequest,
}
CALLERS_FAULT = (
    "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "UNIMPLEMENTED", "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
)  # fmt: skip
NAMES = ["half_plus_two", "odd", "text", "nobody", "", "a/b", "../..", "\0", "é" * 9, "m" * 5000]
SIGNATURES = ["", "serving_default", "classify", "regress", "triples", "any_shape", "positive", "?"]
SIZES = [-1, 0, 1, 2, 3, 2**20, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63)]
NUMBERS = [0, -1, 1.5, 2**31, 2**63, 10**19, 10**400, 1e308, float("nan"), float("inf")]
ALPHABETS = [
    "abc good film.", "\0\t\n\r\x1b\x7f", "é́̂̃̄", "\u200b\u200d\u202e\ufeff\ufffd", "👩‍👩‍👧🏽", "ﷺ㍿ǆ",
    "͸͹\u0530\u2fe0\U000e0080\U0010ffff\U0001fbff", "漢字カナ한글", "ßİıſK", "가\u1100\u1161",
]  # fmt: skip
PATHS = [
    "/", "//", "/v1", "/v1/models", "/v1/models/", "/v1/models/odd/versions/", "/V1/MODELS/odd",
    "/v1/models/odd/versions/-1", "/v1/models/odd/versions/" + "9" * 30,
    "/v1/models/odd/labels/x",
    "/v1/models/odd/versions/" + "0" * 6000 + "1", "/v1/models/%2e%2e/%2e%2e/etc/passwd",
    "/v1/models/..%2f..%2fetc%2fpasswd:predict", "/v1/models/%00:predict",
    "/v1/models/odd%:predict", "/v1/models/%ff%fe:predict", "/v1/models/odd:predict:predict",
    "/v1/models/odd:explode", "/v1/models/odd:predict?a=b&a=%zz&=;", "/demo/models", "/nothing",
    "/v1/models/" + "m" * 50_000,
    "/monitoring/prometheus/metrics", "/v1/models/odd/metadata", "/v1/models/odd/metadata/more",
]  # fmt: skip


class Fuzzer:
    """Makes one broken request after the other, and sees how each is answered.

    Args:
        running: the server.
        secret: what no answer may hold.
        seed: of all chances.
    """

    def __init__(self, running: Any, secret: str, seed: int) -> None:
        self.door, self.secret, self.random = running.door, secret, random.Random(seed)
        self.kinds = [
            self.broken_message, self.lying_tensor, self.odd_text, self.odd_json, self.odd_http,
            self.odd_metadata, self.odd_configuration,
        ]  # fmt: skip

    def pick(self, *things: Any) -> Any:
        return self.random.choice(things)

    # --- gRPC -----------------------------------------------------------------------------

    def call(self, method: str, data: bytes, metadata: Any = ()) -> None:
        call = self.door.channel.unary_unary(method)
        fault: Any
        try:
            call(data, timeout=DEADLINE, metadata=metadata)
            return
        except grpc.RpcError as error:
            fault = error
        assert fault.code().name in CALLERS_FAULT, f"{fault.code()}: {fault.details()!r}"
        self.tells_nothing(fault.details())

    def tells_nothing(self, words: str) -> None:
        """See that an error shows none of the server's insides."""
        assert self.secret not in words and "Traceback" not in words, words

    def spec(self, spec: Any) -> Any:
        """Fill a ModelSpec: the model, and perhaps what is not there."""
        spec.name = self.pick(*NAMES)
        spec.signature_name = self.pick(*SIGNATURES)
        if self.random.random() < 0.2:
            spec.version.value = self.pick(0, 1, 2, -1, 2**63 - 1)
        elif self.random.random() < 0.1:
            spec.version_label = self.pick("stable", "\0", "l" * 3000)
        return spec

    def request(self, kind: Any) -> Any:
        """A request of that kind that may be good."""
        request = kind()
        if kind is inference_pb2.MultiInferenceRequest:
            for _ in range(self.pick(0, 1, 2)):
                task = request.tasks.add(method_name=self.pick("tensorflow/serving/regress", "?"))
                self.spec(task.model_spec)
        else:
            self.spec(request.model_spec)
        if kind is predict_pb2.PredictRequest:
            request.inputs[self.pick("x", "a", "text", "")].CopyFrom(self.tensor())
            request.output_filter.extend(
                self.random.choices(["x", "y", "", "?"], k=self.pick(0, 2))
            )
        elif "input" in request.DESCRIPTOR.fields_by_name:
            for number in self.random.choices([1.0, float("nan")], k=self.pick(0, 1, 3)):
                feature = request.input.example_list.examples.add().features.feature["x"]
                if self.random.random() < 0.8:
                    feature.float_list.value.append(number)
                else:
                    feature.int64_list.value.append(1)
        elif "metadata_field" in request.DESCRIPTOR.fields_by_name:
            request.metadata_field.extend(self.pick([], ["signature_def"], ["?"]))
        return request

    def broken_message(self) -> None:
        """Bytes flipped, cut, doubled, or a message within a message without an end."""
        method = self.random.choice(list(KINDS))
        data = bytearray(self.request(KINDS[method]).SerializeToString())
        for _ in range(self.pick(1, 2, 8)):
            if data:
                data[self.random.randrange(len(data))] = self.random.randrange(256)
        cut = self.random.randrange(len(data) + 1)
        nested = b"\x0b" * self.pick(50, 5000, 100_000)
        given = self.pick(data, data[:cut], data + data, data[cut:] + nested, nested, b"\xff" * cut)
        self.call(method, bytes(given))

    def tensor(self) -> Any:
        """A TensorProto that lies about its shape, or its type."""
        proto = tf.make_tensor_proto(self.pick([1.0], [b"a"], [], [[1.0, 2.0, 3.0]], 1.0, [True]))
        lie = self.random.random()
        if lie < 0.5:
            del proto.tensor_shape.dim[:]
            for _ in range(self.pick(0, 1, 1, 2, 3, 33, 255, 300)):
                proto.tensor_shape.dim.add().size = self.pick(*SIZES)
        if lie < 0.2:
            proto.dtype = self.random.randrange(-1, 130)
        elif lie < 0.4:
            proto.tensor_content = self.random.randbytes(self.pick(0, 1, 4, 7, 10**6))
        elif lie < 0.6:
            proto.float_val.extend([1.0] * self.pick(1, 3, 10**5))
        return proto

    def lying_tensor(self) -> None:
        request = predict_pb2.PredictRequest()
        name, model, signature = self.pick(
            ("x", "half_plus_two", ""), ("x", "odd", "any_shape"), ("x", "odd", "triples"),
            ("a", "odd", ""), ("x", "odd", "scalars"), ("x", "odd", "positive"),
            ("text", "text", ""), ("inputs", "half_plus_two", "classify"),
        )  # fmt: skip
        request.model_spec.name, request.model_spec.signature_name = model, signature
        request.inputs[name].CopyFrom(self.tensor())
        if model == "odd" and name == "a":
            request.inputs["b"].CopyFrom(self.tensor())
        self.call(PREDICTIONS + "Predict", request.SerializeToString())

    def string(self) -> bytes:
        """Characters that Unicode has not assigned, that combine, or no characters at all."""
        count = self.pick(0, 1, 5, 100, 10_000)
        text = "".join(self.random.choices(self.pick(*ALPHABETS), k=count)).encode()
        if self.random.random() < 0.3:
            text = self.random.randbytes(count)
        return text * self.pick(1, 1, 1, 2 + 10**6 // (len(text) + 1)) if count < 200 else text

    def odd_text(self) -> None:
        strings = [self.string() for _ in range(self.pick(0, 1, 1, 2))]
        if self.random.random() < 0.3:
            texts = [one.decode(errors="replace") for one in strings]
            body = json.dumps({"instances": texts}, ensure_ascii=False).encode()
            self.post("/v1/models/text:predict", body[: 4 * 2**20])  # more would be cut off
            return
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "text"
        request.inputs["text"].CopyFrom(tf.make_tensor_proto(strings, tf.string, [len(strings)]))
        self.call(PREDICTIONS + "Predict", request.SerializeToString())

    def odd_metadata(self) -> None:
        method = self.pick(*KINDS, "/", "/a", "/grpc.health.v1.Health/Check", PREDICTIONS + "é" * 9)
        value = "v" * self.pick(0, 1, 1000, 6000)
        metadata = [
            (self.pick("x-request-id", "authorization", "accept", "a" * 300), value),
            (self.pick("x-bin", "authorization-bin", "grpc-trace-bin"), self.random.randbytes(9)),
        ]
        self.call(method, b"", [*metadata, *metadata[: self.pick(0, 1, 2)]])

    def odd_configuration(self) -> None:
        """HandleReloadConfigRequest with what cannot be served; it changes nothing."""
        request = model_management_pb2.ReloadConfigRequest()
        config = request.config.model_config_list.config.add(name="odd", base_path="/nowhere")
        fault = self.random.randrange(8)
        if fault == 0:
            request.config.model_config_list.config.add(name="odd", base_path="/nowhere")
        elif fault == 1:
            config.name = self.pick("", "a/b", "a:b", "a\nb", "a\0b")
        elif fault == 2:
            config.base_path = self.pick("", "a\0b")
        elif fault == 3:
            config.model_platform = self.pick("jax", "\0", "p" * 9999)
        elif fault == 4:
            config.logging_config.log_collector_config.type = "elsewhere"
        elif fault == 5:
            for number in range(self.pick(2, 2000)):
                request.config.model_config_list.config.add(name=f"m{number // 2}", base_path="/n")
        else:
            request.ClearField("config")
            if fault == 6:
                request.config.custom_model_config.type_url = "?"
        with pytest.raises(grpc.RpcError) as caught:
            self.door.model.HandleReloadConfigRequest(request, timeout=DEADLINE)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()

    # --- REST -----------------------------------------------------------------------------

    def post(self, path: str, body: bytes, **headers: str) -> None:
        self.send("POST", path, body, headers)

    def send(self, verb: str, path: str, body: bytes, headers: Any) -> None:
        answer = self.door.http.request(
            verb, httpx.URL(f"http://{self.door.rest}", raw_path=path.encode("latin1")),
            content=body, headers=headers, timeout=DEADLINE,
        )  # fmt: skip
        assert answer.status_code < 500, f"{answer.status_code}: {answer.text[:300]}"
        self.tells_nothing(answer.text)
        if answer.status_code >= 400 and answer.text:  # no words: it was no HTTP
            assert set(answer.json()) == {"error"}

    def value(self, depth: int = 0) -> Any:
        """Any JSON."""
        kind = self.random.randrange(5 if depth > 3 else 8)
        if kind < 2:
            return self.pick(*NUMBERS)
        if kind < 5:
            return self.pick(None, True, "", "text", "\ud800", {"b64": self.pick("", "YQ", "*")})
        if kind < 7:
            return [self.value(depth + 1) for _ in range(self.pick(0, 1, 2, 3))]
        keys = self.random.choices(["x", "a", "b", "b64", "inputs", ""], k=self.pick(0, 1, 2))
        return {key: self.value(depth + 1) for key in keys}

    def odd_json(self) -> None:
        keys = ["instances", "inputs", "examples", "context", "signature_name"]
        document = {key: self.value() for key in self.random.choices(keys, k=self.pick(1, 1, 2))}
        if self.random.random() < 0.3:
            document["signature_name"] = self.pick(*SIGNATURES)
        depth = self.pick(20, 900, 100_000)
        text, start = json.dumps(document).encode(), b'{"instances": '
        body = self.pick(
            text, text, text, text, text,
            start + b"[" * depth + b"]" * depth + b"}",
            start + b'{"x":' * depth + b"1" + b"}" * depth,
            b'{"instances": [1], "instances": [2], "instances": "x"}', start + b"9" * 5000 + b"}",
            start + b"[1e99999, -1e99999, 1e-99999]}", b"\xff\xfe{\x00}\x00", b"[" * 10**6, b"",
        )  # fmt: skip
        if self.random.random() < 0.1:
            body = body[: self.random.randrange(len(body) + 1)]
        model, method = self.pick(*NAMES[:3]), self.pick("predict", "classify", "regress")
        self.post(f"/v1/models/{model}:{method}", body)

    def odd_http(self) -> None:
        """Paths, verbs, encodings and types of content that do not go together."""
        body = self.pick(b"", b'{"instances": [1.0]}', b"a=b&" * 5000, b" " * 10**6)
        headers = {}
        packed = self.random.randrange(4)
        if packed == 0:
            bomb = gzip.compress(self.pick(body, b"\0" * 10**7, gzip.compress(b" " * 10**6)))
            body = self.pick(bomb, bomb[:-5], bomb + bomb, body)
            headers["Content-Encoding"] = self.pick("gzip", "gzip, gzip", "x-gzip")
        elif packed == 1:
            headers["Content-Encoding"] = self.pick("br", "deflate", "identity", "")
        headers["Content-Type"] = self.pick(
            "application/json", "application/x-www-form-urlencoded", "text/plain; charset=utf-16",
            "multipart/form-data; boundary=x", "multipart/form-data", "\x01",
        )  # fmt: skip
        verb = self.pick("POST", "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "BREW")
        if verb == "BREW" or headers["Content-Type"] == "\x01":
            body = b""  # refused by their heads alone, they may be cut off amid their bodies
        path = self.pick(*PATHS, "/v1/models/half_plus_two:predict", "/v1/models/odd:predict")
        self.send(verb, path, body, headers)


def test_malformed_requests(running: Any, models: Path, drill: Any, times: Any) -> None:
    fuzzer = Fuzzer(running, str(models.parent), seed=11)
    line = drill("malformed requests, gRPC and REST")
    running.endure(line, times(250, 7000), lambda n: fuzzer.kinds[n % len(fuzzer.kinds)]())
