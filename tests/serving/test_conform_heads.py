"""Classify, Regress and MultiInference over gRPC, which read tf.Examples."""

import grpc
import pytest
from tensorflow_serving.apis import inference_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"


def classes_of(result) -> list[list[tuple[str, float]]]:
    return [[(one.label, one.score) for one in row.classes] for row in result.classifications]


def numbers_of(result) -> list[float]:
    return [one.value for one in result.regressions]


def inference(tools, *tasks: tuple[str, str], model: str = "half_plus_two"):
    """A MultiInferenceRequest with a task for each (method, signature)."""
    request = inference_pb2.MultiInferenceRequest()
    for method, signature in tasks:
        task = request.tasks.add(method_name=method)
        tools.fill(task.model_spec, model, signature=signature)
    request.input.example_list.examples.extend(tools.examples_of(1, 2))
    return request


def test_classify_answers_labels_and_scores(door, tools):
    response = door.prediction.Classify(tools.classification(1, 3))
    assert classes_of(response.result) == [
        [("y", 3.5), ("minus y", -3.5)],
        [("y", 4.5), ("minus y", -4.5)],
    ]
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == "classify"


def test_a_head_without_classes_answers_scores_alone(door, tools):
    response = door.prediction.Classify(tools.classification(1, signature="scores"))
    assert classes_of(response.result) == [[("", 3.5), ("", -3.5)]]


@pytest.mark.parametrize("signature", ["regress", "column"])
def test_regress_answers_a_number_for_each_example(door, tools, signature):
    response = door.prediction.Regress(tools.regression(1, 3, signature=signature, version=1))
    assert numbers_of(response.result) == [2.5, 3.5]


def test_the_context_goes_before_each_example(door, tools):
    request = tools.regression()
    listed = request.input.example_list_with_context
    listed.context.CopyFrom(tools.examples_of(1)[0])
    listed.examples.add()
    listed.examples.extend(tools.examples_of(3))
    assert numbers_of(door.prediction.Regress(request).result) == [3.5, 4.5]


def test_no_examples_are_invalid(door, tools):
    assert door.failure(door.prediction.Classify, tools.classification())[0] is INVALID
    code, words = door.failure(door.prediction.Regress, tools.regression())
    assert code is INVALID and "Input is empty" in words


def test_a_head_of_another_kind_is_invalid(door, tools):
    request = tools.classification(1, signature="regress")
    assert door.failure(door.prediction.Classify, request)[0] is INVALID
    request = tools.regression(1, signature="classify")
    assert door.failure(door.prediction.Regress, request)[0] is INVALID
    request = tools.classification(1, signature="serving_default")
    assert door.failure(door.prediction.Classify, request)[0] is INVALID


def test_an_unknown_head_is_invalid(door, tools):
    request = tools.classification(1, signature="nothing")
    code, words = door.failure(door.prediction.Classify, request)
    assert (code, words) == (INVALID, "No signature was found with the name: nothing")


def test_an_unknown_model_is_not_found(door, tools):
    request = tools.regression(1, version=9)
    code, words = door.failure(door.prediction.Regress, request)
    assert code is grpc.StatusCode.NOT_FOUND
    assert words == "Servable not found for request: Specific(half_plus_two, 9)"


def test_several_heads_are_asked_at_once(door, tools):
    request = inference(tools, (REGRESS, "regress"), (CLASSIFY, "classify"))
    results = door.prediction.MultiInference(request).results
    assert numbers_of(results[0].regression_result) == [3.5, 4.0]
    assert classes_of(results[1].classification_result)[1] == [("y", 4.0), ("minus y", -4.0)]
    assert [one.model_spec.signature_name for one in results] == ["regress", "classify"]


def test_several_heads_of_several_models_are_invalid(door, tools):
    request = inference(tools, (REGRESS, "regress"), (CLASSIFY, "classify"))
    request.tasks[1].model_spec.name = "odd"
    code, words = door.failure(door.prediction.MultiInference, request)
    assert code is INVALID and "must access the same model name" in words


def test_the_same_head_twice_is_invalid(door, tools):
    request = inference(tools, (REGRESS, "regress"), (REGRESS, "regress"))
    code, words = door.failure(door.prediction.MultiInference, request)
    assert (code, words) == (INVALID, "Duplicate evaluation of signature: regress")


def test_no_heads_are_invalid(door, tools):
    assert door.failure(door.prediction.MultiInference, inference(tools))[0] is INVALID


def test_an_unknown_method_is_unimplemented(door, tools):
    request = inference(tools, ("tensorflow/serving/predict", "serving_default"))
    code, _ = door.failure(door.prediction.MultiInference, request)
    assert code is grpc.StatusCode.UNIMPLEMENTED
