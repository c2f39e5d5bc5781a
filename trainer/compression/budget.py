"""Whether a compressed model keeps to its budget, and which of several is the best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .measure import Figures
from .settings import Budget, Limit

_QUALITY = {"accuracy_drop": "accuracy", "f1_drop": "f1"}


@dataclass(frozen=True)
class Line:
    """One limit of the budget and what was found.

    Attributes:
        name: of the limit.
        found: a loss (in the metric's units), bytes, or milliseconds.
        allowed: the same, at the most.
        words: both, for a person.
    """

    name: str
    found: float
    allowed: float
    words: str

    @property
    def kept(self) -> bool:
        """Whether the limit holds; measured accuracies are counts, so rounding is forgiven."""
        return self.found <= self.allowed + 1e-9

    @property
    def excess(self) -> float:
        """How far over it is: points of a metric, or the share above the rest's limit."""
        if self.kept:
            return 0.0
        if self.name in _QUALITY:
            return 100 * (self.found - self.allowed)
        return self.found / self.allowed - 1


def lines(budget: Budget, trained: Figures, figures: Figures) -> list[Line]:
    """Each limit of the budget beside what was measured."""
    return [_line(name, limit, trained, figures) for name, limit in budget.limits.items()]


def _line(name: str, limit: Limit, trained: Figures, figures: Figures) -> Line:
    if name in _QUALITY:
        before, now = (getattr(one, _QUALITY[name]) for one in (trained, figures))
        allowed = limit.allowed(before)
        return Line(name, before - now, allowed, f"{before - now:.4f}, at most {allowed:.4f}")
    before, now = (_quantity(name, one) for one in (trained, figures))
    allowed = limit.allowed(before)
    share = f"{now / before:.3g} of the trained model's, at most {allowed / before:.3g}"
    if limit.unit == "bytes":
        share = f"{now / 1e6:.2f} MB, at most {allowed / 1e6:.2f}"
    elif limit.unit == "ms":
        share = f"{now:.2f} ms, at most {allowed:.2f}"
    return Line(name, now, allowed, share)


def _quantity(name: str, figures: Figures) -> float:
    if name == "latency":
        return figures.latency_ms["1"]["median"]
    return float(figures.bytes if name == "size" else figures.gzipped)


def rank(budget: Budget, figures: Mapping[str, Figures]) -> list[str]:
    """The compressed candidates, best first; the first of `figures` is the trained model.

    Those within the budget come first, the later step before the earlier; then the others, by how
    far over it they are.
    """
    trained, *names = figures
    order = {name: place for place, name in enumerate(names)}

    def key(name: str) -> tuple[float, int]:
        over = sum(line.excess for line in lines(budget, figures[trained], figures[name]))
        return over, -order[name]

    return sorted(names, key=key)


def verdict(budget: Budget, trained: Figures, figures: Figures) -> tuple[bool, str]:
    """(kept, a sentence that says what was found and, if not, what would have met the budget)."""
    found = lines(budget, trained, figures)
    over = [line for line in found if not line.kept]
    if over:
        each = "; ".join(f"{line.name} {line.words}" for line in over)
        met = ", ".join(f"{line.name}: {_would_meet(line, trained)}" for line in over)
        return False, f"Over the budget: {each}. These limits would have been met: {met}."
    each = "; ".join(f"{line.name} {line.words}" for line in found)
    return True, f"Within the budget: {each}." if each else "No budget was set."


def _would_meet(line: Line, trained: Figures) -> str:
    """The tightest limit that holds, rounded to the loose side."""
    if line.name in _QUALITY:
        return f"{math.ceil(1e4 * line.found - 1e-6) / 1e4:.4f}"
    return f"{math.ceil(1e3 * line.found / _quantity(line.name, trained) - 1e-6) / 1e3:.3f}"


def as_json(found: list[Line]) -> list[dict[str, Any]]:
    """The lines as the report holds them."""
    return [{"limit": one.name, "words": one.words, "kept": one.kept} for one in found]
