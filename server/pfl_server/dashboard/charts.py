"""Charts as SVG, drawn by the server: no scripts, no inline styles, so a strict content policy holds.

Colours come from the style sheet by class. A line chart is drawn twice, for wide and for narrow screens, so that
its letters stay readable on a phone; the style sheet shows one of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup, escape

#: Sizes of a line chart, width and height in units of its view box.
_SIZES = {"wide": (760, 270), "narrow": (370, 250)}
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 14, 42


@dataclass(frozen=True)
class Point:
    """A point of a line.

    Attributes:
        x: its place, for instance a version number.
        y: its value; None leaves a gap.
        title: what is shown for it on hovering.
    """

    x: float
    y: float | None
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A line of a chart: its name, its class (colour and dashes in the style sheet) and its points, by x."""

    name: str
    kind: str
    points: Sequence[Point]

    def drawn(self) -> list[tuple[Point, float]]:
        """The points that have a value, with it."""
        return [(p, p.y) for p in self.points if p.y is not None and math.isfinite(p.y)]


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x`` with a title, for instance a roll-back."""

    x: float
    title: str


@dataclass(frozen=True)
class Level:
    """A horizontal line at ``y`` with a title, for instance a budget."""

    y: float
    title: str


def ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Round values that cover [low, high], at most ``most`` + 1 steps apart by 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 1e-9 * max(abs(low), abs(high)):  # all the same, but for rounding
        span = abs(high)
    if span < 1e-300:
        span = 1.0
    rough = span / max(1, most)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * (1 - 1e-9))
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    y_text: Callable[[float], str] = "{:.4g}".format,
    marks: Sequence[Mark] = (),
    levels: Sequence[Level] = (),
    from_zero: bool = False,
) -> Markup:
    """A line chart with axes, axis labels and a tooltip for each point.

    Args:
        lines: what to draw; points without a value leave gaps.
        title: what the chart shows, for screen readers.
        x_label, y_label: names of the axes, with units.
        y_text: a value of the vertical axis as text.
        marks, levels: vertical and horizontal lines.
        from_zero: whether the vertical axis begins at 0.

    Returns:
        Markup of two ``<svg>``; empty when there is no point.
    """
    values = [y for line in lines for _, y in line.drawn()] + [level.y for level in levels]
    places = [p.x for line in lines for p, _ in line.drawn()]
    if not places:
        return Markup("")
    low, high = min(values), max(values)
    if from_zero:
        low = min(low, 0.0)
    frame = (min(places), max(places), low, high)
    parts = [_draw(kind, frame, lines, title, x_label, y_label, y_text, marks, levels) for kind in _SIZES]
    return Markup("\n").join(parts)


def _draw(
    kind: str,
    frame: tuple[float, float, float, float],
    lines: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str,
    y_text: Callable[[float], str],
    marks: Sequence[Mark],
    levels: Sequence[Level],
) -> Markup:
    width, height = _SIZES[kind]
    x_ticks = ticks(frame[0], frame[1], 10 if kind == "wide" else 5, whole=True)
    x_ticks = [t for t in x_ticks if frame[0] <= t <= frame[1]]
    y_ticks = ticks(frame[2], frame[3], 5)
    low, high = y_ticks[0], y_ticks[-1]
    across = (frame[1] - frame[0]) or 1.0
    # a single point stands in the middle
    shift = 0.5 if frame[1] == frame[0] else 0.0

    def x(value: float) -> float:
        return _LEFT + 8 + ((value - frame[0]) / across + shift) * (width - _LEFT - _RIGHT - 16)

    def y(value: float) -> float:
        return _TOP + (high - value) / (high - low) * (height - _TOP - _BOTTOM)

    bottom = height - _BOTTOM
    out = [
        Markup('<svg class="chart {}" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            kind, width, height, title
        )
    ]
    for value in y_ticks:
        out.append(_segment("gridline", _LEFT, y(value), width - _RIGHT, y(value)))
        out.append(_text(_LEFT - 8, y(value) + 4, y_text(value), "end"))
    for value in x_ticks:
        out.append(_segment("tick", x(value), bottom, x(value), bottom + 4))
        out.append(_text(x(value), bottom + 18, f"{value:g}", "middle"))
    out.append(_segment("axis", _LEFT, bottom, width - _RIGHT, bottom))
    out.append(_text((_LEFT + width - _RIGHT) / 2, height - 6, x_label, "middle", "label"))
    out.append(
        Markup(
            '<text class="label" text-anchor="middle" transform="translate(13 {:.1f}) rotate(-90)">{}</text>'
        ).format((_TOP + bottom) / 2, y_label)
    )
    for mark in marks:
        if frame[0] <= mark.x <= frame[1]:
            out.append(_segment("mark", x(mark.x), _TOP, x(mark.x), bottom, mark.title))
    for level in levels:
        out.append(_segment("level", _LEFT, y(level.y), width - _RIGHT, y(level.y), level.title))
    for line in lines:
        out.extend(_line(line, x, y))
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def _line(line: Line, x: Callable[[float], float], y: Callable[[float], float]) -> list[Markup]:
    """The strokes between neighbouring points that have values, and a dot with its tooltip on each."""
    out = []
    drawn = {id(p) for p, _ in line.drawn()}
    for there, run in groupby(line.points, key=lambda p: id(p) in drawn):
        points = list(run)
        if there and len(points) > 1:
            path = " ".join(f"{x(p.x):.1f},{y(p.y or 0.0):.1f}" for p in points)
            out.append(Markup('<polyline class="line {}" points="{}"/>').format(line.kind, path))
    radius = 3.2 if len(drawn) <= 40 else 2.0
    for point, value in line.drawn():
        dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>')
        out.append(dot.format(line.kind, x(point.x), y(value), radius, point.title))
        # a larger invisible one, so that a finger or an unsteady pointer meets it too
        hit = Markup('<circle class="hit" cx="{:.1f}" cy="{:.1f}" r="9"><title>{}</title></circle>')
        out.append(hit.format(x(point.x), y(value), point.title))
    return out


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float, title: str = "") -> Markup:
    inside = Markup("<title>{}</title>").format(title) if title else Markup("")
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}">{}</line>').format(
        kind, x1, y1, x2, y2, inside
    )


def _text(x: float, y: float, text: str, anchor: str, kind: str = "value") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


@dataclass(frozen=True)
class BarPart:
    """A part of a bar: how large, its class, what is shown on hovering."""

    value: float
    kind: str
    title: str


def bar(parts: Sequence[BarPart], whole: float, label: str) -> Markup:
    """One horizontal bar of parts, as wide as its place.

    Args:
        parts: from left to right.
        whole: what the full width stands for; parts beyond it are cut off.
        label: what the bar shows, for screen readers.
    """
    out = [Markup('<svg class="bar" role="img" aria-label="{}">').format(label)]
    out.append(Markup('<rect class="track" width="100%" height="100%"/>'))
    done = 0.0
    for part in parts:
        wide = min(part.value / whole, 1 - done) if whole > 0 else 0.0
        if wide > 0:
            rect = Markup(
                '<rect class="{}" x="{:.3f}%" width="{:.3f}%" height="100%"><title>{}</title></rect>'
            )
            out.append(rect.format(part.kind, 100 * done, 100 * wide, part.title))
            done += wide
    out.append(Markup("</svg>"))
    return Markup("").join(out)


def legend(lines: Sequence[Line]) -> Markup:
    """Names of the lines beside a sample of each."""
    items = [
        Markup(
            '<li><svg class="sample" viewBox="0 0 28 10" aria-hidden="true">'
            '<polyline class="line {0}" points="1,5 27,5"/><circle class="dot {0}" cx="14" cy="5" r="3"/></svg>{1}</li>'
        ).format(line.kind, escape(line.name))
        for line in lines
    ]
    return Markup('<ul class="legend">{}</ul>').format(Markup("").join(items))
