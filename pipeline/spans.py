"""New data beside the old: `{SPAN}` in a path stands for the highest number that is there.

As in TFX's ExampleGen, `{VERSION}` may stand behind it, for data of a span that was delivered
again. TFX finds them in a driver, which Kubeflow Pipelines does not run; so it is done here.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import ConfigError, DataError

_MARK = re.compile(r"\{(SPAN|VERSION)\}")
Found = tuple[int, ...]


def newest_spans(places: Mapping[str, str]) -> dict[str, str]:
    """The paths of splits with the newest numbers put in.

    Raises:
        DataError: no number is there.
        ConfigError: the newest span of one split is not that of another.
    """
    found = {split: _newest(path) for split, path in places.items()}
    spans = {split: numbers[0] for split, (_, numbers) in found.items() if numbers}
    if len(set(spans.values())) > 1:
        listed = ", ".join(f"{split} is at {span}" for split, span in spans.items())
        raise ConfigError(
            f"data: the newest spans differ: {listed}. Deliver the missing ones, or take the new "
            f"one out."
        )
    return {split: path for split, (path, _) in found.items()}


def gaps(path: str) -> list[int]:
    """The numbers that are missing between a path's lowest and highest span."""
    before, part, _ = _cut(path)
    numbers = {one[0] for one, _ in _numbers(before, part)} if part else set()
    return sorted(set(range(min(numbers), max(numbers))) - numbers) if numbers else []


def _newest(path: str) -> tuple[str, Found]:
    """The path with its marks replaced, and what they were replaced by."""
    found: Found = ()
    while True:
        before, part, after = _cut(path)
        if not part:
            return path, found
        numbers = _numbers(before, part)
        if not numbers:
            place = os.path.join(before, part)
            raise DataError(f"{place}: there is nothing whose name has a number at that place.")
        best, name = max(numbers)
        found += best
        path = os.path.join(before, name, after) if after else os.path.join(before, name)


def _cut(path: str) -> tuple[str, str, str]:
    """What lies before the first part of a path with a mark, that part, and what lies behind."""
    if not (mark := _MARK.search(path)):
        return path, "", ""
    start = path.rfind("/", 0, mark.start()) + 1
    end = path.find("/", mark.end())
    end = len(path) if end < 0 else end
    return path[:start], path[start:end], path[end + 1 :]


def _numbers(folder: str, part: str) -> list[tuple[Found, str]]:
    """(the marks' numbers, the name) of all names in a folder that a part of a path fits."""
    pieces = _MARK.split(part)  # text, mark, text, mark, ..., text
    pattern = "".join(r"(\d+)" if n % 2 else re.escape(one) for n, one in enumerate(pieces))
    place = Path(folder or ".").expanduser()
    names = os.listdir(place) if place.is_dir() else []
    fits = ((re.fullmatch(pattern, name), name) for name in names)
    return [(tuple(map(int, fit.groups())), name) for fit, name in fits if fit]
