"""Files from strangers: no code of theirs runs, nothing leaves its folder, no memory is filled.

Whatever bytes lie there, the tools give a right result or one of our errors. What a drill found is
tested beside the module that it was mended in.
"""

import ast
import gzip
import importlib.util
import io
import json
import os
import pickle
import random
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from espalier import Config, ConfigError, DataError, EspalierError
from espalier.components.faults import Faults, Unreadable
from espalier.components.image_example_gen import idx
from espalier.components.image_example_gen.listing import list_pictures
from espalier.components.image_example_gen.picture import inspect
from espalier.components.pusher.card import _cell
from espalier.pipeline import collecting, page, preflight, versions
from espalier.pipeline.config import load_section
from espalier.pipeline.init import propose
from espalier.pipeline.row_examples import example
from espalier.pipeline.tfrecord import masked_crc32c
from espalier.trainer import checkpoints, keras_weights
from espalier.trainer.compression.settings import Compress
from espalier.trainer.families import bert
from espalier.trainer.safetensors_file import read_header, read_tensor

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("components", "kubeflow", "pipeline", "serving", "trainer", "docs", ".")
    for path in sorted((ROOT / folder).glob("*.py" if folder == "." else "**/*.py"))
]
Drills = Callable[[str], Any]
Times = Callable[[int, int], int]


# --- bytes of any kind --------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, cut, doubled, or set to what numbers break at."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(out) + 1) if rng.random() < 0.5 else rng.randrange(64)
        how = rng.randrange(6)
        if how == 0:
            out[place : place + 1] = rng.randbytes(1)
        elif how == 1:
            del out[place : place + rng.randrange(1, 40)]
        elif how == 2:
            out[place:place] = rng.randbytes(rng.randrange(1, 9))
        elif how == 3:
            numbers = (b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"9" * 9, b"\0\1")
            out[place : place + 4] = rng.choice(numbers)
        elif how == 4:
            del out[place:]
        else:
            out[place:place] = out[: rng.randrange(1, 200)]
    return bytes(out)


def picture(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (9, 12, 3), np.uint8)
    out, image = io.BytesIO(), Image.fromarray(pixels)
    turned = image.getexif()
    turned[0x112] = 6
    image.save(out, kind, **({"exif": turned} if kind in ("PNG", "JPEG") else {}))
    return out.getvalue()


def record(data: bytes) -> bytes:
    """One record of a TFRecord file."""
    length = struct.pack("<Q", len(data))
    parts = (length, struct.pack("<I", masked_crc32c(length)))
    return b"".join((*parts, data, struct.pack("<I", masked_crc32c(data))))


def row(number: int) -> bytes:
    """A tf.train.Example of a text and a label."""
    one = {
        "text": b"\n\x0a\n\x08a text %d" % (number % 10),
        "label": b"\n\x03\n\x01%c" % b"ab"[number % 2],
    }
    return example(one)


def table(folder: Path) -> bytes:
    rows = {"text": [f"the {n} text" for n in range(40)], "label": ["a", "b"] * 20}
    pq.write_table(pa.table(rows), folder / "whole.parquet")
    return (folder / "whole.parquet").read_bytes()


def tensors() -> bytes:
    """A safetensors file of two tensors."""
    entry = '{"dtype": "%s", "shape": [%s], "data_offsets": [%d, %d]}'
    one, two = entry % ("F32", "2, 3", 0, 24), entry % ("BF16", "4", 24, 32)
    head = f'{{"one": {one}, "two": {two}}}'.encode()
    return struct.pack("<Q", len(head)) + head + bytes(32)


def weights(folder: Path, suffix: str) -> bytes:
    """A small file of Keras' weights, h5 or keras."""
    file = folder / "whole.h5"
    with h5py.File(file, "w") as root:
        if suffix == ".keras":
            root["layers/dense/vars/0"] = np.ones((3, 2), np.float32)
        else:
            root["dense/kernel"] = np.ones((3, 2), np.float32)
            root.attrs["layer_names"] = [b"dense"]
            root["dense"].attrs["weight_names"] = [b"kernel"]
    if suffix == ".h5":
        return file.read_bytes()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("config.json", '{"config": {"layers": [{"class_name": "Dense"}]}}')
        archive.write(file, "model.weights.h5")
    return out.getvalue()


