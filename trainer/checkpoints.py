"""Pre-trained models on disk: found, checked and read, without TensorFlow.

A checkpoint is a folder of one of two kinds:
- Hugging Face: config.json, model.safetensors (or shards and their index), vocab.txt;
- Keras preset (keras-nlp): config.json, model.weights.h5, assets/tokenizer/vocabulary.txt.

`resolve` turns what a user wrote into such a folder. The rest reads a Hugging Face folder, and
every fault in it is a CheckpointError that says which file, what was found and what to do.
"""

import difflib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from .safetensors_file import Tensor, read_header, read_tensor

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[str], None]

# All that is ever read of a checkpoint; also what is fetched of a hub's repository.
FILES = (
    "config.json",
    "vocab.txt",
    "tokenizer_config.json",
    "tokenizer.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "model.weights.h5",
    "assets/tokenizer/vocabulary.txt",
)
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
_MOST_JSON = 50_000_000  # bytes; tokenizer.json of the largest vocabularies has a third of them


def resolve(start: str, *, progress: Progress | None = None, others: Iterable[str] = ()) -> Path:
    """Return the local folder of the checkpoint that `start` names.

    `start` is a named checkpoint (`minilm`), a folder, or a hub's handle (`hf://owner/name`,
    `kaggle://owner/model/keras/variant`). The first and the last are fetched once and kept in
    the user's cache. `progress` is called with a line of text when something is fetched;
    `others` are further names that the caller knows, for the error's "did you mean".
    Raises CheckpointError.
    """
    from . import hub

    if start in hub.NAMED:
        return hub.fetch_named(start, progress)
    if "://" in start:
        return hub.fetch_handle(start, progress)
    folder = Path(start).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError(
            f"model.start: {start!r} is a file. Give the folder that holds config.json, the "
            "weights and the vocabulary."
        )
    names = [*others, *hub.NAMED]
    near = difflib.get_close_matches(start, names, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise CheckpointError(
        f"model.start: no folder {start!r} in {Path.cwd()}, and no checkpoint of that name.{hint} "
        f"Give one of {', '.join(names)}, a folder, or a handle (hf://... or kaggle://...)."
    )


NO_CHECKPOINT = "none needed: the weights were drawn anew"


def licence(start: str, folder: Path) -> str:
    """Return a checkpoint's licence: what its README declares, as on a hub, or the first line of
    its LICENSE; "" where there is neither."""
    from . import hub

    if start in hub.NAMED:
        return hub.NAMED[start].licence
    if (readme := folder / "README.md").is_file():
        head = _start(readme).partition("\n---")[0]
        if found := re.search(r"^license:\s*(\S.*)$", head, re.MULTILINE):
            return found[1].strip().strip("\"'")[:200]
    for file in sorted(folder.glob("LICEN[CS]E*")):
        lines = _start(file).split("\n") if file.is_file() else []
        return next((line.strip()[:200] for line in lines if line.strip()), "")
    return ""


def _start(file: Path) -> str:
    """The beginning of a text for people, whatever its bytes are."""
    with file.open("rb") as stream:
        return stream.read(1 << 20).decode("utf-8", errors="replace")


def is_preset(folder: Path) -> bool:
    """Tell a Keras preset folder (config.json names a Keras class) from a Hugging Face one."""
    return "registered_name" in read_json(folder / "config.json")


def digest(folder: Path) -> str:
    """Return the SHA-256 (hex) of every file of the checkpoint that is ever read, with its name."""
    total = hashlib.sha256()
    files = {file for pattern in FILES for file in folder.glob(pattern) if file.is_file()}
    for file in sorted(files):  # of a link to a device there is no end
        total.update(f"{file.relative_to(folder).as_posix()} {sha256(file)}\n".encode())
    return total.hexdigest()


def sha256(file: Path) -> str:
    """Return the SHA-256 (hex) of a file."""
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object. Raises CheckpointError when the file is missing or holds none."""
    try:
        with file.open("rb") as stream:
            data = stream.read(_MOST_JSON + 1)
        if len(data) > _MOST_JSON:
            raise CheckpointError(
                f"{file}: larger than {_MOST_JSON} bytes, which no such file is. Choose another "
                f"checkpoint."
            )
        value = json.loads(data.decode("utf-8"))
    except FileNotFoundError:
        found = ", ".join(sorted(f.name for f in file.parent.glob("*"))[:8]) or "nothing"
        raise CheckpointError(
            f"{file} is missing; the folder holds {found}. Give a folder with config.json, the "
            f"weights and the vocabulary, as Hugging Face or Keras saves them."
        ) from None
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{file} is not JSON ({str(error)[:200]}). Fetch or save the checkpoint again."
        ) from None
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{file} holds a {type(value).__name__} where a JSON object was expected."
        )
    return value


def read_config(folder: Path, model_type: str = "bert") -> dict[str, Any]:
    """Return config.json of a Hugging Face folder, once it is known to be of `model_type`.

    The oldest checkpoints do not name a type: theirs is told by their tensors.
    """
    config = read_json(folder / "config.json")
    found = config.get("model_type", model_type)
    if found != model_type:
        raise CheckpointError(
            f"{folder / 'config.json'}: model_type is {found!r}; this family reads {model_type!r} "
            "only. Choose another checkpoint, or another family."
        )
    return config


def read_vocabulary(file: Path, special: Iterable[str], rows: int) -> list[str]:
    """Return a WordPiece vocabulary, one token a line, its line number (from 0) being its id.

    `special` are the tokens that must be there, the padding first, which must have id 0; `rows`
    is the height of the token embedding. Raises CheckpointError.
    """
    try:
        tokens = file.read_text(encoding="utf-8").replace("\r\n", "\n").split("\n")
    except FileNotFoundError:
        raise CheckpointError(
            f"{file} is missing. A WordPiece vocabulary, one token a line, is needed; other "
            "tokenizers' files (tokenizer.json, spiece.model) are not read."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as UTF-8 text: {error}.") from None
    is_whole = not tokens[-1]
    if is_whole:
        tokens.pop()
    _check_tokens(file, tokens, list(special))
    # Some checkpoints' embeddings are padded to a round height; any other difference means that
    # words and vectors do not belong together.
    # A padded one may hide that the last lines are gone, and then the last one is seldom whole.
    heights = {-(-len(tokens) // m) * m for m in (8, 16, 32, 64, 128)} if is_whole else set()
    if rows != len(tokens) and rows not in heights:
        raise CheckpointError(
            f"{file} holds {len(tokens)} tokens, but the checkpoint's token embedding has {rows} "
            "rows. The two are not of one model, or one of them is cut short: fetch both again."
        )
    return tokens


def _check_tokens(file: Path, tokens: list[str], special: list[str]) -> None:
    seen: dict[str, int] = {}
    for line, token in enumerate(tokens, 1):
        if token in seen:
            raise CheckpointError(
                f"{file}: line {line} repeats line {seen[token]} ({token!r}); every token must "
                "stand once. Fetch the vocabulary again."
            )
        seen[token] = line
    missing = [token for token in special if token not in seen]
    if missing:
        raise CheckpointError(
            f"{file} lacks {', '.join(missing)}; a BERT vocabulary holds {', '.join(special)}."
        )
    if seen[special[0]] != 1:
        raise CheckpointError(
            f"{file}: {special[0]} stands on line {seen[special[0]]}, and must stand on line 1: "
            "padding is told by id 0. Choose another checkpoint."
        )


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Return every tensor of a Hugging Face folder by name, from the files' headers alone.

    Names are given as today's checkpoints write them: without the `bert.` prefix, and with
    weight and bias for a layer norm's old gamma and beta. Each header is held against the size
    of its file, so that a truncated download is found without reading it.
    Raises CheckpointError.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        for name, tensor in read_header(file).items():
            name = re.sub(r"^bert\.", "", name)
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
            tensors[re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)] = tensor
    return tensors


def check_shapes(folder: Path, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Raise CheckpointError unless the folder holds every tensor of `expected`, in its shape, and
    finite numbers in it.

    The first one that is missing ends it: config.json may speak of a billion layers.
    """
    tensors = read_headers(folder)
    for name, shape in expected:
        if name not in tensors:
            near = difflib.get_close_matches(name, tensors, 1)
            hint = f" (the nearest name is {near[0]})" if near else ""
            raise CheckpointError(
                f"{folder}: the weights lack the tensor {name}{hint}; {len(tensors)} others are "
                "there. config.json and the weights are not of one model."
            )
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{tensor.file}: {name} has the shape {list(tensor.shape)}, and config.json calls "
                f"for {list(shape)}. config.json and the weights are not of one model."
            )
        if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            raise CheckpointError(
                f"{tensor.file}: {name} is of type {tensor.dtype}, and F32, F16 or BF16 was "
                "expected. Choose a checkpoint that is not quantized."
            )
        read_tensor(name, tensor)


