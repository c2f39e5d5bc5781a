"""Read CSV the way TFX's CsvExampleGen does, and note by line what it would fail on or garble.

What TFX 1.16 does (csv_example_gen/executor.py, tfx_bsl/coders/csv_decoder.py; each case tried):
the header is the first line split at commas, with no regard to quotes; lines are joined until
their quotes are even in number, so a line break inside a quoted field is read rightly; each such
record goes through csv.reader, which is given the same record again, and again, when a quote is
still open at its end; a column is int64, float32 or bytes by what all of its cells are.
"""

import csv
import io
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NoReturn

from ..components.faults import Faults

UNKNOWN, INT, FLOAT, STRING = range(4)
TYPE_NAMES = ("nothing", "whole numbers", "numbers", "strings")

MOST_COLUMNS = 10_000  # TFX looks at each of them in every row
_LONGEST = 1 << 22  # bytes of a line, or characters of a record, that are looked at
_BOM = b"\xef\xbb\xbf"
_UTF_16 = ("UTF-16 text", "Convert it: iconv -f utf-16 -t utf-8 {} > NEW.")
_OTHER_FORMATS = {
    b"\x1f\x8b": ("a gzip file", "Unpack it: gunzip {}."),
    b"PK\x03\x04": ("a zip or Excel file", "Export it as CSV in UTF-8."),
    b"PAR1": ("a Parquet file", "Name it under `parquet:` instead of `csv:`."),
    b"\xff\xfe": _UTF_16,
    b"\xfe\xff": _UTF_16,
}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}

# A quoted field; group 1 is its end, and is missing where the quote has no proper one.
_QUOTED = re.compile(r'(?:^|(?<=[,\n]))"(?:[^"]+|"")*("(?=[,\r\n]|\Z))?')


class _Hashed(io.RawIOBase):
    """A file that computes its SHA-256 while it is read to its end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)
        self.sha256 = sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        count = self._file.readinto(buffer)
        self.sha256.update(buffer[:count])
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class CsvFile:
    """One CSV file: its columns at once, its rows on demand; faults are noted by line.

    Attributes:
        columns: the header's names.
        lines: the current row's lines where it spans several, else none.
        longest: (lines, first line) of the row that spans the most lines.

    Raises:
        Unreadable: the header cannot be used; the fault is noted.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, faults: Faults) -> None:
        self.path, self._faults = path, faults
        self.lines: list[str] = []
        self.longest = (1, 2)
        self._shell = shlex.quote(str(path))
        self._raw = _Hashed(path)
        self._file = io.BufferedReader(self._raw, 1 << 20)
        try:
            self.columns = self._header()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "CsvFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def sha256(self) -> str:
        """Of the file's bytes (hex), once all rows have been read."""
        return self._raw.sha256.hexdigest()

    def _header(self) -> list[str]:
        raw = self._file.readline(_LONGEST)
        if not raw:
            self._stop(None, "the file is empty", "Expected a line of column names, then rows.")
        for magic, (found, advice) in _OTHER_FORMATS.items():
            if raw.startswith(magic):
                self._stop(None, f"this is {found}, not CSV", advice.format(self._shell))
        if raw.startswith(_BOM):
            self._stop(
                1,
                "the file begins with a UTF-8 byte order mark, which TFX makes part of the first "
                "column's name",
                f"Take it out: sed -i '1s/^\\xEF\\xBB\\xBF//' {self._shell}",
            )
        line = self._decode(raw, 1).strip()
        names = line.split(",")
        if fault := _header_fault(line, names, self._shell):
            self._stop(1, *fault)
        return names

    def _stop(self, line: int | None, what: str, advice: str) -> NoReturn:
        raise self._faults.stop(self.path, line, what, advice)

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        """The rows that are whole and as wide as the header: (line each begins on, cells)."""
        pending: list[str] = []  # lines of a record whose quotes are not even yet
        begin = quotes = size = 0
        line = 1
        for raw in iter(lambda: self._file.readline(_LONGEST), b""):
            line += 1
            text = self._decode(raw, line)
            if not pending:
                begin, quotes, size = line, 0, 0
            quotes += text.count('"')
            size += len(text)
            if quotes % 2 or size >= _LONGEST:
                pending.append(text)
                if size >= _LONGEST:
                    break
                continue
            self.lines = [*pending, text] if pending else []
            if pending:
                text = "".join(self.lines)
                pending.clear()
                self.longest = max(self.longest, (line - begin + 1, begin))
            if row := self._parse(text, begin):
                yield begin, row
        if pending and quotes % 2:
            self._unbalanced("".join(pending), begin)
        elif pending:
            self._too_long(begin)

    def _decode(self, raw: bytes, line: int) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            guess = "cp1252" if any(0x80 <= byte <= 0x9F for byte in raw) else "latin1"
            near = raw[max(0, error.start - 12) : error.start + 13].decode(guess, "replace")
            self._faults.add(
                self.path,
                line,
                "not UTF-8",
                f"Convert it, if {guess} is what it is: "
                f"iconv -f {guess} -t utf-8 {self._shell} > NEW",
                f": byte 0x{raw[error.start]:02X} at byte {error.start + 1} of the line; as "
                f"{guess} it reads {near.strip()!r}",
            )
            return raw.decode("latin-1")

    def _parse(self, record: str, line: int) -> list[str]:
        """The cells of one record; none for a blank line, or when a fault was noted."""
        try:
            row = next(csv.reader((record,), strict=True), [])
        except csv.Error as error:
            self._explain(record, line, str(error))
            return []
        if row and len(row) != len(self.columns):
            self._faults.add(
                self.path,
                line,
                "wrong number of fields",
                "A text that holds a comma needs quotes around it.",
                f": {len(row)}, and the header names {len(self.columns)}",
            )
            return []
        return row

    def _explain(self, record: str, line: int, error: str) -> None:
        if "NUL" in error:
            self._faults.add(
                self.path, line, "a NUL byte", f"Take it out: tr -d '\\000' < {self._shell} > NEW"
            )
        elif "larger" in error:
            self._too_long(line)
        elif '"' in record:
            self._unbalanced(record, line)
        else:
            self._faults.add(
                self.path,
                line,
                "a carriage return in the middle of a line",
                "Take it out, or put the field in quotes.",
            )

    def _too_long(self, line: int) -> None:
        self._faults.add(
            self.path,
            line,
            f"a field longer than {csv.field_size_limit():,} characters, the most that TFX reads",
            "Shorten it; a model reads a few hundred words.",
        )

    def _unbalanced(self, record: str, line: int) -> None:
        place = _opening_quote(record)
        self._faults.add(
            self.path,
            line + record.count("\n", 0, place),
            "unbalanced quotes: one opens here that has no proper end",
            'Put quotes around the whole field, and write a quote inside it twice: "a ""b"" c".',
        )


