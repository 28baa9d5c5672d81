"""A merchant's dashboard: ε spent and left, what left and under which guarantee, refusals, policy.

It stays in the silo and holds nothing of a customer. Its one button stops the silo.
"""

import os
import signal
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import Markup
from starlette.routing import Route

from client.config import read_client
from client.dashboard_ledger import LedgerView, ledger_view
from client.dashboard_policy import policy_words
from privacy.policy import Policy
from silotune.config import from_toml
from silotune.dashboard.log_tail import LogLine, newest
from silotune.dashboard.page import dashboard_routes
from silotune.dashboard.svg import Bar, Point, bar_plot, step_plot
from silotune.supervision import read_state

__all__ = ["ClientView", "client_view", "routes"]

T = TypeVar("T")
_SHOWN = 200
"""Newest receipts on the page; `silotune client ledger show` prints all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClientView:
    """The silo."""

    name: str
    aggregator: str
    processes: Mapping[str, Mapping[str, Any]]
    ledger: LedgerView
    policy: Policy | None
    refusals: tuple[LogLine, ...]
    """Newest first."""
    troubles: tuple[LogLine, ...]
    faults: tuple[str, ...]

    @property
    def left(self) -> float | None:
        """Return what is left of the budget."""
        return None if self.policy is None else max(0.0, self.policy.epsilon - self.ledger.spent)


def routes(folder: Path) -> list[Route]:
    """Return the routes of the dashboard of the silo in ``folder``."""

    def gather(_: Mapping[str, str]) -> dict[str, Any]:
        view = client_view(folder)
        return {
            "view": view,
            "folder": str(folder),
            "plots": _plots(view),
            "policy_words": policy_words(view.policy) if view.policy else [],
            "receipts": view.ledger.receipts[: -_SHOWN - 1 : -1],
        }

    return dashboard_routes("client.html.j2", gather, stop=lambda: _stop(folder))


def client_view(folder: Path) -> ClientView:
    """Read the silo in ``folder``: plain files and the ledger, neither tables nor model."""
    faults: list[str] = []

    def read(path: Path, parse: Callable[[Path], T]) -> T | None:
        try:
            return parse(path)
        except (OSError, ValueError, LookupError) as error:
            faults.append(str(error) if str(path) in str(error) else f"{path}: {error}.")
            return None

    name = read(folder / "silo.toml", _name)
    settings = read(folder / "client.toml", lambda path: read_client(path.parent))
    policy = read(folder / "policy.toml", lambda path: from_toml(Policy, path))
    anchor = Path(settings.anchor) if settings and settings.anchor else None
    logs = sorted((folder / "logs").glob("*.log"))
    return ClientView(
        name=name or folder.name,
        aggregator=f"{settings.server.name} at {settings.server.address}" if settings else "",
        processes=(read_state(folder) or {"processes": {}})["processes"],
        ledger=ledger_view(folder / "ledger.db", anchor),
        policy=policy,
        refusals=tuple(newest([folder / "silo.log"], events=["refused"])),
        troubles=tuple(newest(logs, levels=["warning", "error", "critical"], most=20)),
        faults=tuple(faults),
    )


def _name(path: Path) -> str:
    # Not by `SiloFolder`, which would load DuckDB.
    return str(tomllib.loads(path.read_text(encoding="utf-8"))["name"])


def _stop(folder: Path) -> None:
    """Begin what `silotune client stop` does; this process ends with the others."""
    state = read_state(folder)
    if state is not None and state["pid"] is not None:
        os.kill(int(state["pid"]), signal.SIGTERM)


def _plots(view: ClientView) -> dict[str, Markup]:
    ledger = view.ledger
    if not ledger.receipts or view.policy is None:
        return {}
    budget, paid = view.policy.epsilon, [r for r in ledger.receipts if r.delta is not None]
    points = [Point(x=float(i), y=r.epsilon) for i, r in enumerate(paid, start=1)]
    days = ledger.by_day
    said = "; ".join(f"{d.label}: {d.added:.3f}" for d in days)
    made = {
        "days": bar_plot(
            [Bar(label=d.label[5:], pieces=(max(0.0, d.added),)) for d in days[-30:]],
            about=f"ε that each day added. {said}.",
            x_name="day, UTC",
        )
    }
    if points:
        about = f"ε spent after each release, {ledger.spent:.3f} of {budget:g} after the last."
        made["spent"] = step_plot(points, limit=budget, about=about, x_name="releases so far")
    return made
