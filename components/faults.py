"""What is wrong with the user's rows, gathered over all files and said at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import DataError

LONGEST_LABEL = 200  # characters
_LINES_SHOWN, _FAULTS_SHOWN = 5, 10


class Unreadable(Exception):
    """The rest of this file cannot be looked at; its fault is noted."""


@dataclass
class _Fault:
    what: str
    advice: str
    count: int = 0
    lines: list[int] = field(default_factory=list)


class Faults:
    """Notes faults by file and kind, the first few lines of each; memory stays bounded.

    Args:
        unit: what a place in a file is called: line or row.
    """

    def __init__(self, unit: str = "line") -> None:
        self.unit = unit
        self._found: dict[tuple[str, str], _Fault] = {}

    def add(
        self, file: Path | str, line: int | None, kind: str, advice: str, detail: str = ""
    ) -> None:
        """Note one fault. `detail` describes the first of its kind in the file."""
        fault = self._found.setdefault((str(file), kind), _Fault(f"{kind}{detail}", advice))
        fault.count += 1
        if line is not None and len(fault.lines) < _LINES_SHOWN:
            fault.lines.append(line)

    def stop(self, file: Path | str, line: int | None, what: str, advice: str) -> Unreadable:
        """Note a fault after which the file is not read on; raise what this returns."""
        self.add(file, line, what, advice)
        return Unreadable()

    @contextmanager
    def of_reading(self, file: Path) -> Iterator[None]:
        """Go on with the next file when this one cannot be read."""
        try:
            yield
        except Unreadable:
            pass
        except OSError as error:
            self.add(file, None, f"cannot be read: {error.strerror}", "Check the file.")

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_if_any(self) -> None:
        """Raise one DataError that says every fault, in the order they were met."""
        if not self._found:
            return
        said = [self._sentence(file, fault) for (file, _), fault in self._found.items()]
        if len(said) > _FAULTS_SHOWN:
            said[_FAULTS_SHOWN:] = [f"... and {len(said) - _FAULTS_SHOWN} more faults."]
        raise DataError("\n".join(said))

    def _sentence(self, file: str, fault: _Fault) -> str:
        place = file
        if fault.lines:
            place += f":{fault.lines[0]}" if self.unit == "line" else f", row {fault.lines[0]}"
        often = ""
        if fault.count > 1:
            more = ", ..." if fault.count > len(fault.lines) else ""
            shown = ", ".join(map(str, fault.lines))
            often = f" ({fault.count:,} rows: {self.unit}s {shown}{more})"
        return f"{place}: {fault.what}{often}. {fault.advice}"


def listed(names: Sequence[str]) -> str:
    """The names in quotes, the first twenty of them."""
    shown = ", ".join(map(repr, names[:20]))
    return f"{shown}, ..." if len(names) > 20 else shown


def counted(count: int, what: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"
