"""Read Parquet's used columns, batch by batch, and note what TFX's Parquet reader would lose.

That reader (example_gen/utils.py, dict_to_example) takes every value that Python calls false for
missing: 0, False and "" are lost; and it fails on dates, decimals and nested records.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from .csv_rows import FLOAT, INT, STRING
from .sources import sha256
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
        first = str(error).splitlines()[0]
        raise tally.faults.stop(
            file, None, f"not a Parquet file, or a damaged one ({first})", "Write it anew."
        ) from None
    return sha256(file)


def _look_at_types(file: Path, schema: pa.Schema, tally: Tally, columns: Columns) -> None:
    same_columns(file, schema.names, tally, columns)
    for field in schema:
        name, kind = field.name, _kind(field.type)
        if kind is None:
            raise tally.faults.stop(
                file,
                None,
                f"column {name!r} is of type {field.type}, which TFX's Parquet reader fails on",
                "Take it out, or write it as a string.",
            )
        if name in columns[0] and kind != STRING:
            raise tally.faults.stop(
                file, None, f"column {name!r} is {field.type}, and it is to be the text",
                "Is it the right column?",
            )  # fmt: skip
        before = tally.types.setdefault(name, kind)
        if before != kind:
            raise tally.faults.stop(
                file, None, f"column {name!r} is {field.type}, and of another type in other files",
                "Write it alike in all files.",
            )  # fmt: skip


def _kind(kind: pa.DataType) -> int | None:
    """INT, FLOAT or STRING as TFX makes of it; None if it fails."""
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
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
    texts, label, slices = columns
    used = list(dict.fromkeys([*texts, label, *slices]))
    row = 0
    for batch in table.iter_batches(batch_size=_BATCH, columns=used):
        values = {name: batch.column(name).to_pylist() for name in used}
        for place in range(batch.num_rows):
            row += 1
            for name in (label, *slices):
                if values[name][place] in (0, False) and not isinstance(values[name][place], str):
                    tally.faults.add(
                        file,
                        row,
                        f"column {name!r} holds {values[name][place]!r}, which TFX's Parquet "
                        "reader takes for a missing value",
                        f"Write the column as strings (pandas: "
                        f"df[{name!r}] = df[{name!r}].astype(str)).",
                    )
            cells = [_text(file, row, name, values[name][place], tally) for name in texts]
            tally.add(file, row, cells, _text(file, row, label, values[label][place], tally))


def _text(file: Path, row: int, name: str, value: Any, tally: Tally) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            tally.faults.add(
                file, row, f"column {name!r} is not UTF-8", "Decode it before writing it."
            )
            return value.decode("latin-1")
    return str(int(value) if isinstance(value, bool) else value)
