"""TensorFlow Serving's JSON: to requests, and from answers (util/json_tensor.cc and RESTful API).

`instances` is the row form, `inputs` the column form; bytes are {"b64": ...}, and an output whose
name ends in _bytes is written so.
"""

import base64
import binascii
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format

from .status import Status, invalid
from .tensors import BFLOAT16, BOOL, STRING, numpy_type, to_numpy, to_proto, type_name

_LONGEST = 256  # characters of a value in an error
_DEEPEST = 32  # dimensions: numpy's limit
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_KINDS = {dict: "Object", list: "Array", str: "String", bool: "", type(None): "Null"}


def parse(body: bytes | bytearray) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        Status: it is no JSON, not UTF-8, nested too deep, or no object.
    """
    try:
        # Decoded here: json would take UTF-16 too, and halves of surrogate pairs.
        document = json.loads(body.decode("utf-8-sig"))
        if _SURROGATE.search(body):
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise invalid(f"JSON Parse error: {error.msg} at offset: {error.pos}") from None
    except UnicodeDecodeError as error:
        raise invalid(f"JSON Parse error: not UTF-8 at offset: {error.start}") from None
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None
    except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
        raise invalid("JSON Parse error: nested too deep, or a number too long") from None
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {_shown(document)} Is not object")
    return document


def fill_signature(document: Mapping[str, Any], spec: Any) -> None:
    """Take the (optional) signature_name over into a ModelSpec."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must "
            "be a string value."
        )
    spec.signature_name = name


