"""Every fault of the data is found before anything runs, with its file and line."""

import csv
import glob
import gzip
import random
import shutil
import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from espalier import Config, ConfigError, DataError
from espalier.pipeline.preflight import (
    DataReport,
    check,
    check_csv,
    check_parquet,
    check_tfrecord,
    check_writable,
    find_sources,
    input_patterns,
)
from espalier.pipeline.tfrecord import masked_crc32c

HEADER = b"text,label\n"
GOOD = b"".join(b"some words here,%s\n" % (b"yes", b"no")[n % 2] for n in range(30))  # lines 2-31
ROWS = b"".join(b"some words %d,%s\n" % (n, (b"yes", b"no")[n % 2]) for n in range(120))


def look(folder: Path, content: bytes, **columns: Any) -> DataReport:
    """Check one CSV file, data.csv, that is to be split later."""
    file = folder / "data.csv"
    file.write_bytes(content)
    return check_csv(
        {"all": [file]}, **{"text": ["text"], "label": "label", "slices": [], **columns}
    )


FAULTS: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("data.csv: the file is empty",)),
    "spaces alone": (b"\n \n", ("data.csv:1: the first line is blank",)),
    "header alone": (HEADER, ("data.csv: a header and no rows",)),
    "header and blank lines": (HEADER + b"\n\n", ("data.csv: a header and no rows",)),
    "no text column": (
        b"Texts,label\n" + GOOD,
        ("data.csv:1: no column 'text', which is to be the text", "Did you mean 'Texts'?"),
    ),
    "no label column": (
        b"text,price\n" + GOOD,
        ("data.csv:1: no column 'label', which is to be the label", "'text', 'price'"),
    ),
    "space in the header": (b"text, label\n" + GOOD, ("csv:1:", "Did you mean ' label'?")),
    "semicolons": (b"text;label\n" + GOOD, ("data.csv:1:", "separated by semicolons")),
    "tabs": (b"text\tlabel\n" + GOOD, ("data.csv:1:", "separated by tabs")),
    "column twice": (
        b"text,label,text\n" + GOOD,
        ("data.csv:1: the column 'text' is named twice",),
    ),
    "column without a name": (b",text,label\n1,a,b\n", ("data.csv:1: column 1 has no name",)),
    "quoted header": (b'"text","label"\n' + GOOD, ("data.csv:1: the column names are in quotes",)),
    "byte order mark": (
        b"\xef\xbb\xbf" + HEADER + GOOD,
        ("data.csv:1:", "UTF-8 byte order mark", r"sed -i '1s/^\xEF\xBB\xBF//'"),
    ),
    "UTF-16": ("text,label\na,b\n".encode("utf-16"), ("data.csv: this is UTF-16", "iconv")),
    "gzip": (gzip.compress(HEADER + GOOD), ("data.csv: this is a gzip file", "gunzip")),
    "Excel": (b"PK\x03\x04....", ("Excel",)),
    "Parquet": (b"PAR1....", ("this is a Parquet file", "`parquet:`")),
    "old Mac": (b"text,label\ra,yes\rb,no\r", ("data.csv:1:", "carriage return")),
    "Latin-1": (
        HEADER + GOOD + b"caf\xe9 au lait,yes\n",
        ("data.csv:32: not UTF-8: byte 0xE9 at byte 4", "'café au lait,yes'", "iconv -f latin1"),
    ),
    "Latin-1 in many rows": (
        HEADER + b"caf\xe9,yes\n" * 7,
        ("data.csv:2: not UTF-8", "(7 rows: lines 2, 3, 4, 5, 6, ...)"),
    ),
    "Windows-1252": (HEADER + GOOD + b"a \x93b\x94,yes\n", ("data.csv:32:", "iconv -f cp1252")),
    "Latin-1 in the header": (b"te\xe9xt,label\n", ("data.csv:1: not UTF-8: byte 0xE9",)),
    "NUL": (HEADER + GOOD + b"a\0b,yes\n", ("data.csv:32: a NUL byte",)),
    "quote never closed": (
        HEADER + GOOD + b'"never closed,yes\n' + GOOD,
        ("data.csv:32: unbalanced quotes: one opens here",),
    ),
    "quote never closed, in the second field": (
        HEADER + GOOD + b'fine,"never\n' + GOOD,
        ("data.csv:32: unbalanced quotes",),
    ),
    "quote opens after a whole quoted field of two lines": (
        HEADER + GOOD + b'"two\nlines","never closed\n' + GOOD,
        ("data.csv:33: unbalanced quotes",),
    ),
    "quote that swallows rows up to the next quote": (
        HEADER + GOOD + b'"not closed,yes\nlost,no\n"also not closed,yes\n' + GOOD,
        ("data.csv:32: unbalanced quotes",),
    ),
    "quotes that swallow a row and yet make one": (
        HEADER + GOOD + b'"not closed,yes\nlost,no\nnot opened",yes\n' + GOOD,
        ("data.csv:32: a quote opens here and swallows what looks like a row",),
    ),
    "quotes that swallow half a row": (
        HEADER + GOOD + b'"not closed,yes\nnot opened",no\n' + GOOD,
        ("data.csv:32: a quote opens here and swallows what looks like a row",),
    ),
    "stray quote": (HEADER + GOOD + b'a 5" pipe,yes\n' + GOOD, ("data.csv:32: unbalanced quotes",)),
    "two stray quotes, lines apart": (
        HEADER + GOOD + b'a 5" pipe,yes\nno,no\na 6" pipe,no\n',
        ("data.csv:32: unbalanced quotes",),
    ),
    "text after a quoted text": (
        HEADER + GOOD + b'"fine" he said,yes\n',
        ("data.csv:32: unbalanced quotes",),
    ),
    "quotes even, and one field open": (  # CsvExampleGen would read this line for ever
        HEADER + GOOD + b'a"b,"c\n' + GOOD,
        ("data.csv:32: unbalanced quotes",),
    ),
    "too few fields": (
        HEADER + GOOD + b"no comma here\n",
        ("data.csv:32: wrong number of fields: 1, and the header names 2",),
    ),
    "too many fields": (
        HEADER + b"well, yes,yes\n" + GOOD + b"a,b,c,d\n",
        ("data.csv:2: wrong number of fields: 3", "(2 rows: lines 2, 33)"),
    ),
    "line of spaces": (HEADER + GOOD + b"   \n", ("data.csv:32: wrong number of fields: 1",)),
    "carriage return in a field": (HEADER + GOOD + b"a\rb,yes\n", (":32: a carriage return",)),
    "field too long": (
        HEADER + GOOD + b"x" * 131_073 + b",yes\n",
        ("data.csv:32: a field longer than 131,072 characters",),
    ),
    "line too long": (HEADER + b"x " * 6_000_000, ("data.csv:2: a field longer than 131,072",)),
    "empty text": (
        HEADER + b",yes\n" + GOOD + b",no\n" * 8,
        (
            "data.csv:2: empty text in column 'text' (9 rows: lines 2, 33, 34, 35, 36, ...)",
            "Fill it in or take the row out.",
        ),
    ),
    "blank text": (HEADER + GOOD + b'"  ",no\n', ("data.csv:32: empty text",)),
    "empty label": (HEADER + GOOD + b"a,\n", ("data.csv:32: empty label in column 'label'",)),
    "blank label": (HEADER + GOOD + b'a," "\n', ("data.csv:32: empty label",)),
    "several faults": (
        HEADER + b",yes\na,\nb,c,d\n" + GOOD,
        ("csv:2: empty text", "csv:3: empty label", "csv:4: wrong number of fields"),
    ),
    "one class": (HEADER + b"a b,yes\n" * 30, ("data.csv: every row has the same label, 'yes'",)),
    "numbers for text": (
        HEADER + b"1,yes\n2.5,no\n" * 15,
        ("data.csv: column 'text' holds nothing but numbers",),
    ),
    "decimal labels": (
        HEADER + b"a,1\nb,2\nc,0.5\n" * 10,
        ("data.csv: the label column 'label' holds numbers that are not whole", "'0.5'"),
    ),
    "labels that are one number": (
        HEADER + b"a,1\nb,0\nc,01\n" * 10,
        ("'1' and '01' in the label column 'label' are the same whole number",),
    ),
    "a label of two lines": (HEADER + GOOD + b'a,"x\ny"\n', ("data.csv:32: a label longer than",)),
    "a label of a page": (
        HEADER + b"a," + b"x" * 2000 + b"\n",
        ("data.csv:2: a label longer than",),
    ),
    "too many labels": (
        HEADER + b"".join(b"a,label %d\n" % n for n in range(10_001)),
        ("more than 10,000 different values", "Is it the right column?"),
    ),
    "labels that hardly repeat": (
        HEADER + b"".join(b"a,label %d\n" % (n // 1.5) for n in range(60)),
        ("has 40 different values in 60 rows", "Is it the right column?"),
    ),
    "too few rows": (HEADER + b"a,yes\nb,no\n" * 9, ("18 rows cannot be split", "at least 20")),
}


@pytest.mark.parametrize(("content", "expected"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_told_with_its_place(
    tmp_path: Path, content: bytes, expected: tuple[str, ...]
) -> None:
    with pytest.raises(DataError) as caught:
        look(tmp_path, content)
    message = str(caught.value)
    for fragment in expected:
        assert fragment in message
    assert str(tmp_path / "data.csv") in message


FINE: dict[str, tuple[bytes, int]] = {
    "plain": (HEADER + GOOD, 30),
    "no line end at the end": ((HEADER + GOOD)[:-1], 30),
    "Windows line ends": ((HEADER + GOOD).replace(b"\n", b"\r\n"), 30),
    "blank lines": (HEADER + b"\n\r\n" + GOOD + b"\n\n", 30),
    "commas and quotes in quotes": (HEADER + GOOD + b'"a, ""b"" c",yes\n', 31),
    "line breaks in quotes": (HEADER + b'"one\ntwo\r\n, three","yes"\n' + GOOD, 31),
    "line breaks in quotes, before a label": (HEADER + GOOD + b'"one\ntwo",yes\n', 31),
    "even quotes in a bare field": (HEADER + GOOD + b'a "b" c,yes\n', 31),
    "0 and 1": (HEADER + GOOD.replace(b"yes", b"1").replace(b"no", b"0"), 30),
    "some numbers among the texts": (HEADER + GOOD + b"12,yes\n", 31),
    "integers too long for numbers": (HEADER + b"%d,yes\n%d,no\n" % (9**30, 9**31) * 15, 30),
    "emoji": (HEADER + GOOD + "très bien \N{SMILING FACE WITH SMILING EYES},yes\n".encode(), 31),
    "a long field": (HEADER + GOOD + b"x" * 131_072 + b",yes\n", 31),
    "a header that begins like a zip": (b"PK,text,label\n" + b"1,a,yes\n2,b,no\n" * 15, 30),
}


@pytest.mark.parametrize(("content", "rows"), FINE.values(), ids=FINE.keys())
def test_what_tfx_reads_rightly_is_taken(tmp_path: Path, content: bytes, rows: int) -> None:
    report = look(tmp_path, content)
    assert report.rows == {"all": rows}
    assert report.bytes == len(content)
    assert set(report.labels["all"]) in ({"yes", "no"}, {"0", "1"})


def test_lines_are_right_across_the_blocks_of_a_large_file(tmp_path: Path) -> None:
    many = b'"two\nlines, here",yes\nanother row of some words,no\n' * 60_000  # 3 MB
    with pytest.raises(DataError, match=r"data\.csv:180002: empty text"):
        look(tmp_path, HEADER + many + b",no\n")
    with pytest.raises(DataError, match=r"data\.csv:180003: not UTF-8: byte 0xFF at byte 1"):
        look(tmp_path, HEADER + many + b"a,no\n\xff\n")
    with pytest.raises(DataError, match=r"data\.csv:180002: unbalanced quotes"):
        look(tmp_path, HEADER + many + b'"a,no\n' + b"b,no\n" * 700_000)


def test_report(tmp_path: Path) -> None:
    rows = b"".join(
        b"%s,%s,%s\n" % (b"w " * n, b"abc"[n % 2 : n % 2 + 1], b"s") for n in range(1, 101)
    )
    report = look(tmp_path, b"text,label,kind\n" + rows, slices=["kind"])
    assert report.columns == ["text", "label", "kind"]
    assert report.words == {50: 50, 90: 90, 95: 95, 99: 99, 100: 100}
    assert report.labels == {"all": {"a": 50, "b": 50}}
    assert len(report.fingerprint) == 64
    assert report.warnings == []


def test_the_fingerprint_follows_names_and_contents(tmp_path: Path) -> None:
    first = look(tmp_path, HEADER + GOOD).fingerprint
    assert look(tmp_path, HEADER + GOOD).fingerprint == first
    assert look(tmp_path, HEADER + GOOD.replace(b"here", b"hear")).fingerprint != first
    (tmp_path / "other.csv").write_bytes(HEADER + GOOD)
    other = check_csv({"all": [tmp_path / "other.csv"]}, ["text"], "label", [])
    assert other.fingerprint != first


def test_a_pair_needs_both_texts(tmp_path: Path) -> None:
    pair = b"question,answer,label\n"
    rows = b"what is it,a thing or two,yes\nwho is it,no one,no\n" * 15
    report = look(tmp_path, pair + rows, text=["question", "answer"])
    assert report.words[100] == 7
    with pytest.raises(DataError, match=r":32: empty text in column 'answer'"):
        look(tmp_path, pair + rows + b"why,,no\n", text=["question", "answer"])
    with pytest.raises(
        DataError, match=r":1: no column 'answers', .* the text\. Did you mean 'answer'"
    ):
        look(tmp_path, pair + rows, text=["question", "answers"])


def test_a_slice_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r":1: no column 'country', which is to be the slice"):
        look(tmp_path, HEADER + GOOD, slices=["country"])


WARNINGS: dict[str, tuple[bytes, str]] = {
    "a label of one row": (HEADER + b"a,maybe\n", "1 of 3 labels have a single row ('maybe')"),
    "labels alike": (HEADER + b"a,Yes\na,Yes\n", "'yes' and 'Yes' are taken as two classes"),
    "a row over many lines": (
        HEADER + b'"%s",yes\n' % (b"a\n" * 30),
        "csv:2: this row spans 31 lines",
    ),
}


@pytest.mark.parametrize(("content", "expected"), WARNINGS.values(), ids=WARNINGS.keys())
def test_doubts_are_warnings(tmp_path: Path, content: bytes, expected: str) -> None:
    (warning,) = look(tmp_path, content + GOOD * 4).warnings
    assert expected in warning


def test_many_slice_values_are_a_warning(tmp_path: Path) -> None:
    rows = b"".join(b"a b,%s,%d\n" % ((b"yes", b"no")[n % 2], n) for n in range(300))
    (warning,) = look(tmp_path, b"text,label,user\n" + rows, slices=["user"]).warnings
    assert "'user' has more than 200 different values" in warning


def split_up(folder: Path, **contents: bytes) -> DataReport:
    """Check separate files, one for each split."""
    for split, content in contents.items():
        (folder / f"{split}.csv").write_bytes(content)
    return check_csv({s: [folder / f"{s}.csv"] for s in contents}, ["text"], "label", [])


def test_separate_splits(tmp_path: Path) -> None:
    few = HEADER + b"a,no\n"
    report = split_up(tmp_path, train=HEADER + GOOD, eval=few, test=few)
    assert report.rows == {"train": 30, "eval": 1, "test": 1}
    assert report.labels["eval"] == {"no": 1}


SPLITS: dict[str, tuple[bytes, str]] = {
    "unknown label": (
        HEADER + b"a,yes\nb,yse\nc,yse\n",
        r"eval\.csv:3: label 'yse' is in eval \(2 rows\) and not in train\. Did you mean 'yes'",
    ),
    "no column": (b"text,category\na,b\n", r"eval\.csv:1: no column 'label'"),
    "no rows": (HEADER, r"eval\.csv: a header and no rows"),
    "a column that train lacks": (
        b"label,more,text\nyes,1,a\n",
        r"eval\.csv: eval has the columns 'label', 'more', 'text', and train has 'text', 'label'",
    ),
}


@pytest.mark.parametrize(("content", "expected"), SPLITS.values(), ids=SPLITS.keys())
def test_faults_between_splits(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        split_up(tmp_path, train=HEADER + GOOD, eval=content)


def test_labels_of_different_types(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"eval\.csv: column 'label' holds whole numbers in eval and"
    ):
        split_up(tmp_path, train=HEADER + b"a,1\nb,x\n" * 10, eval=HEADER + b"a,1\n")


def test_files_of_a_split_have_one_header(tmp_path: Path) -> None:
    for name, header in (("a", b"text,label\n"), ("b", b"label,text\n")):
        (tmp_path / f"{name}.csv").write_bytes(header + GOOD)
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(
        DataError, match=r"b\.csv:1: other columns than the files before it: 'label', 't"
    ):
        check_csv({"all": files}, ["text"], "label", [])


def test_faults_of_several_files_name_each(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_bytes(HEADER + GOOD + b",yes\n")
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    with pytest.raises(DataError) as caught:
        check_csv({"all": files}, ["text"], "label", [])
    assert [line.split(": ")[0] for line in str(caught.value).splitlines()] == [
        f"{file}:32" for file in files
    ]


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: cannot be read: No such file"):
        check_csv({"all": [tmp_path / "gone.csv"]}, ["text"], "label", [])


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    file, rng = tmp_path / "large.csv", random.Random(0)
    words = [f"word{n}" for n in range(1000)]
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for _ in range(2_000):
            row = [" ".join(rng.choices(words, k=4)) + ", and more", rng.choice(["yes", "no"])]
            writer.writerows([row] * 100)
    tracemalloc.start()
    report = check_csv({"all": [file]}, ["text"], "label", [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.rows == {"all": 200_000}
    assert report.bytes > 8_000_000
    assert peak < 12_000_000


def test_memory_does_not_grow_with_an_open_quote(tmp_path: Path) -> None:
    file = tmp_path / "large.csv"
    file.write_bytes(HEADER + GOOD + b'"open,yes\n' + b"some words and more of them,no\n" * 600_000)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"large\.csv:32: unbalanced quotes"):
        check_csv({"all": [file]}, ["text"], "label", [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 24_000_000


# Sources


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(HEADER)


def test_a_file_a_folder_and_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "b.csv", "a.csv", ".hidden.csv", "notes.txt", "sub/c.csv")

    def names(source: str) -> list[str]:
        return [path.name for path in find_sources({"all": source}, "csv")["all"]]

    assert names(f"{tmp_path}/a.csv") == ["a.csv"]
    assert names(str(tmp_path)) == ["a.csv", "b.csv"]
    assert names(f"{tmp_path}/*") == ["a.csv", "b.csv", "notes.txt"]
    assert names(f"{tmp_path}/[bc]*") == ["b.csv"]


def test_nothing_found_says_what_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", ".hidden.csv", "sub/c.csv")
    message = r"this folder holds no file named \*\.csv .*\. .* holds notes\.txt, sub\."
    with pytest.raises(DataError, match=message):
        find_sources({"eval": str(tmp_path)}, "csv")
    with pytest.raises(DataError, match=r"holds no file named \*\.parquet"):
        find_sources({"all": str(tmp_path)}, "parquet")
    with pytest.raises(
        DataError, match=r"note\.txt: no such file or folder\. Did you mean .*notes"
    ):
        find_sources({"all": str(tmp_path / "note.txt")}, "csv")
    with pytest.raises(DataError, match=r"\*\.csv: the pattern names no visible file\. .*notes\.t"):
        find_sources({"all": str(tmp_path / "*.csv")}, "csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty is empty\."):
        find_sources({"all": str(tmp_path / "empty")}, "csv")


def test_two_splits_may_not_share_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.csv")
    with pytest.raises(ConfigError, match=r"data: test and train both read .*a\.csv"):
        find_sources({"train": f"{tmp_path}/a.csv", "test": f"{tmp_path}/./a.csv"}, "csv")


def patterns(folder: Path, **sources: str) -> tuple[str, dict[str, str]]:
    found = find_sources({split: str(folder / source) for split, source in sources.items()}, "csv")
    base, parts = input_patterns(found)
    return str(Path(base).relative_to(folder)), parts


PATTERNS: dict[str, tuple[list[str], dict[str, str], tuple[str, dict[str, str]]]] = {
    "one file": (["a.csv", "b.csv"], {"all": "a.csv"}, (".", {"all": "a.csv"})),
    "a folder": (
        ["a.csv", "b.csv", ".x.csv", "notes.txt"], {"all": "."}, (".", {"all": "[!.]*.csv"}),
    ),
    "endings in both cases": (
        ["a.csv", "b.CSV", "c.txt"], {"all": "."}, (".", {"all": "[!.]*.[cC][sS][vV]"}),
    ),
    "a file for each split": (
        ["a.csv", "b.csv"],
        {"train": "a.csv", "eval": "b.csv"},
        (".", {"train": "a.csv", "eval": "b.csv"}),
    ),
    "a folder for each split": (
        ["one/a.csv", "one/b.csv", "two/c.csv"],
        {"train": "one", "eval": "two"},
        (".", {"train": "one/[!.]*.csv", "eval": "two/c.csv"}),
    ),
    "globs in one folder": (
        ["tr-1.csv", "tr-2.csv", "ev-1.csv", "ev-2.csv", ".tr-3.csv"],
        {"train": "tr*", "eval": "ev*"},
        (".", {"train": "tr-*.csv", "eval": "ev-*.csv"}),
    ),
    "a glob by its end": (
        ["x-tr.csv", "y-tr.csv", ".z-tr.csv", "x-ev.csv"],
        {"train": "*-tr.csv", "eval": "x-ev.csv"},
        (".", {"train": "[!.]*-tr.csv", "eval": "x-ev.csv"}),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("names", "sources", "expected"), PATTERNS.values(), ids=PATTERNS.keys())
def test_input_patterns(
    tmp_path: Path,
    names: list[str],
    sources: dict[str, str],
    expected: tuple[str, dict[str, str]],
) -> None:
    touch(tmp_path, *names)
    assert patterns(tmp_path, **sources) == expected


def test_relative_paths_stay_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    touch(tmp_path, "a.csv", "data/b.csv")
    assert input_patterns({"all": [Path("a.csv")]}) == (".", {"all": "a.csv"})
    mixed = {"train": [Path("a.csv")], "eval": [tmp_path / "data" / "b.csv"]}
    assert input_patterns(mixed) == (str(tmp_path), {"train": "a.csv", "eval": "data/b.csv"})


def test_what_no_pattern_fits_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a1.csv", "a2.csv", "a3.csv", "one/x.csv", "two/x.csv", "b[1].csv")
    with pytest.raises(ConfigError, match=r"no pattern names these files of 'all' .*a1\.csv, a3"):
        patterns(tmp_path, all="a[13].csv")
    with pytest.raises(ConfigError, match=r"'all' lie in 2 folders .*one, .*two"):
        patterns(tmp_path, all="*/x.csv")
    with pytest.raises(ConfigError, match=r"\{SPAN\}\.csv: TFX gives .* a meaning of their own"):
        input_patterns({"all": [tmp_path / "{SPAN}.csv"]})


def test_glob_characters_in_names_are_escaped(tmp_path: Path) -> None:
    touch(tmp_path, "a[1]/b[1].csv", "a1/b1.csv")
    base, parts = input_patterns({"all": [tmp_path / "a[1]" / "b[1].csv"]})
    assert glob.glob(f"{base}/{parts['all']}") == [f"{tmp_path}/a[1]/b[1].csv"]


# Parquet and TFRecord


def parquet(file: Path, **columns: Any) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), file, row_group_size=7)
    return file


TEXTS = ["some words here"] * 30


def look_parquet(folder: Path, **columns: Any) -> DataReport:
    file = parquet(folder / "data.parquet", **columns)
    return check_parquet({"all": [file]}, ["text"], "label", [])


@pytest.mark.parametrize("labels", [["no", "yes"], [0, 1], [b"no", b"yes"]])
def test_parquet(tmp_path: Path, labels: list[Any]) -> None:
    report = look_parquet(tmp_path, text=TEXTS, label=labels * 15, more=[[1.0]] * 30)
    assert report.rows == {"all": 30}
    assert list(report.labels["all"].values()) == [15, 15]
    assert set(report.labels["all"]) in ({"no", "yes"}, {"0", "1"})
    assert report.words[50] == 3


def test_parquet_faults(tmp_path: Path) -> None:
    from datetime import date

    labels = ["yes", "no"] * 15
    faults: list[tuple[dict[str, Any], str]] = [
        ({"text": [*TEXTS[:-1], None], "label": labels}, r"parquet, row 30: empty text"),
        ({"text": TEXTS, "label": ["", *labels[1:]]}, r"parquet, row 1: empty label"),
        ({"text": TEXTS, "labels": labels}, r"no column 'label', .* Did you mean 'labels'"),
        ({"text": list(range(30)), "label": labels}, r"'text' is of type int64, and it is to be"),
        ({"text": TEXTS, "label": [0.5, 1.0] * 15}, r"label column 'label' holds numbers"),
        ({"text": TEXTS, "label": [["a"]] * 30}, r"'label' is of type list.*one value a row"),
        ({"text": TEXTS, "label": [False, True] * 15}, r"row 1: column 'label' holds False"),
        ({"text": TEXTS, "label": ["yes"] * 30}, r"every row has the same label, 'yes'"),
        ({"text": [b"a \xff"] * 30, "label": labels}, r"row 1: column 'text' is not UTF-8"),
        ({"text": TEXTS, "label": labels, "day": [date.today()] * 30}, r"'day' is of type date32"),
        ({"text": TEXTS[:0], "label": labels[:0]}, r"null|no rows"),
    ]
    for columns, expected in faults:
        with pytest.raises(DataError, match=expected):
            look_parquet(tmp_path, **columns)


def test_damaged_parquet(tmp_path: Path) -> None:
    file = parquet(tmp_path / "data.parquet", text=TEXTS, label=["yes", "no"] * 15)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"data\.parquet: not a Parquet file, or a damaged one"):
        check_parquet({"all": [file]}, ["text"], "label", [])


def field(number: int, content: bytes) -> bytes:
    """One length-delimited field of a protocol buffer."""
    size, length = b"", len(content)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + content


def example(**features: bytes | int) -> bytes:
    """A tf.Example, serialized."""
    entries = b""
    for name, value in features.items():
        held = (
            field(1, field(1, value))
            if isinstance(value, bytes)
            else field(3, field(1, bytes([value])))
        )
        entries += field(1, field(1, name.encode()) + field(2, held))
    return field(1, entries)


def tfrecord(*examples: bytes) -> bytes:
    """A TFRecord file's bytes."""
    out = b""
    for data in examples:
        length = struct.pack("<Q", len(data))
        out += length + struct.pack("<I", masked_crc32c(length)) + data
        out += struct.pack("<I", masked_crc32c(data))
    return out


def look_tfrecord(file: Path, content: bytes) -> DataReport:
    file.write_bytes(content)
    return check_tfrecord({"all": [file]}, ["text"], "label", [])


EXAMPLES = [example(text=b"some words", label=b"yes"), example(label=b"no", text=b"some more")] * 15


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_tfrecord(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    file = tmp_path / f"data.tfrecord{'.gz' if pack is gzip.compress else ''}"
    report = look_tfrecord(file, pack(tfrecord(*EXAMPLES)))
    assert report.rows == {"all": 30}
    assert report.labels == {"all": {"no": 15, "yes": 15}}
    assert report.columns == ["text", "label"]
    numbers = [example(text=b"a", label=n % 2) for n in range(30)]
    assert look_tfrecord(file, pack(tfrecord(*numbers))).labels == {"all": {"0": 15, "1": 15}}


def test_tfrecord_faults(tmp_path: Path) -> None:
    file, whole = tmp_path / "data.tfrecord", tfrecord(*EXAMPLES)
    faults = [
        (b"", r"data\.tfrecord: the file is empty"),
        (b"text,label\na,b\n", r"row 1: not a TFRecord file"),
        (whole[:-20], r"row 30: cut off in this record"),
        (whole + b"\1\2\3", r"row 31: damaged"),
        (whole[::-1].replace(b"some"[::-1], b"sane"[::-1], 1)[::-1], r"row 30: damaged: its check"),
        (gzip.compress(whole), r"only if its name ends in \.gz"),
        (tfrecord(b"no example"), r"row 1: not a tf\.train\.Example"),
        (tfrecord(*EXAMPLES, example(label=b"yes")), r"row 31: empty text in column 'text'"),
        (tfrecord(example(txt=b"a", label=b"b")), r"no column 'text', .* Did you mean 'txt'"),
        (tfrecord(example(text=3, label=b"b")), r"feature 'text' holds numbers"),
        (tfrecord(example(text=b"a \xff", label=b"b")), r"row 1: feature 'text' is not UTF-8"),
        (tfrecord(*EXAMPLES[:1] * 30), r"every row has the same label, 'yes'"),
    ]
    for content, expected in faults:
        with pytest.raises(DataError, match=expected):
            look_tfrecord(file, content)


# The whole check


def job(folder: Path, **changes: Any) -> Config:
    """A configuration on `folder`'s data.csv that needs no checkpoint."""
    values: dict[str, Any] = {
        "name": "job",
        "data": {"csv": str(folder / "data.csv"), "text": "text", "label": "label"},
        "model": {"family": "bert", "start": "tiny", "sequence_length": 16},
        "push": {"to": str(folder / "models")},
        "runs": str(folder / "runs"),
    }
    return Config(**{**values, **changes})


def test_check_writes_and_loads_nothing(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(HEADER + ROWS)
    before = sorted(tmp_path.iterdir())
    assert check(job(tmp_path)).rows == {"all": 120}
    assert sorted(tmp_path.iterdir()) == before


def test_check_finds_a_schema_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(HEADER + ROWS)
    data = {"csv": str(tmp_path / "data.csv"), "text": "text", "label": "label"}
    schema = tmp_path / "schema.pbtxt"
    config = job(tmp_path, data={**data, "schema": str(schema)})
    with pytest.raises(
        ConfigError, match=r"data\.schema: .*schema\.pbtxt: cannot be read: No such"
    ):
        check(config)
    schema.write_text("text,label\n")
    with pytest.raises(ConfigError, match=r"data\.schema: .*schema\.pbtxt:1:1 : .*A run leaves a"):
        check(config)
    schema.write_text('feature {\n  name: "text"\n}\n')
    with pytest.raises(ConfigError, match=r"data\.schema: .*pbtxt has no feature 'label'"):
        check(config)
    schema.write_text('feature {\n  name: "text"\n}\nfeature { name: "label" }')
    assert check(config).rows == {"all": 120}


def test_check_warns_of_texts_that_will_be_cut(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(HEADER + ROWS + b"long " * 20 + b",yes\n")
    assert check(job(tmp_path)).warnings == []
    (tmp_path / "data.csv").write_bytes(
        HEADER + ROWS + b"".join(b"w " * 19 + b"%d,no\n" % n for n in range(22))
    )
    (warning,) = check(job(tmp_path)).warnings
    assert "sequence_length is 16 tokens, and 5 % of the rows have 20 words or more" in warning


def test_check_warns_of_splits_that_get_mixed(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_bytes(HEADER + ROWS)
    data = {"csv": str(tmp_path / "*.csv"), "text": "text", "label": "label"}
    (warning,) = check(job(tmp_path, data=data)).warnings
    assert "the files for test and train, by their names, are mixed" in warning


def test_check_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "not" / "yet", 1_000)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"models: .*file is a file, and a folder is needed"):
        check_writable(tmp_path / "file" / "models", 0)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=5_000_000))
    with pytest.raises(ConfigError, match=r"runs: about 20 MB are needed, and 5 MB are free in"):
        check_writable(tmp_path / "runs", 20_000_000)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder that even root cannot write")
def test_a_place_that_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match=r"/proc/models: the folder /proc cannot be written to"):
        check_writable(Path("/proc/models"), 0)


def test_a_label_before_a_text_of_several_lines_is_no_row_of_its_own(tmp_path: Path) -> None:
    rows = b"yes,some words\nno,other words\n" * 15
    report = look(tmp_path, b"label,text\n" + rows + b'yes,"one\ntwo"\n')
    assert report.rows == {"all": 31}
    with pytest.raises(DataError, match=r"data\.csv:32: a quote opens here and swallows"):
        look(tmp_path, b"label,text\n" + rows + b'yes,"one\nno,two"\n')


@pytest.mark.parametrize("train", [{"freeze": 3}, {"stages": [{"epochs": 1, "freeze": 3}]}])
def test_freezing_more_than_there_is_stops_before_a_run(
    tmp_path: Path, train: dict[str, Any]
) -> None:
    (tmp_path / "data.csv").write_bytes(HEADER + ROWS)
    with pytest.raises(ConfigError, match="train.freeze is 3, and this model has 2 parts"):
        check(job(tmp_path, train=train))


def test_a_search_may_not_freeze_more_either(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(HEADER + GOOD)
    tune = {"over": {"train.freeze": [0, 3, "all"]}}
    with pytest.raises(ConfigError, match="tune.over: train.freeze is 3, and this model has 2"):
        check(job(tmp_path, tune=tune))


def small(make_bert: Any, tmp_path: Path, *steps: dict[str, Any]) -> Config:
    (tmp_path / "data.csv").write_bytes(HEADER + ROWS)
    return Config(
        name="small", data={"csv": str(tmp_path / "data.csv"), "text": "text", "label": "label"},
        model={"family": "bert", "start": str(make_bert(tmp_path / "bert")), "sequence_length": 16},
        compress={"steps": list(steps)}, push={"to": str(tmp_path / "models")},
        runs=str(tmp_path / "runs"),
    )  # fmt: skip


def test_a_student_that_cannot_be_is_found_before_the_run(make_bert: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="distill.layers is 2, and the trained model has 2"):
        check(small(make_bert, tmp_path, {"distill": {"layers": 2}}))


def test_what_a_recipe_will_not_do_is_said_before_it_runs(make_bert: Any, tmp_path: Path) -> None:
    warnings = check(small(make_bert, tmp_path, {"prune": {}}, {"quantize": {}})).warnings
    assert any("multiply by zero, too" in warning for warning in warnings)
    warnings = check(small(make_bert, tmp_path, {"distill": {"layers": 1}}, {"prune": {}})).warnings
    assert not any("multiply by zero, too" in warning for warning in warnings)
