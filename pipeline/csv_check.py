"""CSV files, read as TFX's CsvExampleGen will, so that what it would garble is found before.

CsvExampleGen (tfx 1.16, components/example_gen/csv_example_gen/executor.py) takes the first
line, cut at every comma, as the header; joins lines until the count of quotes is even; and
gives each such record to Python's csv reader. Line breaks inside quotes therefore work, and a
single stray quote swallows the lines that follow it.
"""

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path

from ..errors import DataError
from .tally import DataReport, Digest, Faults, Tally, report

_BLOCK = 1 << 20  # bytes read at a time
MAX_LINE = 10_000_000  # bytes
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK": "zip"}


def check_csv(
    splits: dict[str, list[Path]], text: list[str], label: str, slices: list[str]
) -> DataReport:
    """Read every row once and report what is there.

    Args:
        splits: files per split, or under "all".
        text, label, slices: the columns that are used.

    Raises:
        DataError: where, what was found, what to do; faults of rows all in one.
    """
    digest, faults, size = hashlib.sha256(), Faults(), 0
    tallies = {}
    for split, files in splits.items():
        tally = tallies[split] = Tally(split, text, label, slices, faults, guess=True)
        for file in files:
            digest.update(f"{split} {file.name} {file.stat().st_size}\n".encode())
            size += file.stat().st_size
            _read(file, tally, faults, digest)
    faults.raise_any()
    return report(tallies, digest.hexdigest(), size)


def _read(file: Path, tally: Tally, faults: Faults, digest: Digest) -> None:
    records = Records(file, digest)
    tally.begin(file, records.columns)
    width, before = len(records.columns), tally.rows
    for row in records:
        if len(row) == width:
            tally.add(row, records.line)
        elif row:  # a blank line is no row
            faults.add(
                f"{width} fields were expected ({', '.join(records.columns)[:200]})",
                'Put a field that holds a comma or a quote into quotes, and write a quote as "".',
                file,
                records.line,
                f", and {len(row)} found",
            )
    if tally.rows == before and not records.rows:
        raise DataError(f"{file}: there is a header and no row below it. Add rows, or remove the file.")


