"""How plots look: colours that readers with any colour vision tell apart, and SVG for a page.

Every colour is a name of the page's style sheet, so that one plot serves light and dark.
"""

import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import XAxis, YAxis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from simulations.arm_labels import Arm

__all__ = [
    "ACCENT",
    "FAULT",
    "GRID",
    "HUES",
    "INK",
    "MUTED",
    "SURFACE",
    "Looks",
    "Style",
    "draw",
    "label_lines",
    "name_rows",
    "plain_ticks",
    "save",
    "shorten",
    "styles",
]

# What matplotlib draws with, and the style sheet's variable that it becomes. Okabe and Ito's
# palette, its orange and yellow darkened where they carry text.
_VARIABLES = {
    "#1d2730": "--ink",
    "#5b6770": "--muted",
    "#dfe4e8": "--grid",
    "#fefefe": "--surface",
    "#0072b2": "--blue",
    "#00855f": "--green",
    "#c8500a": "--vermillion",
    "#a8528a": "--purple",
    "#a97900": "--orange",
    "#7d4e2d": "--brown",
}
INK, MUTED, GRID, SURFACE, *HUES = _VARIABLES
ACCENT, FAULT = HUES[0], HUES[2]
_BLUE, *_BUDGETS = HUES

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.8,
    "axes.unicode_minus": True,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
}
WIDTH = 5.2
"""Inches. Small enough that the letters can be read on a phone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How one arm is drawn everywhere."""

    colour: str
    """The noise: blue for none, another hue for each budget; baselines grey and black."""
    dashes: str
    """Numeric features alone are dashed."""
    marker: str
    """Square with a local adapter."""
    filled: bool
    """Numeric features alone are hollow."""

    @property
    def variable(self) -> str:
        """Name of the colour in the style sheet."""
        return _VARIABLES[self.colour]


Looks = Mapping[str, Style]
"""Style by name of an arm, the same in all plots of a page."""


def styles(arms: Sequence[Arm]) -> Looks:
    """Return a style for each arm, by name; the same budget has the same hue."""
    budgets = sorted({a.epsilon for a in arms if a.epsilon is not None}, reverse=True)
    hues = {e: _BUDGETS[i % len(_BUDGETS)] for i, e in enumerate(budgets)}
    return {arm.name: _style(arm, hues) for arm in arms}


def _style(arm: Arm, hues: dict[float, str]) -> Style:
    numeric = arm.base == "numeric"
    if arm.epsilon is not None:
        colour = hues[arm.epsilon]
    elif arm.base in ("federated", "numeric"):
        colour = _BLUE
    else:
        colour = INK if arm.name in ("local-only", "pooled") else MUTED
    return Style(
        colour=colour,
        dashes="--" if numeric else "-",
        marker="s" if arm.group == "local" else "D" if arm.group == "other" else "o",
        filled=not numeric,
    )


def draw(
    name: str, title: str, height: float, paint: Callable[[Figure], None], *, width: float = WIDTH
) -> Markup:
    """Return what ``paint`` draws as an SVG element for a page.

    Args:
        name: unique on the page; ids are made from it.
        title: for readers who do not see the plot.
        height: inches.
        paint: draws on an empty figure.
        width: inches.
    """
    with mpl.rc_context(_RC), mpl.rc_context({"svg.hashsalt": name}), _any_letters():
        figure = Figure(figsize=(width, height))
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _for_page(buffer.getvalue(), title)


def save(
    path: Path, height: float, paint: Callable[[Figure], None], *, width: float = WIDTH
) -> None:
    """Write what ``paint`` draws to a file of its own, on white; its ending says the format.

    Args:
        path: ending in .png, .svg or .pdf.
        height: inches.
        paint: draws on an empty figure.
        width: inches.
    """
    alone: dict[Any, Any] = {"figure.facecolor": "white", "svg.fonttype": "path"}
    with mpl.rc_context(_RC), mpl.rc_context(alone):
        figure = Figure(figsize=(width, height))
        paint(figure)
        figure.savefig(path, dpi=200)


def plain_ticks(axis: XAxis | YAxis) -> None:
    """Give a logarithmic axis numbers: powers of ten are mathematical text, here code."""
    # Ones, twos and fives where an axis has few powers of ten.
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,), numticks=9))
    axis.set_major_formatter(lambda x, _: f"{x:,.10g}")
    axis.set_minor_locator(NullLocator())


@contextmanager
def _any_letters() -> Iterator[None]:
    # Letters stay text, so the page's font draws what matplotlib's own font has not.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def _for_page(svg: str, title: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]*)"', svg)
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    # Only what is used is named: names must be unique on the page.
    body = re.sub(r'<g id="[^"]*"', "<g", body).replace("xlink:href=", "href=")
    body = re.sub(r'style="[^"]*"', lambda found: _themed(found[0]), body)
    head = Markup('<svg viewBox="{}" role="img" aria-label="{}">').format(box and box[1], title)
    return head + Markup(body)  # noqa: S704 - matplotlib escapes every text


def _themed(style: str) -> str:
    style = re.sub(r" ?font-family: [^;\"]*;?", "", style)
    return re.sub(r"#[0-9a-f]{6}", lambda found: _colour(found[0]), style)


def _colour(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour


def label_lines(axes: Axes, ends: Sequence[tuple[float, str, str]], *, gap: float) -> None:
    """Write each line's name at its right end, moved apart where they would overlap.

    Args:
        axes: limits must be final.
        ends: height, text and colour of each.
        gap: smallest distance of two labels, as a share of the axes' height.
    """
    low, high = axes.get_ylim()
    usable = [e for e in ends if not math.isnan(e[0])]
    order = sorted(usable, key=lambda end: end[0])
    places = _apart([(y - low) / (high - low) for y, _, _ in order], gap)
    for place, (_, text, colour) in zip(places, order, strict=True):
        axes.annotate(
            text,
            (1.0, place),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            color=colour,
            fontsize=8.5,
            annotation_clip=False,
        )


def _apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Return ascending places at least ``gap`` apart, groups centred on what they wanted.

    >>> [round(x, 2) for x in _apart([0.5, 0.5, 0.9], 0.1)]
    [0.45, 0.55, 0.9]
    """
    groups: list[list[float]] = []
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _bottom(groups[-1], gap) - _top(groups[-2], gap) < gap:
            last = groups.pop()
            groups[-1] += last
    return [_bottom(group, gap) + gap * i for group in groups for i in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)


def name_rows(axes: Axes, names: Sequence[str], places: Sequence[float] | None = None) -> None:
    """Make the vertical axis a list of ``names``, the first on top."""
    rows = list(range(len(names))) if places is None else list(places)
    axes.set_yticks(rows, [shorten(name) for name in names], color=INK)
    axes.set_ylim(max(rows, default=0) + 0.6, min(rows, default=0) - 0.6)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)


def shorten(text: str, letters: int = 36) -> str:
    """Return ``text``, cut where a plot has no room for more."""
    return text if len(text) <= letters else f"{text[: letters - 1]}…"
