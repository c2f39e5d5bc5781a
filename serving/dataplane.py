"""What a request does, the same for gRPC and REST: protos in, protos out, `Status` on failure.

Follows servables/tensorflow/{predict_util,classifier,regressor,multi_inference}.cc and
model_servers/{get_model_status_impl,server_core}.cc of TensorFlow Serving, its messages included.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import numpy as np
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from .manager import Manager, Version
from .servable import check_feed
from .status import Status, invalid
from .tensors import BFLOAT16, FLOAT, HALF, STRING, to_numpy, to_proto, type_name, typed_field

DEFAULT = "serving_default"
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
METADATA = "signature_def"


class DataPlane:
    """Answers requests from a manager's versions.

    Args:
        manager: the versions.
        as_content: numbers in answers as tensor_content, which is faster to write and read;
            else as typed fields, which is TensorFlow Serving's default.
    """

    def __init__(self, manager: Manager, as_content: bool = False) -> None:
        self.manager, self._as_content = manager, as_content

    def predict(self, request: Any, deadline: float | None = None) -> Any:
        """PredictRequest to PredictResponse; `deadline` is by time.monotonic()."""
        with self._hold(_spec_of(request)) as version:
            return predict(version, request, deadline, self._as_content)

    def classify(self, request: Any, deadline: float | None = None) -> Any:
        """ClassificationRequest to ClassificationResponse."""
        with self._hold(_spec_of(request)) as version:
            return classify(version, request, deadline)

    def regress(self, request: Any, deadline: float | None = None) -> Any:
        """RegressionRequest to RegressionResponse."""
        with self._hold(_spec_of(request)) as version:
            return regress(version, request, deadline)

    def multi_inference(self, request: Any, deadline: float | None = None) -> Any:
        """MultiInferenceRequest to MultiInferenceResponse: several heads, computed at once."""
        if not request.tasks:
            raise invalid("MultiInferenceRequest must have at least one task.")
        names = {task.model_spec.name for task in request.tasks}
        if "" in names:
            raise invalid("Found ModelSpec with an empty model name.")
        if len(names) > 1:
            raise invalid(
                "All ModelSpecs in a MultiInferenceRequest must access the same model name."
            )
        with self._hold(request.tasks[0].model_spec) as version:
            return multi_inference(version, request, deadline)

    def metadata(self, request: Any) -> Any:
        """GetModelMetadataRequest to GetModelMetadataResponse."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != METADATA:
                raise invalid(f"Metadata field {field} is not supported")
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        signatures = get_model_metadata_pb2.SignatureDefMap()
        with self._hold(request.model_spec) as version:
            fill_spec(response.model_spec, version)
            for name, signature in version.loaded.signatures.items():
                signatures.signature_def[name].CopyFrom(signature)
        response.metadata[METADATA].Pack(signatures)
        return response

    def status(self, request: Any) -> Any:
        """GetModelStatusRequest to GetModelStatusResponse."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in self.manager.status(spec.name, _number(spec), spec.version_label):
            told = response.model_version_status.add(version=version.number, state=version.state)
            told.status.error_code = 0
            if error := version.error:
                told.status.error_code = error.code.value[0]
                told.status.error_message = error.message
        return response

    def inputs(self, spec: Any) -> Mapping[str, Any]:
        """The TensorInfos of a signature's inputs, which JSON needs to be read.

        Raises:
            Status: there is no such version, or no such signature.
        """
        name = spec.signature_name or DEFAULT
        with self._hold(spec) as version:
            signature = version.loaded.signatures.get(name)
        if signature is None:
            raise invalid(f'Serving signature name: "{name}" not found in signature def')
        return signature.inputs

    def _hold(self, spec: Any) -> Any:
        return self.manager.hold(spec.name, _number(spec), spec.version_label)


def _spec_of(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    return request.model_spec


def predict(version: Version, request: Any, deadline: float | None, as_content: bool) -> Any:
    """Predict on a version that is held; see `DataPlane`."""
    name = request.model_spec.signature_name or DEFAULT
    signature = version.loaded.signatures.get(name)
    if signature is None:
        raise Status(
            grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.'
        )
    feeds = _inputs(signature, request.inputs)
    aliases = _outputs(signature, request.output_filter)
    fetches = tuple(signature.outputs[alias].name for alias in aliases)
    values = _compute(version, feeds, fetches, deadline)
    response = predict_pb2.PredictResponse()
    fill_spec(response.model_spec, version, name)
    for alias, value in zip(aliases, values, strict=True):
        write_tensor(value, signature.outputs[alias].dtype, response.outputs[alias], as_content)
    return response


def classify(version: Version, request: Any, deadline: float | None) -> Any:
    """Classify on a version that is held."""
    name = request.model_spec.signature_name or DEFAULT
    signature = _named(version, name)
    feed, fetches = _classification(signature)
    examples = serialized_examples(request.input)
    values = _compute(version, {feed: examples}, fetches, deadline)
    response = classification_pb2.ClassificationResponse()
    fill_spec(response.model_spec, version, name)
    by_name = dict(zip(fetches, values, strict=True))
    _classes(signature, len(examples), by_name, response.result)
    return response


def regress(version: Version, request: Any, deadline: float | None) -> Any:
    """Regress on a version that is held."""
    name = request.model_spec.signature_name or DEFAULT
    feed, fetches = _regression(_named(version, name))
    examples = serialized_examples(request.input)
    (values,) = _compute(version, {feed: examples}, fetches, deadline)
    response = regression_pb2.RegressionResponse()
    fill_spec(response.model_spec, version, name)
    _values(len(examples), values, response.result)
    return response


def multi_inference(version: Version, request: Any, deadline: float | None) -> Any:
    """MultiInference on a version that is held."""
    heads = _heads(version, request.tasks)
    examples = serialized_examples(request.input)
    feeds = {feed: examples for _, _, feed, _ in heads}
    fetches = tuple(sorted({name for _, _, _, outputs in heads for name in outputs}))
    computed = _compute(version, feeds, fetches, deadline)
    values = dict(zip(fetches, computed, strict=True))
    response = inference_pb2.MultiInferenceResponse()
    for task, signature, _, outputs in heads:
        result = response.results.add()
        fill_spec(result.model_spec, version, task.model_spec.signature_name or DEFAULT)
        if task.method_name == CLASSIFY:
            _classes(signature, len(examples), values, result.classification_result)
        else:
            _values(len(examples), values[outputs[0]], result.regression_result)
    return response


def _compute(
    version: Version,
    feeds: Mapping[str, np.ndarray],
    fetches: tuple[str, ...],
    deadline: float | None,
) -> Sequence[np.ndarray]:
    servable = version.loaded
    if version.batcher is None:
        return servable.run(feeds, fetches)
    names = tuple(feeds)
    return version.batcher.run(
        (names, fetches),
        lambda arrays: servable.run(dict(zip(names, arrays, strict=True)), fetches),
        list(feeds.values()),
        deadline,
    )


def write_tensor(value: np.ndarray, dtype: int, proto: Any, as_content: bool) -> None:
    """Write an output: as content, or as the typed field of its type."""
    if dtype == BFLOAT16:
        value = value.view(np.uint16)  # its bits, which both forms hold
    if as_content or dtype == STRING:
        to_proto(value, proto, dtype)
        return
    proto.dtype = dtype
    for size in value.shape:
        proto.tensor_shape.dim.add().size = size
    flat = value.ravel()
    if dtype == HALF:
        flat = flat.view(np.uint16)
    elif np.iscomplexobj(flat):
        flat = flat.view(flat.real.dtype)  # real and imaginary parts in turn
    getattr(proto, typed_field(dtype)).extend(flat.tolist())


def fill_spec(spec: Any, version: Version, signature: str = "") -> None:
    """Say what answered: the model, its version, the signature."""
    spec.name, spec.version.value, spec.signature_name = version.model, version.number, signature


def serialized_examples(given: Any) -> np.ndarray:
    """The examples of an Input, serialized [B], each with the context's features before its own.

    Raises:
        Status: it is empty.
    """
    kind = given.WhichOneof("kind")
    context = b""
    examples: Sequence[Any] = ()
    if kind == "example_list":
        examples = given.example_list.examples
    elif kind == "example_list_with_context":
        examples = given.example_list_with_context.examples
        context = given.example_list_with_context.context.SerializeToString()
    if not examples:
        raise invalid("Input is empty.")
    array = np.empty(len(examples), object)
    array[:] = [context + example.SerializeToString() for example in examples]
    return array


def _number(spec: Any) -> int | None:
    return spec.version.value if spec.HasField("version") else None


def _inputs(signature: Any, given: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays by the names of tensors in the graph."""
    sent, wanted = set(given), set(signature.inputs)
    if len(sent) != len(wanted):
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(wanted)} "
            f"len({_set(sent)}) != len({_set(wanted)}). Sent extra: {_set(sent - wanted)}. "
            f"Missing but required: {_set(wanted - sent)}."
        )
    if sent != wanted:
        raise invalid(
            f"input tensor alias not found in signature: {min(sent - wanted)}. Inputs expected "
            f"to be in the set {_set(wanted)}."
        )
    feeds = {}
    for alias, info in signature.inputs.items():
        try:
            value = to_numpy(given[alias])
        except ValueError as error:
            raise invalid(f"tensor parsing error: {alias}: {error}") from None
        if given[alias].dtype != info.dtype:
            raise invalid(
                f"input {alias}: expects {type_name(info.dtype)}, but "
                f"{type_name(given[alias].dtype)} is provided"
            )
        check_feed(alias, info, value)
        if info.dtype == BFLOAT16:
            import ml_dtypes  # TensorFlow brings it

            value = value.astype(ml_dtypes.bfloat16)
        feeds[info.name] = value
    return feeds


