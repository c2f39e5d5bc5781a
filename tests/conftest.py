"""Fixtures that several folders' tests share."""

import json
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import espalier  # noqa: F401  (asks for Keras 2, before any test imports TensorFlow)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = (
    "a good film , warm and funny .",
    "a bad film , cold and dull !",
    "not good , not bad : just long .",
    "warm , funny and never dull !",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`: the drills try everything often (see `make drills`)."""
    parser.addoption("--long", action="store_true", help="the long form of tests/drills")


def bert_tensors(config: Mapping[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Return random weights, float32, for a Hugging Face BERT of that config.json."""
    random = np.random.default_rng(seed)
    wide, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], wide),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], wide),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], wide),
        "pooler.dense.weight": (wide, wide),
    }
    norms = ["embeddings.LayerNorm"]
    for index in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{index}."
        norms += [layer + "attention.output.LayerNorm", layer + "output.LayerNorm"]
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}attention.{name}.weight"] = (wide, wide)
        shapes[layer + "intermediate.dense.weight"] = (inner, wide)
        shapes[layer + "output.dense.weight"] = (wide, inner)
    tensors = {name: random.normal(0, 0.3, shape) for name, shape in shapes.items()}
    for name in [name for name in tensors if "embeddings" not in name]:
        tensors[name.replace("weight", "bias")] = random.normal(0, 0.3, shapes[name][0])
    for name in norms:
        tensors[name + ".weight"] = random.normal(1, 0.1, wide)
        tensors[name + ".bias"] = random.normal(0, 0.1, wide)
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def save_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file; an array of uint16 counts as bfloat16."""
    kinds = {"float32": "F32", "float16": "F16", "uint16": "BF16", "int8": "I8", "int64": "I64"}
    header, place = {}, 0
    for name, tensor in tensors.items():
        end = place + tensor.nbytes
        kind = kinds[tensor.dtype.name]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [place, end]}
        place = end
    head = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(tensor).tobytes() for tensor in tensors.values())
    file.write_bytes(struct.pack("<Q", len(head)) + head + data)


def write_bert(
    folder: Path, texts: Iterable[str] = TEXTS, lower: bool = True, seed: int = 0, **config: Any
) -> Path:
    """Write a Hugging Face BERT with random weights: 2 layers, 32 wide, 128 positions.

    Its vocabulary holds the texts' words and letters. Further arguments change config.json.
    """
    cased = [text.lower() if lower else text for text in texts]
    letters = sorted(set("".join(cased)) - {" "})
    words = sorted({word for text in cased for word in text.split()} - set(letters))
    tokens = [*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]
    whole = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": 32,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "type_vocab_size": 2,
        "vocab_size": len(tokens),
        **config,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in tokens), encoding="utf-8")
    save_tensors(folder / "model.safetensors", bert_tensors(whole, seed))
    return folder


@pytest.fixture(scope="session")
def make_bert() -> Callable[..., Path]:
    """`write_bert`, for tests that need a checkpoint of their own."""
    return write_bert


@pytest.fixture(scope="session")
def write_safetensors() -> Callable[[Path, Mapping[str, np.ndarray]], None]:
    """`save_tensors`, for tests that change a checkpoint's weights."""
    return save_tensors


@pytest.fixture(scope="session")
def small_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Hugging Face BERT that knows the words of TEXTS; do not change it."""
    return write_bert(tmp_path_factory.mktemp("checkpoint") / "small_bert")
