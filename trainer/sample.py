"""A request that each version carries, and the answer that a server should give to it.

`assets.extra/sample_request.json` holds nothing of the user's data. `espalier smoke` replays it.
"""

import base64
import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import warmup
from .input import Shape

FILE = os.path.join("assets.extra", "sample_request.json")
TEXT = b"This is a sample of a text."
# Other machines round otherwise; the same in bfloat16 or int8.
_TOLERANCE, _IN_FEWER_BITS = 1e-3, 0.05


def write(
    version: str,
    inputs: Iterable[str],
    pixel_shapes: Mapping[str, Shape],
    serve: Callable[..., Mapping[str, Any]],
    fewer_bits: bool,
) -> None:
    """Write the sample of a version: the request as gRPC's JSON, curl and Python, and its answer.

    Args:
        version: the SavedModel's folder.
        inputs: the names of serving_default's inputs.
        pixel_shapes: of a model of pictures, what it takes.
        serve: serving_default; what it says now is what a server should.
        fewer_bits: whether the graph computes in them, so that machines differ more.
    """
    import tensorflow as tf

    content = warmup.picture(pixel_shapes) if pixel_shapes else TEXT
    names = list(inputs)
    answer = serve(*(tf.constant([content]) for _ in names))
    outputs = {
        name: _plain(value.numpy()) for name, value in answer.items() if name in ("label", "scores")
    }
    one = {"b64": base64.b64encode(content).decode()} if pixel_shapes else content.decode()
    columns = {name: [one] for name in names}
    body = json.dumps({"inputs": columns})
    given = ", ".join(f'"{name}": [{content!r}]' for name in names)
    sample = {
        "inputs": columns,
        "outputs": outputs,
        "tolerance": _IN_FEWER_BITS if fewer_bits else _TOLERANCE,
        "grpc": {
            "service": "tensorflow.serving.PredictionService/Predict",
            "request": _grpc(names, content),
        },
        "curl": f"curl -d '{body}' http://HOST:8501/v1/models/MODEL:predict",
        "python": f'espalier.Client("HOST:8500", "MODEL").predict({{{given}}})',
    }
    with open(os.path.join(version, FILE), "w", encoding="utf-8") as file:
        json.dump(sample, file, indent=1)


def _grpc(names: Iterable[str], content: bytes) -> dict[str, Any]:
    """The PredictRequest in protobuf's JSON, as grpcurl takes it."""
    tensor = {
        "dtype": "DT_STRING",
        "tensorShape": {"dim": [{"size": "1"}]},
        "stringVal": [base64.b64encode(content).decode()],
    }
    return {
        "modelSpec": {"name": "MODEL", "signatureName": "serving_default"},
        "inputs": dict.fromkeys(names, tensor),
    }


def _plain(values: Any) -> Any:
    if values.dtype == object:
        return [value.decode("utf-8") for value in values]
    return [[float(str(one)) for one in row] for row in values]
