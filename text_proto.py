"""Protocol buffers as text, out of files that anybody may have written."""

from pathlib import Path
from typing import Any

from .errors import ConfigError

MOST_BYTES = 100_000_000  # Python's parser takes minutes for as many; a file of ours has a few kB


def read(path: Path, proto: Any) -> Any:
    """Fill a message from a text file, and return it.

    Raises:
        ConfigError: it cannot be read, or is no such message; with line and column.
    """
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    name = proto.DESCRIPTOR.name
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ConfigError(f"{path}: has more than {MOST_BYTES:,} bytes. Name another file.")
        text_format.Parse(content.decode("utf-8"), proto)
        type(proto).FromString(proto.SerializeToString())  # what C++ would refuse later
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not text in UTF-8.") from None
    except text_format.ParseError as error:
        why = str(error).rstrip(".")
        raise ConfigError(f"{path}:{why}. A {name} as text is expected.") from None
    except (RecursionError, DecodeError):
        raise ConfigError(f"{path}: is nested too deeply for a {name}.") from None
    return proto