def read_tensors(folder: Path, names: Iterable[str]) -> "dict[str, np.ndarray]":
    """Return the named tensors as float32. Raises CheckpointError."""
    tensors = read_headers(folder)
    return {name: read_tensor(name, tensors[name]) for name in names}


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        places = read_json(folder / INDEX).get("weight_map")
        if not isinstance(places, dict) or not places:
            raise CheckpointError(f"{folder / INDEX} has no weight_map; fetch it again.")
        return [folder / name for name in sorted({Path(str(p)).name for p in places.values()})]
    pickled = " A pickled pytorch_model.bin is not opened, because a pickle can run any code."
    raise CheckpointError(
        f"{folder} holds neither {WEIGHTS} nor {INDEX}."
        + (pickled if (folder / "pytorch_model.bin").exists() else "")
        + " Save the model with save_pretrained(..., safe_serialization=True)."
    )


def cache_folder() -> Path:
    """Return the folder for what is fetched: ESPALIER_CACHE, else the user's cache folder."""
    import platformdirs

    return Path(os.environ.get("ESPALIER_CACHE") or platformdirs.user_cache_dir("espalier"))


def writable_cache() -> Path:
    """Return the same, or a folder of temporary files where that cannot be written: a container's
    user may have no home."""
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            return cache
    except OSError:
        return Path(tempfile.gettempdir(), f"espalier-{os.getuid()}")
