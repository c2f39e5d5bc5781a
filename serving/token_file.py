"""The token that callers show, for the server and its clients, and its file."""

from pathlib import Path

from ..errors import ConfigError

_LONGEST = 4096  # characters: gRPC takes 8 KiB of headers in all


def read_token(path: Path | None) -> str:
    """The token in a file, without the line's end; "" without a file.

    Raises:
        ConfigError: it cannot be read, is empty, or cannot stand in a header.
    """
    if path is None:
        return ""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{path}: the token cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        token = "\0"  # its bytes are nobody's business
    if not token:
        raise ConfigError(f"{path}: is empty; a token is expected.")
    check_token(token, str(path))
    return token


def check_token(token: str, where: str) -> None:
    """Raise ConfigError, which does not show it, if a token cannot stand in a header."""
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ConfigError(
            f"{where}: the token must be one line of ASCII letters, digits and signs, without "
            f"spaces; make one with `openssl rand -hex 32`."
        )
    if len(token) > _LONGEST:
        raise ConfigError(
            f"{where}: the token has {len(token)} characters, and at most {_LONGEST} fit."
        )
