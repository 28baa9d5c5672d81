"""Plot of a plan before it runs: ε round by round, and what noise is left in the mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from silotune.errors import ConfigError
from simulations.plot_style import HUES, INK, MUTED, SURFACE, label_lines, plain_ticks, save

__all__ = ["FORMATS", "MOST_NOISES", "Plan", "save_plan_plot"]

FORMATS = (".png", ".svg", ".pdf")
MOST_NOISES = len(HUES)
"""Lines that can be told apart."""

_GAP = 0.065
_MOST_SPREAD = 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is asked of every silo, for several noise multipliers."""

    epsilons: Mapping[float, Sequence[tuple[int, float]]]
    """By σ: (rounds done, ε)."""
    users: int
    """Declared number of users."""
    rate: float
    """q."""
    steps: int
    """Of a round."""
    delta: float
    target: float | None
    """ε of the budget; None: none was given."""


def save_plan_plot(plan: Plan, path: Path) -> None:
    """Write the plot to ``path``, a .png, .svg or .pdf file.

    Raises:
        ConfigError: another ending, or a folder that cannot be written to.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot is {path}; its ending must be one of {', '.join(FORMATS)}.")

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        _rounds(left, plan)
        _users(right, plan)

    try:
        save(path, 3.4, paint, width=8.6)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error.strerror}.") from error


def _rounds(axes: Axes, plan: Plan) -> None:
    ends = []
    for (sigma, points), hue in zip(plan.epsilons.items(), HUES, strict=False):
        rounds, epsilons = zip(*points, strict=True)
        axes.plot(rounds, epsilons, color=hue, marker="o" if len(rounds) == 1 else None)
        ends.append((epsilons[-1], f"σ = {sigma:g}", hue))
    if plan.target is not None:
        axes.axhline(plan.target, color=INK, linewidth=1, dashes=(4, 3))
        ends.append((plan.target, f"budget ε = {plan.target:g}", INK))
    axes.set_xlim(0, max(points[-1][0] for points in plan.epsilons.values()))
    heights = [height for height, *_ in ends if height > 0]
    # On one linear axis the smallest would lie on the floor.
    if heights and max(heights) > _MOST_SPREAD * min(heights):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
        _label_log(axes, [end for end in ends if end[0] > 0])
    else:
        axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
        label_lines(axes, ends, gap=_GAP)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    axes.set(
        xlabel=f"rounds done, {plan.steps} steps each, q = {plan.rate:g}",
        title=f"ε of one user at δ = {plan.delta:g}",
    )


def _users(axes: Axes, plan: Plan) -> None:
    users = np.geomspace(plan.users / 10, plan.users * 10, 50)
    ends = []
    for (sigma, _), hue in zip(plan.epsilons.items(), HUES, strict=False):
        noise = 100 * sigma / (plan.rate * users)
        axes.plot(users, noise, color=hue)
        here = 100 * sigma / (plan.rate * plan.users)
        axes.plot([plan.users], [here], "o", color=hue, markersize=5, markeredgecolor=SURFACE)
        ends.append((float(noise[-1]), f"σ = {sigma:g}", hue))
    axes.set(xscale="log", yscale="log", xlim=(users[0], users[-1]))
    axes.axvline(plan.users, color=MUTED, linewidth=1, dashes=(1, 2), zorder=0)
    axes.annotate(
        f"{plan.users:,} declared",
        (plan.users, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4, -2),
        textcoords="offset points",
        va="top",
        color=MUTED,
        fontsize=8.5,
    )
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.set(xlabel="users of a silo", title="noise in the mean of a step, % of the clip norm")
    _label_log(axes, ends)


def _label_log(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    # `label_lines` places by shares of the axis' length; this axis is logarithmic.
    low, high = axes.get_ylim()
    shares = [(math.log(y / low) / math.log(high / low), text, hue) for y, text, hue in ends]
    placed = [(low + share * (high - low), text, hue) for share, text, hue in shares]
    label_lines(axes, placed, gap=_GAP)
