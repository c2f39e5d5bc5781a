"""Pictures: what is judged fit is what TensorFlow reads; every layout is listed, every fault said;
each picture comes out once, in its split, byte for byte."""

import gzip
import hashlib
import io
import itertools
import json
import os
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from apache_beam.pvalue import TaggedOutput
from PIL import Image, ImageOps
from tfx.components.example_gen import driver
from tfx.types import artifact_utils, standard_artifacts

from espalier import ConfigError, DataError
from espalier.components.faults import Faults
from espalier.components.image_example_gen import idx, ingest
from espalier.components.image_example_gen.component import ImageExampleGen
from espalier.components.image_example_gen.executor import Executor
from espalier.components.image_example_gen.listing import list_pictures, output_splits
from espalier.components.image_example_gen.picture import MAX_PIXELS, NOTES, inspect
from espalier.components.image_example_gen.sample import Picture, key_of, look, read
from espalier.components.row_split.rule import END, Cuts, Rule
from espalier.pipeline.image_rows import check_images

SHARED = Path(__file__).parents[3] / "shared" / "data"
RNG = np.random.default_rng(0)


def pixels(height: int = 24, width: int = 32, *more: int) -> np.ndarray:
    """Random ones; every call gives others."""
    return RNG.integers(0, 255, (height, width, *more), dtype=np.uint8)


