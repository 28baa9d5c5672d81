"""Plots as SVG inside a page: no library, no script, no colour of their own.

Colours are classes of the page's style sheet, so that one plot serves light and dark. Every plot
carries its figures in words too, for readers who do not see it.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Bar", "Point", "bar_plot", "line_plot", "step_plot", "strip"]

_WIDTH, _HEIGHT = 460.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 10.0, 12.0, 34.0
"""Units of the drawing; the page scales it."""
_WIDEST = 48.0
"""Of a bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One value over x, with its error bar."""

    x: float
    y: float
    error: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One bar: pieces from the bottom up."""

    label: str
    pieces: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        share = (value - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def line_plot(points: Sequence[Point], *, about: str, x_name: str) -> Markup:
    """Draw points with error bars, joined by a line; x are whole numbers.

    Args:
        points: in order of x; at least one.
        about: what is drawn, for readers who do not see it.
        x_name: under the axis.
    """
    ends = [y for p in points for y in (p.y - p.error, p.y + p.error)]
    frame = _frame(points[0].x, points[-1].x, min(ends), max(ends), margin=0.5)
    drawn = [*_grid(frame, _whole(points[0].x, points[-1].x), x_name)]
    path = " ".join(f"{frame.x(p.x):.1f},{frame.y(p.y):.1f}" for p in points)
    drawn.append(Markup('<polyline class="line c1" points="{}"/>').format(path))
    for p in points:
        x, low, high = frame.x(p.x), frame.y(p.y - p.error), frame.y(p.y + p.error)
        bar = f"M{x:.1f} {low:.1f}V{high:.1f}M{x - 4:.1f} {low:.1f}h8M{x - 4:.1f} {high:.1f}h8"
        drawn.append(Markup('<path class="line c1" d="{}"/>').format(bar if p.error else ""))
        dot = Markup('<circle class="f1" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>')
        said = f"{x_name} {p.x:g}: {p.y:.3f}" + (f" ± {p.error:.3f}" if p.error else "")
        drawn.append(dot.format(x, frame.y(p.y), said))
    return _svg(drawn, about)


def step_plot(points: Sequence[Point], *, limit: float, about: str, x_name: str) -> Markup:
    """Draw what grows in steps, from 0 up, below a limit; x are whole numbers from 0.

    Args:
        points: in order of x; at least one.
        limit: drawn as a line of its own.
        about: what is drawn, for readers who do not see it.
        x_name: under the axis.
    """
    last = max(1.0, points[-1].x)
    frame = _frame(0.0, last, 0.0, max(limit, *(p.y for p in points)) * 1.04, margin=0.0)
    drawn = [*_grid(frame, _whole(0.0, last), x_name)]
    steps = "".join(f"H{frame.x(p.x):.1f}V{frame.y(p.y):.1f}" for p in points)
    start = f"M{frame.x(0.0):.1f} {frame.y(0.0):.1f}"
    floor = f"H{frame.x(points[-1].x):.1f}V{frame.y(0.0):.1f}Z"
    drawn += [
        Markup('<path class="area a1" d="{}"/>').format(start + steps + floor),
        Markup('<path class="line c1" d="{}"/>').format(start + steps),
        Markup('<path class="limit" d="M{} {:.1f}H{}"/>').format(_LEFT, frame.y(limit), _WIDTH),
    ]
    return _svg(drawn, about)


def bar_plot(
    bars: Sequence[Bar], *, about: str, x_name: str, looks: Sequence[str] = ("f1", "f2")
) -> Markup:
    """Draw bars of stacked pieces from 0 up.

    Args:
        bars: at least one, from left to right.
        about: what is drawn, for readers who do not see it.
        x_name: under the axis.
        looks: class of each piece.
    """
    most = max(sum(b.pieces) for b in bars)
    frame = _frame(0.0, float(len(bars)), 0.0, most * 1.04 or 1.0, margin=0.0)
    every = math.ceil(len(bars) / 8)
    ticks = [(i + 0.5, b.label) for i, b in enumerate(bars) if i % every == 0]
    drawn = [*_grid(frame, ticks, x_name)]
    wide = frame.x(1.0) - frame.x(0.0)
    bar_wide = min(0.7 * wide, _WIDEST)
    for i, bar in enumerate(bars):
        base = 0.0
        for look, piece in zip(looks, bar.pieces, strict=False):
            top, bottom = frame.y(base + piece), frame.y(base)
            shape = Markup(
                '<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>'
            )
            left = frame.x(i + 0.5) - bar_wide / 2
            drawn.append(shape.format(look, left, top, bar_wide, max(0.0, bottom - top)))
            base += piece
    return _svg(drawn, about)


def strip(marks: Sequence[bool]) -> Markup:
    """Draw a row of squares: full for each True, hollow for each False."""
    size, step = 10.0, 14.0
    square = Markup('<rect class="{}" x="{:g}" y="2" width="{:g}" height="{:g}" rx="2"/>')
    drawn = [
        square.format("f1" if mark else "f0", 2 + i * step, size, size)
        for i, mark in enumerate(marks)
    ]
    about = ", ".join("yes" if mark else "no" for mark in marks)
    frame = Markup('<svg class="strip" viewBox="0 0 {:g} 14" role="img" aria-label="{}">{}</svg>')
    return frame.format(step * len(marks), about, Markup("").join(drawn))


def _frame(low_x: float, high_x: float, low_y: float, high_y: float, *, margin: float) -> _Frame:
    if margin:
        room = 0.12 * (high_y - low_y) or 0.1 * abs(high_y) or 1.0
        low_y, high_y = low_y - room, high_y + room
    return _Frame(low_x=low_x - margin, high_x=high_x + margin, low_y=low_y, high_y=high_y)


def _grid(frame: _Frame, ticks: Sequence[tuple[float, str]], x_name: str) -> Iterator[Markup]:
    step = _step(frame.high_y - frame.low_y)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    value = math.ceil(frame.low_y / step - 1e-9) * step
    while value <= frame.high_y + 1e-9 * step:
        y = frame.y(value)
        yield Markup('<path class="grid" d="M{} {:.1f}H{}"/>').format(_LEFT, y, _WIDTH - _RIGHT)
        text = Markup('<text class="end" x="{}" y="{:.1f}">{}</text>')
        # Never '-0'.
        yield text.format(_LEFT - 7, y + 4, f"{value + 0.0:,.{digits}f}")
        value += step
    for x, label in ticks:
        text = Markup('<text class="middle" x="{:.1f}" y="{}">{}</text>')
        yield text.format(frame.x(x), _HEIGHT - _BOTTOM + 15, label)
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield Markup('<text class="middle" x="{}" y="{}">{}</text>').format(middle, _HEIGHT - 4, x_name)


def _step(span: float) -> float:
    rough = span / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(f * power for f in (1.0, 2.0, 5.0, 10.0) if f * power >= rough * 0.999)


def _whole(low: float, high: float) -> list[tuple[float, str]]:
    step = max(1, math.ceil((high - low) / 8))
    return [(float(x), str(x)) for x in range(int(low), int(high) + 1, step)]


def _svg(drawn: Sequence[Markup], about: str) -> Markup:
    frame = Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>')
    return frame.format(_WIDTH, _HEIGHT, about, Markup("").join(drawn))
