"""What a SavedModel reaches for beyond its own tensors, told without loading it.

A SavedModel is a program: loading it runs its initializers, calling it runs its graph, and among
TensorFlow's ops are some that read and write files, or call Python or other machines. No model of
Espalier's has any of these. What TensorFlow itself cannot do without is not among them: SaveV2 and
RestoreV2 of the variables, and the tables that are read line by line out of a vocabulary's file.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import text_proto
from .errors import ConfigError

# Ops by the beginning of their names; of readers and datasets those that take a file's name.
_OPS = re.compile(
    r"ReadFile|WriteFile|MatchingFiles|WholeFileReader|TextLineReader|TFRecordReader"
    r"|FixedLengthRecordReader|LMDB|SqlDataset|TFRecordDataset|TextLineDataset"
    r"|FixedLengthRecordDataset|SnapshotDataset|SaveDataset|LoadDataset|CacheDataset"
    r"|DistributedSave|DataService|CreateSummary(File|Db)Writer|LoadAndRemapMatrix|PrintV2"
    r"|(Experimental)?(CSVDataset|DatasetToTFRecord)|RecordInput|ImmutableConst|Skipgram|DumpTensor"
    r"|(Save|SaveSlices|Restore|RestoreSlice|DTensorRestoreV2|Copy|CopyHost)$|GenerateVocabRemapping"
    r"|FixedUnigramCandidateSampler|ListSnapshotChunks|SnapshotChunk|(Serialize|Initialize)TRT"
    r"|RegisterDataset|Debug(Numeric|Nan|Identity|Gradient)|PyFunc|EagerPyFunc|Rpc|RemoteCall|XlaCustomCall"
    r"|FileSystemSetConfiguration|BigQuery|Experimental(LMDB|Sql|MatchingFiles|Snapshot)"
)


def found(version: Path) -> str:
    """The ops that reach beyond the model, and assets outside its folder: `WriteFile, PyFunc`; ""
    if there is none of them, or no SavedModel to look at.

    Raises:
        ConfigError: the file cannot be read, or is no SavedModel.
    """
    model = _read(version)
    names: set[str] = set()
    for meta in model.meta_graphs if model else ():
        graph = meta.graph_def
        own = {function.signature.name for function in graph.library.function}
        names |= {op for op in _ops(graph) if _OPS.match(op) and op not in own}
        for asset in meta.asset_file_def:
            if Path(asset.filename).is_absolute() or ".." in Path(asset.filename).parts:
                names.add(f"the asset {asset.filename[:200]!r}")
    return ", ".join(sorted(names)[:10])


def refusal(version: Path | str, reached: str) -> str:
    """The sentence that refuses a model."""
    return (
        f"{version}: not loaded, since it uses {reached}, and so can reach files, programs or "
        f"machines beyond the model; no model that Espalier pushed does. Take a model from "
        f"somebody you trust."
    )


def _read(version: Path) -> Any:
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    whole, text = version / "saved_model.pb", version / "saved_model.pbtxt"
    try:
        if whole.is_file():
            return saved_model_pb2.SavedModel.FromString(whole.read_bytes())
    except OSError as error:
        raise ConfigError(f"{whole}: cannot be read: {error.strerror}.") from None
    except DecodeError:
        raise ConfigError(f"{whole}: is no SavedModel, or a damaged one.") from None
    return text_proto.read(text, saved_model_pb2.SavedModel()) if text.is_file() else None


def _ops(graph: Any) -> Iterator[str]:
    for nodes in (graph.node, *(function.node_def for function in graph.library.function)):
        yield from (node.op for node in nodes)
