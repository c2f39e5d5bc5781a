"""YAML that a stranger may have written, read without running or unrolling anything of it.

ruamel.yaml's round-trip loader makes plain values and never an object that a tag names. What is
left to refuse here is a small file that becomes a huge value, or one that no depth of recursion
can walk: aliases of aliases ("billion laughs"), nesting without end, an alias within itself.
"""

import datetime
import difflib
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import ReusedAnchorWarning
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from ..errors import ConfigError

MOST_BYTES = 100_000  # of a configuration; the reader takes some 3 s for as many
_MOST_TOLD = 100_000  # characters and values, every alias written out
_DEEPEST = 40  # levels
_PLAIN = (str, bool, int, float, type(None), datetime.date)
_CONTROLS = {*map(chr, range(32)), *map(chr, range(0x7F, 0xA0))} - {"\t", "\n", "\r", "\x85"}


def read(path: Path) -> str:
    """The text of a configuration's file.

    Raises:
        ConfigError: there is none, it is too large, or not UTF-8.
    """
    try:
        with path.open("rb") as file:  # not by its size: a pipe or a device tells none
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ConfigError(
                f"{path}: larger than {MOST_BYTES // 1000} kB; this is not an Espalier "
                f"configuration."
            )
        return data.decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in _siblings(path)], 1)
        hint = f" Did you mean {path.with_name(near[0])}?" if near else ""
        raise ConfigError(f"{path}: no such file.{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def _siblings(path: Path) -> list[Path]:
    return list(path.parent.iterdir()) if path.parent.is_dir() else []


def parse(text: str, where: str) -> Any:
    """The mapping that a text is, with ruamel's line numbers in it.

    Raises:
        ConfigError: it is not YAML, no mapping, or what `fault` finds in it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ReusedAnchorWarning)  # YAML 1.2 allows it
            tree = YAML().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        before = text.split("\n")[mark.line : mark.line + 1] if mark else []
        hint = '. Between braces write it in quotes: "${NAME}"' if "${" in "".join(before) else ""
        raise ConfigError(f"{where}{line}: not valid YAML: {error.problem}{hint}") from None
    except RecursionError:
        raise ConfigError(f"{where}: {_TOO_DEEP}") from None
    except (YAMLError, ValueError) as error:
        raise ConfigError(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
    except Exception:  # whatever else ruamel stumbles over, such as a merge (<<) of itself
        raise ConfigError(f"{where}: not valid YAML: the reader failed at it.") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected `key: value` lines, found {type(tree).__name__}.")
    if wrong := fault(tree):
        raise ConfigError(f"{where}: {wrong}")
    return tree


_TOO_DEEP = f"nested more than {_DEEPEST} levels deep, as no file for Espalier is."


def fault(tree: Any, most: int = _MOST_TOLD) -> str:
    """What forbids walking a tree of YAML or JSON, in a sentence; "" if nothing does.

    Args:
        tree: mappings, lists and plain values; one object may stand in it many times.
        most: characters and values, each counted as often as it stands there.
    """
    try:
        size, _ = _size_and_depth(tree, [], {})
    except _Refused as refused:
        return str(refused)
    if size > most:
        return (
            f"with every alias (*name) written out it has {size:,} characters and values, and "
            f"{most:,} are the most that are read. Write fewer aliases."
        )
    return ""


class _Refused(Exception):
    """Says why."""


def _size_and_depth(
    value: Any, above: list[int], known: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """(characters and values when written out, levels) of a tree; each object is walked once.

    Args:
        value: the tree.
        above: the ids of what it stands in.
        known: by id, what was found before.
    """
    if not isinstance(value, dict | list | tuple | set):
        return _size_of_plain(value), 0
    if id(value) in above:
        raise _Refused("an alias (*name) stands within what it names, so that it has no end.")
    _check_tag(value)
    if len(above) >= _DEEPEST:
        raise _Refused(_TOO_DEEP)
    if id(value) not in known:
        parts: Iterable[Any] = value
        if isinstance(value, dict):
            parts = [one for pair in value.items() for one in pair]
        found = [_size_and_depth(one, [*above, id(value)], known) for one in parts]
        size, depth = 1 + sum(n for n, _ in found), 1 + max((d for _, d in found), default=0)
        known[id(value)] = size, depth
    size, depth = known[id(value)]
    if len(above) + depth > _DEEPEST:
        raise _Refused(_TOO_DEEP)
    return size, depth


def _size_of_plain(value: Any) -> int:
    _check_tag(value)
    if not isinstance(value, _PLAIN):
        raise _Refused(
            f"a value of the type {type(value).__name__}; expected text, numbers, true, false, "
            f"null, lists and mappings."
        )
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise _Refused("a whole number of more than 64 bits.")
    if isinstance(value, str) and not _CONTROLS.isdisjoint(value):
        found = min(_CONTROLS.intersection(value))
        raise _Refused(f"the control character 0x{ord(found):02X} in the text {shown(value)}.")
    return 1 + (len(value) if isinstance(value, str) else 0)


def _check_tag(value: Any) -> None:
    tag = str(getattr(getattr(value, "tag", None), "value", None) or "")
    if tag and (not tag.startswith("tag:yaml.org,2002:") or ":python" in tag):
        raise _Refused(f"the tag {shown(tag)}; tags (!name) have no meaning here, take it out.")


def cut(text: str, most: int = 200) -> str:
    """A text for a message, not long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: Any) -> str:
    """A value for a message, not long."""
    return cut(repr(value))


def listed(lines: Sequence[str], most: int = 20) -> str:
    """The lines of a message, the first of them if they are many."""
    more = [f"... and {len(lines) - most} more faults."] if len(lines) > most else []
    return "\n".join([*lines[:most], *more])
