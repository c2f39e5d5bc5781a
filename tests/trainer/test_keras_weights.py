"""Weights' files of strangers: nothing in them runs, nothing outside them is read."""

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tf_keras as keras

from espalier.errors import CheckpointError
from espalier.trainer import hdf5, keras_weights


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another file on this machine, which holds what a stranger would like to have."""
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["secret"] = np.ones(4, np.float32)
    return tmp_path / "other.h5"


def external_link(root: h5py.Group, other: Path) -> None:
    root["a"] = h5py.ExternalLink(str(other), "secret")


def soft_link(root: h5py.Group, other: Path) -> None:
    root["a"] = h5py.SoftLink("/a")


def external_bytes(root: h5py.Group, other: Path) -> None:
    root.create_dataset("a", (4,), np.float32, external=[(str(other), 0, 16)])


def virtual(root: h5py.Group, other: Path) -> None:
    layout = h5py.VirtualLayout((4,), np.float32)
    layout[:] = h5py.VirtualSource(str(other), "secret", (4,))
    root.create_virtual_dataset("a", layout)


def huge(root: h5py.Group, other: Path) -> None:
    root.create_dataset("a", (1 << 40,), np.float32, chunks=(1 << 10,))


def bomb(root: h5py.Group, other: Path) -> None:
    data = np.zeros(1 << 20, np.float32)
    root.create_dataset("a", data=data, chunks=(1 << 20,), compression="gzip")


def words(root: h5py.Group, other: Path) -> None:
    root.create_dataset("a", data=np.array([b"text"], object), dtype=h5py.string_dtype())


HOSTILE = {
    external_link: "is a link to",
    soft_link: "is a link to",
    external_bytes: "another file",
    virtual: "another file",
    huge: "announces",
    bomb: "announces",
    words: "numbers were expected",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_an_array_that_is_not_what_it_seems(
    make: Callable[[h5py.Group, Path], None], other: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.h5"
    with h5py.File(file, "w") as root:
        layer = root.create_group("layer")
        make(layer, other)
        root.attrs["layer_names"], layer.attrs["weight_names"] = [b"layer"], [b"a"]
    with pytest.raises(CheckpointError, match=HOSTILE[make]) as caught:
        keras_weights.read(file)
    assert str(file) in str(caught.value)


def test_a_layer_elsewhere(other: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.h5"
    with h5py.File(file, "w") as root:
        root["layer"] = h5py.ExternalLink(str(other), "/")
        root.attrs["layer_names"] = [b"layer"]
    with pytest.raises(CheckpointError, match="is a link to"):
        keras_weights.read(file)


def test_a_heap_of_names_without_end(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as root:
        root.attrs["layer_names"] = ["layer"]  # strings of any length lie in a heap
    data = bytearray((tmp_path / "a.h5").read_bytes())
    free = data.index(b"GCOL") + 16 + 16 + 8  # behind the heap's head, and the name's head and text
    assert data[free : free + 2] == b"\0\0"
    data[free + 8 : free + 16] = bytes(8)  # how much is free, the head of it included
    (tmp_path / "b.h5").write_bytes(data)
    with pytest.raises(CheckpointError, match="has an object of 0 bytes, and no end"):
        keras_weights.read(tmp_path / "b.h5")  # h5py alone would not come back
    with pytest.raises(CheckpointError, match="the layer layer is missing"):
        keras_weights.read(tmp_path / "a.h5")


def test_whats_there_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as root:
        root["x/y"] = np.arange(6, dtype=np.float32).reshape(2, 3)
        assert hdf5.array(root, "x/y").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert hdf5.member(root, "x/z") is None
        assert hdf5.member(root, "x/y/z") is None


def write_keras(file: Path, config: Any, weights: bytes = b"") -> Path:
    """A .keras file of this config.json; its weights are none if not given."""
    empty = io.BytesIO()
    with h5py.File(empty, "w") as root:
        root.create_group("layers")
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", '{"keras_version": "2.16.0", "date_saved": "now"}')
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", weights or empty.getvalue())
    return file


def test_a_keras_file_brings_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Keras' own load_model imports the module that config.json names, with safe_mode=True too.
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    layer = {"module": "evil", "class_name": "Layer", "registered_name": "Layer", "config": {}}
    whole = {"module": "evil", "class_name": "Model", "config": {"layers": [layer]}}
    assert keras_weights.read(write_keras(tmp_path / "evil.keras", whole)) == []
    assert "evil" not in sys.modules
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    ["", "[]", "{}", '{"config": 3}', '{"config": {"layers": 3}}', '{"config": {"layers": [3]}}',
     '{"config": {"layers": [{"class_name": 3}]}}', "[" * 100_000],
)  # fmt: skip
def test_a_keras_file_with_another_config(config: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as Keras weights"):
        keras_weights.read(write_keras(tmp_path / "a.keras", config))


def test_a_keras_file_that_unpacks_to_far_more(tmp_path: Path) -> None:
    file = write_keras(tmp_path / "a.keras", {"config": {"layers": []}}, bytes(10_000_000))
    with pytest.raises(CheckpointError, match="unpacks to 10,000,000 bytes"):
        keras_weights.read(file)


def test_a_full_disk_does_not_crash_the_process(tmp_path: Path) -> None:
    """HDF5 would, at its end, whatever was caught: so it does not write the file itself."""
    code = """
import resource, sys
from pathlib import Path
import tf_keras as keras
from espalier.trainer import hdf5
model = keras.Sequential([keras.layers.Dense(64, input_shape=(64,)) for _ in range(20)])
resource.setrlimit(resource.RLIMIT_FSIZE, (64_000, 64_000))  # what is written beyond is refused
try:
    hdf5.save_weights(model, Path(sys.argv[1]))
except OSError as error:
    print("refused:", error)
"""
    file = tmp_path / "weights.h5"
    command = [sys.executable, "-c", code, str(file)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout[:8]) == (0, "refused:"), told.stderr
    assert not file.exists()


def test_weights_are_written_as_keras_writes_them(tmp_path: Path) -> None:
    model = keras.Sequential([keras.layers.Dense(3, input_shape=(2,), name="one")])
    model.save_weights(tmp_path / "theirs.h5")
    hdf5.save_weights(model, tmp_path / "ours.h5")
    found = []
    for name in ("theirs.h5", "ours.h5"):
        with h5py.File(tmp_path / name) as file:
            found.append((dict(file.attrs), file["one/one/kernel:0"][:].tolist()))
    assert str(found[0]) == str(found[1])
    again = keras.Sequential([keras.layers.Dense(3, input_shape=(2,), name="other")])
    again.load_weights(tmp_path / "ours.h5")
    assert np.array_equal(again.get_weights()[0], model.get_weights()[0])
