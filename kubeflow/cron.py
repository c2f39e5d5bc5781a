"""Cron expressions as Kubeflow Pipelines reads them."""

import re
from collections.abc import Mapping

from ..errors import ConfigError

# The fields of robfig/cron 1.2, which the server parses with, with their bounds and names.
_MONTHS = {
    "jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6,
    "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}  # fmt: skip
_DAYS = {"sun": 0, "mon": 1, "tue": 2, "wed": 3, "thu": 4, "fri": 5, "sat": 6}
_FIELDS: tuple[tuple[str, int, int, Mapping[str, int]], ...] = (
    ("second", 0, 59, {}),
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_WORDS = ("@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly")


def six_fields(cron: str) -> str:
    """A cron expression as the server takes it: seconds first.

    The usual five fields get `0` in front. The server would take them as they are, but as seconds,
    minutes, hours, day and month: `0 3 * * *` would run every hour.

    Raises:
        ConfigError: the server would refuse it.
    """
    where, cron = f'--cron "{cron}"', " ".join(cron.split())
    if cron.startswith("@"):
        every = re.fullmatch(r"@every ((\d+(\.\d*)?|\.\d+)(h|m|s))+", cron)
        if cron in _WORDS or (every and re.search(r"[1-9]", cron)):
            return cron
        raise ConfigError(f"{where}: one of {', '.join(_WORDS)} or @every 1h30m is expected.")
    parts = cron.split()
    if len(parts) == 5:
        parts = ["0", *parts]
    if len(parts) != 6:
        raise ConfigError(
            f"{where}: {len(parts)} fields; five are expected (minute, hour, day of the month, "
            'month, day of the week: "0 3 * * *" is daily at 3:00), or six with seconds first.'
        )
    for part, bounds in zip(parts, _FIELDS, strict=True):
        if fault := _fault(part, *bounds[1:]):
            raise ConfigError(f'{where}: the {bounds[0]} "{part}": {fault}.')
    return " ".join(parts)


def _fault(part: str, low: int, high: int, names: Mapping[str, int]) -> str:
    """What is wrong with a field: values, ranges and steps, with commas between."""
    for one in part.split(","):
        match = re.fullmatch(r"(\*|\?|\w+)(?:-(\w+))?(?:/(\d+))?", one, re.ASCII)
        if not match or (match[1] in "*?" and match[2]):
            return "a number, a range 1-5, a step */15 or a list 1,3 is expected"
        if match[3] and not int(match[3]):
            return "a step is at least 1"
        ends = [end for end in (match[1], match[2]) if end and end not in "*?"]
        values = [names.get(end.lower(), int(end) if end.isdigit() else -1) for end in ends]
        if any(not low <= value <= high for value in values):
            sunday = "; Sunday is 0" if names is _DAYS and 7 in values else ""
            return f"{low} to {high} is expected{sunday}"
        if values != sorted(values):
            return "the range ends before it begins"
    return ""
