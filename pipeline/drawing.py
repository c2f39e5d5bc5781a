"""Pictures for a page, as inline SVG that follows the page's colours; texts in it are escaped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Points = Sequence[tuple[float, float]]
_WIDE, _HIGH = 640, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 30, 40
_COLORS = 6  # .c0 to .c5 in report.html


@dataclass(frozen=True)
class Span:
    """A bar of a timeline: its name, start and length in seconds, and its state."""

    name: str
    start: float
    seconds: float
    state: str


def plot(
    title: str,
    series: Mapping[str, Points],
    *,
    x: str,
    y: str,
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    marked: bool = False,
    diagonal: bool = False,
    whole: bool = False,
    log: bool = False,
) -> Markup:
    """Lines through points, or points alone with their names beside them.

    Args:
        title: what a screen reader says.
        series: points by name.
        x, y: what the axes are.
        x_range, y_range: the axes' ends; those of the points if None.
        marked: each series is one or more points, not a line.
        diagonal: draw the line from corner to corner, for comparison.
        whole: x counts something, and has no ticks between whole numbers.
        log: each power of ten is as wide as any other along x.
    """
    points = [point for line in series.values() for point in line]
    across = [p[0] for p in points]
    if log:
        xs: _Axis = _LogAxis((min(across) / 1.2, max(across) * 1.2), _LEFT, _WIDE - _RIGHT)
    else:
        xs = _Axis(x_range or _ends(across), _LEFT, _WIDE - _RIGHT)
    ys = _Axis(y_range or _ends([p[1] for p in points]), _HIGH - _BOTTOM, _TOP)
    parts = [_frame(xs, ys, x, y, whole)]
    if diagonal:
        ends = f'x1="{xs.begin}" y1="{ys.begin}" x2="{xs.end}" y2="{ys.end}"'
        parts.append(Markup(f'<line class="diagonal" {ends}/>'))
    for number, (name, line) in enumerate(series.items()):
        color = f"c{number % _COLORS}"
        places = [(xs.place(a), ys.place(b)) for a, b in line]
        if marked:
            parts += [_dot(place, name, color) for place in places]
            continue
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
        parts.append(Markup(f'<polyline class="line {color}" points="{path}"/>'))
        parts += [_dot(place, "", color) for place in places if len(places) < 30]
    if not marked and len(series) > 1:
        parts.append(_legend(list(series)))
    return _svg(title, _HIGH, parts)


def histogram(title: str, bars: Sequence[tuple[float, float, float]]) -> Markup:
    """Columns side by side, small enough for a table's cell.

    Args:
        title: what a screen reader says.
        bars: (from, to, rows); each is equally wide, whatever its ends.
    """
    wide, high = 120, 24
    step, most = wide / len(bars), max(rows for *_, rows in bars) or 1
    gap = min(1.0, step / 5)
    parts = []
    for place, (low, high_end, rows) in enumerate(bars):
        tall = high * rows / most
        if rows:
            tall = max(1.0, tall)  # few rows are not none
        parts.append(Markup(
            f'<rect class="column" x="{place * step:.1f}" y="{high - tall:.1f}" '
            f'width="{step - gap:.1f}" height="{tall:.1f}">'
            f"<title>{low:g} to {high_end:g}: {rows:,.0f}</title></rect>"
        ))  # fmt: skip
    return _svg(title, high, parts, wide)


def timeline(title: str, spans: Sequence[Span]) -> Markup:
    """A row for each span, from the first one's start to the last one's end."""
    begin = min(span.start for span in spans)
    length = max(span.start + span.seconds for span in spans) - begin or 1.0
    high, name_wide = 22, 130
    wide = _WIDE - name_wide - 70
    parts = []
    for row, span in enumerate(spans):
        left = name_wide + wide * (span.start - begin) / length
        long = max(2.0, wide * span.seconds / length)
        top = row * high + 4
        text = f"{span.seconds:.1f} s" if span.state != "cached" else "cached"
        parts += [
            Markup('<text x="0" y="{}">{}</text>').format(top + 12, span.name),
            Markup(f'<rect class="span {escape(span.state)}" x="{left:.1f}" y="{top}" '
                   f'width="{long:.1f}" height="14" rx="2"/>'),
            Markup(f'<text class="soft" x="{left + long + 5:.1f}" y="{top + 12}">{text}</text>'),
        ]  # fmt: skip
    return _svg(title, len(spans) * high + 8, parts)


def flow(title: str, rows: Sequence[Sequence[tuple[str, str]]]) -> Markup:
    """Boxes in columns from left to right; each column's boxes lead to the next one's first.

    Args:
        title: what a screen reader says.
        rows: the columns; of each box its heading and what stands below it.
    """
    wide, high, gap = 140, 50, 26
    columns, most = len(rows), max(map(len, rows))
    total, parts = columns * (wide + gap) - gap, []
    tall = most * (high + 16)

    def corner(column: int, row: int) -> tuple[float, float]:
        count = len(rows[column])
        return column * (wide + gap), (row + 0.5) * tall / count - high / 2

    for column, boxes in enumerate(rows):
        for row, (head, words) in enumerate(boxes):
            x, y = corner(column, row)
            box = (
                '<rect class="box" x="{}" y="{:.0f}" width="{}" height="{}" rx="6"/>'
                '<text class="strong" x="{}" y="{:.0f}">{}</text>'
                '<text class="soft" x="{}" y="{:.0f}">{}</text>'
            )
            lines = (x + 8, y + 20, _cut(head), x + 8, y + 38, _cut(words))
            parts.append(Markup(box).format(x, y, wide, high, *lines))
            if column + 1 < columns:
                to_x, to_y = corner(column + 1, min(row, len(rows[column + 1]) - 1))
                parts.append(Markup(
                    f'<path class="arrow" d="M{x + wide} {y + high / 2:.0f} L{to_x - 5} '
                    f'{to_y + high / 2:.0f}" marker-end="url(#tip)"/>'
                ))  # fmt: skip
    tip = (
        '<defs><marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="6" '
        'markerHeight="6" orient="auto"><path class="tip" d="M0 0 L6 3 L0 6 z"/></marker></defs>'
    )
    return _svg(title, tall, [Markup(tip), *parts], wide=total)


class _Axis:
    """From values to places on the page."""

    def __init__(self, ends: tuple[float, float], begin: float, end: float) -> None:
        self.low, self.high, self.begin, self.end = *ends, begin, end

    def place(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, whole: bool = False) -> list[float]:
        """Round numbers, five or so."""
        rough = (self.high - self.low) / 5
        if whole:
            rough = max(1.0, rough)
        step = 10.0 ** math.floor(math.log10(rough))
        step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= rough)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [place * step for place in range(first, last + 1)]


class _LogAxis(_Axis):
    """Of powers; both ends are above 0."""

    def place(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self, whole: bool = False) -> list[float]:
        """Powers of ten, and what lies between where there are few."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        between = (1, 2, 5) if last - first < 5 else (1,)
        found = [factor * 10.0**power for power in range(first, last) for factor in between]
        return [tick for tick in (*found, 10.0**last) if self.low <= tick <= self.high]


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _frame(xs: _Axis, ys: _Axis, x: str, y: str, whole: bool) -> Markup:
    parts = []
    for tick in ys.ticks():
        at = f"{ys.place(tick):.1f}"
        line = f'<line class="grid" x1="{xs.begin}" y1="{at}" x2="{xs.end}" y2="{at}"/>'
        words = f'<text class="soft" text-anchor="end" x="{xs.begin - 6}" y="{at}" dy="4">'
        parts.append(Markup(f"{line}{words}{tick:g}</text>"))
    for tick in xs.ticks(whole):
        parts.append(Markup(
            f'<text class="soft" text-anchor="middle" x="{xs.place(tick):.1f}" '
            f'y="{ys.begin + 16}">{tick:g}</text>'
        ))  # fmt: skip
    words = Markup('<text class="soft" text-anchor="{}" x="{}" y="{}">{}</text>')
    parts.append(words.format("end", xs.end, _HIGH - 6, x))
    parts.append(words.format("start", 0, 14, y))
    return Markup("").join(parts)


