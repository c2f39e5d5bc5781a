"""Whatever bytes come: tensors and JSON are read rightly, or refused as ValueError or Status."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis import input_pb2, predict_pb2

from espalier.serving import rest_json, tensors
from espalier.serving.dataplane import DataPlane
from espalier.serving.manager import Manager, ModelConfig, Policy
from espalier.serving.servable import LoadOptions, load
from espalier.serving.status import Status

FEW = settings(max_examples=150, deadline=None, derandomize=True)
INTS = st.integers(-(2**31), 2**31 - 1)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "float_val": st.floats(width=32), "double_val": st.floats(), "int_val": INTS,
    "string_val": st.binary(max_size=4), "scomplex_val": st.floats(width=32),
    "int64_val": st.integers(-(2**63), 2**63 - 1), "bool_val": st.booleans(),
    "dcomplex_val": st.floats(), "half_val": INTS, "uint32_val": st.integers(0, 2**32 - 1),
    "uint64_val": st.integers(0, 2**64 - 1),
}  # fmt: skip
NUMBERS = sorted(tensors._TYPES)
DTYPES = [
    np.float32, np.float64, np.float16, np.int8, np.int16, np.int32, np.int64, np.uint8,
    np.uint16, np.uint32, np.uint64, np.bool_, np.complex64, np.complex128,
]  # fmt: skip


@st.composite
def any_tensors(draw: Any) -> TensorProto:
    """TensorProtos that nobody would send."""
    proto = TensorProto(dtype=draw(st.integers(0, 25) | st.sampled_from(NUMBERS)))
    sizes = st.integers(-1, 4) | st.sampled_from([2**20, 2**33, 2**63 - 1, -(2**63)])
    for size in draw(st.lists(sizes, max_size=4) | st.just([1] * 40)):
        proto.tensor_shape.dim.add().size = size
    proto.tensor_shape.unknown_rank = draw(st.booleans()) and draw(st.booleans())
    proto.tensor_content = draw(st.just(b"") | st.binary(max_size=32))
    name = draw(st.sampled_from(list(FIELDS)))
    getattr(proto, name).extend(draw(st.lists(FIELDS[name], max_size=6)))
    return proto


@st.composite
def typed_tensors(draw: Any) -> TensorProto:
    """Valid ones, with typed fields that may be filled up by their last value."""
    number = draw(st.sampled_from(NUMBERS))
    name = tensors.typed_field(number)
    proto = TensorProto(dtype=number)
    shape = draw(st.lists(st.integers(1, 3), max_size=3))
    for size in shape:
        proto.tensor_shape.dim.add().size = size
    values = FIELDS[name]
    if name == "int_val":
        limits = np.iinfo(tensors.numpy_type(number))
        values = st.integers(int(limits.min), int(limits.max))
    elif name == "half_val":
        values = st.integers(0, 2**16 - 1)
    count = draw(st.integers(1, math.prod(shape)))
    if name.endswith("complex_val"):
        count = 2 * math.prod(shape)  # make_ndarray fills no complex numbers
    getattr(proto, name).extend(draw(st.lists(values, min_size=count, max_size=count)))
    return proto


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """Bit for bit but for strings, and for NaNs of any kind."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if one.dtype == object:
        return one.tolist() == other.tolist()
    return np.array_equal(one, other, equal_nan=one.dtype.kind in "fc")


# --- tensors ------------------------------------------------------------------------------


@FEW
@given(any_tensors())
def test_a_tensor_is_read_or_a_value_error(proto):
    try:
        array = tensors.to_numpy(proto)
    except ValueError:
        return
    assert array.shape == tuple(dim.size for dim in proto.tensor_shape.dim)
    assert array.dtype == np.dtype(tensors.numpy_type(proto.dtype))


@FEW
@given(typed_tensors())
@example(TensorProto(dtype=23, uint64_val=[2**64 - 1]))
def test_tensors_are_read_as_tensorflow_reads_them(proto):
    expected = tf.make_ndarray(proto)
    if expected.dtype.name == "bfloat16":
        expected = expected.astype(np.float32)
    assert same(tensors.to_numpy(proto), expected)


@FEW
@given(
    st.sampled_from(DTYPES).flatmap(
        lambda kind: arrays.arrays(kind, arrays.array_shapes(min_dims=0, min_side=0, max_side=3))
    )
)
def test_arrays_come_back_and_tensorflow_reads_them_too(array):
    proto = TensorProto()
    tensors.to_proto(array, proto)
    assert same(tensors.to_numpy(proto), array)
    assert same(tf.make_ndarray(proto), array)


@FEW
@given(st.lists(st.binary(max_size=5), max_size=6))
def test_strings_come_back(values):
    array = np.empty(len(values), object)
    array[:] = values
    proto = TensorProto()
    tensors.to_proto(array, proto)
    assert tensors.to_numpy(proto).tolist() == values


