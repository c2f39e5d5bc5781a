"""`${NAME}` in a configuration: the environment's values put in, and its secrets kept out."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from .. import masking

_REFERENCE = re.compile(r"\$\$\{|\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?")
_PLAIN = "write $${ for a plain ${"
# All else is recorded with each run, in ML Metadata too; Beam's flags are not.
_MAY_BE_SECRET = ("beam", "options")

Fault = tuple[list[Any], str]  # the key's path, and a sentence


def expand(tree: dict[str, Any], prefix: Sequence[str] = ()) -> list[Fault]:
    """Put the values of the variables into a parsed YAML's strings, in place.

    Args:
        tree: the whole file; what `secrets:` names in it is hidden first.
        prefix: the section to look at; all of it if empty.

    Returns:
        What is wrong: variables that are not set, and secrets where they would be recorded.
    """
    given = tree.get("secrets") or []
    given = given if isinstance(given, list) else [given]
    secrets = {name for name in given if isinstance(name, str)}
    faults: list[Fault] = []
    for number, name in enumerate(given):
        if name in secrets and name in os.environ and (why := masking.hide(name, os.environ[name])):
            faults.append((["secrets", number], f"{why}, so that it could not be masked."))
    for holder, key, path in _strings(tree, [], set()):
        if path[0] == "secrets" or tuple(path[: len(prefix)]) != tuple(prefix):
            continue
        names = [found[1] for found in _REFERENCE.finditer(holder[key]) if found[0] != "$${"]
        if wrong := _wrong(names, secrets, tuple(path[:2])):
            faults.append((path, wrong))
        else:
            holder[key] = _REFERENCE.sub(
                lambda found: os.environ[found[1]] if found[1] else "${", holder[key]
            )
            if tuple(path[:2]) != _MAY_BE_SECRET and masking.masked(holder[key]) != holder[key]:
                faults.append((path, "the value of a secret stands in this key, in plain letters."))
    return faults


def restore(value: Any) -> Any:
    """What `expand` makes this of: `$${` for a plain `${`, and `${NAME}` for a secret."""
    if isinstance(value, dict):
        return {key: restore(one) for key, one in value.items()}
    if isinstance(value, list):
        return [restore(one) for one in value]
    return masking.masked(value.replace("${", "$${")) if isinstance(value, str) else value


def _wrong(names: list[str | None], secrets: set[str], section: tuple[Any, ...]) -> str:
    for name in names:
        if name is None:
            return f"`${{` begins the name of a variable, as in ${{NAME}}; {_PLAIN}."
        if name not in os.environ:
            return f"the variable {name} is not set; set it, or {_PLAIN}."
        if name in secrets and section != _MAY_BE_SECRET:
            return (
                f"{name} is one of `secrets:`, and this key is recorded with every run. Only "
                f"{'.'.join(_MAY_BE_SECRET)} is not: use a secret there, or none."
            )
    return ""


def _strings(holder: Any, path: list[Any], seen: set[int]) -> Iterator[tuple[Any, Any, list[Any]]]:
    """(mapping or list, key, path) of each string; once, however many aliases it has."""
    if id(holder) in seen or not isinstance(holder, dict | list):
        return
    seen.add(id(holder))
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        if isinstance(holder[key], str):
            yield holder, key, [*path, key]
        else:
            yield from _strings(holder[key], [*path, key], seen)
