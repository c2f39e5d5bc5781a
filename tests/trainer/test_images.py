"""The decoding graph: what it reads, what it refuses, and that its pixels are the picture's."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from espalier import ConfigError
from espalier.trainer import images
from espalier.trainer.families import resnet
from espalier.trainer.images import Geometry
from espalier.trainer.input import unpack

COLORS = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)


def encode(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def decoded() -> Callable[..., np.ndarray]:
    """Pixels [B, H, W, C] that the graph gives for encoded pictures."""

    def run(pictures: list[bytes], geometry: Geometry, keep_aspect: bool = False) -> np.ndarray:
        graph = tf.function(lambda data: images.pack(data, geometry, keep_aspect))
        return unpack(graph(tf.constant(pictures)), geometry.shape).numpy()

    return run


@pytest.mark.parametrize("kind", ["PNG", "BMP"])
def test_pixels_of_the_right_size_pass_unchanged(decoded: Any, kind: str) -> None:
    (found,) = decoded([encode(COLORS, kind)], Geometry(24, 36, 3))
    assert np.array_equal(found, COLORS)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "GIF"])
def test_grey_pictures_have_three_channels_alike_or_one(decoded: Any, kind: str) -> None:
    grey = encode(np.full((24, 36), 77, np.uint8), kind)
    three = decoded([grey], Geometry(24, 36, 3))
    assert np.abs(three.astype(int) - 77).max() <= 1
    assert np.array_equal(decoded([grey], Geometry(24, 36, 1)), three[..., :1])


def test_every_shade_of_grey_stays_what_it_is(decoded: Any) -> None:
    shades = np.arange(256, dtype=np.uint8).reshape(16, 16)
    (found,) = decoded([encode(shades, "PNG")], Geometry(16, 16, 1))
    assert np.array_equal(found[..., 0], shades)


def test_alpha_and_palettes(decoded: Any) -> None:
    image = Image.fromarray(COLORS)
    image.putalpha(128)
    out = io.BytesIO()
    image.save(out, "PNG")
    few = np.repeat(np.repeat(COLORS[::8, ::8], 8, 0), 8, 1)[:24, :36]
    palette = io.BytesIO()
    Image.fromarray(few).quantize(64).save(palette, "PNG")
    first, second = decoded([out.getvalue(), palette.getvalue()], Geometry(24, 36, 3))
    assert np.array_equal(first, COLORS)
    assert np.abs(second.astype(int) - few).max() <= 8  # as far as 64 colours go


def test_a_batch_may_mix_formats_and_sizes(decoded: Any) -> None:
    plain = np.full((50, 20, 3), 200, np.uint8)
    pictures = [encode(plain, kind) for kind in ("PNG", "JPEG", "BMP", "GIF")]
    found = decoded([*pictures, encode(COLORS, "PNG")], Geometry(10, 12, 3))
    assert found.shape == (5, 10, 12, 3)
    assert np.abs(found[:4].astype(int) - 200).max() <= 1


def test_the_first_frame_of_an_animation(decoded: Any) -> None:
    frames = [Image.fromarray(np.full((9, 9), shade, np.uint8)) for shade in (10, 240)]
    out = io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(decoded([out.getvalue()], Geometry(9, 9, 3)).astype(int) - 10).max() <= 1


def test_shrinking_averages_and_aspect_is_kept_where_asked(decoded: Any) -> None:
    stripes = np.zeros((40, 80, 3), np.uint8)
    stripes[:, ::2] = 200
    stretched = decoded([encode(stripes, "PNG")], Geometry(20, 20, 3))
    assert np.abs(stretched[0, 4:-4, 4:-4].astype(int) - 100).max() < 12  # no moire
    padded = decoded([encode(stripes, "PNG")], Geometry(20, 20, 3), keep_aspect=True)[0]
    assert not padded[:4].any() and not padded[-4:].any()
    assert padded[6:14].mean() > 80


@pytest.mark.parametrize("shape", [(10, 640), (1, 40), (640, 3), (7, 7)])
def test_long_pictures_keep_their_aspect_too(decoded: Any, shape: tuple[int, int]) -> None:
    white = np.full((*shape, 3), 255, np.uint8)
    found = decoded([encode(white, "PNG")], Geometry(32, 24, 3), keep_aspect=True)[0]
    rows, columns = (int(found[..., 0].any(axis=axis).sum()) for axis in (1, 0))
    scale = min(32 / shape[0], 24 / shape[1])
    assert rows == pytest.approx(max(1, shape[0] * scale), abs=1)
    assert columns == pytest.approx(max(1, shape[1] * scale), abs=1)


def png_claiming(width: int, height: int) -> bytes:
    head = struct.pack(">II5B", width, height, 8, 0, 0, 0, 0)
    chunk = b"IHDR" + head
    return (
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    )


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(COLORS, "JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def bmp_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(COLORS, "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def gif_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(COLORS, "GIF"))
    data[6:10] = struct.pack("<HH", width, height)
    return bytes(data)


BOMBS = {
    "png": png_claiming(20_000, 20_000),
    "jpeg": jpeg_claiming(20_000, 20_000),
    "bmp": bmp_claiming(20_000, 20_000),
    "bmp, rows going down": bmp_claiming(20_000, -20_000),
    "gif": gif_claiming(20_000, 20_000),
    "png whose sides multiply to 0 in 64 bits": png_claiming(2**31, 2**31),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_picture_too_large_is_refused_by_its_header(decoded: Any, bomb: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError, match="more than 50000000 pixels"):
        decoded([bomb], Geometry(24, 36, 3))


BROKEN = {
    "empty": b"",
    "one byte": b"\xff",
    "a text": b"no picture at all",
    "half a PNG": encode(COLORS, "PNG")[:300],
    "half a JPEG": encode(COLORS, "JPEG")[:500],
    "a JPEG's first bytes": b"\xff\xd8\xff",
    "a BMP's first bytes": b"BM",
    "half a GIF": encode(COLORS, "GIF")[:200],
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_what_is_no_picture_is_an_invalid_argument(decoded: Any, data: bytes) -> None:
    with pytest.raises(tf.errors.InvalidArgumentError):
        decoded([data], Geometry(24, 36, 3))


def test_statistics_are_those_of_each_channel() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 6, 5, 3), np.uint8)
    pixels[..., 2] //= 4
    batches = tf.data.Dataset.from_tensor_slices(pixels).batch(7)
    mean, deviation = images.statistics(batches)
    assert mean == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist())
    assert deviation == pytest.approx(pixels.std(axis=(0, 1, 2)).tolist())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": 16}, "size is 16 x 16, .* needs 32 x 32"),
        ({"size": [64, 20]}, "size is 64 x 20"),
        ({"weights": "imagenet", "color": "grey"}, "color is grey"),
        ({"weights": "imagenet", "normalize": "data"}, "normalize is data"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        images.check(resnet.Settings(start="resnet50", **settings))


def test_pictures_that_only_decoding_finds_broken_are_named(tmp_path: Any) -> None:
    pictures = {"a/good.png": encode(COLORS, "PNG"), "a/torn.jpg": encode(COLORS, "JPEG")[:400]}
    file = str(tmp_path / "examples.gz")
    with tf.io.TFRecordWriter(file, "GZIP") as writer:
        for path, data in pictures.items():
            example = tf.train.Example()
            example.features.feature["image"].bytes_list.value.append(data)
            example.features.feature["path"].bytes_list.value.append(path.encode())
            writer.write(example.SerializeToString())
    ((path, reason),) = images.undecodable([file])
    assert path == "a/torn.jpg"
    assert "JPEG" in reason and "{{" not in reason
