"""What report.html can show, and how it becomes a file."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..errors import ConfigError
from ..files import write_whole
from ..masking import masked
from ..terminal import harmless

Block = dict[str, Any]
MOST = 40  # rows of a table; what is left out is said
_LONGEST = 500  # characters of a cell


@dataclass
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: list[Block] = field(default_factory=list)


def section(title: str, draw: Callable[[], list[Block]]) -> Section:
    """A section, or the sentence that says why it could not be drawn."""
    return Section(title, attempt(draw))


def attempt(draw: Callable[[], list[Block]]) -> list[Block]:
    """Part of a section, or the sentence that says why it could not be drawn."""
    try:
        return draw()
    except Exception as error:  # whatever it is, the page must come
        words = f"This part could not be drawn: {type(error).__name__}: {error}"
        return [problem(words[:500])]


def text(words: str) -> Block:
    """A paragraph."""
    return {"kind": "text", "text": words}


def problem(words: str) -> Block:
    """A paragraph that says what is wrong."""
    return {"kind": "problem", "text": words}


def picture(svg: Any, words: str = "") -> Block:
    """A drawing and what stands below it."""
    return {"kind": "picture", "svg": svg, "text": words}


def folded(words: str, body: str, *, opened: bool = False) -> Block:
    """A long text, as it is, that opens when asked."""
    return {"kind": "pre", "text": words, "body": body, "opened": opened}


def table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[Any]], numbers: int | range = 1
) -> Block:
    """A table whose columns from `numbers` on, or in that range, are numbers; only its first rows
    are shown.

    A cell is a text, a `bar`, an `image`, a `why`, `drawn`, or {"text": ..., "shade": per cent of
    colour}.
    """
    note = f"{len(rows) - MOST:,} more rows are not shown." if len(rows) > MOST else ""
    shown = [[_cut(cell) for cell in row] for row in [head, *rows[:MOST]]]
    return {
        "kind": "table", "text": title, "head": shown[0], "rows": shown[1:], "note": note,
        "numbers": range(numbers, len(head)) if isinstance(numbers, int) else numbers,
    }  # fmt: skip


def _cut(cell: Any) -> Any:
    if isinstance(cell, str) and len(cell) > _LONGEST:
        return f"{cell[:_LONGEST]}… ({len(cell):,} characters)"
    return cell


def bar(words: str, share: float) -> dict[str, Any]:
    """A cell with a bar behind it, as long as the share of 1."""
    return {"text": words, "share": round(100 * min(1.0, max(0.0, share)), 1)}


def image(png: str, words: str) -> dict[str, Any]:
    """A cell with a picture, PNG in base64, and words below it."""
    return {"image": png, "text": words}


def why(told: Mapping[str, Any]) -> Block:
    """An explanation, as `trainer.explain.facts` tells it: coloured words, or a drawn picture."""
    if "image" in told:
        return {"kind": "why", "image": told["image"], "words": []}
    shaded = zip(told["words"], shades(part for _, part in told["words"]), strict=True)
    words = [(word, f"{part:+.3f}", round(100 * shade)) for (word, part), shade in shaded]
    return {"kind": "why", "image": "", "words": words}


def shades(parts: Iterable[float]) -> list[float]:
    """Parts from -1, most against, to 1, most for."""
    values = list(parts)
    largest = max(map(abs, values), default=0.0) or 1.0
    return [value / largest for value in values]


def drawn(svg: Any) -> dict[str, Any]:
    """A cell with a small drawing."""
    return {"svg": svg}


def number(value: float | None) -> str:
    """A metric's value."""
    return "–" if value is None else f"{value:.4f}"


def render(title: str, subtitle: str, mood: str, verdict: str, sections: Sequence[Section]) -> str:
    """The page; `mood` is good, bad or empty, and sections without blocks are left out."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, autoescape=True
    )
    html = environment.get_template("report.html").render(
        title=title, subtitle=subtitle, mood=mood, verdict=verdict,
        sections=[section for section in sections if section.blocks],
    )  # fmt: skip
    return harmless(html)  # which HTML forbids, or which turns what follows


def save(html: str, file: Path) -> Path:
    """Write it, whole or not at all.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, masked(html))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written: {error.strerror}.") from None
    return file
