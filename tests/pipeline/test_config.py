"""The configuration: every fault is found at once, with its file, line and key."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError

YAML = """\
version: 2
name: reviews
data:
  csv: reviews.csv
  text: text
  label: label
model:
  family: bert
  start: tiny
  sequence_length: 32
train:
  epochs: 2
  learning_rate: 3e-4
evaluate:
  at_least: {accuracy: 0.85}
push: {to: models/reviews}
"""  # line 1 is `version`, 8 `family`, 12 `epochs`, 16 `push`


def load(folder: Path, text: str = YAML, *overrides: str) -> Config:
    """Load the text as job.yaml."""
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8")
    return Config.load(file, overrides)


def refusal(folder: Path, text: str = YAML, *overrides: str) -> list[str]:
    """The lines of the error that loading the text gives, without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_file_and_its_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.name == "reviews"
    assert config.data.texts == ["text"]
    assert (config.data.format, config.data.sources) == ("csv", {"all": "reviews.csv"})
    assert config.data.inputs == {"text": "text"}
    assert config.train.learning_rate == 3e-4  # YAML 1.1 would read a string
    assert config.train.batch_size == 32
    assert config.push.keep == 5
    assert config.home == Path("runs/reviews")
    assert config.evaluate.measured == ["accuracy", "f1", "auc"]


def test_separate_files_for_splits(tmp_path: Path) -> None:
    text = YAML.replace("csv: reviews.csv", "parquet: {train: a.parquet, eval: b.parquet}")
    data = load(tmp_path, text).data
    assert data.format == "parquet"
    assert data.sources == {"train": "a.parquet", "eval": "b.parquet"}


def test_plain_python_is_the_same_as_a_file(tmp_path: Path) -> None:
    config = Config(
        name="reviews",
        data={"csv": "reviews.csv", "text": "text", "label": "label"},
        model={"family": "bert", "start": "tiny", "sequence_length": 32},
        train={"epochs": 2},
        evaluate={"at_least": {"accuracy": 0.85}},
        push={"to": "models/reviews"},
    )
    assert config == load(tmp_path)
    with pytest.raises(ConfigError, match=r"^Config: data: missing"):
        Config(name="reviews", model={"family": "bert", "start": "tiny"}, push={"to": "models"})


