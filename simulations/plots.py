"""Plots of what the arms are worth, each an SVG element, or None where there is nothing to show."""

from collections.abc import Iterable, Sequence

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from simulations.aggregate import REFERENCE, ArmSummary, Spread, Summary
from simulations.arm_labels import Arm, arm_named, in_order
from simulations.judged import MainMetric
from simulations.plot_style import (
    ACCENT,
    FAULT,
    INK,
    MUTED,
    SURFACE,
    Looks,
    Style,
    draw,
    name_rows,
    shorten,
)
from simulations.records import Record
from simulations.verdicts import Effect, effects
from simulations.wording import difference

__all__ = ["calibration_plot", "effects_plot", "merchants_plot", "overview_plot", "scatter_plot"]

MOST_MERCHANTS = 40
"""More rows than this are no plot; the table of merchants has them."""


def overview_plot(summary: Summary, look: Looks) -> Markup | None:
    """Draw the main metric of every arm, smallest to largest seed."""
    main = summary.main
    rows = [row for row in summary.arms if main.key in row.metrics]
    if not rows:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = _with_gaps(rows)
        name_rows(axes, [row.arm.label for row in rows], places)
        if reference := summary.figure(REFERENCE):
            axes.axvline(reference.mean, color=INK, linewidth=0.9, dashes=(2, 2))
        for row, place in zip(rows, places, strict=True):
            _dot(axes, row.metrics[main.key], place, look[row.arm.name])
        axes.set_xlabel(f"{main.axis}, on test rows" if main.larger_is_better else main.axis)
        axes.margins(x=0.06)

    return draw("overview", f"{main.name} of every arm", 0.29 * len(rows) + 0.75, paint)


def _with_gaps(rows: Sequence[ArmSummary]) -> list[float]:
    places, at = [], 0.0
    for before, row in zip([None, *rows], rows, strict=False):
        at += 0.0 if before is None else 1.0 if before.arm.group == row.arm.group else 1.5
        places.append(at)
    return places


def _dot(axes: Axes, spread: Spread, place: float, style: Style) -> None:
    axes.plot([spread.low, spread.high], [place, place], color=style.colour, linewidth=1.4)
    _mark(axes, [spread.mean], [place], style)
    axes.annotate(
        f"{spread.mean:.3f}",
        (1.0, place),
        xycoords=("axes fraction", "data"),
        va="center",
        color=MUTED,
        fontsize=8.5,
    )


def _mark(
    axes: Axes, x: Sequence[float], y: Sequence[float], style: Style, size: float = 5.5
) -> None:
    axes.plot(
        x,
        y,
        linestyle="none",
        marker=style.marker,
        markersize=size,
        color=style.colour,
        markerfacecolor=style.colour if style.filled else SURFACE,
        markeredgewidth=1.2,
    )


def effects_plot(summary: Summary) -> Markup | None:
    """Draw what each step costs or adds in the main metric."""
    main = summary.main
    steps = [e for e in effects(summary) if e.contrast.gain.mean == e.contrast.gain.mean]
    if not steps:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        name_rows(axes, [step.label for step in steps])
        for place, step in enumerate(steps):
            _bar(axes, place, step)
        axes.axvline(0, color=INK, linewidth=0.9)
        less = "" if main.larger_is_better else " (below zero is better)"
        axes.set_xlabel(f"change in {main.words}{less}")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        axes.xaxis.set_major_formatter(lambda x, _: difference(x, 2) if abs(x) > 1e-9 else "0")
        # Room for a figure beside the longest bar.
        low, high = axes.get_xlim()
        axes.set_xlim(low - 0.16 * (high - low), high + 0.16 * (high - low))

    return draw("effects", "What each step costs or adds", 0.27 * len(steps) + 0.7, paint)


def _bar(axes: Axes, place: int, step: Effect) -> None:
    change = step.contrast.change
    colour = ACCENT if step.contrast.gain.mean >= 0 else FAULT
    axes.barh(place, change.mean, height=0.62, color=colour, alpha=0.85, linewidth=0)
    if len(change.values) > 1:
        axes.plot([change.low, change.high], [place, place], color=INK, linewidth=1.2)
    right = change.mean >= 0
    axes.annotate(
        difference(change.mean),
        (max(change.high, 0) if right else min(change.low, 0), place),
        xytext=(5 if right else -5, 0),
        textcoords="offset points",
        ha="left" if right else "right",
        va="center",
        fontsize=8.5,
    )