def _outputs(signature: Any, filtered: Sequence[str]) -> list[str]:
    seen: list[str] = []
    for alias in filtered:
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in "
                f"the set {_set(signature.outputs)}."
            )
        if alias in seen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        seen.append(alias)
    return sorted(seen or signature.outputs)  # one order, so that one prepared call serves all


def _set(names: Any) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def _named(version: Version, name: str) -> Any:
    if (signature := version.loaded.signatures.get(name)) is None:
        raise invalid(f"No signature was found with the name: {name}")
    return signature


def _heads(version: Version, tasks: Sequence[Any]) -> list[tuple[Any, Any, str, tuple[str, ...]]]:
    """Of each task: the task, its signature, the tensor it feeds, and those it fetches."""
    heads: list[tuple[Any, Any, str, tuple[str, ...]]] = []
    seen = set()
    for task in tasks:
        name = task.model_spec.signature_name or DEFAULT
        if name in seen:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        if (signature := version.loaded.signatures.get(name)) is None:
            raise invalid(f"Requested signature not found in model graph: {name}")
        check = _HEADS.get(task.method_name)
        if check is None:
            raise Status(
                grpc.StatusCode.UNIMPLEMENTED,
                f"Unsupported signature method_name: {task.method_name}",
            )
        heads.append((task, signature, *check(signature)))
    return heads


