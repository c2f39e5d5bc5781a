"""Secrets of the environment, which are written nowhere: `${NAME}` stands in their place.

One is known to the whole process, from `hide` on. `masked` takes it out of a text, `Stream` out of
a stream, and `open_log` out of all that this process and its children write to a file.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

_FEWEST = 4  # characters; a shorter value stands in too many words
# JSON, YAML, pages or the logs of TFX spell these in other ways.
_UNEVEN = re.compile(r"""[^!-~]|["'&<>\\{]""")
_VARIABLE = "ESPALIER_SECRETS"  # tells the log's process what to take out
_hidden: dict[str, str] = {}  # name by value
_names: dict[str, str] = {}  # the same, and as a URL spells it
_pattern = re.compile("(?!)")
_filters: list[subprocess.Popen[str]] = []  # each lives as long as this process


def hide(name: str, value: str) -> str:
    """Take the value for a secret from now on; or say why that cannot be."""
    global _pattern
    if len(value) < _FEWEST:
        return f"the value of {name} is shorter than {_FEWEST} characters"
    if value.isdecimal():
        return f"the value of {name} has digits alone, as many numbers do"
    if _UNEVEN.search(value):
        return (
            f"the value of {name} has a blank, a quote, one of & < > \\ {{, or a character beyond "
            f"ASCII, which logs spell in other ways"
        )
    _hidden[value] = name
    _names.update({value: name, quote(value, safe=""): name})
    longest_first = sorted(_names, key=len, reverse=True)
    _pattern = re.compile("|".join(map(re.escape, longest_first)))
    return ""


def masked(text: str) -> str:
    """The text with `${NAME}` in place of every secret."""
    return _pattern.sub(lambda found: f"${{{_names[found[0]]}}}", text) if _names else text


class Stream:
    """A text stream that takes secrets out of what is written; in all else it is the stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write it; see `io.TextIOBase`."""
        return int(self._stream.write(masked(text)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Take secrets out of standard output and standard error for as long as the block lasts."""
    out: Any = Stream(sys.stdout)
    err: Any = Stream(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


def open_log(file: Path) -> IO[str]:
    """Open a log to append to.

    Where there are secrets, what is written passes through a process of its own: what C++ and
    children write does not come by here, and a thread of this process could keep them waiting.
    """
    if not _names:
        return file.open("a", encoding="utf-8", buffering=1)
    with file.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            cwd="/",  # modules of the current folder are none of ours
            env={**os.environ, _VARIABLE: json.dumps(_hidden)},
            stdin=subprocess.PIPE,
            stdout=out,
            encoding="utf-8",
            bufsize=1,
            start_new_session=True,  # Ctrl-C is not for it: it ends after the last who writes
        )
    _filters.append(process)
    assert process.stdin
    return process.stdin


def _filter() -> None:
    """Copy standard input to standard output, line by line, without the secrets.

    What a full disk does not take is lost: no run fails because of its log.
    """
    for value, name in json.loads(os.environ[_VARIABLE]).items():
        hide(name, value)
    for line in sys.stdin.buffer:
        with contextlib.suppress(OSError):
            os.write(sys.stdout.fileno(), masked(line.decode("latin-1")).encode("latin-1"))


if __name__ == "__main__":
    _filter()
