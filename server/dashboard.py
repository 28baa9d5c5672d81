"""The aggregator's dashboard: rounds, quality, traffic, merchants, runs. It changes nothing."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup
from starlette.routing import Route

from server.dashboard_files import server_view
from server.dashboard_view import FIGURES, RoundView, RunView
from silotune.dashboard.page import dashboard_routes
from silotune.dashboard.svg import Bar, Point, bar_plot, line_plot

__all__ = ["routes"]

_PLOTTED = ("auc", "log_loss", "mae")


def routes(folder: Path) -> list[Route]:
    """Return the routes of the dashboard of the aggregator in ``folder``."""

    def gather(query: Mapping[str, str]) -> dict[str, Any]:
        view = server_view(folder, query.get("run", ""))
        return {
            "view": view,
            "figures": FIGURES,
            "plots": _plots(view.shown) if view.shown is not None else {},
        }

    return dashboard_routes("server.html.j2", gather)


def _plots(run: RunView) -> dict[str, Markup]:
    if not run.done:
        return {}
    quality = {name: plot for name in _PLOTTED if (plot := _quality(run, name)) is not None}
    return quality | {
        "updates": _bars(run, "Updates that arrived, and that failed", _updates),
        "seconds": _bars(run, "Seconds", lambda r: (r.seconds,)),
        "traffic": _bars(run, "Megabytes from merchants, and to them", _traffic, ("f1", "f3")),
    }


def _updates(one: RoundView) -> tuple[float, ...]:
    return one.replies, one.failures


def _traffic(one: RoundView) -> tuple[float, ...]:
    return one.bytes_up / 1e6, one.bytes_down / 1e6


def _bars(
    run: RunView,
    about: str,
    pieces: Callable[[RoundView], tuple[float, ...]],
    looks: tuple[str, ...] = ("f1", "f2"),
) -> Markup:
    bars = [Bar(label=str(r.number), pieces=pieces(r)) for r in run.done]
    said = "; ".join(f"{b.label}: {' and '.join(f'{p:.4g}' for p in b.pieces)}" for b in bars)
    return bar_plot(bars, about=f"{about}, by round. {said}.", x_name="round", looks=looks)


def _quality(run: RunView, name: str) -> Markup | None:
    points = [
        Point(x=float(r.number), y=figure.value, error=figure.error or 0.0)
        for r in run.done
        if (figure := r.quality.get(name)) is not None and figure.value is not None
    ]
    if not points:
        return None
    said = "; ".join(f"{p.x:g}: {p.y:.3f} ± {p.error:.3f}" for p in points)
    about = f"{FIGURES[name]} by round, with standard errors. {said}."
    return line_plot(points, about=about, x_name="round")
