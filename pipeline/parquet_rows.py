"""Read Parquet's used columns, batch by batch, and note what TFX's Parquet reader would lose.

That reader (example_gen/utils.py, dict_to_example) takes every value that Python calls false for
missing: 0, False and "" are lost; and it fails on dates, decimals and nested records.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow_hotfix  # noqa: F401 - else a type that a file declares can run code (CVE-2023-47248)
from pyarrow import types

from ..components.faults import Faults, Unreadable
from ..trainer.checkpoints import sha256
from .csv_rows import FLOAT, INT, STRING
from .tally import Columns, Tally, same_columns

_BATCH = 1024  # rows
_LONGEST = 1 << 20  # bytes of a cell
# Thrift that breaks off is an OSError without an errno; RuntimeError is pyarrow_hotfix's.
_FAULTS = (pa.ArrowException, OSError, KeyError, RuntimeError, UnicodeDecodeError)


def read_parquet(file: Path, tally: Tally, columns: Columns, _: list[str]) -> str:
    """Count one file's rows; return its SHA-256.

    Raises:
        Unreadable: the file cannot be used; the fault is noted.
    """
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            _look_at_types(file, schema, tally, columns)
        _read(file, tally, columns)
    except _FAULTS as error:
        raise _damaged(file, error, tally.faults) from None
    return sha256(file)


def rows(file: Path, faults: Faults) -> Iterator[tuple[list[str], list[str]]]:
    """Every row: (column names, cells as text). For a look at a table that is not known yet."""
    try:
        with pq.ParquetFile(file) as table:
            known = [one.name for one in table.schema_arrow if _kind(one.type) is not None]
        for batch in _batches(file, faults, known):
            for row in zip(*(column.to_pylist() for column in batch), strict=True):
                yield known, [_plain(value) for value in row]
    except _FAULTS as error:
        raise _damaged(file, error, faults) from None


def batches(file: Path, faults: Faults) -> Iterator[tuple[list[str], tuple[Any, ...]]]:
    """(column names, values) of each row, of all columns."""
    for batch in _batches(file, faults):
        for cells in zip(*(column.to_pylist() for column in batch), strict=True):
            yield batch.schema.names, cells


def _batches(
    file: Path, faults: Faults, needed: Collection[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows, batch by batch: the columns needed, or all.

    A long text that all rows share is stored once, and would be copied for each row. So columns of
    text are read as their different values first; all of them, since TFX reads all.

    Raises:
        Unreadable: a cell is longer than any that is of use; the fault is noted.
    """
    with pq.ParquetFile(file) as table:
        texts = [one.name for one in table.schema_arrow if _is_text(one.type)]
    row = 0
    with pq.ParquetFile(file, read_dictionary=texts) as table:
        for batch in table.iter_batches(batch_size=_BATCH):
            for name in texts:
                _check_length(file, batch, name, row, faults)
            names = batch.schema.names if needed is None else list(needed)
            arrays = [_decoded(batch.column(name)) for name in names]
            yield pa.RecordBatch.from_arrays(arrays, names)
            row += batch.num_rows


def _check_length(file: Path, batch: pa.RecordBatch, name: str, row: int, faults: Faults) -> None:
    column = batch.column(name)
    packed = types.is_dictionary(column.type)
    lengths = pc.binary_length(column.dictionary if packed else column)
    longest = pc.max(lengths).as_py() or 0
    if longest > _LONGEST:
        at = pc.index(lengths, longest).as_py()
        if packed:  # the row that has it may come later
            at = pc.index(column.indices, pa.scalar(at, column.indices.type)).as_py()
        where = row + at + 1 if at >= 0 else None
        what = f"column {name!r} has a cell of {longest:,} bytes, and {_LONGEST:,} are the most"
        raise faults.stop(file, where, what, "Shorten it; a model reads a few hundred words.")


def _decoded(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if types.is_dictionary(column.type) else column


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(is_text(kind) for is_text in texts)


def _damaged(file: Path, error: Exception, faults: Faults) -> Unreadable:
    first = next(filter(None, str(error).splitlines()), type(error).__name__)[:200]
    if isinstance(error, RuntimeError):
        what = "it declares a type of its own, which would run code when it is read"
        return faults.stop(file, None, f"{what} ({first})", "Write it anew with plain columns.")
    if isinstance(error, UnicodeDecodeError):
        return faults.stop(file, None, f"a text that is not UTF-8 ({first})", "Write it anew.")
    return faults.stop(
        file, None, f"not a Parquet file, or a damaged one ({first})", "Write it anew."
    )


def _look_at_types(file: Path, schema: pa.Schema, tally: Tally, columns: Columns) -> None:
    same_columns(file, schema.names, tally, columns)
    used = columns.used
    for field in schema:
        name, kind = field.name, _kind(field.type)
        if kind is None:
            what, advice = "which TFX's Parquet reader fails on", "Take it out, or make strings."
        elif name in columns[0] and kind != STRING:
            what, advice = "and it is to be the text", "Is it the right column?"
        elif name in used and _is_list(field.type):
            what, advice = "and one value a row was expected", "Is it the right column?"
        elif tally.types.setdefault(name, kind) != kind:
            what, advice = "and of another type in the files before", "Write it alike in all."
        else:
            continue
        what = f"column {name!r} is of type {field.type}, {what}"
        raise tally.faults.stop(file, None, what, advice)


def _is_list(kind: pa.DataType) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind))


def _kind(kind: pa.DataType) -> int | None:
    """INT, FLOAT or STRING as TFX makes of it; None if it fails."""
    if types.is_dictionary(kind) or _is_list(kind):
        kind = kind.value_type
    if types.is_boolean(kind) or types.is_integer(kind):
        return INT
    if types.is_floating(kind):
        return FLOAT
    if types.is_null(kind):
        return STRING
    return STRING if _is_text(kind) else None


def _read(file: Path, tally: Tally, columns: Columns) -> None:
    texts, label, slices, rule = columns
    used, key = columns.used, [rule.column] if rule.column else []
    row = 0
    for batch in _batches(file, tally.faults, used):
        columns_ = [batch.column(name).to_pylist() for name in used]
        for cells in zip(*columns_, strict=True):
            row += 1
            values = dict(zip(used, cells, strict=True))
            for name in (label, *slices, *key):
                if name == label and type(values[name]) is int:
                    continue  # trainer/preprocess.py reads a missing integer label as 0
                if not values[name] and values[name] not in (None, "", b""):
                    _lost(file, row, name, values[name], tally)
            read = {name: _text(file, row, name, values[name], tally) for name in used}
            sliced = [read[name] for name in slices]
            found = [read[name] for name in texts]
            tally.add(file, row, found, read[label], sliced, read[key[0]] if key else "")


def _lost(file: Path, row: int, name: str, value: Any, tally: Tally) -> None:
    tally.faults.add(
        file,
        row,
        f"column {name!r} holds {value!r}, which TFX's Parquet reader takes for a missing value",
        f"Write the column as strings (pandas: df[{name!r}] = df[{name!r}].astype(str)).",
    )


def _text(file: Path, row: int, name: str, value: Any, tally: Tally) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            tally.faults.add(
                file, row, f"column {name!r} is not UTF-8", "Decode it before writing it."
            )
    return _plain(value)


def _plain(value: Any) -> str:
    """A cell as the text that CSV would hold."""
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return str(int(value) if isinstance(value, bool) else value)
