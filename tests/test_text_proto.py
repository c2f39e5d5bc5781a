"""Protocol buffers as text: whatever lies there, one sentence says what is wrong with it."""

from pathlib import Path

import pytest
from tensorflow_metadata.proto.v0 import schema_pb2

from espalier import ConfigError, text_proto

SOUND = b'feature { name: "text" type: BYTES }\n'


def nested(depth: int) -> bytes:
    return b'feature { name: "a" struct_domain { ' * depth + b"} } " * depth


def test_a_message_is_read(tmp_path: Path) -> None:
    file = tmp_path / "schema.pbtxt"
    file.write_bytes(SOUND)
    assert text_proto.read(file, schema_pb2.Schema()).feature[0].name == "text"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", r"schema\.pbtxt: is not text in UTF-8\."),
        (b"feature {", r"schema\.pbtxt:1:9 : .* A Schema as text is expected\."),
        (SOUND + b"a: 1", r"schema\.pbtxt:2:1 : .*no field named .*a"),
        (SOUND + b"#" * 300, r"schema\.pbtxt: has more than 256 bytes\."),
        (nested(60), r"schema\.pbtxt: is nested too deeply for a Schema\."),  # for C++
        (nested(5000), r"schema\.pbtxt: is nested too deeply for a Schema\."),  # for Python
    ],
)
def test_what_is_no_message(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content.startswith(SOUND):
        monkeypatch.setattr(text_proto, "MOST_BYTES", 256)
    (tmp_path / "schema.pbtxt").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        text_proto.read(tmp_path / "schema.pbtxt", schema_pb2.Schema())


def test_places_that_are_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_proto, "MOST_BYTES", 256)
    for place, said in ((tmp_path, "Is a directory"), (tmp_path / "no", "No such file"),
                        (Path("/dev/zero"), "more than 256 bytes")):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            text_proto.read(place, schema_pb2.Schema())