def _header_fault(line: str, names: list[str], file: str) -> tuple[str, str] | None:
    """(what, advice) if TFX would take other column names from this line than are meant."""
    if not line:
        return "the first line is blank", "It must name the columns: text,label."
    if "\0" in line:
        return "a NUL byte among the column names", "Is this a text file?"
    if "\r" in line:
        return (
            "lines end in a lone carriage return (old Macintosh)",
            f"Convert it: tr '\\r' '\\n' < {file} > NEW",
        )
    if '"' in line:
        return (
            "the column names are in quotes, which TFX makes part of the names",
            f"Take the quotes out of the first line: sed -i '1s/\"//g' {file}",
        )
    if len(names) == 1 and (mark := next((m for m in _SEPARATORS if m in line), None)):
        return f"the columns are separated by {_SEPARATORS[mark]}", "Write the file with commas."
    if "" in names:
        return (
            f"column {names.index('') + 1} has no name",
            "Name it or leave it out (pandas: to_csv(..., index=False)).",
        )
    if len(names) > MOST_COLUMNS:
        return (
            f"{len(names):,} columns, and {MOST_COLUMNS:,} are the most",
            "Keep those that are used.",
        )
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        return (
            f"the column {twice[0]!r} is named twice, and TFX would keep the last",
            "Give each column a name of its own.",
        )
    return None


def _opening_quote(record: str) -> int:
    """Where in the record the quote stands that has no proper end."""
    last = 0
    for match in _QUOTED.finditer(record):
        stray = record.find('"', last, match.start())  # in a field that has no quotes around it
        if stray >= 0 or match[1] is None:
            return stray if stray >= 0 else match.start()
        last = match.end()
    return max(record.find('"', last), 0)


def kind_of(cell: str) -> int:
    """The type that TFX infers from one cell (tfx_bsl's _InferValueType, on UTF-8 bytes)."""
    if not cell:
        return UNKNOWN
    if not cell.isascii():  # int("१") is 1, and int("१".encode()) an error
        return STRING
    try:
        return INT if -(1 << 63) <= int(cell) < 1 << 63 else STRING
    except ValueError:
        try:
            float(cell)
        except ValueError:
            return STRING
        return FLOAT