def fill_inputs(document: Mapping[str, Any], infos: Mapping[str, Any], request: Any) -> bool:
    """Fill a PredictRequest's inputs; True if the row form was used.

    Args:
        document: the request.
        infos: the signature's TensorInfos by their names.
        request: the PredictRequest.

    Raises:
        Status: INVALID_ARGUMENT, with TensorFlow Serving's words.
    """
    if not infos:
        name = request.model_spec.signature_name or "DEFAULT"
        raise invalid(f"Failed to get input map for signature: {name}")
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {_shown(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        rows = document["instances"]
        if not isinstance(rows, list):
            raise invalid(
                f"JSON Value: {_shown(document)} Expecting 'instances' to be an list/array"
            )
        if not rows:
            raise invalid(f"JSON Value: {_shown(document)} No values in 'instances' array")
        columns = _columns(rows, infos)
    elif "inputs" in document:
        columns = _named(document["inputs"], infos)
    else:
        raise invalid("Missing 'inputs' or 'instances' key")
    for name, values in columns.items():
        dtype = infos[name].dtype
        to_proto(_array(values, dtype), request.inputs[name], dtype)
    return "instances" in document


def fill_examples(document: Mapping[str, Any], given: Any) -> None:
    """Fill the Input of a ClassificationRequest or RegressionRequest."""
    found = given.example_list
    if "context" in document:
        found = given.example_list_with_context
        _example(document["context"], found.context)
    examples = document.get("examples")
    if examples is None:
        words = "When method is classify, key 'examples' is expected and was not found"
        raise invalid(f"JSON Value: {_shown(document)} {words}")
    if not isinstance(examples, list):
        raise invalid(
            f"JSON Value: {_shown(document)} Expecting 'examples' value to be an list/array"
        )
    if not examples:
        raise invalid(f"JSON Value: {_shown(document)} 'examples' value is an empty array")
    for example in examples:
        _example(example, found.examples.add())


def predictions(outputs: Mapping[str, Any], by_row: bool) -> str:
    """A PredictResponse's outputs as JSON, in the form that the request had."""
    values = {name: _plain(to_numpy(proto), name) for name, proto in sorted(outputs.items())}
    if not by_row:
        return _dumps({"outputs": values if len(values) > 1 else next(iter(values.values()))})
    rows: dict[str, int] = {}
    for name, proto in sorted(outputs.items()):
        if not proto.tensor_shape.dim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        rows[name] = proto.tensor_shape.dim[0].size
        if rows[name] != next(iter(rows.values())):
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {rows[name]} expecting: "
                f"{next(iter(rows.values()))}"
            )
    if len(values) == 1:
        return _dumps({"predictions": next(iter(values.values()))})
    each = zip(*values.values(), strict=True)
    return _dumps({"predictions": [dict(zip(values, row, strict=True)) for row in each]})


def classifications(result: Any) -> str:
    """A ClassificationResult as JSON: for each row its [label, score] pairs."""
    return _dumps(
        {
            "results": [
                [[one.label, _decimal(np.float32(one.score))] for one in row.classes]
                for row in result.classifications
            ]
        }
    )


def regressions(result: Any) -> str:
    """A RegressionResult as JSON: a number for each row."""
    return _dumps({"results": [_decimal(np.float32(one.value)) for one in result.regressions]})


def message(proto: Any) -> str:
    """A GetModelStatusResponse as JSON."""
    return json_format.MessageToJson(proto, including_default_value_fields=True, indent=1)


def metadata(response: Any, signatures: Any) -> str:
    """A GetModelMetadataResponse as JSON, with its SignatureDefMap unpacked."""
    options: dict[str, Any] = {
        "including_default_value_fields": True,
        "preserving_proto_field_name": True,
    }
    parts = {
        "model_spec": json_format.MessageToDict(response.model_spec, **options),
        "metadata": {"signature_def": json_format.MessageToDict(signatures, **options)},
    }
    return json.dumps(parts, indent=1)


def _columns(rows: list[Any], infos: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The row form, turned: of each input, the values of all rows."""
    if not isinstance(rows[0], dict) and len(infos) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map"
        )
    objects = _is_object(rows[0])
    if not objects:
        (name,) = infos
    columns: dict[str, list[Any]] = {one: [] for one in infos}
    for place, row in enumerate(rows):
        if _is_object(row) != objects:
            words = (
                "Expecting object but got list"
                if objects
                else "Expecting value/list but got object"
            )
            raise invalid(f"{words} at item {place} of input list")
        if not objects:
            columns[name].append(row)
            continue
        if unknown := [one for one in row if one not in infos]:
            raise invalid(
                f"Failed to process element: {place} key: {unknown[0]} of 'instances' list. "
                "Error: INVALID_ARGUMENT: JSON object: does not have named input: "
                f"{unknown[0]}"
            )
        if len(row) != len(infos):
            raise invalid(
                f"Failed to process element: {place} of 'instances' list. JSON object: "
                f"{_shown(row)} keys must be equal to: {','.join(sorted(infos))}"
            )
        for one in infos:
            columns[one].append(row[one])
    for one, values in columns.items():
        _check_alike(one, values)
    return columns


def _check_alike(name: str, values: list[Any]) -> None:
    """Each row must have the first one's shape."""
    first = _shape(values[0])
    for place, value in enumerate(values):
        if (shape := _shape(value)) != first:
            raise invalid(
                f"Failed to process element: {place} key: {name} of 'instances' list. Error: "
                f"INVALID_ARGUMENT: Expecting shape {_bracketed(first)} but got: "
                f"{_bracketed(shape)}"
            )


def _named(given: Any, infos: Mapping[str, Any]) -> dict[str, Any]:
    """The column form: a value of the only input, or an object of all."""
    if not _is_object(given):
        if len(infos) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input tensors "
                "required as per tensorinfo_map"
            )
        return dict.fromkeys(infos, given)
    for name in infos:
        if name not in given:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: given[name] for name in infos}


def _array(values: Any, dtype: int) -> np.ndarray:
    """A nested list as an array of the signature's type."""
    shape = _shape(values)
    if len(shape) > _DEEPEST:
        raise invalid(f"JSON Value: {_shown(values)} has more than {_DEEPEST} dimensions")
    leaves = list(_leaves(values, shape, 0))
    if dtype == STRING:
        array = np.empty(len(leaves), object)
        array[:] = [_bytes(leaf) for leaf in leaves]
        return array.reshape(shape)
    kind = numpy_type(dtype)
    if kind is None or dtype == BFLOAT16 or np.issubdtype(kind, np.complexfloating):
        raise Status(
            grpc.StatusCode.UNIMPLEMENTED,
            f"Conversion of JSON Value: {_shown(values)} to type: {type_name(dtype)}",
        )
    allowed: set[type] = {bool} if dtype == BOOL else {int, float}
    if np.issubdtype(kind, np.integer):
        allowed = {int}
    if not set(map(type, leaves)) <= allowed:
        wrong = next(leaf for leaf in leaves if type(leaf) not in allowed)
        raise _type_error(wrong, dtype)
    if np.issubdtype(kind, np.integer):
        limits = np.iinfo(kind)  # numpy 1 wraps what is outside
        for wrong in (min(leaves, default=0), max(leaves, default=0)):
            if not limits.min <= wrong <= limits.max:
                raise _type_error(wrong, dtype)
    try:
        return np.array(leaves, kind).reshape(shape)
    except OverflowError:
        most = sys.float_info.max
        wrong = next(leaf for leaf in leaves if isinstance(leaf, int) and abs(leaf) > most)
        raise _type_error(wrong, dtype) from None