JOB = """\
name: a
data: {csv: x.csv, text: t, label: l}
model: {family: bert, start: tiny}
evaluate: {at_least: {accuracy: 0.5}, slices: [a, b]}
sweep: &s {train.seed: [1, 2, 3]}
push: {to: m}
"""


def formats(folder: Path, small_bert: Path) -> dict[str, tuple[bytes, str, Callable[[Path], Any]]]:
    """By name: a sound file, how its name ends, and what reads it."""
    rows = "".join(f'"the {n}, text",{"ab"[n % 2]},{n}\n' for n in range(40))
    checkpoint = folder / "bert"
    shutil.copytree(small_bert, checkpoint)
    numbers = struct.pack(">4I", 0x803, 3, 4, 5) + bytes(60)

    def headers(file: Path) -> None:
        for one in list(read_header(file).values())[:3]:
            if one.dtype in ("F32", "F16", "BF16", "F64"):
                read_tensor("x", one)

    def in_checkpoint(file: Path) -> None:
        shutil.copy(file, checkpoint / file.name.removeprefix("x-"))
        bert.check(bert.Settings(start=str(checkpoint), sequence_length=16))

    def check(kind: str) -> Callable[[Path], Any]:
        look = getattr(preflight, f"check_{kind}")
        return lambda file: look({"all": [file]}, ["text"], "label")

    def read_idx(file: Path) -> None:
        idx.forget()
        idx.load(file, Faults())

    found = {
        "yaml": (JOB.encode(), "x.yaml", Config.load),
        "recipe": (b"compress:\n  steps: [{quantize: {}}]\n", "x.yaml",
                   lambda file: load_section(file, "compress", Compress)),
        "safetensors": (tensors(), "x.safetensors", headers),
        "config.json": ((checkpoint / "config.json").read_bytes(), "x-config.json", in_checkpoint),
        "h5": (weights(folder, ".h5"), "x.h5", keras_weights.read),
        "keras": (weights(folder, ".keras"), "x.keras", keras_weights.read),
        "idx": (numbers, "x-idx3", read_idx),
        "idx.gz": (gzip.compress(numbers), "x-idx3.gz", read_idx),
        "csv": (f"text,label,n\n{rows}".encode(), "x.csv", check("csv")),
        "csv, init": (f"text,label,n\n{rows}".encode(), "x.csv", propose),
        "tfrecord": (b"".join(record(row(n)) for n in range(30)), "x.tfrecord", check("tfrecord")),
        "parquet": (table(folder), "x.parquet", check("parquet")),
        **{kind: (picture(kind), "x", lambda file: inspect(file.read_bytes()))
           for kind in ("PNG", "JPEG", "GIF", "BMP")},
        "vocabulary": ((checkpoint / "vocab.txt").read_bytes(), "x",
                       lambda file: checkpoints.read_vocabulary(file, ["[PAD]", "[UNK]"], 65)),
    }  # fmt: skip
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="the memory is bounded by Linux's own means")
def test_bytes_of_any_kind(
    drill: Drills, times: Times, tmp_path: Path, small_bert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import resource

    before, rng = resource.getrlimit(resource.RLIMIT_AS), random.Random(11)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 30), before[1]))
    try:
        for name, (sound, ending, read) in formats(tmp_path, small_bert).items():
            line = drill(f"bytes: {name}")
            file = tmp_path / ending
            for number in range(times(40, 2000)):
                file.write_bytes(mutated(sound, rng) if number else sound)
                refusals = (EspalierError, Unreadable) if number else ()
                with line.attempt(f"try {number}"), suppress(*refusals):
                    read(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        idx.forget()
    capfd.readouterr()  # what protobuf says of its own


# --- pickles ------------------------------------------------------------------------------------

# What unpickles, or runs, what it is given. Of ours, ingest.py alone: lists that it made itself,
# between the steps of one Beam pipeline in one process.
RUNS = re.compile(
    r"^(pickle|dill|cloudpickle|joblib|torch|marshal|shelve|jsonpickle)\.|^(eval|exec|compile)$"
    r"|\.load_model$|\.unsafe_load|\.full_load|^os\.(system|popen)$"
    r"|^(np|numpy)\.load$|\.read_pickle$|^shutil\.unpack_archive$|\.extractall$|\.enable_unsafe"
)
ALLOWED = {"components/image_example_gen/ingest.py": {"pickle.dumps", "pickle.loads"}}


def calls(file: Path) -> Iterable[tuple[str, ast.Call]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def test_no_module_runs_what_it_reads(drill: Drills) -> None:
    line = drill("no module unpickles or evaluates")
    for file in SOURCES:
        name = file.relative_to(ROOT).as_posix()
        with line.attempt(name):
            found = {call for call, _ in calls(file) if RUNS.search(call)}
            assert found <= ALLOWED.get(name, set())
            for call, node in calls(file):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                assert keywords.get("allow_pickle") != "True"
                assert keywords.get("shell") != "True"
                assert keywords.get("safe_mode") != "False"
                if call == "YAML":
                    assert keywords.get("typ", '"rt"').strip("'\"") in ("rt", "safe")


class Evil:
    """Unpickling it writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


def test_pickles_in_every_place(drill: Drills, tmp_path: Path, small_bert: Path) -> None:
    line = drill("a pickle in place of a file")
    marker, bad = tmp_path / "ran", pickle.dumps(Evil(tmp_path / "ran"))
    array = io.BytesIO()
    np.save(array, np.array([Evil(marker)], object), allow_pickle=True)
    readers = formats(tmp_path, small_bert)
    for content, what in ((bad, "pickle"), (array.getvalue(), "npy")):
        for name, (_, ending, read) in readers.items():
            with line.attempt(f"{what} as {name}"):
                (tmp_path / ending).write_bytes(content)
                with suppress(EspalierError, Unreadable):
                    read(tmp_path / ending)
                assert not marker.exists()
        folder = tmp_path / what
        shutil.copytree(small_bert, folder)
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(content)
        with line.attempt(f"{what} as pytorch_model.bin"):
            with pytest.raises(ConfigError, match="a pickle can run any code"):
                bert.check(bert.Settings(start=str(folder), sequence_length=16))
            assert not marker.exists()
    pickle.loads(bad).close()
    assert marker.exists()  # the pickle itself is a good one


# --- places -------------------------------------------------------------------------------------

_found = importlib.util.spec_from_file_location("simulated", ROOT / "tests/pipeline/simulated.py")
assert _found and _found.loader
simulated = importlib.util.module_from_spec(_found)
_found.loader.exec_module(simulated)

ELSEWHERE = (
    "../../secret",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\0b",
    "a\nb",
    "x" * 5000,
    "~root",
    "1/../..",
)


def test_names_that_lead_elsewhere(drill: Drills, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "saved_model.pb").write_text("mine")
    home = tmp_path / "job" / "in"
    home.mkdir(parents=True)
    job = simulated.Line(home)
    job.run()
    job.run(data=1)
    line = drill("names that lead elsewhere")

    def fails(what: str, call: Callable[[], Any]) -> None:
        with line.attempt(what):
            before = sorted(map(str, tmp_path.rglob("*")))
            with pytest.raises(EspalierError) as caught:
                call()
            assert len(str(caught.value)) < 7000
            marks = {str(job.home / name) for name in (".lock", ".rollback.lock", "format")}
            assert {*before} >= {*map(str, tmp_path.rglob("*"))} - marks
            assert (secret / "saved_model.pb").exists()

    for name in ELSEWHERE:
        shown, config, quoted = repr(name[:20]), job.config, json.dumps(name)
        fails(f"rollback {shown}", partial(versions.rollback, config, name))
        fails(f"rm {shown}", partial(versions.remove, config, name))
        if name:  # of which every run's id begins
            fails(f"gc --pin {shown}", partial(collecting.collect, config, pin=[name]))
        fails(f"name: {shown}", partial(load, tmp_path, f"name: {quoted}\n{JOB_REST}"))
    for name in (r"a\0b", r"a\e[2J"):
        for rest in (f'push: {{to: "{name}"}}', f'push: {{to: m}}\nruns: "{name}"'):
            fails(rest, partial(load, tmp_path, f"name: a\n{JOB_DATA}{rest}\n"))


JOB_DATA = "data: {csv: x.csv, text: t, label: l}\nmodel: {family: bert, start: tiny}\n"
JOB_REST = JOB_DATA + "push: {to: m}\n"


def load(folder: Path, text: str) -> Config:
    file = folder / "job.yaml"
    file.write_text(text, encoding="utf-8")
    try:
        return Config.load(file)
    finally:
        file.unlink()


def test_a_folder_of_pictures_with_links_and_devices(drill: Drills, tmp_path: Path) -> None:
    line = drill("links and devices among pictures")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(picture("PNG") + bytes([len(name)]))
    places: Mapping[str, Callable[[Path], None]] = {
        "a link to a device": lambda place: place.symlink_to("/dev/zero"),
        "a pipe": os.mkfifo,
        "a link to itself": lambda place: place.symlink_to(place),
        "a link to its folder": lambda place: place.symlink_to(place.parent),
        "a link to what is no picture": lambda place: place.symlink_to("/etc/passwd"),
        "a name with a line's end": lambda place: place.with_name("a\n.png").symlink_to("/nowhere"),
    }
    for what, make in places.items():
        with line.attempt(what), suppress(DataError):
            make(tmp_path / "cat" / "2.png")
            faults = Faults()
            found = list_pictures({"all": str(tmp_path)}, label="label", multi_label=False,
                                  skip_missing=False, faults=faults, warnings=[])  # fmt: skip
            for one in found.get("all", ()):
                assert one.path.endswith("1.png") or inspect(Path(one.file).read_bytes()).fault
            faults.raise_if_any()
        for place in (tmp_path / "cat").glob("*"):
            if place.name != "1.png":
                place.unlink()


# --- bombs --------------------------------------------------------------------------------------


def png(width: int, height: int) -> bytes:
    """A PNG of black pixels, which are packed a thousand to one."""
    packer = zlib.compressobj(9)
    rows = bytes(1 + width // 8)
    data = b"".join(packer.compress(rows) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )


def bombs(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any], str]]:
    """By name: a small file of large content, what reads it, and what must be said."""

    def file(name: str, content: bytes) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    def look(place: Path) -> None:
        if fault := inspect(place.read_bytes()).reason:
            raise DataError(fault)

    def read_idx(place: Path) -> None:
        faults = Faults()
        with suppress(Unreadable):
            idx.load(place, faults)
        faults.raise_if_any()

    def csv(place: Path) -> None:
        preflight.check_csv({"all": [place]}, ["text"], "label")

    def parquet(place: Path) -> None:
        preflight.check_parquet({"all": [place]}, ["text"], "label")

    grey = struct.pack(">4I", 0x803, 60_000, 28, 28)
    once = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int32()), ["x" * (8 << 20)])
    pq.write_table(pa.table({"text": once, "label": ["a", "b"] * 2048}), folder / "a.parquet")
    size = struct.pack("<HH", 65_000, 65_000)
    return {
        "a PNG of 50,000 x 50,000": (file("a.png", png(50_000, 50_000)), look, "more than 50"),
        "a GIF of 65,000 x 65,000": (
            file("a.gif", b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"\x2c" + bytes(4) + size +
                 b"\0\2\2\x4c\1\0\x3b"), look, "more than 50"),
        "gzip for pictures": (
            file("images-idx3-ubyte.gz", gzip.compress(grey + bytes(200 << 20), 6)), read_idx,
            "more bytes"),
        "Parquet": (folder / "a.parquet", parquet, "a cell of 8,388,608 bytes"),
        "a quote without end": (
            file("quote.csv", b'text,label\n"' + b"a,b\n" * (4 << 20)), csv, "unbalanced quotes"),
        "a million columns": (
            file("wide.csv", b",".join(b"c%d" % n for n in range(1_000_000)) + b"\n"), csv,
            "columns"),
        "NULs": (file("nul.csv", b"text,label\n" + bytes(8 << 20)), csv, "longer than"),
        "UTF-16": (file("wide16.csv", "text,label\na,b\n".encode("utf-16")), csv, "UTF-16"),
    }  # fmt: skip


def test_small_files_of_large_content(drill: Drills, tmp_path: Path) -> None:
    import tracemalloc

    line = drill("bombs")
    for name, (file, read, words) in bombs(tmp_path).items():
        with line.attempt(name):
            tracemalloc.start()
            try:
                with pytest.raises(DataError, match=words):
                    read(file)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert peak < (300 << 20), f"{peak:,} bytes"
            idx.forget()


# --- texts that pages, terminals and Markdown would obey -----------------------------------------

SCRIPTS = (
    "<script>document.title='ran'</script>",
    "<img src=x onerror=\"document.title='ran'\">",
    "\"><svg onload=document.title='ran'>",
    "' onmouseover='document.title=1' x='",
    "</pre></title></style><script>document.title='ran'</script>",
    "{{ 7 * 191 }}{% for a in b %}",
    "javascript:document.title='ran'",
    "<!--", "]]>", "&lt;script&gt;",
)  # fmt: skip
STEERS = "\x1b]52;c;aGk=\x07\x1b]8;;http://elsewhere\x1b\\x\x1b[2J\x9b31m\u202egnp.exe\u2066"


def hostile_page() -> str:
    text = " ".join(SCRIPTS) + STEERS
    told = {"words": [(text, 0.5), (SCRIPTS[0], -0.5)], "image": ""}
    del told["image"]
    blocks = [
        page.text(text), page.problem(text), page.folded(text, text, opened=True),
        page.table(text, [text, text], [[text, page.bar(text, 0.5)],
                                        [page.why(told), {"text": text, "shade": 50}]]),
        page.why(told),
    ]  # fmt: skip
    return page.render(text, text, "good", text, [page.Section(text, blocks)])


def test_a_page_runs_nothing(drill: Drills, tmp_path: Path) -> None:
    line, html = drill("scripts in a page"), hostile_page()
    with line.attempt("escaped"):
        assert not re.search(r"<(script|svg onload|img src=x)", html)
        assert "1337" not in html
        assert not {*"\x1b\x07\x9b\u202e\u2066"} & {*html}
    if browser := shutil.which("chromium"):
        file = tmp_path / "page.html"
        # Without the policy, too: the escaping alone must do.
        for what, text in (
            ("as it is", html),
            ("alone", re.sub(r"<meta http-equiv.*?>", "", html)),
        ):
            with line.attempt(f"in chromium, {what}"):
                file.write_text(text, encoding="utf-8")
                command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
                           "--no-first-run", "--disable-background-networking",
                           f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=500",
                           "--dump-dom", file.as_uri()]  # fmt: skip
                seen = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
                title = re.search(r"<title>(.*?)</title>", seen, re.S)
                assert title
                assert "alert" not in seen
                assert title[1].startswith("&lt;script&gt;document.title='ran'")


def test_a_cell_of_a_model_card_is_no_markup(drill: Drills) -> None:
    line = drill("Markdown in a model card")
    for text in ("[a](javascript:b)", "![a](http://b)", "| a |", "`a`", "**a**", STEERS, "a\n# b"):
        with line.attempt(text):
            cell = _cell(text)
            assert not re.search(r"(?<!\\)[\[\]|`*_]", cell)
            assert "\n" not in cell
            assert not {*"\x1b\x07\x9b\u202e"} & {*cell}


@pytest.mark.parametrize("command", [["init", "data.csv", "-o", "out.yaml"], ["check", "job.yaml"]])
def test_the_terminal_is_not_steered(drill: Drills, tmp_path: Path, command: list[str]) -> None:
    label = f"{STEERS}[/][link=http://elsewhere]".replace('"', "")
    # One label only is a fault, and is named.
    same = command[0] == "check"
    rows = "".join(
        f'"some words {n} {STEERS}","{label}{0 if same else n % 2}"\n' for n in range(60)
    )
    (tmp_path / "data.csv").write_text(f"text,label\n{rows}", encoding="utf-8")
    data = "data: {csv: data.csv, text: text, label: label}"
    job = f"name: a\n{data}\n{JOB_REST[JOB_REST.index('model:') :]}"
    (tmp_path / "job.yaml").write_text(job, encoding="utf-8")
    line = drill(f"escapes on the terminal: {command[0]}")
    with line.attempt(command[0]):
        done = subprocess.run([sys.executable, "-m", "espalier.cli", *command], cwd=tmp_path,
                              capture_output=True, text=True, timeout=300)  # fmt: skip
        said = done.stdout + done.stderr
        assert done.returncode in (0, 1, 2), said
        assert "Traceback" not in said
        assert not {*"\x1b\x07\x9b\u202e\u2066"} & {*said}
        if (written := tmp_path / "out.yaml").exists():
            said = written.read_text(encoding="utf-8")
            assert not {*"\x1b\x07\x9b\u202e"} & {*said}
        assert "]52;c;aGk=" in said, "what was to be shown was not"
