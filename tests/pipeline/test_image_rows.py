"""Pictures are looked at before anything runs: faults by reason, doubts, and what they are."""

import io
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from espalier import Config, ConfigError, DataError
from espalier.components.image_example_gen import sample
from espalier.pipeline import image_rows, preflight
from espalier.pipeline.image_rows import check_images
from espalier.pipeline.preflight import DataReport

RNG = np.random.default_rng(0)


def png(width: int = 5, height: int = 4, grey: bool = True) -> bytes:
    """A picture like no other."""
    shape = (height, width) if grey else (height, width, 3)
    out = io.BytesIO()
    Image.fromarray(RNG.integers(0, 255, shape, dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def put(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def animals(root: Path, count: int = 60, **more: bytes) -> Path:
    """So many cats, and as many dogs."""
    return put(root, {f"{name}/{n}.png": png() for name in ("cat", "dog") for n in range(count)})


def look(sources: Path | Mapping[str, Path], **more: Any) -> DataReport:
    named = {"all": sources} if isinstance(sources, Path) else sources
    settings = {"label": "label", "multi_label": False, "on_bad_image": "fail", **more}
    return check_images({split: str(path) for split, path in named.items()}, **settings)


def refused(sources: Path | Mapping[str, Path], **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        look(sources, **more)
    return str(caught.value)


def test_what_the_pictures_are(tmp_path: Path) -> None:
    put(animals(tmp_path), {f"cat/wide{n}.png": png(9, 8, grey=False) for n in range(40)})
    report = look(tmp_path)
    assert report.rows == {"all": 160}
    assert report.labels == {"all": {"cat": 100, "dog": 60}}
    assert report.columns == ["path", "label"]
    assert report.words == {}
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.png"))
    assert report.warnings == []
    assert report.pictures.widths == {50: 5, 90: 9, 95: 9, 99: 9, 100: 9}
    assert report.pictures.heights[50] == 4
    assert report.pictures.grey == 0.75
    assert report.pictures.skipped == {}
    assert sum(report.pictures.splits.values()) == 160
    assert list(report.pictures.splits) == ["train", "eval", "test"]


def test_the_fingerprint_is_of_all_that_enters_the_examples(tmp_path: Path) -> None:
    first = animals(tmp_path / "a")
    prints = [look(first).fingerprint, look(first).fingerprint]
    assert prints[0] == prints[1]
    prints.append(look(first, on_bad_image="skip").fingerprint)
    (first / "cat" / "1.png").write_bytes(png())
    prints.append(look(first).fingerprint)
    (first / "cat" / "1.png").rename(first / "dog" / "x.png")
    prints.append(look(first).fingerprint)
    assert len(set(prints)) == 4


def test_bad_pictures_are_said_by_reason(tmp_path: Path) -> None:
    animals(tmp_path)
    put(tmp_path, {f"cat/{n}.jpg": b"hello" for n in range(5)} | {"dog/x.png": b""})
    put(tmp_path, {"dog/big.png": _huge()})
    message = refused(tmp_path)
    lines = message.splitlines()
    assert len(lines) == 3
    assert lines[0] == (
        f"{tmp_path}/cat/0.jpg, {tmp_path}/cat/1.jpg, {tmp_path}/cat/2.jpg and 2 more: text, not "
        "a JPEG, PNG, GIF or BMP. Take it out. Or leave such pictures out: "
        "data.on_bad_image: skip."
    )
    assert f"{tmp_path}/dog/big.png: more than 50,000,000 pixels" in lines[1]
    assert "20,000 x 20,000" in lines[1]
    assert f"{tmp_path}/dog/x.png: an empty file" in lines[2]

    report = look(tmp_path, on_bad_image="skip")
    assert len(report.pictures.skipped) == 7
    assert report.pictures.skipped["dog/x.png"] == "an empty file"
    assert report.rows == {"all": 120}
    assert sum("left out" in warning for warning in report.warnings) == 3


def _huge() -> bytes:
    """A PNG whose header alone says that it is too large."""
    import zlib

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_file_that_cannot_be_read_is_a_bad_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, digest = sample.look(sample.Picture("gone.png", str(tmp_path / "gone.png")))
    assert (seen.reason, digest) == ("cannot be read: No such file or directory", "")
    put(animals(tmp_path), {"cat/large.png": png() + bytes(5000)})
    monkeypatch.setattr(sample, "MAX_BYTES", 5000)
    assert "cat/large.png: a file of more than 5,000 bytes" in refused(tmp_path)


def test_a_class_of_bad_pictures_alone(tmp_path: Path) -> None:
    put(animals(tmp_path), {"fox/1.jpg": b"no", "fox/2.jpg": b"no"})
    message = refused(tmp_path, on_bad_image="skip")
    assert "every picture of 'fox' is left out" in message


def test_notes_are_doubts(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image, out = Image.fromarray(RNG.integers(0, 255, (4, 5, 3), dtype=np.uint8)), io.BytesIO()
    image.save(out, "JPEG", exif=exif)
    turned, out = out.getvalue(), io.BytesIO()
    image.convert("P").save(out, "PNG")
    put(animals(tmp_path), {"cat/turned.jpg": turned, "cat/palette.png": out.getvalue()})
    report = look(tmp_path)
    (warning,) = report.warnings
    assert warning.startswith("1 picture turned by its EXIF orientation: ")
    assert "cat/turned.jpg" in warning and "mogrify -auto-orient" in warning
    assert report.pictures.notes["with a palette"] == 1


def test_one_picture_under_two_labels_or_in_two_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        animals(tmp_path / split, 15)
    same = (tmp_path / "train/cat/1.png").read_bytes()
    put(tmp_path, {"train/dog/same.png": same, "test/cat/same.png": same})
    labels, splits = look(tmp_path).warnings[:2]
    assert "train/cat/1.png (cat) and train/dog/same.png (dog)" in labels
    assert "1 picture in two splits: train/cat/1.png in train is test/cat/same.png" in splits


def test_eval_made_of_train_is_counted(tmp_path: Path) -> None:
    for split in ("train", "test"):
        animals(tmp_path / split)
    report = look(tmp_path)
    assert report.rows == {"train": 120, "test": 120}
    assert list(report.pictures.splits) == ["train", "eval", "test"]
    assert report.pictures.splits["eval"] > 0


def test_few_pictures(tmp_path: Path) -> None:
    assert "8 pictures cannot be split into train, eval and test" in refused(animals(tmp_path, 4))
    put(animals(tmp_path / "more"), {f"fox/{n}.png": png() for n in range(6)})
    assert any(
        "1 of 3 classes have few pictures: 'fox' 6" in w for w in look(tmp_path / "more").warnings
    )


def test_a_label_that_training_will_not_see_is_known_before(tmp_path: Path) -> None:
    animals(tmp_path)
    file = tmp_path / "fox" / "1.png"
    put(tmp_path, {"fox/1.png": png()})
    while (
        int(sample.look(sample.Picture("", str(file)))[1], 16) % 10 < 8
    ):  # until it falls to eval or test
        file.write_bytes(png())
    message = refused(tmp_path)
    assert "no picture to train on has the label 'fox' (1)" in message


def write_table(folder: Path, cells: list[str], more: str = "") -> Path:
    put(folder, {f"p/{n}.png": png() for n in range(len(cells))})
    rows = "".join(f"p/{n}.png,{cell},{n % 2}\n" for n, cell in enumerate(cells))
    (folder / "labels.csv").write_text(f"path,label,site\n{rows}{more}")
    return folder / "labels.csv"


def test_a_table_of_several_labels(tmp_path: Path) -> None:
    file = write_table(tmp_path, ["", "a", "a|b", "b|c|a"] * 30)
    report = look(file, multi_label=True, slices=["site"])
    assert report.labels == {"all": {"a": 90, "b": 60, "c": 30}}
    assert report.columns == ["path", "label", "site"]
    assert report.rows == {"all": 120}


@pytest.mark.parametrize(
    ("cells", "multi_label", "part"),
    [
        (["a"] * 30, False, "every picture has the label 'a'"),
        ([""] * 30, True, "no label"),
        ([str(n) for n in range(30)], False, "30 different labels for 30 pictures"),
    ],
)
def test_labels_that_cannot_be(
    tmp_path: Path, cells: list[str], multi_label: bool, part: str
) -> None:
    assert part in refused(write_table(tmp_path, cells), multi_label=multi_label)


def test_slices_are_columns_of_the_table(tmp_path: Path) -> None:
    file = write_table(tmp_path, ["a", "b"] * 30)
    assert "no column 'label', which is to be a slice" in refused(file, slices=["label"])
    assert "The other columns are: 'site'" in refused(file, slices=["city"])
    assert "There are none" in refused(animals(tmp_path / "x"), slices=["city"])


def test_faults_of_the_listing_come_all_at_once(tmp_path: Path) -> None:
    animals(tmp_path)
    (tmp_path / "fox").mkdir()
    (tmp_path / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    assert len(refused(tmp_path).splitlines()) == 2


def test_names_that_tfx_cannot_be_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a meaning of their own"):
        look(tmp_path / "{SPAN}")
    with pytest.raises(ConfigError, match="'image' is taken"):
        look(tmp_path, label="image")


def test_progress_is_said_only_when_it_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    look(animals(tmp_path), progress=said.append)
    assert said == []
    monkeypatch.setattr(image_rows, "_PATIENCE", -1.0)
    look(tmp_path, progress=said.append)
    assert said == ["looking at 120 pictures ..."]
    assert not [t for t in threading.enumerate() if t.name.startswith("ThreadPool")]


def test_the_preflight_check_looks_at_images(tmp_path: Path) -> None:
    config = Config(
        name="animals",
        data={"images": str(animals(tmp_path / "p"))},
        model={"family": "resnet", "start": "resnet20", "size": 32},
        push={"to": str(tmp_path / "models")},
        runs=str(tmp_path / "runs"),
    )
    report = preflight.check(config)
    assert report.rows == {"all": 120}
    assert report.pictures and report.fingerprint


def test_nothing_here_waits_for_tensorflow() -> None:
    code = (
        "import sys, espalier.pipeline.image_rows, espalier.pipeline.init;"
        "early = {'tensorflow', 'tfx', 'apache_beam'} & set(sys.modules);"
        "sys.exit(', '.join(early) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, f"imported too early: {done.stderr}"