# What is changed in the YAML, and the line that the error then has.
FAULTS: dict[str, tuple[tuple[str, str], str]] = {
    "unknown key at the top": (
        ("evaluate:", "evalute:"),
        "job.yaml:14: evalute: unknown key 'evalute'; did you mean evaluate?",
    ),
    "unknown key in a section": (
        ("  epochs:", "  epoch:"),
        "job.yaml:12: train.epoch: unknown key 'epoch'; did you mean epochs?",
    ),
    "unknown key in the family's settings": (
        ("sequence_length", "sequence_lenght"),
        "job.yaml:10: model.sequence_lenght: unknown key 'sequence_lenght'; did you mean "
        "sequence_length?",
    ),
    "unknown key by its name in the file": (
        ("label: label", "label: label\n  schem: x"),
        "job.yaml:7: data.schem: unknown key 'schem'; did you mean schema?",
    ),
    "unknown key in separate files": (
        ("reviews.csv", "{train: a.csv, eval: b.csv, tset: c.csv}"),
        "job.yaml:4: data.csv.tset: unknown key 'tset'; did you mean test?",
    ),
    "unknown key like no other": (
        ("push: {", "push: {zzz: 1, "),
        "job.yaml:16: push.zzz: unknown key 'zzz'; known here: to, keep, model_server.",
    ),
    "missing key": (
        ("{to: models/reviews}", "{}"),
        "job.yaml:16: push.to: missing; it has no default.",
    ),
    "a word for a number": (
        ("epochs: 2", "epochs: many"),
        "job.yaml:12: train.epochs: should be a valid integer, unable to parse string as an "
        "integer; found 'many'",
    ),
    "a number out of range": (
        ("epochs: 2", "epochs: 0"),
        "job.yaml:12: train.epochs: should be greater than or equal to 1; found 0",
    ),
    "an unknown choice": (
        ("epochs: 2", "optimizer: adma"),
        "job.yaml:12: train.optimizer: should be 'adamw', 'adam' or 'sgd'; found 'adma'",
    ),
    "an unknown metric": (
        ("at_least: {accuracy", "at_least: {acuracy"),
        "job.yaml:15: evaluate.at_least.acuracy",
    ),
    "a name that Kubernetes would refuse": (
        ("name: reviews", "name: My_Reviews"),
        "job.yaml:2: name: String should match pattern",
    ),
    "a newer version": (
        ("version: 2", "version: 3"),
        "job.yaml: version: the file is of format 3, and this Espalier reads 1 to 2. Upgrade",
    ),
    "no version": (("version: 2", "version: two"), "job.yaml:1: version: should be 2; found 'two'"),
    "another family": (
        ("family: bert", "family: brt"),
        "job.yaml:8: model.family: 'brt' is not known; did you mean bert? the families are: bert, "
        "inception, resnet.",
    ),
    "no family": (
        ("  family: bert\n", ""),
        "job.yaml:7: model.family: missing; the families are: bert, inception, resnet.",
    ),
    "a family of pictures for texts": (
        ("family: bert\n  start: tiny\n  sequence_length: 32", "family: inception"),
        "job.yaml: (top): model.family inception does not read data.csv; families that do: bert",
    ),
    "texts augmented": (
        ("epochs: 2", "augment: {flip: true}"),
        "job.yaml: (top): train.augment is for images",
    ),
    "an unknown key in a stage": (
        ("epochs: 2", "stages: [{epochs: 1, freze: all}]"),
        "job.yaml:12: train.stages.0.freze: unknown key 'freze'; did you mean freeze?",
    ),
    "a text's column for pictures": (
        ("csv: reviews.csv", "images: pictures"),
        "job.yaml:3: data: `text` names a column of csv, parquet or tfrecord, not of images",
    ),
    "no text": (
        ("  text: text\n", ""),
        "job.yaml:3: data: `text` is missing: the name of a column in csv",
    ),
    "several labels for texts": (
        ("label: label", "label: label\n  multi_label: true"),
        "job.yaml:3: data: `multi_label` and `on_bad_image` are for images",
    ),
    "no eval for texts": (
        ("reviews.csv", "{train: a.csv, test: c.csv}"),
        "job.yaml:3: data: csv.eval is missing",
    ),
    "two sources": (
        ("csv: reviews.csv", "csv: a\n  parquet: b"),
        "job.yaml:3: data: name the data's source once, as one of csv, parquet, tfrecord, "
        "images; found csv and parquet",
    ),
    "no source": (("  csv: reviews.csv\n", ""), "job.yaml:3: data: name the data's source once"),
    "the text as label": (
        ("label: label", "label: text"),
        "job.yaml:3: data: the label's column 'text' is also the text's",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_told_in_one_line(
    tmp_path: Path, change: tuple[str, str], expected: str
) -> None:
    assert change[0] in YAML
    (line,) = refusal(tmp_path, YAML.replace(*change, 1))
    assert line.startswith(expected)


# What `tune:` says, one line for each line of it, and the error.
NO_SEARCH: dict[str, tuple[str, str]] = {
    "no values": ("over: {}", ":18: tune.over: "),
    "an empty list": ("over: {train.epochs: []}", ":18: tune.over.train.epochs: List should have"),
    "a lone value": (
        "over: {train.epochs: 3}",
        ":18: tune.over.train.epochs: should be a list of values, or {from: ..., to: ...}; found 3",
    ),
    "an unknown key": (
        "over: {train.learning_rat: [0.1]}",
        ":18: tune.over.train.learning_rat: cannot be searched; did you mean train.learning_rate?",
    ),
    "another section": ("over: {push.keep: [1]}", ":18: tune.over.push.keep: cannot be searched; "),
    "the seed": ("over: {train.seed: [1, 2]}", ":18: tune.over.train.seed: cannot be searched; "),
    "what Transform reads": (
        "over: {model.sequence_length: [16, 32]}",
        ":18: tune.over.model.sequence_length: cannot be searched, since Transform would have to "
        "run for each value; known here: model.dropout",
    ),
    "a value that its section refuses": (
        "over:\n    train.optimizer: [adamw, adma]",
        ":19: tune.over.train.optimizer.1: should be 'adamw', 'adam' or 'sgd'; found 'adma'",
    ),
    "an end that its section refuses": (
        "over:\n    train.epochs:\n      from: 1\n      to: 2.5",
        ":21: tune.over.train.epochs.to: should be a valid integer, got a number with a "
        "fractional part; found 2.5",
    ),
    "a value that goes with no text": (
        "over: {train.augment.crop: [0.1]}",
        ":18: tune.over.train.augment.crop.0: train.augment is for images",
    ),
    "null": (
        "over: {train.patience: [1, null]}",
        ":18: tune.over.train.patience.1: should be a number, a word, true or false; found None",
    ),
    "ends the wrong way round": (
        "over: {train.warmup: {from: 0.2, to: 0.1}}",
        ":18: tune.over.train.warmup: from must be below to; found 0.2 and 0.1",
    ),
    "a logarithm of 0": (
        "over: {train.warmup: {from: 0, to: 0.1, scale: log}}",
        ":18: tune.over.train.warmup: scale: log needs a from above 0; found 0",
    ),
    "an unknown key of a range": (
        "over: {train.warmup: {from: 0, to: 0.1, scal: log}}",
        ":18: tune.over.train.warmup.scal: unknown key 'scal'; did you mean scale?",
    ),
    "an unknown search": (
        "over: {train.epochs: [1, 2]}\n  search: grid",
        ":19: tune.search: should be 'random', 'hyperband' or 'bayesian'; found 'grid'",
    ),
    "few epochs for a hyperband": (
        "over: {train.warmup: [0, 0.1]}\n  search: hyperband",
        ":19: tune.search: hyperband stops trials early, and there are 2 epochs",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("tune", "expected"), NO_SEARCH.values(), ids=NO_SEARCH.keys())
def test_what_cannot_be_searched(tmp_path: Path, tune: str, expected: str) -> None:
    (line,) = refusal(tmp_path, f"{YAML}tune:\n  {tune}\n")
    assert line.startswith(f"job.yaml{expected}")


def test_a_search_beside_other_settings(tmp_path: Path) -> None:
    tune = f"{YAML}tune:\n  over: {{train.learning_rate: {{from: 1e-5, to: 1e-3, scale: log}}}}\n"
    config = load(tmp_path, tune)
    assert config.tune is not None and config.tune.ends("train.learning_rate") == [
        ("from", 1e-5), ("to", 1e-3),
    ]  # fmt: skip
    again = tmp_path / "again.yaml"
    again.write_text(config.to_yaml(), encoding="utf-8")
    assert Config.load(again) == config
    (line,) = refusal(tmp_path, tune, "train.distribute=multi_worker")
    assert line.startswith("job.yaml:17: tune: a Tuner trains on one machine;")
    stages = "train.stages=[{epochs: 1, learning_rate: 0.1}]"
    (line,) = refusal(tmp_path, tune, stages)
    assert line.endswith("each of train.stages has its own; leave it out")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    text = YAML.replace("epochs: 2", "epochs: 0").replace("push:", "pusch:")
    places = [line.split(": ", 2)[:2] for line in refusal(tmp_path, text)]
    assert sorted(places) == [
        ["job.yaml", "push"],
        ["job.yaml:12", "train.epochs"],
        ["job.yaml:16", "pusch"],
    ]


NOT_YAML: dict[str, tuple[str, str]] = {
    "a bracket left open": ("name: [a\nmodel: {\n", "job.yaml:2: not valid YAML"),
    "a tab": ("name: a\ndata:\n\tcsv: b\n", "job.yaml:3: not valid YAML"),
    "a key twice": ("name: a\nname: b\n", "job.yaml:2: not valid YAML"),
    "a list": ("- a\n- b\n", "job.yaml: expected `key: value` lines, found"),
    "nothing": ("", "job.yaml: expected `key: value` lines, found NoneType"),
}


@pytest.mark.parametrize(("text", "expected"), NOT_YAML.values(), ids=NOT_YAML.keys())
def test_what_is_not_yaml(tmp_path: Path, text: str, expected: str) -> None:
    assert refusal(tmp_path, text)[0].startswith(expected)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "reviews.yaml").write_text(YAML)
    with pytest.raises(
        ConfigError, match=r"review\.yaml: no such file\. Did you mean .*reviews\.y"
    ):
        Config.load(tmp_path / "review.yaml")
    with pytest.raises(ConfigError, match=r"nowhere.*: no such file\.$"):
        Config.load(tmp_path / "nowhere" / "a.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        Config.load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot be read as UTF-8"):
        Config.load(tmp_path / "latin.yaml")


def test_overrides(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        YAML,
        "train.epochs=1",
        "train.learning_rate=1e-5",
        "evaluate.slices=[a, b]",
        "evaluate.at_least.f1=0.5",
        "push.keep=2",
    )
    assert config.train.epochs == 1
    assert config.train.learning_rate == 1e-5
    assert config.evaluate.slices == ["a", "b"]
    assert config.evaluate.at_least == {"accuracy": 0.85, "f1": 0.5}
    assert config.push.keep == 2


def test_a_section_that_an_override_made_takes_another(tmp_path: Path) -> None:
    config = load(tmp_path, YAML, "evaluate.at_least={}", "evaluate.at_least.accuracy=0.9")
    assert config.evaluate.at_least == {"accuracy": 0.9}


OVERRIDES: dict[str, tuple[str, str]] = {
    "no value": ("train.epochs", "--set train.epochs: expected KEY=VALUE, such as train.epochs=1"),
    "no key": ("=1", "--set =1: expected KEY=VALUE"),
    "unknown key": ("train.epoch=1", "job.yaml:11: train.epoch: unknown key 'epoch'; did you mean"),
    "wrong value": ("train.epochs=0", "job.yaml:11: train.epochs: should be greater than or equal"),
    "not a section": ("name.x=1", "--set name.x=1: name is not a section."),
    "not YAML": ("train.epochs=[", "--set train.epochs:1: not valid YAML"),
}


@pytest.mark.parametrize(("override", "expected"), OVERRIDES.values(), ids=OVERRIDES.keys())
def test_an_override_is_checked_like_the_file(tmp_path: Path, override: str, expected: str) -> None:
    assert refusal(tmp_path, YAML, override)[0].startswith(expected)


def test_the_resolved_file_loads_as_the_same(tmp_path: Path) -> None:
    config = load(tmp_path, YAML, "data.schema=schema.pbtxt")
    again = load(tmp_path, config.to_yaml())
    assert again == config
    assert again.to_yaml() == config.to_yaml()
    assert "schema: schema.pbtxt" in config.to_yaml()
    assert "weight_decay: 0.01" in config.to_yaml()


def test_the_example_of_the_class_is_right() -> None:
    code = str(Config.__doc__).split("`")[1]
    config = eval(code, {"Config": Config})
    assert config.data.label == "label"


def test_limits_default_to_no_worse_than_the_blessed(tmp_path: Path) -> None:
    text = YAML.replace("at_least: {accuracy: 0.85}", "metrics: [f1]")
    assert load(tmp_path, text).evaluate.limits == ({}, {"f1": 0.0})
    assert load(tmp_path).evaluate.limits == ({"accuracy": 0.85}, {})


def fields(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every field of a JSON schema: (its model and name, its own schema)."""
    for model, definition in {"Config": schema, **schema["$defs"]}.items():
        for name, field in definition.get("properties", {}).items():
            yield f"{model}.{name}", field


def test_every_field_is_described() -> None:
    schema = Config.model_json_schema()
    for name, field in fields(schema):
        described = field if "$ref" not in field else schema["$defs"][field["$ref"].split("/")[-1]]
        allowed = name.endswith(".family")  # the discriminator; Config.model says what it is
        assert field.get("description") or described.get("description") or allowed, name


def test_the_names_in_the_schema_are_those_of_the_file() -> None:
    names = {name for name, _ in fields(Config.model_json_schema())}
    assert "Data.schema" in names
    assert "Data.schema_file" not in names


def test_loading_a_configuration_imports_no_tensorflow(tmp_path: Path) -> None:
    load(tmp_path)
    code = (
        "import sys; from espalier import Config; Config.load(sys.argv[1]);"
        "print([m for m in sys.modules if m.split('.')[0] in ('tensorflow', 'tfx', 'keras_nlp')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "job.yaml")], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr


def images(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "name": "digits",
        "data": {"images": "digits"},
        "model": {"family": "resnet", "start": "resnet20"},
        "push": {"to": "models"},
    }
    return {**values, **changes}


def test_pictures_have_columns_of_their_own() -> None:
    data = Config(**images()).data
    assert (data.kind, data.inputs, data.label_column) == (
        "image",
        {"image_bytes": "image"},
        "label",
    )
    named = Config(**images(data={"images": {"train": "a", "test": "b"}, "label": "kind"})).data
    assert named.sources == {"train": "a", "test": "b"}
    assert named.label_column == "kind"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": {"images": {"train": "a"}}}, "name eval or test"),
        ({"model": {"family": "resnet", "start": "resnet20", "size": 4}}, r"model\.size: "),
        ({"model": {"family": "bert", "start": "tiny"}}, "families that do: inception, resnet"),
        (
            {
                "data": {"images": "x.csv", "multi_label": True},
                "train": {"class_weight": "balanced"},
            },
            "class_weight",
        ),
        (
            {"train": {"class_weight": "balanced", "augment": {"mix": "mixup"}}},
            "class_weight .* not with mix",
        ),
    ],
)
def test_pictures_and_what_does_not_go_with_them(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(**images(**changes))


def test_stages_are_completed_from_the_section() -> None:
    train = Config(
        **images(
            train={
                "learning_rate": 0.01,
                "stages": [{"epochs": 1, "freeze": "all"}, {"epochs": 2, "learning_rate": 0.001}],
            }
        )
    ).train
    found = [(stage.epochs, stage.freeze, stage.learning_rate) for stage in train.plan]
    assert found == [(1, "all", 0.01), (2, 0, 0.001)]
    assert train.all_epochs == 3
    assert Config(**images(train=train.model_dump())).train.plan == train.plan
