"""Plots of how a run went: quality and ε round by round, traffic and time."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.aggregate import REFERENCE, Summary, epsilons_of, rounds_of, traffic_of
from simulations.arm_labels import Arm, arm_named, in_order
from simulations.plot_style import ACCENT, MUTED, Looks, Style, draw, label_lines, name_rows
from simulations.plots import MOST_MERCHANTS
from simulations.records import Record

__all__ = [
    "duration",
    "epsilon_plot",
    "merchant_epsilon_plot",
    "rounds_plot",
    "size",
    "stages_plot",
    "traffic_plot",
]

_MOST_STAGES = 14


def rounds_plot(
    records: Sequence[Record], summary: Summary, look: Looks, metric: str
) -> Markup | None:
    """Draw ``metric`` after each round, mean over seeds, with the band of the seeds.

    Dotted: what arms without rounds reach, over the merchants that the curves are over.
    """
    curves = {
        arm: curve
        for arm, cells in rounds_of(records).items()
        if (curve := _by_round({cell: r.get(metric) for cell, r in cells.items()}))
    }
    if not curves:
        return None
    references = _references(records, summary, metric)
    name = summary.main.axis if metric == summary.main.key else summary.main.names[metric]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        ends = []
        for arm, curve in curves.items():
            _line(axes, curve, look[arm])
            ends.append((curve[max(curve)][0], arm_named(arm).label, look[arm].colour))
        for arm, value in references.items():
            axes.axhline(value, color=look[arm].colour, linewidth=1, dashes=(1, 2))
            ends.append((value, arm_named(arm).brief, look[arm].colour))
        _finish(axes, name, ends)

    return draw(f"rounds-{metric}", f"{summary.main.names[metric]} round by round", 3.3, paint)


def _by_round(values: Mapping[tuple[int, int], float | None]) -> dict[int, tuple[float, ...]]:
    """Return (mean, smallest, largest) over seeds by number of rounds done."""
    found: dict[int, list[float]] = {}
    for (_, round_), value in values.items():
        if value is not None:
            found.setdefault(round_ + 1, []).append(value)
    return {n: (statistics.fmean(v), min(v), max(v)) for n, v in sorted(found.items())}


def _references(records: Iterable[Record], summary: Summary, metric: str) -> dict[str, float]:
    named = [r["merchants"] for r in records if r["kind"] == "round" and r.get("merchants")]
    merchants = set(named[0]) if named else None
    found = {}
    for arm in ("pooled", REFERENCE, *(arm.name for arm in summary.simple[:1])):
        values = summary.per_merchant(arm, metric)
        chosen = [v for name, v in values.items() if merchants is None or name in merchants]
        if chosen:
            found[arm] = statistics.fmean(chosen)
    return found


def _line(axes: Axes, curve: Mapping[int, tuple[float, ...]], style: Style) -> None:
    rounds = list(curve)
    means, lows, highs = zip(*curve.values(), strict=True)
    axes.fill_between(rounds, lows, highs, color=style.colour, alpha=0.15, linewidth=0)
    # A single round is a dot.
    marker = style.marker if len(rounds) == 1 else None
    axes.plot(rounds, means, color=style.colour, linestyle=style.dashes, marker=marker)


def _finish(axes: Axes, what: str, ends: Sequence[tuple[float, str, str]]) -> None:
    axes.set(xlabel="rounds done", ylabel=what)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.margins(x=0)
    axes.set_ylim(*axes.get_ylim())
    label_lines(axes, ends, gap=0.062)


def epsilon_plot(records: Sequence[Record], look: Looks) -> Markup | None:
    """Draw ε after each round: the merchant who spent most, with the band of all merchants."""
    curves = {}
    for arm, merchants in epsilons_of(records).items():
        values = {
            (index, round_): value if math.isfinite(value) else None
            for index, rounds in enumerate(merchants.values())
            for round_, value in rounds.items()
        }
        curve = {n: (high, low, high) for n, (_, low, high) in _by_round(values).items()}
        if curve:
            curves[arm] = curve
    if not curves:
        return None
    arms = in_order(curves)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for arm in arms:
            _line(axes, curves[arm.name], look[arm.name])
            if arm.epsilon is not None:
                axes.axhline(arm.epsilon, color=look[arm.name].colour, linewidth=1, dashes=(1, 2))
        axes.set_ylim(bottom=0)
        last = {name: curve[max(curve)][0] for name, curve in curves.items()}
        ends = [(last[a.name], a.label, look[a.name].colour) for a in arms]
        _finish(axes, "ε spent per user", ends)

    return draw("epsilon", "ε round by round", 3.0, paint)


def merchant_epsilon_plot(records: Sequence[Record], look: Looks) -> Markup | None:
    """Draw ε at the end, for each merchant."""
    spent = {
        arm: {name: max(rounds.values()) for name, rounds in merchants.items()}
        for arm, merchants in epsilons_of(records).items()
    }
    names = sorted({name for merchants in spent.values() for name in merchants})
    if not names or len(names) > MOST_MERCHANTS:
        return None
    arms = in_order(spent)
    # The same request with another model spends the same: one column for both.
    arms = [a for a in arms if a.group != "numeric" or spent[a.name] != spent.get(_twin(a))]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        name_rows(axes, names)
        axes.grid(visible=True, axis="y")
        for arm in arms:
            style = look[arm.name]
            pairs = [(spent[arm.name].get(name, math.nan), row) for row, name in enumerate(names)]
            finite = [(x, y) for x, y in pairs if math.isfinite(x)]
            if not finite:
                continue
            x, y = zip(*finite, strict=True)
            face = style.colour if style.filled else "none"
            axes.scatter(x, y, s=26, color=style.colour, marker=style.marker, facecolors=face)
            axes.annotate(
                arm.label,
                (statistics.fmean(x), 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 4),
                textcoords="offset points",
                ha="center",
                color=style.colour,
            )
        axes.set_xlabel("ε spent per user, after the last round")
        axes.set_xlim(left=0)
        axes.margins(x=0.12)

    return draw("merchant-epsilon", "ε by merchant", 0.2 * len(names) + 0.95, paint)


def _twin(arm: Arm) -> str:
    return arm.name.replace("numeric-", "federated-")


def traffic_plot(records: Sequence[Record], look: Looks) -> Markup | None:
    """Draw bytes of a mean round, from and to all merchants."""
    rows = [t for t in traffic_of(records) if t.bytes_up is not None or t.bytes_down is not None]
    if not rows:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        name_rows(axes, [row.arm.label for row in rows])
        for place, row in enumerate(rows):
            for offset, amount, arrow, alpha in (
                (-0.2, row.bytes_up, "↑", 0.95),
                (0.2, row.bytes_down, "↓", 0.5),
            ):
                colour = look[row.arm.name].colour
                _amount(
                    axes, place + offset, amount or 0.0, f"{arrow} {size(amount)}", colour, alpha
                )
        axes.xaxis.set_major_formatter(lambda x, _: size(x))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.set_xlabel("bytes a round, all merchants together")
        axes.margins(x=0.2)

    return draw("traffic", "Traffic a round", 0.42 * len(rows) + 0.7, paint)


def _amount(
    axes: Axes,
    place: float,
    value: float,
    text: str,
    colour: str,
    alpha: float,
    height: float = 0.36,
) -> None:
    axes.barh(place, value, height=height, color=colour, alpha=alpha, linewidth=0)
    axes.annotate(
        text,
        (value, place),
        xytext=(5, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
        color=MUTED,
    )


def stages_plot(timings: Mapping[str, float]) -> Markup | None:
    """Draw the time of each stage, in the order of the run."""
    if not timings:
        return None
    longest = sorted(timings, key=lambda stage: -timings[stage])[: _MOST_STAGES - 1]
    kept = (
        timings
        if len(timings) <= _MOST_STAGES
        else {s: timings[s] for s in timings if s in longest}
    )
    rest = sum(timings.values()) - sum(kept.values())
    shown = dict(kept) | ({"all other stages": rest} if len(kept) < len(timings) else {})

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        name_rows(axes, list(shown))
        for place, seconds in enumerate(shown.values()):
            _amount(axes, place, seconds, duration(seconds), ACCENT, 0.85, 0.6)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.margins(x=0.2)

    return draw("stages", "Time of each stage", 0.25 * len(shown) + 0.35, paint)


def size(amount: float | None) -> str:
    """Return bytes as people read them.

    >>> size(18_880_000)
    '18.9 MB'
    """
    if amount is None:
        return "—"
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= factor:
            return f"{amount / factor:.3g} {unit}"
    return f"{amount:.0f} B"


def duration(seconds: float | None) -> str:
    """Return a time as people read it.

    >>> duration(3723)
    '1 h 2 min'
    """
    if seconds is None:
        return "—"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