# --- JSON ---------------------------------------------------------------------------------

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3)
    | st.builds(lambda text: {"b64": text}, st.text("AZaz09+/=_-", max_size=4))
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "x", "b64"]), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["instances", "inputs", "signature_name", "examples", "context", "x"]
DOCUMENTS = st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)


def infos_of(number: int, *names: str) -> dict[str, TensorInfo]:
    return {name: TensorInfo(dtype=number) for name in names}


@FEW
@given(st.binary(max_size=40) | VALUES.map(lambda value: json.dumps(value).encode()))
@example(b'{"a": "\xed\xa0\x80"}')
@example(b'{"\\udfff": 1}')
@example(b"\xef\xbb\xbf{}")
@example(b"{}\x00")
def test_json_is_an_object_or_a_status(body):
    try:
        document = rest_json.parse(body)
    except Status:
        return
    assert isinstance(document, dict)
    json.dumps(document, ensure_ascii=False).encode()  # no half of a surrogate pair


@settings(FEW, max_examples=400)
@given(DOCUMENTS, st.sampled_from(NUMBERS), st.sampled_from([(), ("x",), ("a", "b")]))
@example({"instances": [1]}, 1, ())
@example({"instances": [10**400]}, 1, ("x",))
@example({"instances": [2**31]}, 3, ("x",))
@example({"inputs": [math.inf, 10**400, math.nan]}, 2, ("x",))
def test_json_fills_a_request_or_a_status(document, number, names):
    request = predict_pb2.PredictRequest()
    try:
        rest_json.fill_signature(document, request.model_spec)
        by_row = rest_json.fill_inputs(document, infos_of(number, *names), request)
    except Status:
        return
    assert by_row == ("instances" in document)
    assert set(request.inputs) == set(names)
    for proto in request.inputs.values():
        assert tensors.to_numpy(proto).dtype == np.dtype(tensors.numpy_type(number))


@FEW
@given(DOCUMENTS)
def test_json_fills_examples_or_a_status(document):
    filled = input_pb2.Input()
    try:
        rest_json.fill_examples(document, filled)
    except Status:
        return
    kind = "example_list_with_context" if "context" in document else "example_list"
    assert len(getattr(filled, kind).examples) == len(document["examples"])


@FEW
@given(arrays.arrays(st.sampled_from([np.float32, np.float64, np.int64, np.bool_]), (2, 2)))
def test_answers_as_json_hold_the_same_numbers(array):
    proto = TensorProto()
    tensors.to_proto(array, proto)
    answer = json.loads(rest_json.predictions({"y": proto}, by_row=True))["predictions"]
    assert np.array_equal(np.array(answer, array.dtype), array, equal_nan=array.dtype.kind == "f")


# --- whole requests -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def plane(models: Path) -> Iterator[DataPlane]:
    """What answers, without doors."""

    def begin(version: Any) -> None:
        version.servable = load(version.path, LoadOptions())

    manager = Manager(begin, Policy(poll_seconds=0))
    manager.start([ModelConfig(name, models / name) for name in ("half_plus_two", "odd", "echo")])
    yield DataPlane(manager)
    manager.stop()


def predict(plane: DataPlane, request: Any) -> None:
    """A response, or a Status; anything else fails the test."""
    try:
        response = plane.predict(request)
    except Status:
        return
    assert response.model_spec.name == request.model_spec.name and response.outputs


@FEW
@given(
    data=st.data(),
    model=st.sampled_from(["half_plus_two", "odd", "echo", "nobody"]),
    signature=st.sampled_from(["", "float", "string", "any_shape", "join", "classify", "bfloat16"]),
    name=st.sampled_from(["x", "a", "inputs"]),
)
def test_any_tensor_is_answered_or_refused(plane, data, model, signature, name):
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, signature
    request.inputs[name].CopyFrom(data.draw(any_tensors() | typed_tensors()))
    predict(plane, request)


@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")
@settings(FEW, max_examples=400)
@given(place=st.integers(0, 200), bits=st.integers(1, 255), cut=st.integers(0, 20))
def test_a_request_with_broken_bytes_is_answered_or_refused(plane, place, bits, cut):
    whole = predict_pb2.PredictRequest(output_filter=["joined"])
    whole.model_spec.name = "odd"
    for name in ("a", "b"):
        whole.inputs[name].CopyFrom(tf.make_tensor_proto(np.array([b"one", b"two"])))
    data = bytearray(whole.SerializeToString(deterministic=True))
    data[place % len(data)] ^= bits
    try:
        request = predict_pb2.PredictRequest.FromString(bytes(data[: len(data) - cut % 3]))
    except DecodeError:
        return
    predict(plane, request)
