"""The REST door: row and column form, heads, status, metadata, errors, Prometheus' page."""

import gzip
import json
import math

import pytest

HALF, ODD, ECHO = "/v1/models/half_plus_two", "/v1/models/odd", "/v1/models/echo"


def error(response, code: int = 400) -> str:
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/json"
    document = response.json()
    assert list(document) == ["error"]
    return document["error"]


# --- predict ------------------------------------------------------------------------------


def test_rows_are_answered_as_rows(door):
    response = door.post(f"{HALF}:predict", {"instances": [1.0, 2.0]})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.json() == {"predictions": [3.5, 4.0]}


def test_rows_may_name_their_only_input(door):
    response = door.post(f"{HALF}:predict", {"instances": [{"x": 1.0}, {"x": 2.0}]})
    assert response.json() == {"predictions": [3.5, 4.0]}


def test_rows_with_several_outputs_are_objects(door):
    document = {"signature_name": "both", "instances": [1.0, 2.0]}
    assert door.post(f"{HALF}:predict", document).json() == {
        "predictions": [{"doubled": 2.0, "y": 3.5}, {"doubled": 4.0, "y": 4.0}]
    }


def test_columns_are_answered_as_columns(door):
    assert door.post(f"{HALF}:predict", {"inputs": [1.0]}).json() == {"outputs": [3.5]}
    assert door.post(f"{HALF}:predict", {"inputs": {"x": [1.0]}}).json() == {"outputs": [3.5]}
    document = {"signature_name": "both", "inputs": {"x": [1.0]}}
    assert door.post(f"{HALF}:predict", document).json() == {
        "outputs": {"doubled": [2.0], "y": [3.5]}
    }


def test_several_inputs_by_row_and_by_column(door):
    wanted = [{"joined": "ab", "joined_bytes": {"b64": "YWI="}}]
    rows = door.post(f"{ODD}:predict", {"instances": [{"a": "a", "b": "b"}]})
    assert rows.json() == {"predictions": wanted}
    columns = door.post(f"{ODD}:predict", {"inputs": {"a": ["a"], "b": ["b"]}})
    assert columns.json() == {"outputs": {"joined": ["ab"], "joined_bytes": [{"b64": "YWI="}]}}


def test_bytes_come_and_go_as_base64(door):
    document = {"instances": [{"a": {"b64": "/wA="}, "b": {"b64": ""}}]}
    (row,) = door.post(f"{ODD}:predict", document).json()["predictions"]
    assert row["joined_bytes"] == {"b64": "/wA="}


def test_text_of_any_script_comes_back(door):
    document = {"signature_name": "string", "instances": ["schön", "日本", "🌳", 'a"\\\n']}
    assert door.post(f"{ECHO}:predict", document).json()["predictions"] == document["instances"]


def test_matrices_are_nested_lists(door):
    document = {"signature_name": "triples", "instances": [[1, 2, 3], [4.5, 0, 0]]}
    assert door.post(f"{ODD}:predict", document).json() == {"predictions": [6.0, 4.5]}
    document = {"signature_name": "any_shape", "inputs": [[[1.0], [2.0]]]}
    assert door.post(f"{ODD}:predict", document).json() == {"outputs": [[[1.0], [2.0]]]}


def test_a_scalar_is_a_column(door):
    document = {"signature_name": "any_shape", "inputs": 1.5}
    assert door.post(f"{ODD}:predict", document).json() == {"outputs": 1.5}


def test_floats_are_written_as_their_shortest_decimal(door):
    document = {"signature_name": "float", "instances": [0.2, 1e-7, 16777216, 3]}
    text = door.post(f"{ECHO}:predict", document).text
    assert "0.2000" not in text and "3.0" in text
    assert json.loads(text) == {"predictions": [0.2, 1e-7, 16777216.0, 3.0]}


def test_what_is_no_number_is_written_so(door):
    body = b'{"signature_name": "float", "instances": [NaN, Infinity, -Infinity]}'
    response = door.post(f"{ECHO}:predict", body)
    nan, *infinite = response.json()["predictions"]
    assert math.isnan(nan) and infinite == [math.inf, -math.inf]
    assert "NaN" in response.text and "-Infinity" in response.text


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint64", [2**64 - 1]),
        ("int8", [-128, 127]),
        ("bool", [True, False]),
        ("double", [0.1, 1e300]),
    ],
)
def test_every_number_keeps_its_value(door, name, values):
    response = door.post(f"{ECHO}:predict", {"signature_name": name, "instances": values})
    assert response.json() == {"predictions": values}


def test_versions_and_labels_are_part_of_the_path(door):
    for path in (f"{HALF}/versions/1", f"{HALF}/labels/stable"):
        assert door.post(f"{path}:predict", {"instances": [1.0]}).json() == {"predictions": [2.5]}


