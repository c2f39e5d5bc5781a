"""Predict over gRPC: values, selections, and what is refused with which code and words."""

from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto

ONE = np.ones(1, np.float32)
X = {"x": ONE}
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
VALUES = {
    "float": [0.2, np.nan, -np.inf, 3e38], "double": [0.1, 1e300], "half": [0.5, 65504],
    "bfloat16": [1.5, -2.0], "int8": [-128, 127], "int16": [-(2**15), 2**15 - 1],
    "int32": [-(2**31), 2**31 - 1], "int64": [-(2**63), 2**63 - 1], "uint8": [0, 255],
    "uint16": [0, 2**16 - 1], "uint32": [0, 2**32 - 1], "uint64": [0, 2**64 - 1],
    "bool": [True, False], "complex64": [1 + 2j, -1j], "complex128": [1e300 - 1j],
    "string": [b"", b"\x00\xff", "schön".encode()],
}  # fmt: skip
FIELDS = {
    "float": "float_val", "double": "double_val", "half": "half_val", "bfloat16": "half_val",
    "int8": "int_val", "int16": "int_val", "int32": "int_val", "int64": "int64_val",
    "uint8": "int_val", "uint16": "int_val", "uint32": "uint32_val", "uint64": "uint64_val",
    "bool": "bool_val", "complex64": "scomplex_val", "complex128": "dcomplex_val",
    "string": "string_val",
}  # fmt: skip


def array_of(name: str) -> np.ndarray:
    if name == "string":
        return np.array(VALUES[name], object)
    return np.array(VALUES[name], tf.as_dtype(name).as_numpy_dtype)


def tensor(dtype: int, shape: list[int], **fields: Any) -> TensorProto:
    """A TensorProto exactly so."""
    proto = TensorProto(dtype=dtype)
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    for name, value in fields.items():
        if name == "tensor_content":
            proto.tensor_content = value
        else:
            getattr(proto, name).extend(value)
    return proto


# --- values -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALUES)
def test_every_type_comes_back_as_it_was_sent(door, name):
    sent = array_of(name)
    got = door.predict("echo", {"x": sent}, signature=name)["x"]
    assert got.dtype == sent.dtype
    assert list(map(str, got)) == list(map(str, sent))  # NaN too


@pytest.mark.parametrize("name", VALUES)
def test_typed_fields_are_read_as_content_is(door, name):
    sent = array_of(name)
    if name == "string":
        values = sent.tolist()
    elif name in ("half", "bfloat16"):
        values = sent.view(np.uint16).tolist()
    elif name.startswith("complex"):
        values = sent.view(sent.real.dtype).tolist()
    else:
        values = sent.tolist()
    enum = tf.as_dtype(name).as_datatype_enum
    proto = tensor(enum, [len(sent)], **{FIELDS[name]: values})
    got = door.predict("echo", {"x": proto}, signature=name)["x"]
    assert list(map(str, got)) == list(map(str, sent))


@pytest.mark.parametrize("name", VALUES)
def test_answers_lie_in_typed_fields(door, name):
    request = door.request("echo", {"x": array_of(name)}, signature=name)
    proto = door.prediction.Predict(request).outputs["x"]
    assert not proto.tensor_content
    assert len(getattr(proto, FIELDS[name])) >= len(VALUES[name])


def test_the_last_value_of_a_typed_field_fills_the_rest(door):
    proto = tensor(1, [2, 2], float_val=[1.0, 7.0])
    got = door.predict("odd", {"x": proto}, signature="any_shape")["x"]
    assert got.tolist() == [[1, 7], [7, 7]]


def test_no_value_at_all_is_zeros_or_empty_strings(door):
    x = tensor(1, [2])
    assert door.predict("odd", {"x": x}, signature="any_shape")["x"].tolist() == [0, 0]
    words = tensor(7, [2])
    assert door.predict("echo", {"x": words}, signature="string")["x"].tolist() == [b"", b""]


def test_an_empty_batch_has_an_empty_answer(door):
    assert door.half() == (2, [])


def test_scalars_come_back_strings_too(door):
    got = door.predict("odd", {"x": np.ones(2, np.float32)}, signature="scalars")
    assert got["text"].shape == () and got["text"].item() == b"so many"
    assert got["count"].shape == () and got["count"] == 2


def test_strings_need_not_be_utf8(door):
    a, b = np.array([b"\xff\x00"], object), np.array([b"\xc3"], object)
    assert door.predict("odd", {"a": a, "b": b})["joined"].tolist() == [b"\xff\x00\xc3"]


# --- what is asked for --------------------------------------------------------------------


def test_the_newest_version_answers_and_says_who_it_is(door):
    response = door.prediction.Predict(door.request("half_plus_two", X))
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (
        "half_plus_two",
        2,
        "serving_default",
    )
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [3.5]


def test_a_version_can_be_asked_for(door):
    assert door.half(1, version=1) == (1, [2.5])
    assert door.half(1, version=2) == (2, [3.5])


def test_a_label_can_be_asked_for(door):
    assert door.half(1, label="stable") == (1, [2.5])
    assert door.half(1, label="canary") == (2, [3.5])


def test_all_outputs_come_unless_some_are_asked_for(door):
    both = {"signature": "both"}
    assert set(door.predict("half_plus_two", X, **both)) == {"y", "doubled"}
    some = door.predict("half_plus_two", X, outputs=["doubled"], **both)
    assert {name: value.tolist() for name, value in some.items()} == {"doubled": [2]}


