"""The rows of the table of curves: measure, fit, plot."""

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from simulations.benchmarks.comparisons import Bench
from simulations.benchmarks.scaling import (
    Curve,
    adapter_curve,
    merchants_curve,
    users_curve,
    workers_curve,
)
from simulations.plot_style import HUES, MUTED, plain_ticks, save

__all__ = ["CURVES", "plot"]


def plot(curve: Curve, path: Any) -> None:
    """Write a picture of time (left) and memory (right) over size, logarithmic."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def paint(figure: Figure) -> None:
        left, right = figure.subplots(1, 2)
        powers = curve.exponents()
        for hue, (stage, values) in zip(HUES, curve.seconds.items(), strict=False):
            label = f"{stage}: size^{powers[stage]:.2f}" if stage in powers else stage
            left.plot(curve.sizes, values, marker="o", markersize=3.5, color=hue, label=label)
        right.plot(curve.sizes, curve.memory, marker="o", markersize=3.5, color=MUTED)
        for axes, title in ((left, "Seconds"), (right, "Peak memory, MiB")):
            axes.set(xscale="log", yscale="log", xlabel=curve.axis, title=title)
        right.set_ylim(min(curve.memory) / 2, max(curve.memory) * 2)
        for axis in (left.xaxis, left.yaxis, right.xaxis, right.yaxis):
            plain_ticks(axis)
        left.legend(fontsize=7.5, frameon=False)

    save(path, 2.6, paint, width=7.2)


def _row(bench: Bench, curve: Curve) -> dict[str, Any]:
    folder = bench.out if bench.quick else bench.plots / "images"
    plot(curve, folder / f"scaling-{curve.name}.svg")
    return {"curve": curve, "exponents": curve.exponents()}


def _merchants(bench: Bench) -> dict[str, Any]:
    folder = bench.out / "scaling-merchants"
    return _row(bench, merchants_curve(folder, 3 if bench.quick else 1000))


def _users(bench: Bench) -> dict[str, Any]:
    return _row(bench, users_curve(bench.out / "scaling-users", 100 if bench.quick else 3162))


def _numeric(bench: Bench) -> dict[str, Any]:
    folder = bench.out / "scaling-users-numeric"
    limit = 100 if bench.quick else 100_000
    return _row(bench, users_curve(folder, limit, text=False))


def _adapter(bench: Bench) -> dict[str, Any]:
    return _row(bench, adapter_curve(bench.out / "scaling-adapter", 1 if bench.quick else 50))


def _workers(bench: Bench) -> dict[str, Any]:
    merchants, users = (2, 40) if bench.quick else (16, 120)
    folder = bench.out / "scaling-workers"
    return _row(bench, workers_curve(folder, 2, merchants=merchants, users=users))


CURVES: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "merchants": _merchants,
    "users": _users,
    "users-numeric": _numeric,
    "adapter": _adapter,
    "workers": _workers,
}
"""By name of the row."""
