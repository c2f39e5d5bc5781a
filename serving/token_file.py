"""The file of the token that callers show, for the server and its clients."""

from pathlib import Path

from ..errors import ConfigError


def read_token(path: Path | None) -> str:
    """The token in a file, without the line's end; "" without a file.

    Raises:
        ConfigError: it cannot be read, or is empty.
    """
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the token cannot be read: {error}.") from None
    if not token:
        raise ConfigError(f"{path}: is empty; a token is expected.")
    return token
