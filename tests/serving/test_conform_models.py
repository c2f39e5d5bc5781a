"""Metadata, status, new configurations, health and reflection over gRPC."""

import os

import grpc
import pytest
from google.protobuf import text_format
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

AVAILABLE = get_model_status_pb2.ModelVersionStatus.AVAILABLE
INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


def metadata(tools, name: str, *fields: str, **spec):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    tools.fill(request.model_spec, name, **spec)
    return request


def status(tools, name: str, **spec):
    request = get_model_status_pb2.GetModelStatusRequest()
    tools.fill(request.model_spec, name, **spec)
    return request


# --- metadata -----------------------------------------------------------------------------


def test_metadata_has_the_signatures(door, tools):
    request = metadata(tools, "half_plus_two", "signature_def", version=1)
    response = door.prediction.GetModelMetadata(request)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    wanted = {"serving_default", "both", "classify", "scores", "regress", "column"}
    assert set(found.signature_def) - {"__saved_model_init_op"} == wanted
    default = found.signature_def["serving_default"]
    assert default.inputs["x"].dtype == 1
    assert [dim.size for dim in default.inputs["x"].tensor_shape.dim] == [-1]
    assert set(default.outputs) == {"y"}
    assert default.method_name == "tensorflow/serving/predict"
    assert (response.model_spec.name, response.model_spec.version.value) == ("half_plus_two", 1)


def test_metadata_of_an_unknown_model_is_not_found(door, tools):
    request = metadata(tools, "nobody", "signature_def")
    code, words = door.failure(door.prediction.GetModelMetadata, request)
    assert (code, words) == (MISSING, "Servable not found for request: Latest(nobody)")


def test_metadata_without_a_field_or_of_another_is_invalid(door, tools):
    call = door.prediction.GetModelMetadata
    assert door.failure(call, metadata(tools, "half_plus_two"))[0] is INVALID
    code, words = door.failure(call, metadata(tools, "half_plus_two", "weights"))
    assert (code, words) == (INVALID, "Metadata field weights is not supported")
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    assert door.failure(call, request) == (INVALID, "Missing ModelSpec")


# --- status -------------------------------------------------------------------------------


def test_status_lists_versions_newest_first(door, tools):
    response = door.model.GetModelStatus(status(tools, "half_plus_two"))
    told = [(one.version, one.state) for one in response.model_version_status]
    assert told == [(2, AVAILABLE), (1, AVAILABLE)]
    assert {one.status.error_code for one in response.model_version_status} == {0}


def test_status_of_one_version(door, tools):
    response = door.model.GetModelStatus(status(tools, "half_plus_two", version=1))
    assert [one.version for one in response.model_version_status] == [1]


def test_status_of_what_is_not_there_is_not_found(door, tools):
    call = door.model.GetModelStatus
    code, words = door.failure(call, status(tools, "nobody"))
    assert (code, words) == (MISSING, "Could not find any versions of model nobody")
    code, words = door.failure(call, status(tools, "half_plus_two", version=7))
    assert (code, words) == (MISSING, "Could not find version 7 of model half_plus_two")
    request = get_model_status_pb2.GetModelStatusRequest()
    assert door.failure(call, request) == (INVALID, "Missing ModelSpec")


# --- a new configuration ------------------------------------------------------------------


@pytest.fixture
def reload(door, models):
    """Serve other models for a test."""
    given = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((models / "models.config").read_text(), given)
    request = model_management_pb2.ReloadConfigRequest(config=given)
    yield request
    request.config.CopyFrom(given)
    door.model.HandleReloadConfigRequest(request)


def test_a_new_model_is_served_once_the_call_returns(door, reload, models):
    reload.config.model_config_list.config.add(
        name="same", base_path=str(models / "half_plus_two"), model_platform="tensorflow"
    )
    response = door.model.HandleReloadConfigRequest(reload)
    assert response.status.error_code == 0
    x = door.request("half_plus_two", {"x": [1.0]}).inputs["x"]
    assert door.predict("same", {"x": x})["y"].tolist() == [3.5]
    assert door.half(1)[0] == 2


def test_a_model_that_is_left_out_goes(door, reload):
    del reload.config.model_config_list.config[-1]  # echo
    door.model.HandleReloadConfigRequest(reload)
    code, words = door.refusal("echo", {"x": [1.0]}, signature="float")
    assert (code, words) == (MISSING, "Servable not found for request: Latest(echo)")
    assert door.half(1)[0] == 2


def test_a_label_can_be_moved(door, reload):
    labels = reload.config.model_config_list.config[0].version_labels
    labels["stable"] = 2
    door.model.HandleReloadConfigRequest(reload)
    assert door.half(1, label="stable")[0] == 2


def test_a_label_for_what_is_not_served_is_refused(door, reload):
    reload.config.model_config_list.config[0].version_labels["next"] = 9
    code, _ = door.failure(door.model.HandleReloadConfigRequest, reload)
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert door.half(1, label="stable")[0] == 1


def test_a_config_that_lists_a_model_twice_changes_nothing(door, reload):
    listed = reload.config.model_config_list
    listed.config.add().CopyFrom(listed.config[0])
    code, words = door.failure(door.model.HandleReloadConfigRequest, reload)
    assert code is INVALID and "multiple times" in words
    assert door.half(1)[0] == 2


def test_an_empty_config_is_invalid(door):
    request = model_management_pb2.ReloadConfigRequest()
    assert door.failure(door.model.HandleReloadConfigRequest, request)[0] is INVALID


# --- health and reflection ----------------------------------------------------------------


@pytest.mark.parametrize("service", ["", "ModelService", "PredictionService"])
def test_health_is_serving(door, service):
    answer = door.health.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_of_an_unknown_service_is_not_found(door):
    request = health_pb2.HealthCheckRequest(service="Nothing")
    assert door.failure(door.health.Check, request)[0] is MISSING


@pytest.mark.skipif("ESPALIER_TFS_TARGET" in os.environ, reason="TensorFlow Serving has none")
def test_reflection_lists_the_services(door):
    stub = reflection_pb2_grpc.ServerReflectionStub(door.channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([asked]))
    names = {one.name for one in answer.list_services_response.service}
    assert names >= {
        "tensorflow.serving.PredictionService",
        "tensorflow.serving.ModelService",
        "grpc.health.v1.Health",
    }