def scatter_plot(summary: Summary, look: Looks) -> Markup | None:
    """Draw each federated arm's main metric against the merchant's own, a dot for a merchant."""
    main = summary.main
    alone = summary.per_merchant(REFERENCE)
    arms = [row.arm for row in summary.arms if row.arm.group in ("federated", "local")]
    both = {arm.name: summary.per_merchant(arm.name) for arm in arms}
    arms = [arm for arm in arms if alone.keys() & both[arm.name].keys()]
    if not arms:
        return None
    values = [*alone.values(), *(v for arm in arms for v in both[arm.name].values())]
    low, high = _padded(values)

    def paint(figure: Figure) -> None:
        for arm, axes in zip(arms, _panels(figure, len(arms), _columns(arms)), strict=True):
            names = sorted(alone.keys() & both[arm.name].keys())
            theirs, ours = zip(*[(alone[n], both[arm.name][n]) for n in names], strict=True)
            axes.plot([low, high], [low, high], color=INK, linewidth=0.9, dashes=(2, 2))
            style = look[arm.name]
            axes.scatter(theirs, ours, s=15, color=style.colour, marker=style.marker)
            axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
            axes.set_title(_brief(arm), color=style.colour)
            wins = sum(_better(y, x, main) for x, y in zip(theirs, ours, strict=True))
            _corner(axes, f"better at\n{wins} of {len(names)}")
        figure.supxlabel(f"{main.name} of LoRA at the merchant alone", fontsize=9, color=MUTED)
        figure.supylabel(f"{main.name} of this arm", fontsize=9, color=MUTED)

    lines = -(-len(arms) // _columns(arms))
    return draw("scatter", "Federated against alone, by merchant", 1.75 * lines + 0.35, paint)


def _better(ours: float, theirs: float, main: MainMetric) -> bool:
    return ours > theirs if main.larger_is_better else ours < theirs


def _columns(arms: Sequence[Arm]) -> int:
    first = sum(arm.group == arms[0].group for arm in arms)
    return first if 2 <= first <= 3 else min(3, len(arms))


def _panels(figure: Figure, count: int, columns: int) -> list[Axes]:
    lines = -(-count // columns)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    flat = list(grid.flat)
    for unused in flat[count:]:
        unused.set_visible(False)
    return flat[:count]


def _padded(values: Iterable[float]) -> tuple[float, float]:
    found = list(values)
    pad = 0.06 * (max(found) - min(found)) or 0.01
    return min(found) - pad, max(found) + pad


def _brief(arm: Arm) -> str:
    return shorten(arm.brief.removeprefix("Federated, "), 22)


def _corner(axes: Axes, text: str) -> None:
    axes.text(0.05, 0.95, text, transform=axes.transAxes, va="top", fontsize=8)


def merchants_plot(summary: Summary, look: Looks) -> Markup | None:
    """Draw each merchant's step from being alone to the private model that it ends up with."""
    main, alone = summary.main, summary.per_merchant(REFERENCE)
    private = [f"federated-eps{epsilon:g}" for epsilon in summary.epsilons]
    chosen = [n for p in private for n in (f"{p}+local", p)] + ["federated+local", "federated"]
    arm = next((arm_named(n) for n in chosen if n in summary.scores), None)
    if arm is None:
        return None
    ours = summary.per_merchant(arm.name)
    names = sorted(
        alone.keys() & ours.keys(),
        key=lambda name: -alone[name] if main.larger_is_better else alone[name],
    )
    if not names or len(names) > MOST_MERCHANTS:
        return None

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        name_rows(axes, names)
        for place, name in enumerate(names):
            colour = ACCENT if _better(ours[name], alone[name], main) else FAULT
            axes.plot([alone[name], ours[name]], [place, place], color=colour, linewidth=1.4)
        rows = range(len(names))
        _mark(axes, [alone[name] for name in names], rows, look[REFERENCE])
        _mark(axes, [ours[name] for name in names], rows, look[arm.name])
        axes.set_xlabel(f"{main.axis}, mean over seeds")
        sign = "■" if look[arm.name].marker == "s" else "●"
        _key(axes, [("● LoRA, alone", INK), (f"{sign} {arm.label}", look[arm.name].colour)])

    return draw("merchants", "Each merchant alone and federated", 0.2 * len(names) + 0.95, paint)


def _key(axes: Axes, entries: Sequence[tuple[str, str]]) -> None:
    for index, (text, colour) in enumerate(entries):
        axes.text(0.34 * index, 1.01, text, transform=axes.transAxes, va="bottom", color=colour)


def calibration_plot(records: Iterable[Record], look: Looks, main: MainMetric) -> Markup | None:
    """Draw how often it happened over the mean chance, a line for each seed."""
    curves: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for record in records:
        if record["kind"] == "calibration":
            points = [(b[0], b[1]) for b in record["bins"] if None not in b[:2]]
            curves.setdefault(record["arm"], {})[record["seed"]] = sorted(points)
    everything = in_order(name for name, seeds in curves.items() if any(seeds.values()))
    # The simple methods' calibration error is in the table.
    arms = [a for a in everything if a.group not in ("baseline", "numeric")]
    arms = [a for a in everything if a.name in (REFERENCE, "pooled")] + arms
    if not arms:
        return None
    top = max(v for a in arms for line in curves[a.name].values() for xy in line for v in xy) * 1.06

    def paint(figure: Figure) -> None:
        for arm, axes in zip(arms, _panels(figure, len(arms), min(4, len(arms))), strict=True):
            axes.plot([0, top], [0, top], color=MUTED, linewidth=0.9, dashes=(2, 2))
            for line in filter(None, curves[arm.name].values()):
                colour = look[arm.name].colour
                axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, alpha=0.8)
            axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
            axes.set_title(_brief(arm), color=look[arm.name].colour, fontsize=8)
        of = " of the likeliest class" if main.of_classes else ""
        rate = "share that is right" if main.of_classes else "rate of responses"
        figure.supxlabel(f"mean predicted chance{of}", fontsize=9, color=MUTED)
        figure.supylabel(rate, fontsize=9, color=MUTED)

    lines = -(-len(arms) // 4)
    return draw("calibration", "Calibration of the arms", 1.4 * lines + 0.35, paint)
