"""Tables of strangers: no code of theirs runs, and what fills the memory is told before it does."""

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from espalier import DataError
from espalier.pipeline import preflight
from espalier.pipeline.init import propose


def write_parquet(file: Path, text: Any, **options: Any) -> Path:
    pq.write_table(
        pa.table({"text": text, "label": ["a", "b"] * (len(text) // 2)}), file, **options
    )
    return file


class _Runs(pa.PyExtensionType):
    """A type that pyarrow makes anew of a pickle, which stands in the file."""

    marker = ""

    def __init__(self) -> None:
        super().__init__(pa.string())

    def __reduce__(self) -> Any:
        return open, (self.marker, "w")


def test_a_parquet_type_that_would_run_code(tmp_path: Path) -> None:
    _Runs.marker = str(tmp_path / "ran")
    text = pa.ExtensionArray.from_storage(_Runs(), pa.array(["the a text"] * 40))
    file = write_parquet(tmp_path / "a.parquet", text)
    (tmp_path / "ran").unlink(missing_ok=True)  # this process made the type itself
    # A process of its own: in this one another module may have mended pyarrow already.
    code = (
        "from pathlib import Path; from espalier.pipeline.init import propose; "
        f"propose(Path({str(file)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "DataError" in done.stderr
    assert "a type of its own, which would run code" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_a_parquet_text_that_all_rows_share(tmp_path: Path) -> None:
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["x " * (1 << 20)])
    file = write_parquet(tmp_path / "a.parquet", once)
    assert file.stat().st_size < 1 << 20  # and 2 GB when written out
    with pytest.raises(DataError, match="'text' has a cell of 2,097,152 bytes"):
        preflight.check_parquet({"all": [file]}, ["text"], "label")
    with pytest.raises(DataError, match="'text' has a cell of 2,097,152 bytes"):
        propose(file)


def test_a_parquet_string_that_is_not_utf8(tmp_path: Path) -> None:
    text = pa.array([b"caf\xe9 au lait"] * 40, pa.binary()).view(pa.string())
    file = write_parquet(tmp_path / "a.parquet", text)
    with pytest.raises(DataError, match="a text that is not UTF-8"):
        preflight.check_parquet({"all": [file]}, ["text"], "label")


def test_a_parquet_file_damaged_anywhere(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "a.parquet", [f"the {n} text" for n in range(40)]).read_bytes()
    for place in range(0, len(whole), 7):
        file = tmp_path / "b.parquet"
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        with contextlib.suppress(DataError):
            preflight.check_parquet({"all": [file]}, ["text"], "label")


def test_a_csv_of_more_columns_than_anybody_names(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"text,label,{','.join(f'c{n}' for n in range(100_000))}\n")
    with pytest.raises(DataError, match="100,002 columns, and 10,000 are the most"):
        preflight.check_csv({"all": [file]}, ["text"], "label")


def test_the_columns_in_a_message_are_the_first_of_many(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"{','.join(f'c{n}' for n in range(100))}\n{','.join('1' * 100)}\n")
    with pytest.raises(DataError, match=r"\.\.\. and 60 more"):
        propose(file)
