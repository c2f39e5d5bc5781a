"""Too much of it: rows beyond the memory, a text of 10 MB, a label for each row; and damaged rows.

The memory is limited by RLIMIT_DATA, which needs no rights: all that a process may write to, in
use or not. What a tiny run takes is measured first, for most of it is TensorFlow's.
"""

import csv
import gzip
import itertools
import random
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from espalier.pipeline.cli import app
from espalier.pipeline.tfrecord import masked_crc32c

MIB = 1 << 20
Row = tuple[str, str]  # text, label
YAML = """\
name: job
data: {data}
model: {model}
train: {{epochs: 1, batch_size: 16, precision: float32}}
push: {{to: {folder}/models}}
runs: {folder}/runs
"""
TEXTS = "{{{kind}: {file}, text: text, label: label}}"


def job(folder: Path, data: str, model: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(YAML.format(data=data, model=model, folder=folder))
    return folder / "job.yaml"


def texts_job(folder: Path, file: Path, kind: str) -> Path:
    data = TEXTS.format(kind=kind, file=file)
    return job(folder, data, "{family: bert, start: tiny, sequence_length: 16}")


def rows(count: int, seed: int = 1) -> Iterator[Row]:
    rng = random.Random(seed)
    for number in range(count):
        word, label = rng.choice((("lovely", "yes"), ("awful", "no")))
        yield f"the soup was {word} order {number}", label


def write(file: Path, table: list[Row]) -> Path:
    """The rows in the form that the file's name says."""
    if file.suffix == ".csv":
        with file.open("w", newline="") as out:
            csv.writer(out).writerows([("text", "label"), *table])
    elif file.suffix == ".parquet":
        texts, labels = zip(*table, strict=True)
        pq.write_table(pa.table({"text": texts, "label": labels}), file)
    else:
        file.write_bytes(b"".join(record(text, label) for text, label in table))
    return file


def record(text: str, label: str) -> bytes:
    """A record of a TFRecord file: a tf.train.Example, as its protocol buffer is laid out."""

    def part(number: int, content: bytes) -> bytes:
        size, head = len(content), b""
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + head + bytes([size]) + content

    features = b"".join(
        part(1, part(1, name) + part(2, part(1, part(1, value.encode()))))
        for name, value in ((b"text", text), (b"label", label))
    )
    data = part(1, features)
    length = struct.pack("<Q", len(data))
    sums = (struct.pack("<I", masked_crc32c(one)) for one in (length, data))
    return length + next(sums) + data + next(sums)


def check(yaml: Path) -> Any:
    return CliRunner().invoke(app, ["check", str(yaml), "--no-trial"])


def measured(yaml: Path, limit: int = 0) -> tuple[int, int, str]:
    """(exit code, the most bytes of data that it took, its last words) of a run."""

    def limited() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, "-m", "espalier.cli", "run", str(yaml)]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=limited
    )
    most = [0]

    def watch() -> None:
        while process.poll() is None:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                return
            if found := re.search(r"VmData:\s+(\d+)", status):
                most[0] = max(most[0], int(found[1]) * 1024)
            time.sleep(0.05)

    threading.Thread(target=watch, daemon=True).start()
    _, said = process.communicate()
    return process.returncode, most[0], said