def _type_error(value: Any, dtype: int) -> Exception:
    return invalid(
        f"JSON Value: {_shown(value)} Type: {_kind(value)} is not of expected type: "
        f"{type_name(dtype)}"
    )


def _shape(values: Any) -> tuple[int, ...]:
    """As TensorFlow Serving finds it: by the first element of each level."""
    shape = []
    while isinstance(values, list):
        shape.append(len(values))
        if not values:
            break
        values = values[0]
    return tuple(shape)


def _leaves(values: Any, shape: tuple[int, ...], level: int) -> Iterator[Any]:
    if level == len(shape):
        if isinstance(values, list):
            raise invalid(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
        yield values
        return
    if not isinstance(values, list):
        raise invalid(
            f"JSON Value: {_shown(values)} found at incorrect level: {level + 1} in the JSON DOM. "
            f"Expected at level: {len(shape)}"
        )
    if len(values) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(values)} at level: {level} expected size: "
            f"{shape[level]}"
        )
    if level == len(shape) - 1 and not any(isinstance(one, list) for one in values):
        yield from values  # the common case, without a call for each number
        return
    for one in values:
        yield from _leaves(one, shape, level + 1)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if _is_base64(value):
        return _decoded(value)
    if isinstance(value, dict):
        raise invalid(f"JSON Value: {_shown(value)} not formatted correctly for base64 data")
    raise _type_error(value, STRING)


def _decoded(value: Mapping[str, str]) -> bytes:
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _is_base64(value: Any) -> bool:
    return isinstance(value, dict) and len(value) == 1 and isinstance(value.get("b64"), str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _example(value: Any, example: Any) -> None:
    """Fill a tf.Example: each feature a value or a list of values of one kind."""
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {_kind(value)}")
    for name, content in value.items():
        values = content if isinstance(content, list) else [content]
        _feature(name, values, example.features.feature[name])


def _feature(name: str, values: list[Any], feature: Any) -> None:
    kinds = {_feature_kind(name, value) for value in values}
    if len(kinds) > 1:
        raise invalid(
            f"Unexpected element type in feature: {name} expecting type: "
            f"{_feature_kind(name, values[0])}"
        )
    for kind in kinds:
        found = getattr(feature, f"{kind}_list").value
        if kind == "bytes":
            found.extend(_bytes(value) for value in values)
        elif kind == "float":
            found.extend(values)
        else:
            if any(not -(2**63) <= value < 2**63 for value in values):
                raise invalid(f"Feature: {name} has uint64_t element. Only int64_t is supported.")
            found.extend(int(value) for value in values)


def _feature_kind(name: str, value: Any) -> str:
    if isinstance(value, float):
        return "float"
    if isinstance(value, int):  # True and False too
        return "int64"
    if isinstance(value, str) or _is_base64(value):
        return "bytes"
    raise invalid(f"Feature: {name} has element with unexpected JSON type: {_kind(value)}")


def _plain(array: np.ndarray, name: str) -> Any:
    """Nested lists of JSON's own values."""
    flat: Sequence[Any]
    if array.dtype == object:
        flat = [
            {"b64": base64.b64encode(value).decode()}
            if name.endswith("_bytes")
            else value.decode("utf-8", errors="replace")
            for value in array.ravel()
        ]
        nested = np.empty(array.size, object)
        nested[:] = flat
        return nested.reshape(array.shape).tolist()
    if array.dtype in (np.float32, np.float16):
        return np.array([_decimal(one) for one in array.ravel()]).reshape(array.shape).tolist()
    return array.tolist()


def _decimal(value: np.floating) -> float:
    """The shortest decimal that is the same float32: 0.2, and not 0.20000000298."""
    return float(str(value))


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shown(value: Any) -> str:
    shown = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        shown += part
        if len(shown) >= _LONGEST:
            break  # what follows may be long, or nested deep
    return shown[:_LONGEST]


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    return _KINDS.get(type(value), "Number")


def _bracketed(shape: Sequence[int]) -> str:
    return "[" + ",".join(map(str, shape)) + "]"