def _classification(signature: Any) -> tuple[str, tuple[str, ...]]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    outputs = [name for name in ("classes", "scores") if name in signature.outputs]
    if not outputs:
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature}'
        )
    return _tensor(signature), tuple(signature.outputs[name].name for name in outputs)


def _regression(signature: Any) -> tuple[str, tuple[str, ...]]:
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    return _tensor(signature), (signature.outputs["outputs"].name,)


_HEADS: dict[str, Callable[[Any], tuple[str, tuple[str, ...]]]] = {
    CLASSIFY: _classification,
    REGRESS: _regression,
}


def _tensor(signature: Any) -> str:
    """The tensor that takes serialized examples."""
    info = signature.inputs["inputs"]
    if info.dtype != STRING:
        raise invalid(f"Expects arg[0] to be {type_name(info.dtype)} but string is provided")
    return info.name


def _classes(signature: Any, rows: int, values: Mapping[str, np.ndarray], result: Any) -> None:
    """Fill a ClassificationResult: C classes for each of B rows."""
    found: dict[str, np.ndarray] = {}
    for alias, dtype, kind in (("classes", STRING, "string"), ("scores", FLOAT, "float")):
        if alias not in signature.outputs:
            continue
        value = values[signature.outputs[alias].name]
        if value.ndim != 2:
            raise invalid(
                f"Expected Tensor shape: [batch_size num_classes] but got {list(value.shape)}"
            )
        if signature.outputs[alias].dtype != dtype:
            raise invalid(
                f"Expected {alias} Tensor of DT_{kind.upper()}. Got: "
                f"DT_{type_name(signature.outputs[alias].dtype).upper()}"
            )
        if len(value) != rows:
            raise invalid(f"Expected {alias} output batch size of {rows}. Got: {len(value)}")
        found[alias] = value
    counts = {value.shape[1] for value in found.values()}
    if len(counts) > 1:
        raise invalid(
            "Tensors class and score should match in dim_size(1). Got "
            f"{found['classes'].shape[1]} vs. {found['scores'].shape[1]}"
        )
    (count,) = counts
    for row in range(rows):
        classes = result.classifications.add().classes
        for place in range(count):
            one = classes.add()
            if "classes" in found:
                # Bytes that are not UTF-8 cannot stand in a proto3 string.
                one.label = found["classes"][row, place].decode(errors="replace")
            if "scores" in found:
                one.score = found["scores"][row, place]


def _values(rows: int, value: np.ndarray, result: Any) -> None:
    """Fill a RegressionResult: a number for each of B rows."""
    if value.ndim != 1 and value.shape[1:] != (1,):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
            f"{list(value.shape)}"
        )
    if len(value) != rows:
        raise invalid(f"Input batch size did not match output batch size: {rows} vs. {len(value)}")
    if value.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: DT_{value.dtype.name.upper()}")
    for number in value.ravel().tolist():
        result.regressions.add().value = number