def pictures(folder: Path, size: int) -> int:
    """Noise in two shades, 200 KB each, so many bytes in all; returns how many there are."""
    rng = np.random.default_rng(1)
    count = max(60, size // 203_000)
    for number in range(count):
        place = folder / ("dark", "light")[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 128, (260, 260, 3)) + 128 * (number % 2)
        Image.fromarray(pixels.astype("uint8")).save(place, compress_level=0)
    return count


def test_rows_of_four_times_the_memory(
    tmp_path: Path, drill: Any, times: Callable[[int, int], int]
) -> None:
    if not times(0, 1):
        pytest.skip("minutes: with --long")
    line = drill("rows of four times the memory")
    model = "{family: resnet, start: resnet20, size: 16}"
    pictures(tmp_path / "few", 0)
    few = job(tmp_path / "floor", f"{{images: {tmp_path}/few}}", model)
    code, floor, said = measured(few)
    assert code == 0, said
    limit = floor * 13 // 10  # above it are batches of 20 MiB, ten copies of each
    count = pictures(tmp_path / "many", 4 * limit)
    yaml = job(tmp_path / "job", f"{{images: {tmp_path}/many}}", model)
    with line.attempt(f"{count:,} pictures of 200 KB in {limit // MIB:,} MiB"):
        code, _, said = measured(yaml, limit)
        assert code == 0, said[-2000:]
        assert list((tmp_path / "job" / "models").glob("[0-9]*")), said[-2000:]
    for name in ("many", "job"):
        shutil.rmtree(tmp_path / name)  # gigabytes


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_label_for_each_row(
    kind: str, tmp_path: Path, drill: Any, times: Callable[[int, int], int]
) -> None:
    """It is refused, and not one label a row is kept until then."""
    count = times(100_000, 1_000_000)
    line = drill(f"{count:,} labels, {kind}")
    table = [(text, f"label {n}") for n, (text, _) in enumerate(rows(count))]
    yaml = texts_job(tmp_path, write(tmp_path / f"data.{kind}", table), kind)
    del table
    for command in (["check", str(yaml), "--no-trial"], ["run", str(yaml)]):
        with line.attempt(command[0]):
            # Not ru_maxrss: a program inherits that of the one which started it.
            code = "import re, sys; from espalier.cli import app\n"
            code += "try: app(sys.argv[1:])\n"
            code += "finally: print(re.search('VmHWM:.* kB', open('/proc/self/status').read())[0])"
            found = subprocess.run(
                [sys.executable, "-c", code, *command], capture_output=True, text=True
            )
            assert found.returncode == 2, found.stderr
            said = found.stdout + found.stderr
            assert "has more than 10,000 different values" in said and "Traceback" not in said
            # Of Parquet, the different texts of one row group are held: TFX reads it whole as well.
            assert int(found.stdout.split()[-2]) < 768 * 1024, "KiB"


def test_a_text_of_ten_megabytes(
    tmp_path: Path, drill: Any, times: Callable[[int, int], int]
) -> None:
    line = drill("a text of 10 MB")
    long = "a very long story " * (10 * MIB // 18)
    table = [*rows(200)]
    table[77] = (long, table[77][1])
    files = {
        kind: write(tmp_path / f"data.{kind}", table) for kind in ("csv", "parquet", "tfrecord")
    }
    refusals = {
        "csv": r"data\.csv:79: a field longer than 131,072 characters",
        "parquet": r"data\.parquet, row 78: column 'text' has a cell of 10,485,\d+ bytes",
    }
    for kind, refusal in refusals.items():
        with line.attempt(f"check, {kind}"):
            found = check(texts_job(tmp_path / kind, files[kind], kind))
            assert found.exit_code == 2
            assert re.search(refusal, found.output), found.output
    yaml = texts_job(tmp_path / "tfrecord", files["tfrecord"], "tfrecord")
    with line.attempt("check, tfrecord"):
        found = check(yaml)
        assert found.exit_code == 0, found.output
        assert "It can run." in found.output
    if times(0, 1):
        with line.attempt("run, tfrecord"):
            code, _, said = measured(yaml)
            assert code == 0, said


def test_damaged_rows(tmp_path: Path, drill: Any, times: Callable[[int, int], int]) -> None:
    """A bit that has changed anywhere, or a file that was cut anywhere, is found before a run."""
    line, rng = drill("damaged TFRecords"), random.Random(5)
    whole = write(tmp_path / "whole.tfrecord", [*rows(200)]).read_bytes()
    assert (
        check(texts_job(tmp_path / "whole", tmp_path / "whole.tfrecord", "tfrecord")).exit_code == 0
    )
    ends = set(itertools.accumulate(len(record(*row)) for row in rows(200)))
    for number in range(times(20, 500)):
        packed = number % 2 == 1
        file = tmp_path / f"data.tfrecord{'.gz' if packed else ''}"
        content = bytearray(gzip.compress(whole, mtime=0) if packed else whole)
        place = rng.randrange(10, len(content))  # of a gzip file's head not all is read
        place += place in ends  # where a record ends, a file may end
        if number % 4 < 2:
            content[place] ^= 1 << rng.randrange(8)
        else:
            del content[place:]
        file.write_bytes(content)
        with line.attempt(f"{file.name}, number {number}, byte {place}"):
            found = check(texts_job(tmp_path / "job", file, "tfrecord"))
            assert found.exit_code == 2 and isinstance(found.exception, SystemExit)
            assert re.search(rf"{file.name}(, row \d+)?: .*(damaged|cut off|not a )", found.output)


def test_damaged_checkpoints(
    tmp_path: Path,
    drill: Any,
    times: Callable[[int, int], int],
    make_bert: Callable[..., Path],
) -> None:
    """A vocabulary or weights that were cut anywhere, and weights that are no numbers."""
    line, rng = drill("damaged checkpoints"), random.Random(6)
    file = write(tmp_path / "data.csv", [*rows(200)])
    folder = make_bert(tmp_path / "bert")
    model = f"{{family: bert, start: {folder}, sequence_length: 16}}"
    yaml = job(tmp_path / "job", TEXTS.format(kind="csv", file=file), model)
    assert check(yaml).exit_code == 0
    vocabulary, weights = folder / "vocab.txt", folder / "model.safetensors"
    for number in range(times(12, 300)):
        damaged = (vocabulary, weights, weights)[number % 3]
        whole = damaged.read_bytes()
        if number % 3 < 2:
            content = whole[: rng.randrange(0, len(whole) - 1)]  # the last byte may be a line's end
        else:
            place = len(whole) - 4 * rng.randrange(1, len(whole) // 8)
            content = whole[:place] + struct.pack("<f", float("nan")) + whole[place + 4 :]
        damaged.write_bytes(content)
        with line.attempt(f"{damaged.name}, number {number}, {len(content)} of {len(whole)} bytes"):
            found = check(yaml)
            assert found.exit_code == 2 and isinstance(found.exception, SystemExit)
            assert damaged.name in found.output and "Traceback" not in found.output
        damaged.write_bytes(whole)
