"""What a run will do is told by what components are told and take; and quickly."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tfx.types.channel_utils import get_individual_channels

from espalier import Config
from espalier.pipeline import contents, plan, steps
from espalier.pipeline.dag import create_pipeline
from espalier.pipeline.store import Node, Output

TEXTS: dict[str, Any] = {
    "name": "a", "data": {"csv": "a.csv", "text": "text", "label": "label"},
    "model": {"family": "bert", "start": "tiny"}, "push": {"to": "models"},
}  # fmt: skip
PICTURES: dict[str, Any] = {
    **TEXTS, "data": {"images": "pictures"}, "model": {"family": "resnet", "start": "resnet20"}
}  # fmt: skip
TUNE = {"trials": 2, "over": {"train.learning_rate": [1e-4, 3e-4]}}
CHANGES = [{}, {"compress": {"steps": [{"quantize": {}}]}}, {"data": "schema"}, {"tune": TUNE}]


@pytest.mark.parametrize("changes", CHANGES)
@pytest.mark.parametrize("base", [TEXTS, PICTURES])
def test_what_is_told_and_taken_is_what_the_components_have(
    base: dict[str, Any], changes: dict[str, Any], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("text,label\nx,y\n")
    Path("pictures").mkdir()
    Path("schema.pbtxt").write_text("")
    changes = {"data": {**base["data"], "schema": "schema.pbtxt"}} if "data" in changes else changes
    config = Config(**{**base, **changes})
    pipeline = create_pipeline(config, data="d", start="s")
    told, takes = steps.told(config, data="d", start="s"), steps.takes(config)
    cacheable = [c for c in pipeline.components if c.id not in ("LatestBlessed", "Pusher")]
    assert {c.id for c in cacheable} == set(told) == set(takes)
    for component in cacheable:
        properties = {
            k: v if isinstance(v, str) or v is None else str(v)
            for k, v in component.exec_properties.items()
        }
        assert steps.read(component.id, properties) == told[component.id], component.id
        taken = {
            key: (one.producer_component_id, one.output_key)
            for key, channel in component.inputs.items()
            for one in get_individual_channels(channel)
            if one.producer_component_id != "LatestBlessed"
        }
        assert taken == takes[component.id], component.id


def test_the_reasons_are_keys_of_the_yaml() -> None:
    old = {"train": {"epochs": 3, "batch_size": 32}, "code": "a", "inputs": {"text": "a"}}
    new = {"train": {"epochs": 4, "batch_size": 32}, "code": "b", "inputs": {"text": "b"}}
    assert list(plan._changes(old, new)) == [
        "train.epochs: 4, was 3", "Espalier's own code has changed", "data.text: b, was a",
    ]  # fmt: skip
    assert list(plan._changes({"compress": None}, {"compress": {"steps": ["x"]}})) == [
        "compress: {'steps': ['x']}, was none"
    ]


def test_what_a_split_is_called() -> None:
    old = {"rule": {"by": "row", "sample": None, "column": ""}}
    new = {"rule": {"by": "group", "sample": 100, "column": "customer"}}
    assert list(plan._changes(old, new)) == [
        "data.split.by: group, was row", "data.sample: 100, was none",
        "data.split, its column: customer, was ",
    ]  # fmt: skip


def test_neighbours_of_one_fate_share_a_line() -> None:
    planned = [
        plan.Step("A", False), plan.Step("B", False),
        plan.Step("C", True, "train.epochs: 2, was 1"),
        plan.Step("D", True, "C runs"), plan.Step("E", True, "D runs"),
        plan.Step("F", True, "always"),
    ]  # fmt: skip
    assert plan.lines(planned) == [
        "cached  A, B", "run     C: train.epochs: 2, was 1",
        "run     D, E: what comes before it runs", "run     F: always",
    ]  # fmt: skip


def test_what_never_ran_says_so(tmp_path: Path) -> None:
    config = Config(**{**TEXTS, "runs": str(tmp_path)})
    planned = plan.plan(config, data="d", start="s")
    assert {step.why for step in planned} == {"it has never run", "always"}
    planned = plan.plan(config, data="d", start="s", cache=False)
    assert {step.why for step in planned[:-1]} == {"--no-cache"}


@pytest.fixture
def output(tmp_path: Path) -> Output:
    folder = tmp_path / "artifact"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "a").write_text("abc")
    contents.note(tmp_path, [Output(1, str(folder))])
    return Output(1, str(folder))


def test_an_untouched_or_copied_artifact_is_as_it_was(tmp_path: Path, output: Output) -> None:
    assert contents.altered(tmp_path, [output]) == {}
    shutil.copytree(output.uri, tmp_path / "copy")
    shutil.rmtree(output.uri)
    (tmp_path / "copy").rename(output.uri)
    assert contents.altered(tmp_path, [output]) == {}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [("inner/a", "abd", "altered"), ("inner/a", None, "gone"), ("inner/b", "x", "added")],
)
def test_an_altered_artifact(
    tmp_path: Path, output: Output, name: str, content: str | None, words: str
) -> None:
    file = Path(output.uri) / name
    if content is None:
        file.unlink()
    else:
        file.write_text(content)
    assert words in contents.altered(tmp_path, [output])[1] and name in str(
        contents.altered(tmp_path, [output])[1]
    )


def test_what_is_gone_or_unknown(tmp_path: Path, output: Output) -> None:
    shutil.rmtree(output.uri)
    assert "is gone" in contents.altered(tmp_path, [output])[1]
    other = tmp_path / "other"
    other.mkdir()
    assert contents.altered(tmp_path, [Output(2, str(other)), Output(3, "s3://a/b")]) == {}


def test_a_server_on_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = tmp_path / "tensorflow_model_server"
    server.touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert steps.server(Config(**TEXTS)) == str(server)
    named = {**TEXTS, "push": {"to": "models", "model_server": "another"}}
    assert steps.server(Config(**named)) == "another"
    monkeypatch.setenv("PATH", "")
    assert steps.server(Config(**TEXTS)) == ""


def test_a_part_of_the_line_hides_not_what_has_changed() -> None:
    """What a run --from takes over is noted without the settings that made it."""
    told = {"label": "a", "texts": '["t"]'}
    before = [Node("DataGate", state, 1.0, 0.1, {}, properties=given)
              for state, given in (("cached", {}), ("done", told))]  # fmt: skip
    past = object.__new__(plan._Past)
    found = past._why("DataGate", {"label": "b", "texts": ["t"]}, before, None, {})
    assert found == "data.label: b, was a"