def test_a_body_may_be_zipped(door):
    body = gzip.compress(b'{"instances": [1.0]}')
    response = door.http.post(f"{HALF}:predict", content=body, headers={"Content-Encoding": "gzip"})
    assert response.json() == {"predictions": [3.5]}


# --- what is refused ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON Parse error"),
        (b"{", "JSON Parse error"),
        (b'{"instances": [1.0', "JSON Parse error"),
        (b"[]", "Is not object"),
        (b"null", "Is not object"),
        (b"{}", "Missing 'inputs' or 'instances' key"),
        (b'{"instances": [1.0], "inputs": [1.0]}', "expecting only one of"),
        (b'{"instances": []}', "No values in 'instances' array"),
        (b'{"instances": 1.0}', "Expecting 'instances' to be an list/array"),
        (b'{"instances": [1.0], "signature_name": 3}', "'signature_name' key must be a string"),
        (b'{"instances": ["a"]}', "Type: String is not of expected type: float"),
        (b'{"instances": [null]}', "Type: Null is not of expected type: float"),
        (b'{"instances": [true]}', "Type: True is not of expected type: float"),
        (b'{"instances": [{"z": 1.0}]}', "does not have named input: z"),
        (b'{"instances": [{"x": 1.0}, 2.0]}', "Expecting object but got list at item 1"),
        (b'{"instances": [1.0, {"x": 2.0}]}', "Expecting value/list but got object at item 1"),
        (b'{"instances": [1.0, [2.0]]}', "Failed to process element: 1"),
        (b'{"instances": [[1.0, [2.0]]]}', "Encountered list at unexpected level"),
        (b'{"instances": [[[1.0], 2.0]]}', "found at incorrect level"),
        (b'{"inputs": [[1.0, 2.0], [3.0]]}', "Encountered list at unexpected size: 1"),
        (b'{"inputs": {"z": [1.0]}}', "Missing named input: x"),
        (b'{"instances": [1.0], "signature_name": "no"}', 'Serving signature name: "no" not found'),
    ],
)
def test_bad_json_is_a_400_that_says_why(door, body, words):
    assert words in error(door.post(f"{HALF}:predict", body))


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": ["\xff"]}',
        b'{"instances": ["\\ud800"], "signature_name": "string"}',
        b'{"instances": [{"\\ud800": 1}]}',
        b'{"instances": [1.0], "signature_name": "\\ud800"}',
        b'{"instances": [' + b"9" * 400 + b"]}",
        b'{"instances": [' + b"9" * 5000 + b"]}",
        b'{"inputs": ' + b"[" * 40 + b"1" + b"]" * 40 + b"}",
        b'{"inputs": ' + b"[" * 985 + b"1" + b"]" * 985 + b"}",
        b'{"inputs": ' + b"[" * 100_000,
        b'{"instances": [' + b'{"x":' * 985 + b"1" + b"}" * 985 + b"]}",
    ],
    ids=["utf8", "string", "key", "signature", "400", "5000", "40", "985", "100000", "objects"],
)
def test_a_hostile_body_is_a_400(door, body):
    error(door.post(f"{HALF}:predict", body))


@pytest.mark.parametrize(
    ("name", "value"), [("int32", 2**31), ("int32", 1.5), ("uint64", -1), ("int64", 2**63)]
)
def test_a_number_that_does_not_fit_is_a_400(door, name, value):
    response = door.post(f"{ECHO}:predict", {"signature_name": name, "instances": [value]})
    assert f"is not of expected type: {name}" in error(response)


def test_what_json_cannot_hold_is_unimplemented(door):
    for name in ("complex64", "bfloat16"):
        response = door.post(f"{ECHO}:predict", {"signature_name": name, "instances": [1]})
        assert f"to type: {name}" in error(response, 501)


def test_several_inputs_need_objects(door):
    assert "multiple input tensors" in error(door.post(f"{ODD}:predict", {"instances": ["a"]}))
    assert "multiple input tensors" in error(door.post(f"{ODD}:predict", {"inputs": ["a"]}))
    response = door.post(f"{ODD}:predict", {"instances": [{"a": "a"}]})
    assert "keys must be equal to: a,b" in error(response)


def test_bad_base64_is_a_400(door):
    for text in ("!", "a"):
        document = {"signature_name": "string", "instances": [{"b64": text}]}
        assert "Unable to base64 decode" in error(door.post(f"{ECHO}:predict", document))


def test_rows_need_outputs_that_are_rows(door):
    document = {"signature_name": "scalars", "instances": [1.0, 2.0]}
    assert "has no shape information" in error(door.post(f"{ODD}:predict", document))
    document = {"signature_name": "scalars", "inputs": [1.0, 2.0]}
    answer = door.post(f"{ODD}:predict", document).json()
    assert answer == {"outputs": {"count": 2, "text": "so many", "x": [1.0, 2.0]}}


