"""The sample reviews: what the generator writes is what is committed, and is worth learning."""

import csv
import re
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GENERATOR = ROOT / "examples" / "reviews" / "generate.py"
DATA = ROOT / "examples" / "reviews" / "data" / "reviews.csv"
CATEGORIES = {"books", "electronics", "hotels", "kitchen", "restaurants", "travel"}


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with DATA.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, strict=True))


def generate(out: Path, *options: str) -> bytes:
    subprocess.run([sys.executable, str(GENERATOR), "--out", str(out), *options], check=True)
    return (out / "reviews.csv").read_bytes()


def test_the_generator_writes_the_committed_file_byte_for_byte(tmp_path: Path) -> None:
    assert generate(tmp_path) == DATA.read_bytes()


def test_another_seed_and_size_give_other_rows(tmp_path: Path) -> None:
    small = generate(tmp_path, "--rows", "24", "--seed", "1").decode().splitlines()
    assert len(small) == 25
    assert set(small[1:]) - set(DATA.read_text(encoding="utf-8").splitlines())


def test_rows_are_many_unique_and_balanced(rows: list[dict[str, str]]) -> None:
    assert len(rows) >= 3000
    assert len({row["text"].casefold() for row in rows}) == len(rows)
    cells = Counter((row["category"], row["label"]) for row in rows)
    assert {category for category, _ in cells} == CATEGORIES
    assert {label for _, label in cells} == {"negative", "positive"}
    assert max(cells.values()) - min(cells.values()) <= 1


def test_the_file_is_plain_csv(rows: list[dict[str, str]]) -> None:
    raw = DATA.read_bytes()
    assert raw.startswith(b"text,category,label\n")
    assert b"\r" not in raw
    assert raw.count(b"\n") == len(rows) + 1
    for row in rows:
        assert row["text"] == row["text"].strip()
        assert row["text"].isascii()


def test_reviews_are_short_sentences(rows: list[dict[str, str]]) -> None:
    # A word or a mark is a token or two of WordPiece; 32 with [CLS] and [SEP] is the limit.
    lengths = sorted(len(re.findall(r"\w+|[^\w\s]", row["text"])) for row in rows)
    assert lengths[len(lengths) // 2] <= 14
    assert lengths[len(lengths) * 95 // 100] <= 22
    assert lengths[-1] <= 26
    for row in rows:
        assert re.fullmatch(r"[A-Z].*[.!]", row["text"]), row["text"]
        assert not re.search(r"[{}|/]|  |\b(\w+) \1\b", row["text"]), row["text"]


def test_each_connective_serves_both_verdicts(rows: list[dict[str, str]]) -> None:
    for word in ("but", "although", "despite", "not", "anything but", "expected", "than"):
        found = Counter(row["label"] for row in rows if f" {word} " in f" {row['text'].lower()} ")
        share = found["positive"] / found.total()
        assert 0.4 < share < 0.6, f"{word}: {found}"


def test_counting_words_is_not_enough() -> None:
    pytest.importorskip("sklearn")
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "bag_of_words.py"))
    rows = benchmark["read_csv"](DATA, "text", "label")
    scores = []
    for seed in range(3):
        train, test = benchmark["split"](rows, seed)
        scores += [benchmark["bag_of_words"](train, test, longest) for longest in (1, 2)]
    assert max(scores) <= 0.80
