"""Parquet files, row group by row group, the needed columns only."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import DataError
from .tally import DataReport, Digest, Faults, Tally, report


def check_parquet(
    splits: dict[str, list[Path]], text: list[str], label: str, slices: list[str]
) -> DataReport:
    """Do for Parquet files what `check_csv` does; a row's number stands for its line."""
    digest, faults, size = hashlib.sha256(), Faults(), 0
    tallies = {}
    for split, files in splits.items():
        tally = tallies[split] = Tally(split, text, label, slices, faults)
        for file in files:
            digest.update(f"{split} {file.name} {file.stat().st_size}\n".encode())
            hash_file(file, digest)
            size += file.stat().st_size
            _read(file, tally)
    faults.raise_any()
    return report(tallies, digest.hexdigest(), size)


def hash_file(file: Path, digest: Digest) -> None:
    """Feed a file's contents to the digest."""
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)


def _read(file: Path, tally: Tally) -> None:
    source = open_parquet(file)
    schema = source.schema_arrow
    tally.begin(file, list(schema.names))
    for name in schema.names:
        _check_type(file, name, schema.field(name).type, tally)
    needed = list(dict.fromkeys([*tally.text, tally.label, *tally.slices]))
    tally.begin(file, list(schema.names))
    line, width = 0, len(schema.names)
    places = {name: schema.names.index(name) for name in needed}
    for columns in _batches(file, source, needed):
        rows = zip(*columns, strict=True)
        for values in rows:
            line += 1
            row = [""] * width
            for place, value in zip(places.values(), values, strict=True):
                row[place] = value
            tally.add(row, line)


def open_parquet(file: Path) -> Any:
    """Return a `pyarrow.parquet.ParquetFile`. Raises DataError when it is none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: not a whole Parquet file ({str(error).splitlines()[0]}). Write it again."
        ) from None


def _batches(file: Path, source: Any, needed: list[str]) -> Iterator[list[list[str]]]:
    import pyarrow as pa

    try:
        for batch in source.iter_batches(batch_size=8192, columns=needed):
            yield [[_string(value) for value in batch.column(name).to_pylist()] for name in needed]
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {str(error).splitlines()[0]}.") from None


def _string(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8")
    return str(int(value) if isinstance(value, bool) else value)


def _check_type(file: Path, name: str, kind: Any, tally: Tally) -> None:
    """TFX's dict_to_example knows integers, floats, strings, bytes and flat lists of them."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    text = types.is_string(kind) or types.is_large_string(kind)
    text = text or types.is_binary(kind) or types.is_large_binary(kind)
    whole = types.is_integer(kind) or types.is_boolean(kind)
    decimal = types.is_floating(kind)
    if name in tally.text and not text:
        raise DataError(f"{file}: the text's column {name!r} holds {kind}, and strings were expected.")
    if name == tally.label:
        if not (text or whole or decimal):
            raise DataError(
                f"{file}: the label's column {name!r} holds {kind}; expected strings or integers."
            )
        tally.kind = "text" if text else "whole" if whole else "decimal"
    flat = types.is_list(kind) or types.is_large_list(kind)
    if flat and not types.is_nested(kind.value_type):
        return
    if not (text or whole or decimal or types.is_null(kind)):
        raise DataError(
            f"{file}: the column {name!r} holds {kind}, which TFX cannot read. Drop it, or "
            "convert it to strings or numbers."
        )