def test_what_the_graph_says_is_told(door):
    document = {"signature_name": "positive", "instances": [-1.0]}
    assert "not above zero" in error(door.post(f"{ODD}:predict", document))


def test_unknown_models_and_versions_are_a_404(door):
    words = error(door.post("/v1/models/nobody:predict", {"instances": [1.0]}), 404)
    assert words == "Servable not found for request: Latest(nobody)"
    words = error(door.post(f"{HALF}/versions/7:predict", {"instances": [1.0]}), 404)
    assert words == "Servable not found for request: Specific(half_plus_two, 7)"
    response = door.post(f"{HALF}/labels/nightly:predict", {"instances": [1.0]})
    assert "Unrecognized servable version label: nightly" in error(response)


def test_a_version_that_is_no_number_of_ours_is_a_400(door):
    for digits in ("9" * 20, "9" * 5000):
        assert "Failed to convert version" in error(door.get(f"{HALF}/versions/{digits}"))


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "%00", "%ff", "a%2Fb"])
def test_a_models_name_is_no_path(door, name):
    response = door.post(f"/v1/models/{name}:predict", {"instances": [1.0]})
    assert "Servable not found" in error(response, 404)


@pytest.mark.parametrize(
    "path", [f"{HALF}:guess", "/v1/models/:predict", f"{HALF}/versions/x:predict", "/v1/models"]
)
def test_a_wrong_path_is_malformed(door, path):
    assert "Malformed request: POST" in error(door.post(path, {"instances": [1.0]}))


def test_other_pages_and_methods_are_not_there(door):
    assert door.get("/etc/passwd").status_code == 404
    assert door.http.put(HALF).status_code in (404, 405)
    assert "Missing model name" in error(door.get("/v1/models"))


# --- the other methods --------------------------------------------------------------------


def test_classify_answers_pairs(door):
    document = {"signature_name": "classify", "examples": [{"x": 1.0}, {"x": [3.0]}]}
    assert door.post(f"{HALF}:classify", document).json() == {
        "results": [[["y", 3.5], ["minus y", -3.5]], [["y", 4.5], ["minus y", -4.5]]]
    }


def test_regress_answers_numbers(door):
    document = {"signature_name": "regress", "examples": [{"x": 1.0}, {}]}
    response = door.post(f"{HALF}/versions/1:regress", document)
    assert response.json() == {"results": [2.5, 2.0]}


def test_the_context_is_shared(door):
    document = {"signature_name": "regress", "context": {"x": 1.0}, "examples": [{}, {"x": 3.0}]}
    assert door.post(f"{HALF}:regress", document).json() == {"results": [3.5, 4.5]}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "'examples' is expected and was not found"),
        ({"examples": []}, "is an empty array"),
        ({"examples": {"x": 1.0}}, "value to be an list/array"),
        ({"examples": [1.0]}, "Example must be JSON object but got JSON Number"),
        ({"examples": [{"x": [1.0, "a"]}]}, "Unexpected element type in feature: x"),
        ({"examples": [{"x": None}]}, "has element with unexpected JSON type: Null"),
        ({"examples": [{"x": [[1.0]]}]}, "has element with unexpected JSON type: Array"),
        ({"examples": [{"x": {"b64": "!"}}]}, "Unable to base64 decode"),
        ({"examples": [{"x": 2**63}]}, "Only int64_t is supported"),
        ({"examples": [{"x": "text"}]}, "expected type: float"),
    ],
)
def test_bad_examples_are_a_400(door, document, words):
    document = {"signature_name": "regress"} | document
    assert words in error(door.post(f"{HALF}:regress", document))


def test_status_lists_the_versions(door):
    document = door.get(HALF).json()
    first = document["model_version_status"][0]
    assert first == {
        "version": "2",
        "state": "AVAILABLE",
        "status": {"error_code": "OK", "error_message": ""},
    }
    one = door.get(f"{HALF}/versions/1").json()["model_version_status"]
    assert [version["version"] for version in one] == ["1"]
    assert "Could not find any versions of model nobody" in error(
        door.get("/v1/models/nobody"), 404
    )


def test_metadata_has_the_signatures(door):
    document = door.get(f"{HALF}/metadata").json()
    assert document["model_spec"] == {
        "name": "half_plus_two",
        "signature_name": "",
        "version": "2",
    }
    signature = document["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert signature["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]
    assert signature["method_name"] == "tensorflow/serving/predict"


def counts(page: str) -> dict[str, float]:
    lines = [line.rpartition(" ") for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def test_prometheus_page_counts_requests(door):
    path = "/monitoring/prometheus/metrics"
    good = ':tensorflow:serving:request_count{model_name="half_plus_two",status="OK"}'
    before = counts(door.get(path).text).get(good, 0.0)
    door.half(1)
    door.post(f"{HALF}:predict", {"instances": [1.0]})
    assert counts(door.get(path).text)[good] == before + 2