# --- what is refused ----------------------------------------------------------------------


def test_an_unknown_model_is_not_found(door):
    words = "Servable not found for request: Latest(nobody)"
    assert door.refusal("nobody", X) == (MISSING, words)


def test_an_unknown_version_is_not_found(door):
    words = "Servable not found for request: Specific(half_plus_two, 7)"
    assert door.refusal("half_plus_two", X, version=7) == (MISSING, words)


def test_no_model_name_is_invalid(door):
    code, words = door.refusal("", X)
    assert code is INVALID and "no name specified" in words


@pytest.mark.parametrize("name", ["../half_plus_two", "half_plus_two/1", "..", "/", "a\x00b"])
def test_a_models_name_is_no_path(door, name):
    code, words = door.refusal(name, X)
    assert code is MISSING and "Servable not found" in words


def test_an_unknown_label_is_invalid(door):
    code, words = door.refusal("half_plus_two", X, label="nightly")
    assert code is INVALID and "Unrecognized servable version label: nightly" in words


def test_an_unknown_signature_is_a_failed_precondition(door):
    code, words = door.refusal("half_plus_two", X, signature="nothing")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert words == 'Serving signature key "nothing" not found.'


def test_missing_and_extra_inputs_are_listed(door):
    code, words = door.refusal("half_plus_two", {"x": ONE, "z": ONE})
    assert code is INVALID and "Sent extra: {z}. Missing but required: {}" in words
    code, words = door.refusal("odd", {"a": np.array([b"a"])})
    assert code is INVALID and "Sent extra: {}. Missing but required: {b}" in words
    assert words.startswith("input size does not match signature: 1!=2")


def test_a_wrongly_named_input_is_invalid(door):
    code, words = door.refusal("half_plus_two", {"z": ONE})
    assert code is INVALID and "input tensor alias not found in signature: " in words


def test_a_wrong_type_is_invalid(door):
    code, words = door.refusal("half_plus_two", {"x": np.ones(1, np.int32)})
    assert code is INVALID and "float" in words and "int32" in words
    assert door.refusal("half_plus_two", {"x": np.array([b"1"])})[0] is INVALID


@pytest.mark.parametrize("shape", [[], [1, 1], [3, 2], [3]])
def test_a_wrong_shape_is_invalid(door, shape):
    assert door.refusal("odd", {"x": np.ones(shape, np.float32)}, signature="triples")[0] is INVALID


def test_an_unknown_output_is_invalid(door):
    code, words = door.refusal("half_plus_two", X, outputs=["nothing"])
    assert code is INVALID and "output tensor alias not found in signature: nothing" in words


def test_an_output_cannot_be_asked_for_twice(door):
    code, words = door.refusal("half_plus_two", X, outputs=["y", "y"])
    assert (code, words) == (INVALID, "duplicate output tensor alias: y")


@pytest.mark.parametrize(
    "proto",
    [
        tensor(1, [2], tensor_content=b"\x00" * 7),
        tensor(1, [2], tensor_content=b"\x00" * 12),
        tensor(1, [2**40], tensor_content=b"\x00" * 8),
        tensor(1, [-1], float_val=[1.0]),
        tensor(1, [-(2**63)], float_val=[1.0]),
        tensor(1, [2**62, 2**62], float_val=[1.0]),
        tensor(1, [1] * 255, float_val=[1.0]),
        tensor(0, [1], float_val=[1.0]),
        tensor(20, [1]),
    ],
    ids=[
        "short",
        "long",
        "claims",
        "negative",
        "most negative",
        "overflows",
        "rank",
        "0",
        "handle",
    ],
)
def test_a_broken_tensor_is_invalid(door, proto):
    assert door.refusal("odd", {"x": proto}, signature="any_shape")[0] is INVALID


def test_a_shape_that_claims_gigabytes_takes_none(door):
    proto = tensor(1, [2**36], float_val=[1.0])
    code, _ = door.refusal("odd", {"x": proto}, signature="any_shape")
    assert code in (INVALID, grpc.StatusCode.RESOURCE_EXHAUSTED)
    assert door.half(1)[0] == 2


def test_what_the_graph_says_is_told(door):
    code, words = door.refusal("odd", {"x": -ONE}, signature="positive")
    assert code is INVALID and "not above zero" in words


def test_a_deadline_that_is_past_is_exceeded(door):
    request = door.request("odd", {"seconds": np.array([5.0])}, signature="slow")
    code, _ = door.failure(door.prediction.Predict, request, timeout=0.05)
    assert code is grpc.StatusCode.DEADLINE_EXCEEDED


def test_half_a_message_is_no_message(door):
    data = door.request("half_plus_two", {"x": np.ones(9, np.float32)}).SerializeToString()
    call = door.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    broken = (grpc.StatusCode.INTERNAL, INVALID)
    for end in (1, len(data) // 2, len(data) - 1):
        assert door.failure(call, data[:end])[0] in broken
    assert door.half(1)[0] == 2


def test_an_unknown_method_is_unimplemented(door):
    call = door.channel.unary_unary("/tensorflow.serving.PredictionService/Guess")
    assert door.failure(call, b"")[0] is grpc.StatusCode.UNIMPLEMENTED
