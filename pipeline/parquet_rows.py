"""Read Parquet's used columns, batch by batch, and note what TFX's Parquet reader would lose.

That reader (example_gen/utils.py, dict_to_example) takes every value that Python calls false for
missing: 0, False and "" are lost; and it fails on dates, decimals and nested records.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from ..components.faults import Faults, Unreadable
from ..trainer.checkpoints import sha256
from .csv_rows import FLOAT, INT, STRING
from .tally import Columns, Tally, same_columns

_BATCH = 4096  # rows


def read_parquet(file: Path, tally: Tally, columns: Columns, _: list[str]) -> str:
    """Count one file's rows; return its SHA-256.

    Raises:
        Unreadable: the file cannot be used; the fault is noted.
    """
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            _look_at_types(file, schema, tally, columns)
            _read(file, table, tally, columns)
    except pa.ArrowException as error:
        raise _damaged(file, error, tally.faults) from None
    return sha256(file)


def rows(file: Path, faults: Faults) -> Iterator[tuple[list[str], list[str]]]:
    """Every row: (column names, cells as text). For a look at a table that is not known yet."""
    try:
        with pq.ParquetFile(file) as table:
            schema = table.schema_arrow
            known = [one.name for one in schema if _kind(one.type) is not None]
            for batch in table.iter_batches(batch_size=_BATCH, columns=known):
                for row in zip(*(column.to_pylist() for column in batch), strict=True):
                    yield known, [_plain(value) for value in row]
    except pa.ArrowException as error:
        raise _damaged(file, error, faults) from None


def batches(file: Path) -> Iterator[tuple[list[str], tuple[Any, ...]]]:
    """(column names, values) of each row, of all columns."""
    with pq.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=_BATCH):
            for cells in zip(*(column.to_pylist() for column in batch), strict=True):
                yield batch.schema.names, cells


def _damaged(file: Path, error: pa.ArrowException, faults: Faults) -> Unreadable:
    first = str(error).splitlines()[0]
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
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return STRING if any(is_text(kind) for is_text in texts) else None


def _read(file: Path, table: pq.ParquetFile, tally: Tally, columns: Columns) -> None:
    texts, label, slices, rule = columns
    used, key = columns.used, [rule.column] if rule.column else []
    row = 0
    for batch in table.iter_batches(batch_size=_BATCH, columns=used):
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