class Records:
    """The rows of one file, as lists of fields; `line` is where the current one begins.

    Attributes:
        columns: the header's names.
        line: 1-based number of the line where the current row begins.
        rows: how many have been read, blank lines left out.
    """

    def __init__(self, file: Path, digest: Digest) -> None:
        self.file, self.line, self.rows = file, 1, 0
        self._blocks = self._read_blocks(digest)
        self._rest = ""
        self.columns = self._header()

    def _header(self) -> list[str]:
        block = next(self._blocks, "")
        first, _, self._rest = block.partition("\n")
        if not block.strip():
            raise DataError(f"{self.file}: the file is empty. Expected a header and rows below it.")
        if "\r" in first.rstrip("\r"):
            raise DataError(
                f"{self.file}:1: the lines end in a bare carriage return, as on old Macs. "
                "Convert them: tr '\\r' '\\n' < old.csv > new.csv"
            )
        if '"' in first:
            names = ",".join(next(csv.reader([first])))
            raise DataError(
                f"{self.file}:1: the header has quotes, which TFX takes as part of the columns' "
                f"names. Write it without them: {names}"
            )
        return first.strip().split(",")  # as TFX does

    def __iter__(self) -> Iterator[list[str]]:
        self._taken = True
        self._record = ""
        reader = csv.reader(self._cut(), strict=True)
        try:
            for row in reader:
                self._taken = True
                if row:
                    self.rows += 1
                yield row
        except csv.Error as error:
            raise DataError(self._explain(str(error))) from None

    def _cut(self) -> Iterator[str]:
        """Records as TFX cuts them: lines joined until their quotes are even."""
        number, held, limit = 1, list[str](), 16 * csv.field_size_limit()
        for block in self._all_blocks():
            for line in block.split("\n"):
                number += 1
                if held or ('"' in line and line.count('"') & 1):
                    held.append(line)
                    if sum(map(len, held)) > limit:
                        break
                    if len(held) == 1 or not line.count('"') & 1:
                        continue
                    line = "\n".join(held)
                    self.line, held = number - len(held) + 1, []
                else:
                    self.line = number
                if not self._taken:  # the reader asks for more to end the record before
                    raise csv.Error("open")
                self._taken, self._record = False, line
                yield line
        if held:
            self.line, self._record = number - len(held) + 1, "\n".join(held)
            raise csv.Error("open")

    def _all_blocks(self) -> Iterator[str]:
        """The rest of the file in blocks of whole lines, without the last line's end."""
        if self._rest:
            yield self._rest.removesuffix("\n")
        for block in self._blocks:
            yield block.removesuffix("\n")

    def _read_blocks(self, digest: Digest) -> Iterator[str]:
        number, rest = 1, b""
        with self.file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                digest.update(block)
                if number == 1 and not rest:
                    self._check_start(block)
                end = block.rfind(b"\n") + 1
                whole, rest = (rest + block[:end], block[end:]) if end else (b"", rest + block)
                if len(rest) > MAX_LINE:
                    number += whole.count(b"\n")
                    raise DataError(
                        f"{self.file}:{number}: the line is longer than {MAX_LINE // 10**6} MB. "
                        "Is this a CSV file?"
                    )
                if whole:
                    yield self._decode(whole, number)
                    number += whole.count(b"\n")
        if rest:
            yield self._decode(rest, number)

    def _check_start(self, block: bytes) -> None:
        if block.startswith(b"\xef\xbb\xbf"):
            raise DataError(
                f"{self.file}:1: the file begins with a byte order mark (EF BB BF), which would "
                "become part of the first column's name. Remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' "
                f"{self.file}"
            )
        for start, name in _BOMS.items():
            if block.startswith(start):
                raise DataError(f"{self.file}: this is a {name} file; expected plain UTF-8 text.")

    def _decode(self, block: bytes, number: int) -> str:
        if b"\0" in block:
            line = number + block.count(b"\n", 0, block.index(b"\0"))
            raise DataError(f"{self.file}:{line}: a NUL byte. Is this a text file? Remove it.")
        try:
            return block.decode("utf-8")
        except UnicodeDecodeError as error:
            line = number + block.count(b"\n", 0, error.start)
            start = block.rfind(b"\n", 0, error.start) + 1
            before = block[start : error.start].decode("utf-8")
            raise DataError(
                f"{self.file}:{line}: the byte 0x{block[error.start]:02x} after {before[-20:]!r} is "
                f"not UTF-8. If the file is Latin-1: iconv -f latin1 -t utf-8 {self.file} > new.csv"
            ) from None

    def _explain(self, error: str) -> str:
        fault, line = find_quote_fault(self._record, self.line)
        place = f"{self.file}:{line}: "
        if fault:
            return place + fault
        if "field limit" in error:
            return (
                f"{place}a field has more than {csv.field_size_limit():,} characters, the most "
                "that TFX reads. Shorten it."
            )
        if "new-line" in error:
            return f"{place}a carriage return inside a field that is not in quotes. Remove it."
        return f"{place}not valid CSV: {error}."


def find_quote_fault(record: str, line: int) -> tuple[str, int]:
    """Return what is wrong with a record's quotes, and the line of the quote at fault.

    Args:
        record: one or more lines; where the quotes are right, one row.
        line: the number of its first line.
    """
    state, opened = "start", line
    for char in record:
        if state == "quoted":
            state = "closed" if char == '"' else "quoted"
        elif char == '"' and state in ("start", "closed"):
            opened = line if state == "start" else opened
            state = "quoted"
        elif char in ",\n":
            state = "start"
        elif state == "closed" and char != "\r":
            return (
                'a quote opens here, and the next one is followed by more text, so that the field '
                'does not end there. Close the field with a quote before its comma, and write a '
                'quote inside as "".',
                opened,
            )
        elif char == '"':
            return (
                'a quote inside a field that is not in quotes. Put the whole field into quotes and '
                'write the inner one as "".',
                line,
            )
        else:
            state = "bare" if state == "start" else state
        line += char == "\n"
    if state == "quoted":
        return 'a quote opens here and is never closed. Close it, or write it as "".', opened
    return "", line