RGB = Image.fromarray(pixels(24, 32, 3))
OTHER = ImageOps.mirror(RGB)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    """A picture as a file's bytes."""
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def turned(orientation: int) -> Image.Exif:
    """EXIF data that names an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def top_down(bmp: bytes) -> bytes:
    """A BMP whose first row is the uppermost: its height is negative."""
    (height,) = struct.unpack_from("<i", bmp, 22)
    return bmp[:22] + struct.pack("<i", -height) + bmp[26:]


# --- one picture ----------------------------------------------------------------------------

GOOD: dict[str, bytes] = {
    **{f"{mode}.png": encoded(RGB.convert(mode), "PNG") for mode in ("1", "L", "LA", "RGB", "P")},
    "rgba.png": encoded(RGB.convert("RGBA"), "PNG"),
    "palette with a transparent colour.png": encoded(RGB.convert("P"), "PNG", transparency=3),
    "grey with a transparent shade.png": encoded(RGB.convert("L"), "PNG", transparency=3),
    "4 bits.png": encoded(RGB.quantize(8), "PNG", bits=4),
    "animated.png": encoded(RGB, "PNG", save_all=True, append_images=[OTHER]),
    "exif.png": encoded(RGB, "PNG", exif=turned(3)),
    "junk behind.png": encoded(RGB, "PNG") + b"junk",
    "rgb.jpg": encoded(RGB, "JPEG"),
    "grey.jpg": encoded(RGB.convert("L"), "JPEG"),
    "progressive.jpg": encoded(RGB, "JPEG", progressive=True),
    "upright.jpg": encoded(RGB, "JPEG", exif=turned(1)),
    "turned.jpg": encoded(RGB, "JPEG", exif=turned(6)),
    "padded.jpg": encoded(RGB, "JPEG") + bytes(500),
    "two in one.jpg": encoded(RGB, "MPO", save_all=True, append_images=[OTHER]),
    "static.gif": encoded(RGB.convert("P"), "GIF"),
    "grey.gif": encoded(RGB.convert("L"), "GIF"),
    "rgba.gif": encoded(RGB.convert("RGBA"), "GIF"),
    "animated.gif": encoded(RGB, "GIF", save_all=True, append_images=[OTHER]),
    "rgb.bmp": encoded(RGB, "BMP"),
    "grey.bmp": encoded(RGB.convert("L"), "BMP"),
    "rgba.bmp": encoded(RGB.convert("RGBA"), "BMP"),
    "odd width.bmp": encoded(RGB.resize((31, 23)), "BMP"),
    "top down.bmp": top_down(encoded(RGB, "BMP")),
}

BIG_JPEG = encoded(Image.fromarray(pixels(90, 90, 3)), "JPEG", exif=turned(1))
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "an empty file"),
    "text": (b"hello, this is no picture", "text, not a JPEG, PNG, GIF or BMP"),
    "text cut in a letter": ("é".encode() * 256 + b"x", "text, not a"),
    "html": (b"<!DOCTYPE html><html></html>", "HTML, not a"),
    "svg": (b"<?xml?><svg xmlns='x'/>", "SVG, not a"),
    "noise": (bytes(range(128, 256)), "not a JPEG, PNG, GIF or BMP"),
    "webp": (encoded(RGB, "WEBP"), "WebP, not a"),
    "tiff": (encoded(RGB, "TIFF"), "TIFF, not a"),
    "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC, not a"),
    "start of a jpeg": (b"\xff\xd8\xff\xe0", "damaged or cut short (no end marker)"),
    "half a jpeg": (BIG_JPEG[: len(BIG_JPEG) // 2], "damaged or cut short (no end marker)"),
    "jpeg without its end": (BIG_JPEG[:-2], "damaged or cut short (no end marker)"),
    "jpeg filled with zeros": (
        BIG_JPEG[: len(BIG_JPEG) // 2] + bytes(len(BIG_JPEG) // 2),
        "damaged or cut short (no end marker)",
    ),
    "cmyk": (encoded(RGB.convert("CMYK"), "JPEG"), "a CMYK JPEG"),
    "arithmetic": (
        encoded(RGB, "JPEG").replace(b"\xff\xc0", b"\xff\xc9"),
        "a JPEG of a kind that TensorFlow does not read",
    ),
    "half a png": (encoded(RGB, "PNG")[:200], "damaged or cut short (no end chunk)"),
    "png without its end": (encoded(RGB, "PNG")[:-12], "damaged or cut short (no end chunk)"),
    "png with a wrong byte": (
        encoded(RGB, "PNG")[:99] + b"\0\0" + encoded(RGB, "PNG")[101:],
        "damaged or cut short (wrong checksum at byte 33)",
    ),
    "16 bits": (
        encoded(Image.fromarray(pixels().astype(np.uint16) * 9), "PNG"),
        "a PNG of 16 bits a channel, of which TensorFlow would keep the high byte only",
    ),
    "half a gif": (encoded(RGB, "GIF")[:900], "damaged or cut short (no end marker)"),
    "head of a gif": (encoded(RGB, "GIF")[:9], "damaged or cut short (no header)"),
    "half a bmp": (encoded(RGB, "BMP")[:999], "damaged or cut short (999 of 2,358 bytes)"),
    "bmp and more": (encoded(RGB, "BMP") + b"\0\0", "a BMP with bytes behind its pixels"),
    "palette bmp": (encoded(RGB.convert("P"), "BMP"), "a palette BMP"),
    "1 bit bmp": (encoded(RGB.convert("1"), "BMP"), "a BMP of a kind that TensorFlow does not"),
    "huge": (encoded(Image.new("1", (20_000, 20_000)), "PNG"), f"more than {MAX_PIXELS:,} pixels"),
    "long": (encoded(Image.new("1", (70_000, 1)), "PNG"), "or than 65,500 on a side: 70,000 x 1"),
}


def decoded(data: bytes) -> np.ndarray:
    """As the preprocessing and serving graphs decode it, RGB."""
    channels = 0 if data.startswith(b"BM") else 3
    found = tf.io.decode_image(data, channels=channels, expand_animations=False).numpy()
    return np.repeat(found, 3, -1) if found.shape[-1] == 1 else found[..., :3]


@pytest.mark.parametrize("name", GOOD)
def test_what_passes_is_read_by_tensorflow_as_it_is_meant(name: str) -> None:
    seen = inspect(GOOD[name])
    assert not seen.fault
    image = Image.open(io.BytesIO(GOOD[name]))
    assert (seen.width, seen.height) == image.size
    assert seen.grey == (("grey" in name and "gif" not in name) or name[0] in "1L")
    assert seen.format == {"JPG": "JPEG"}.get(name[-3:].upper(), name[-3:].upper())
    wrong = np.abs(decoded(GOOD[name]).astype(int) - np.asarray(image.convert("RGB")))
    assert wrong.max() <= (0 if "jpg" not in name else 6)


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_pass_says_why(name: str) -> None:
    data, reason = BAD[name]
    seen = inspect(data)
    assert reason in seen.reason
    assert seen.advice.endswith((".", ")"))


def test_notes() -> None:
    noted = {name: seen.notes for name, data in GOOD.items() if (seen := inspect(data)).notes}
    palette, animated, turn = NOTES
    assert noted == {
        **dict.fromkeys(("P.png", "palette with a transparent colour.png"), (palette,)),
        "4 bits.png": (palette,),
        **dict.fromkeys(("animated.png", "animated.gif"), (animated,)),
        **dict.fromkeys(("exif.png", "turned.jpg"), (turn,)),
    }
    assert not NOTES[palette]


@pytest.mark.parametrize(
    "name", ["progressive.jpg", "rgb.jpg", "RGB.png", "animated.gif", "rgb.bmp"]
)
def test_no_cut_picture_passes(name: str) -> None:
    data = GOOD[name]
    assert [n for n in range(0, len(data) - 1, 5) if not inspect(data[:n]).fault] == []


def test_a_wrong_byte_in_a_jpeg_is_seldom_more_than_wrong_pixels() -> None:
    # The limit of what can be known without decoding; damage in a header's tables is the rest.
    data, refused = GOOD["rgb.jpg"], 0
    scan = data.index(b"\xff\xda") + 14
    for place in range(scan, len(data) - 2, 7):
        damaged = data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        if not inspect(damaged).fault:
            try:
                decoded(damaged)
            except tf.errors.InvalidArgumentError:
                refused += 1
    assert refused == 0


# --- listing --------------------------------------------------------------------------------


def put(root: Path, files: Mapping[str, bytes] | Iterable[str]) -> Path:
    """Write files below a folder; those without content are pictures, each of its own."""
    contents = files if isinstance(files, Mapping) else dict.fromkeys(files, b"")
    for name, content in contents.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content or encoded(Image.fromarray(pixels(4, 5)), "PNG"))
    return root


CATS = ("cat/1.jpg", "cat/2.png", "dog/1.jpg")


class Listed:
    """What `list_pictures` finds and says."""

    def __init__(self, sources: Path | Mapping[str, Path], multi_label: bool = False, **more: Any):
        named = {"all": sources} if isinstance(sources, Path) else sources
        self.sources = {split: str(path) for split, path in named.items()}
        self.faults, self.warnings = Faults(), []
        self.found = list_pictures(
            self.sources,
            label=more.get("label", "label"),
            multi_label=multi_label,
            skip_missing=more.get("skip_missing", False),
            faults=self.faults,
            warnings=self.warnings,
        )

    @property
    def paths(self) -> dict[str, list[str]]:
        return {split: [one.path for one in pictures] for split, pictures in self.found.items()}

    @property
    def message(self) -> str:
        with pytest.raises(DataError) as caught:
            self.faults.raise_if_any()
        return str(caught.value)


def test_class_folders(tmp_path: Path) -> None:
    put(tmp_path, [*CATS, "cat/more/deep/3.GIF", "dog/.hidden.jpg", ".git/x.jpg", "katze_ü/é.bmp"])
    put(tmp_path, {"README.txt": b"x", "dog/Thumbs.db": b"x", "dog/note.txt": b"x"})
    listed = Listed(tmp_path)
    assert listed.paths == {
        "all": ["cat/1.jpg", "cat/2.png", "cat/more/deep/3.GIF", "dog/1.jpg", "katze_ü/é.bmp"]
    }
    one = listed.found["all"][2]
    assert one == Picture(
        "cat/more/deep/3.GIF", str(tmp_path / "cat/more/deep/3.GIF"), None, ("cat",)
    )
    assert read(one) == Path(one.file).read_bytes()
    (warning,) = listed.warnings
    assert "3 files left alone, not being named as pictures" in warning
    assert ".db" in warning and ".txt beside the class folders" in warning
    assert not listed.faults
    assert output_splits(listed.sources) == ["train", "eval", "test"]


@pytest.mark.parametrize(
    ("names", "splits", "final"),
    [
        (("train", "test"), ["train", "test"], ["train", "eval", "test"]),
        (("training", "val"), ["train", "eval"], ["train", "eval"]),
        (("train", "validation", "test"), ["train", "eval", "test"], ["train", "eval", "test"]),
    ],
)
def test_split_folders(
    tmp_path: Path, names: Iterable[str], splits: list[str], final: list[str]
) -> None:
    put(tmp_path, [f"{name}/{file}" for name in names for file in CATS])
    listed = Listed(tmp_path)
    assert list(listed.paths) == splits
    assert listed.paths["train"] == [f"{next(iter(names))}/{file}" for file in CATS]
    assert {one.labels for one in listed.found["train"]} == {("cat",), ("dog",)}
    assert not listed.faults
    assert output_splits(listed.sources) == final


def test_a_class_may_be_named_like_a_split(tmp_path: Path) -> None:
    listed = Listed(put(tmp_path, ["train/1.jpg", "bus/1.jpg"]))
    assert listed.paths == {"all": ["bus/1.jpg", "train/1.jpg"]}


def test_a_folder_per_split(tmp_path: Path) -> None:
    put(tmp_path, [f"{split}/{file}" for split in "ab" for file in CATS])
    listed = Listed({"train": tmp_path / "a", "eval": tmp_path / "b"})
    assert listed.paths == {"train": list(CATS), "eval": list(CATS)}
    assert output_splits(listed.sources) == ["train", "eval"]


def test_links_are_followed(tmp_path: Path) -> None:
    put(tmp_path, [*(f"a/{file}" for file in CATS), "elsewhere/9.jpg"])
    (tmp_path / "a" / "cat" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "9.jpg")
    (tmp_path / "a" / "dog" / "more").symlink_to(tmp_path / "elsewhere")
    listed = Listed(tmp_path / "a")
    assert listed.paths["all"][2:] == ["cat/link.jpg", "dog/1.jpg", "dog/more/9.jpg"]


def loop(root: Path) -> None:
    (root / "cat" / "again").symlink_to(root)


def dead_link(root: Path) -> None:
    (root / "cat" / "9.jpg").symlink_to(root / "nothing.jpg")


def link_to_itself(root: Path) -> None:
    (root / "cat" / "9.jpg").symlink_to(root / "cat" / "9.jpg")


def not_utf8(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/cat/caf\xe9.jpg")).write_bytes(b"x")


def empty_class(root: Path) -> None:
    put(root, {"fox/readme.txt": b"x"})


FOLDER_FAULTS: dict[str, tuple[Iterable[str], Callable[[Path], None] | None, tuple[str, ...]]] = {
    "nothing": ((), None, ("no picture (.jpg", "Expected one folder a class")),
    "no classes": (("1.jpg", "2.jpg"), None, ("2 pictures without a class folder", "1.jpg")),
    "one class": (("cat/1.jpg",), None, ("one class only, 'cat'", "two classes at least")),
    "empty class": (CATS, empty_class, ("fox: a class folder without pictures", "readme.txt")),
    "wrapped": (
        [f"images/{file}" for file in CATS],
        None,
        ("one folder, images, which holds the class folders (cat, dog)", "Did you mean {}/images?"),
    ),
    "wrapped splits": (
        [f"x/{split}/{file}" for split in ("train", "test") for file in CATS],
        None,
        ("one folder, x, which holds", "Did you mean {}/x?"),
    ),
    "inside out": (
        ["cat/train/1.jpg", "cat/test/2.jpg", "dog/train/1.jpg", "dog/test/2.jpg"],
        None,
        ("class folders that hold split folders (cat/", "train/cat/1.jpg"),
    ),
    "loop": (CATS, loop, ("{}/cat/again: a link to a folder that it lies in",)),
    "dead link": (CATS, dead_link, ("{}/cat/9.jpg: a link that leads nowhere",)),
    "link to itself": (CATS, link_to_itself, ("{}/cat/9.jpg: a link that leads nowhere",)),
    "not UTF-8": (CATS, not_utf8, ("cat/caf\\xe9.jpg: a name that is not UTF-8",)),
    "line in a class": (
        (*CATS, "a\nb/1.jpg"),
        None,
        ("a\\nb: a class name longer than 200", "line"),
    ),
    "a stray folder": (
        ("train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg", "test/dog/1.jpg", "old/cat/1.jpg"),
        None,
        ("{}/old: neither train, eval nor test by its name", "beside test and train"),
    ),
    "a split twice": (
        [f"{split}/{file}" for split in ("train", "val", "dev") for file in CATS],
        None,
        ("two folders for eval: 'dev', 'val'",),
    ),
    "a class that train lacks": (
        ("train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg", "test/dogs/1.jpg"),
        None,
        ("test has the label 'dogs', and train has not", "Did you mean 'dog'?"),
    ),
    "an empty split": (
        ("train/cat/1.jpg", "train/dog/1.jpg", "test/.x/1.jpg"),
        None,
        ("{}/test: no picture",),
    ),
}


@pytest.mark.parametrize("name", FOLDER_FAULTS)
def test_folder_faults(tmp_path: Path, name: str) -> None:
    files, then, parts = FOLDER_FAULTS[name]
    put(tmp_path, files)
    if then:
        then(tmp_path)
    message = Listed(tmp_path).message
    for part in parts:
        assert part.format(tmp_path) in message
    assert len(message.splitlines()) == 1, "one fault, one sentence"


def test_a_class_that_test_lacks_is_a_doubt(tmp_path: Path) -> None:
    put(tmp_path, ["train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg", "test/cow/1.jpg"])
    put(tmp_path, ["train/cow/1.jpg"])
    (warning,) = Listed(tmp_path).warnings
    assert "test has no picture of 'dog'" in warning


def test_source_faults(tmp_path: Path) -> None:
    put(tmp_path, [f"train/{file}" for file in CATS])
    assert f"Did you mean {tmp_path}/train?" in Listed(tmp_path / "trian").message
    assert "a file, and not a CSV" in Listed(tmp_path / "train" / "cat" / "1.jpg").message
    both = Listed({"train": tmp_path / "train", "eval": tmp_path / "train"})
    assert "both train and eval" in both.message
    assert "Name a CSV" in Listed(tmp_path / "train", multi_label=True).message
    put(tmp_path, [f"test/{file}" for file in CATS])
    nested = Listed({"train": tmp_path, "eval": tmp_path / "test"})
    assert "named as train, and it holds folders for" in nested.message


# --- CSV ------------------------------------------------------------------------------------


def table(folder: Path, text: str | bytes, name: str = "labels.csv") -> Path:
    put(folder, ["a/1.jpg", "a/2.jpg", "b/ü.jpg"])
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_a_table(tmp_path: Path) -> None:
    rows = (
        "\ufeffFile,label,site\n"
        "a/1.jpg,x,north\n"
        '"./a/2.jpg"," y, z ",\n'
        "\n"
        f"{tmp_path}/b/u\u0308.jpg,x,south\n"  # decomposed, as macOS writes it
    )
    listed = Listed(table(tmp_path, rows))
    assert not listed.faults
    one, two, three = listed.found["all"]
    assert one == Picture("a/1.jpg", str(tmp_path / "a/1.jpg"), None, ("x",), (("site", "north"),))
    assert (two.path, two.labels, two.columns) == ("a/2.jpg", ("y, z",), (("site", ""),))
    assert three.path == three.file == f"{tmp_path}/b/ü.jpg"


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    file = table(tmp_path, "path,findings\na/1.jpg, x | y |x\na/2.jpg,\nb/ü.jpg,z\n")
    listed = Listed(file, multi_label=True, label="findings")
    assert [one.labels for one in listed.found["all"]] == [("x", "y"), (), ("z",)]
    single = Listed(table(tmp_path, "path,label\na/1.jpg,x|y\na/2.jpg,y\n"))
    (warning,) = single.warnings
    assert "1 label with a | in it" in warning and "multi_label: true" in warning


TABLE_FAULTS: dict[str, tuple[str | bytes, tuple[str, ...]]] = {
    "empty": ("", ("labels.csv: an empty file", "path,label")),
    "header alone": ("path,label\n", ("a header and no rows",)),
    "no path": ("paths,label\na/1.jpg,x\n", ("csv:1: no column of paths", "Rename 'paths'?")),
    "no label": (
        "path,Labels,age\na/1.jpg,x,3\n",
        ("csv:1: no column 'label'", "data.label: Labels?", "'age'"),
    ),
    "twice": ("path,label,a,a\na/1.jpg,x,,\n", ("csv:1: column 3, 'a': named twice",)),
    "taken": ("path,label,image\na/1.jpg,x,\n", ("csv:1: column 3, 'image': a name that",)),
    "nameless": ("path,label,\na/1.jpg,x,\n", ("csv:1: column 3, '': no name",)),
    "fields": ("path,label\na/1.jpg,x,y\n", ("csv:2: wrong number of fields: 3",)),
    "missing": (
        "path,label\na/1.jpg,x\na/3.jpg,x\na/4.jpg,y\n",
        (
            "csv:3: a picture that is not there: a/3.jpg (2 rows: lines 3, 4)",
            "Did you mean a/2.jpg?",
        ),
    ),
    "backslash": ("path,label\na\\1.jpg,x\n", ("not there: a\\1.jpg", "Write / between folders")),
    "folder": ("path,label\na,x\n", ("csv:2: a folder in place of a picture: a",)),
    "no path in a row": ("path,label\n,x\n", ("csv:2: empty path",)),
    "no label in a row": ("path,label\na/1.jpg, \n", ("csv:2: empty label in column 'label'",)),
    "same file": (
        "path,label\na/1.jpg,x\nb/ü.jpg,x\nb/../a/1.jpg,y\n",
        ("csv:4: a picture named before: b/../a/1.jpg, on line 2, too",),
    ),
    "long label": (f"path,label\na/1.jpg,{'x' * 201}\n", ("csv:2: a label longer than 200",)),
    "two lines": ('path,label\na/1.jpg,"x\ny"\n', ("csv:2: a label longer than 200",)),
    "latin-1": ("path,label\na/1.jpg,é\n".encode("latin-1"), ("csv:2: not UTF-8",)),
    "quote": ('path,label\na/1.jpg,"x\n', ("csv:2: not CSV: unexpected end of data",)),
    "line after a long row": (
        'path,label,note\na/1.jpg,x,"a\nb"\na/9.jpg,x,\n',
        ("csv:4: a picture that is not there",),
    ),
}


@pytest.mark.parametrize("name", TABLE_FAULTS)
def test_table_faults(tmp_path: Path, name: str) -> None:
    text, parts = TABLE_FAULTS[name]
    message = Listed(table(tmp_path, text)).message
    for part in parts:
        assert part in message
    assert len(message.splitlines()) == 1


def test_links_to_one_file_are_one_picture(tmp_path: Path) -> None:
    file = table(tmp_path, "path,label\na/1.jpg,x\na/link.jpg,y\na/hard.jpg,y\n")
    (tmp_path / "a" / "link.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    os.link(tmp_path / "a" / "1.jpg", tmp_path / "a" / "hard.jpg")
    message = Listed(file).message
    assert "csv:3: a picture named before: a/link.jpg, on line 2, too" in message
    assert "hard" not in message


def test_tables_of_one_set_have_the_same_columns(tmp_path: Path) -> None:
    train = table(tmp_path, "path,label,site\na/1.jpg,x,1\n")
    test = table(tmp_path, "path,label\na/2.jpg,x\n", "test.csv")
    message = Listed({"train": train, "eval": test}).message
    assert "test.csv:1: other columns than the file before it: 'path', 'label'" in message


# --- idx ------------------------------------------------------------------------------------


def as_idx(array: np.ndarray, packed: bool = False, kind: int = 8) -> bytes:
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = head + array.tobytes()
    return gzip.compress(data, 1) if packed else data


def put_idx(folder: Path, images: np.ndarray, labels: np.ndarray, name: str, packed: bool) -> None:
    put(folder, {f"{name}images-idx3-ubyte": as_idx(images, packed)})
    put(folder, {f"{name}labels-idx1-ubyte{'.gz' * packed}": as_idx(labels, packed)})


@pytest.mark.parametrize("more", [(), (3,)])
def test_idx_files(tmp_path: Path, more: tuple[int, ...]) -> None:
    images, labels = pixels(7, 6, 5, *more), np.arange(7, dtype=np.uint8) % 3
    put_idx(tmp_path, images, labels, "train-", packed=True)
    put_idx(tmp_path, images[:3], labels[:3], "t10k-", packed=False)
    listed = Listed(tmp_path)
    assert not listed.faults
    assert {split: len(found) for split, found in listed.found.items()} == {"train": 7, "test": 3}
    assert output_splits(listed.sources) == ["train", "eval", "test"]
    one = listed.found["train"][4]
    assert (one.path, one.labels) == ("train-images-idx3-ubyte#4", ("1",))
    seen, digest = look(one)
    assert (seen.width, seen.height, seen.grey) == (5, 6, not more)
    assert digest == look(Picture("", one.file, 4))[1] != look(listed.found["train"][5])[1]
    expected = images[4] if more else np.repeat(images[4][..., None], 3, -1)
    assert np.array_equal(decoded(read(one)), expected)
    assert inspect(read(one)).fault == ""


def test_one_pair_of_idx_files_is_split_later(tmp_path: Path) -> None:
    put_idx(tmp_path, pixels(4, 3, 3), np.zeros(4, np.uint8), "", packed=False)
    assert list(Listed(tmp_path).found) == ["all"]


@pytest.mark.parametrize(
    ("images", "labels", "part"),
    [
        (pixels(4, 3, 3), pixels(5, 1)[:, 0], "labels-idx1-ubyte: 5 labels for the 4 pictures"),
        (pixels(4, 3), pixels(4, 1)[:, 0], "an array of 2 dimensions (4 x 3)"),
        (pixels(4, 3, 3, 2), pixels(4, 1)[:, 0], "an array of 4 dimensions (4 x 3 x 3 x 2)"),
        (pixels(4, 3, 3), pixels(4, 1), "labels of 2 dimensions (4 x 1)"),
    ],
)
def test_idx_of_wrong_shape(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, part: str
) -> None:
    put_idx(tmp_path, images, labels, "", packed=False)
    assert part in Listed(tmp_path).message


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"abcdefgh", "it begins with 0x61626364, and not with 0x0000"),
        (b"", "it begins with 0x"),
        (as_idx(pixels(4, 3, 3), kind=9), "its values are of type 0x09, and not unsigned bytes"),
        (as_idx(pixels(4, 3, 3))[:-5], "31 bytes of data, and 4 x 3 x 3 were announced"),
        (as_idx(pixels(4, 3, 3))[:6], "cut short in its header"),
        (as_idx(pixels(4, 3, 3), True)[:-9], "Compressed file ended"),
        (as_idx(pixels(4, 3, 3)) + b"1", "more bytes of data, and 4 x 3 x 3 were announced"),
        (gzip.compress(as_idx(pixels(1, 1, 1)) + bytes(1 << 24)), "more bytes of data"),
        (struct.pack(">4I", 0x803, 2000, 1024, 1024), "0 bytes of data, and 2,000 x 1,024 x 1,024"),
        (
            struct.pack(">4I", 0x803, 4000, 1024, 1024),
            "4,000 x 1,024 x 1,024 were announced, and 2,147,483,648 bytes are the most",
        ),
    ],
    ids=[
        "text",
        "empty",
        "type",
        "data cut",
        "header cut",
        "gzip cut",
        "more",
        "bomb",
        "lie",
        "huge",
    ],
)
def test_idx_that_is_damaged(tmp_path: Path, data: bytes, part: str) -> None:
    put_idx(tmp_path, pixels(4, 3, 3), np.zeros(4, np.uint8), "", packed=False)
    (tmp_path / "images-idx3-ubyte").write_bytes(data)
    message = Listed(tmp_path).message
    assert f"images-idx3-ubyte: not a whole idx file: {part}" in message


def test_idx_without_its_other_half(tmp_path: Path) -> None:
    put_idx(tmp_path, pixels(4, 3, 3), np.zeros(4, np.uint8), "train-", packed=True)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "idx images without their labels" in Listed(tmp_path).message


# --- splitting and writing ------------------------------------------------------------------


def test_copies_fall_into_one_split_and_the_shares_are_right() -> None:
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4000)]
    rule, picture = Rule(), Picture("a.png", "a.png", labels=("a",))

    def final_split(digest: str, split: str, given: list[str]) -> str:
        return rule.place(key_of(picture, digest, rule), Cuts(), split, given)

    whole = Counter(final_split(one, "all", ["all"]) for one in digests)
    assert whole["train"] / 4000 == pytest.approx(0.8, abs=0.03)
    assert whole["eval"] / 4000 == pytest.approx(0.1, abs=0.02)
    without_eval = Counter(final_split(one, "train", ["train", "test"]) for one in digests)
    assert without_eval["eval"] / 4000 == pytest.approx(0.1, abs=0.02)
    given = ["train", "eval", "test"]
    assert {final_split(one, "train", given) for one in digests} == {"train"}
    assert {final_split(one, "test", ["train", "test"]) for one in digests} == {"test"}


class Ran:
    """The component's executor, run on sources; what it wrote."""

    def __init__(self, folder: Path, sources: Path | Mapping[str, Path], **settings: Any) -> None:
        named = {"all": sources} if isinstance(sources, Path) else sources
        component = ImageExampleGen(
            {split: str(path) for split, path in named.items()},
            **{
                "label": "label",
                "multi_label": False,
                "on_bad_image": "fail",
                "fingerprint": "",
                **settings,
            },
        )
        self.examples = standard_artifacts.Examples()
        self.examples.uri = str(folder / "examples")
        Executor().Do({}, {"examples": [self.examples]}, dict(component.exec_properties))
        self.rows: dict[str, list[dict[str, list[bytes]]]] = {}
        for split in artifact_utils.decode_split_names(self.examples.split_names):
            files = sorted(Path(artifact_utils.get_split_uri([self.examples], split)).iterdir())
            self.rows[split] = [
                {
                    name: list(feature.bytes_list.value)
                    for name, feature in tf.train.Example.FromString(row).features.feature.items()
                }
                for row in tf.data.TFRecordDataset(files, "GZIP").as_numpy_iterator()
            ]

    @property
    def all_rows(self) -> list[dict[str, list[bytes]]]:
        return [row for rows in self.rows.values() for row in rows]

    @property
    def skipped(self) -> list[dict[str, str]]:
        text = (Path(self.examples.uri) / ingest.SKIPPED).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def animals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 pictures each of two classes, and 30 copies of one of them."""
    folder = tmp_path_factory.mktemp("animals")
    put(folder, [f"{name}/{n}.png" for name in ("cat", "dög") for n in range(50)])
    copy = (folder / "cat/0.png").read_bytes()
    return put(folder, {f"cat/copy{n}.png": copy for n in range(30)})


def test_every_picture_comes_out_once_as_it_is(animals: Path, tmp_path: Path) -> None:
    ran = Ran(tmp_path, animals)
    assert list(ran.rows) == ["train", "eval", "test"]
    paths = [row["path"][0].decode() for row in ran.all_rows]
    assert len(paths) == len(set(paths)) == 130
    for row in ran.all_rows:
        path = row["path"][0].decode()
        assert row == {
            "path": [path.encode()],
            "label": [path.split("/")[0].encode()],
            "image": [(animals / path).read_bytes()],
        }
    copies = {
        split
        for split, rows in ran.rows.items()
        for row in rows
        if row["path"][0].startswith(b"cat/copy")
    }
    assert len(copies) == 1
    assert ran.skipped == []
    assert ran.examples.get_int_custom_property("skipped") == 0
    assert ran.examples.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert ran.examples.get_string_custom_property("file_format") == "tfrecords_gzip"


def test_the_order_is_mixed_and_the_same_each_time(animals: Path, tmp_path: Path) -> None:
    once, again = Ran(tmp_path / "1", animals), Ran(tmp_path / "2", animals)
    labels = [row["label"][0] for row in once.rows["train"]]
    changes = sum(a != b for a, b in itertools.pairwise(labels))
    assert changes > 20
    assert once.rows == again.rows


def test_bad_pictures_are_left_out_and_listed(animals: Path, tmp_path: Path) -> None:
    bad = put(tmp_path / "p", [f"cat/{n}.png" for n in range(40)] + ["dog/ü.png"])
    put(bad, {f"dog/{n}.png": (animals / f"cat/{n}.png").read_bytes() for n in range(40)})
    put(bad, {"cat/bäd.jpg": b"hello", "dog/empty.jpg": b"x"})
    (bad / "dog" / "empty.jpg").write_bytes(b"")
    ran = Ran(tmp_path, bad, on_bad_image="skip")
    assert ran.skipped == [
        {"path": "cat/bäd.jpg", "reason": "text, not a JPEG, PNG, GIF or BMP"},
        {"path": "dog/empty.jpg", "reason": "an empty file"},
    ]
    assert ran.examples.get_int_custom_property("skipped") == 2
    assert len(ran.all_rows) == 81
    sizes = json.loads((Path(ran.examples.uri) / ingest.SIZES).read_text())
    assert {split: sizes[split]["width"]["rows"] for split in ran.rows} == {
        split: len(rows) for split, rows in ran.rows.items()
    }, "those that were left out are not counted"
    with pytest.raises(DataError, match=r"cat/bäd.jpg: text.*\ndog/empty.jpg: an empty file"):
        Ran(tmp_path / "again", bad)


def test_eval_is_made_of_train_where_it_is_missing(animals: Path, tmp_path: Path) -> None:
    put(tmp_path / "test", ["cat/1.png", "dög/2.png"])
    ran = Ran(tmp_path, {"train": animals, "test": tmp_path / "test"})
    assert len(ran.rows["test"]) == 2
    assert 0 < len(ran.rows["eval"]) < 60
    assert len(ran.rows["train"]) + len(ran.rows["eval"]) == 130


def test_labels_and_columns_of_a_table(tmp_path: Path) -> None:
    put(tmp_path, [f"x/{n}.jpg" for n in range(60)])
    for name, part in (("train", range(40)), ("eval", range(40, 60))):
        rows = "".join(f"x/{n}.jpg,{('', 'a', 'a|b')[n % 3]},{n % 2}\n" for n in part)
        (tmp_path / f"{name}.csv").write_text(f"path,found,site\n{rows}")
    files = {name: tmp_path / f"{name}.csv" for name in ("train", "eval")}
    ran = Ran(tmp_path, files, multi_label=True, label="found")
    assert {split: len(rows) for split, rows in ran.rows.items()} == {"train": 40, "eval": 20}
    for row in ran.all_rows:
        number = int(row["path"][0][2:-4])
        assert row["found"] == [[], [b"a"], [b"a", b"b"]][number % 3]
        assert row["site"] == [str(number % 2).encode()]


def test_large_splits_are_written_as_several_files(tmp_path: Path) -> None:
    images = pixels(3000, 2, 2)
    put_idx(tmp_path / "p", images, np.arange(3000, dtype=np.uint8) % 2, "", packed=True)
    ran = Ran(tmp_path, tmp_path / "p")
    names = sorted(os.listdir(artifact_utils.get_split_uri([ran.examples], "train")))
    assert names == [f"data_tfrecord-{n:05}-of-00002.gz" for n in range(2)]
    assert len(ran.all_rows) == 3000


RULES = {
    "ratios": Rule({"train": 6, "eval": 4}),
    "label": Rule(by="label"),
    "group": Rule(by="group", column="site"),
    "time": Rule(by="time", column="day"),
    "sample": Rule(by="label", sample=60),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_a_rule_splits_as_the_preflight_check_has_counted(tmp_path: Path, rule: Rule) -> None:
    put(tmp_path, [f"x/{n}.png" for n in range(120)])
    rows = [f"x/{n}.png,{'ab'[n % 3 == 0]},{n % 9},2024-{n % 12 + 1:02}-01" for n in range(120)]
    table = tmp_path / "all.csv"
    table.write_text("\n".join(["path,label,site,day", *rows]))
    expected = check_images(
        {"all": str(table)}, label="label", multi_label=False, on_bad_image="fail", rule=rule
    ).fallen
    ran = Ran(tmp_path, table, rule=rule)
    assert expected is not None
    assert {split: len(rows) for split, rows in ran.rows.items() if rows} == expected.rows
    assert sum(expected.rows.values()) == (rule.sample or 120)
    found = {
        split: {name: {row[name][0] for row in rows} for name in ("label", "site", "day")}
        for split, rows in ran.rows.items()
    }
    if rule.by == "label":
        assert found["eval"]["label"] == found["test"]["label"] == {b"a", b"b"}
    if rule.by == "group":
        assert sum(len(values["site"]) for values in found.values()) == 9
    if rule.by == "time":
        assert max(found["train"]["day"]) < min(found["eval"]["day"])
        assert max(found["eval"]["day"]) < min(found["test"]["day"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule(by="group", column="place"), "no column 'place', which is to be the group to split"),
        (Rule(by="time", column="day"), r"is no time: '1.4.2024', of x/3.png. Expected 2024-05-31"),
        (Rule(by="group", column="site"), r"is empty \(2 rows.*|is empty: x/0.png"),
    ],
)
def test_a_rule_that_pictures_cannot_follow(tmp_path: Path, rule: Rule, message: str) -> None:
    put(tmp_path, [f"x/{n}.png" for n in range(40)])
    rows = [f"x/{n}.png,{'ab'[n % 2]},{n or ''},{'1.4.2024' if n == 3 else n}" for n in range(40)]
    (tmp_path / "all.csv").write_text("\n".join(["path,label,site,day", *rows]))
    arguments = {"label": "label", "multi_label": False, "on_bad_image": "fail", "rule": rule}
    with pytest.raises(DataError, match=message):
        check_images({"all": str(tmp_path / "all.csv")}, **arguments)  # type: ignore[arg-type]
    folders = put(
        tmp_path / "p", [f"{split}/{c}/1.png" for split in ("train", "eval") for c in "ab"]
    )
    with pytest.raises(DataError, match="data.split, and the pictures are in train and eval"):
        check_images({"all": str(folders)}, **arguments)  # type: ignore[arg-type]


def test_a_split_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no picture in (eval|test)"):
        Ran(tmp_path, put(tmp_path / "p", CATS))


def test_faults_of_the_listing_reach_the_user(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class only"):
        Ran(tmp_path, put(tmp_path / "p", ["cat/1.jpg"]))


def test_beam_is_handed_paths_and_never_pictures(tmp_path: Path) -> None:
    # Its in-memory runner holds what passes between steps.
    put(tmp_path, [f"{name}/{n}.png" for name in "ab" for n in range(300)])
    listing = Listed(tmp_path).found
    batches = ingest.mixed(listing)
    assert [len(batch) for batch in batches] == [200, 200, 200]
    looked = [one for batch in batches for one in ingest._Look(Rule()).process(ingest._pack(batch))]
    place = ingest._Place(Rule(), ["all"], ingest._shards(listing, Rule()))
    placed = [one for packed in looked for one in place.process(packed, {"all": END}, Cuts())]
    passed = [one for one in placed if not isinstance(one, TaggedOutput)]
    assert {one.tag for one in placed if isinstance(one, TaggedOutput)} == {"sizes"}
    pictures = [picture for _, found in passed for picture in ingest._unpack(found)]
    assert sorted(pictures, key=lambda one: one.path) == listing["all"]
    assert all(key in {("train", 0), ("eval", 0), ("test", 0)} for key, _ in passed)


# --- component ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["plain", "with [brackets] *", "späce ü"])
def test_tfx_finds_the_sources(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / name, CATS)
    monkeypatch.chdir(tmp_path / name)
    for sources in (
        {"all": str(tmp_path / name)},
        {"all": "."},
        {"all": "cat"},
        {"train": "cat", "eval": "dog", "test": f"../{name}/cat/1.jpg"},
    ):
        component = ImageExampleGen(
            sources, label="label", multi_label=False, on_bad_image="skip", fingerprint="f"
        )
        found = driver.FileBasedDriver(None).resolve_exec_properties(
            dict(component.exec_properties), None, None
        )
        counts = found["input_fingerprint"].splitlines()
        assert len(counts) == len(sources)
        assert all("num_files:1," in part for part in counts)


def test_the_fingerprint_enters_the_caches_key() -> None:
    made = [
        ImageExampleGen(
            {"all": "x"}, label="label", multi_label=False, on_bad_image="skip", fingerprint=one
        ).exec_properties
        for one in ("a", "a", "b")
    ]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"sources": {}}, "sources must have a path"),
        ({"sources": {"eval": "a", "test": "b"}}, "sources must have a path"),
        ({"sources": {"all": "a{SPAN}"}}, "a meaning of their own"),
        ({"label": ""}, "label must be a column's name"),
        ({"label": "image"}, "label must be a column's name, and not image or path"),
        ({"on_bad_image": "ask"}, "must be fail or skip. Received: 'ask'"),
    ],
)
def test_component_refuses_wrong_arguments(wrong: dict[str, Any], message: str) -> None:
    good = {"label": "l", "multi_label": False, "on_bad_image": "skip", "fingerprint": ""}
    arguments = {"sources": {"all": "x"}, **good, **wrong}
    with pytest.raises(ConfigError, match=message):
        ImageExampleGen(arguments.pop("sources"), **arguments)


# --- real data ------------------------------------------------------------------------------


def test_fashion_mnist() -> None:
    if not (SHARED / "fashion_mnist").is_dir():
        pytest.skip("no shared data")
    listed = Listed(SHARED / "fashion_mnist")
    assert {split: len(found) for split, found in listed.found.items()} == {
        "train": 60_000,
        "test": 10_000,
    }
    assert set(Counter(one.labels for one in listed.found["train"]).values()) == {6000}
    idx.forget()


@pytest.mark.parametrize("name", ["chest_xray", "cifar10_subset"])
def test_real_pictures(tmp_path: Path, name: str) -> None:
    archives = list((SHARED / name).glob("*.tar.gz"))
    if not archives:
        pytest.skip("no shared data")
    seen: Counter[str] = Counter()
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            folder = os.path.dirname(member.name)
            if member.isfile() and seen[folder] < 5:
                seen[folder] += 1
                archive.extract(member, tmp_path / "p", filter="data")
    ran = Ran(tmp_path, tmp_path / "p")
    assert len(ran.all_rows) == sum(seen.values())
    assert ran.skipped == []
    size = 128 if name == "chest_xray" else 32
    assert {decoded(row["image"][0]).shape for row in ran.all_rows[:20]} == {(size, size, 3)}


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_exif_is_no_fault_of_the_picture(kind: str) -> None:
    whole = encoded(RGB, kind, exif=turned(6))
    start = whole.index(b"MM\0*") if b"MM\0*" in whole else whole.index(b"II*\0")
    for end in (4, 8, 12, 20):
        torn = bytearray(whole)
        torn[start + 2 : start + end] = b"\xff" * (end - 2)
        if kind == "PNG":  # its checksum must hold
            chunk = whole.index(b"eXIf")
            length = int.from_bytes(whole[chunk - 4 : chunk], "big")
            checksum = zlib.crc32(torn[chunk : chunk + 4 + length])
            torn[chunk + 4 + length : chunk + 8 + length] = checksum.to_bytes(4, "big")
        assert inspect(bytes(torn)).fault == ""


def test_a_row_without_its_picture_is_a_fault_or_a_bad_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(RGB, "PNG"))
    table = tmp_path / "table.csv"
    table.write_text("path,label\na.png,x\ngone.png,y\n")
    assert "table.csv:3: a picture that is not there: gone.png" in Listed(table).message
    found = Listed(table, skip_missing=True)
    assert not found.faults
    seen, _ = look(found.found["all"][1])
    assert seen.fault == "cannot be read: No such file or directory"