def _dot(place: tuple[float, float], name: str, color: str) -> Markup:
    dot = Markup(f'<circle class="dot {color}" cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="3.5"/>')
    if not name:
        return dot
    anchor, shift = ("end", -7) if place[0] > 0.7 * _WIDE else ("start", 7)
    words = Markup('<text text-anchor="{}" x="{:.1f}" y="{:.1f}">{}</text>')
    return dot + words.format(anchor, place[0] + shift, place[1] - 6, _cut(name))


def _legend(names: Sequence[str]) -> Markup:
    """In the top margin, from the right."""
    parts, step = [], min(150, (_WIDE - 140) // len(names))
    for number, name in enumerate(names):
        left = _WIDE - step * (len(names) - number)
        line = f'class="line c{number % _COLORS}" x1="{left}" x2="{left + 16}" y1="10" y2="10"'
        words = Markup('<text x="{}" y="14">{}</text>').format(left + 21, _cut(name, step // 8))
        parts.append(Markup(f"<line {line}/>") + words)
    return Markup("").join(parts)


def _cut(text: str, length: int = 19) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _svg(title: str, high: float, parts: Sequence[Markup], wide: float = _WIDE) -> Markup:
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:.0f} {:.0f}" '
                  'style="max-width:{:.0f}px">')  # fmt: skip
    return head.format(title, wide, high, wide) + Markup("").join(parts) + Markup("</svg>")
