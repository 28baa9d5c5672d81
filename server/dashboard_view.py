"""What the aggregator's dashboard shows, as `server.dashboard_files` reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from silotune.dashboard.log_tail import LogLine

__all__ = ["FIGURES", "Figure", "MerchantView", "RoundView", "RunView", "ServerView"]

FIGURES = {"auc": "AUC", "accuracy": "Accuracy", "log_loss": "Log loss", "mae": "Mean error"}
"""Of `server.metrics.OutputMetrics`, with names for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured figure; None where the noise hides it."""

    value: float | None
    error: float | None
    low: float | None = None
    """At the worst order within the bins, where bins leave it open."""
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundView:
    """One round that is done."""

    number: int
    """Counted from 0, as in ledgers and logs."""
    seconds: float
    asked: int
    """Merchants in the cohort."""
    replies: int
    failures: int
    late: int
    asked_again: int
    bytes_up: int
    bytes_down: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why updates failed, in the silos' fixed words."""
    quality: Mapping[str, Figure] = field(default_factory=dict)
    """By name of `FIGURES`; empty: not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MerchantView:
    """One enrolled merchant."""

    name: str
    nominal_users: int
    arrived: tuple[bool, ...]
    """Whether its update went into each round of the run that is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """One run."""

    name: str
    state: str
    message: str
    submitted: float
    starts: int
    rounds: int
    asked: Mapping[str, Any]
    """Its run file."""
    done: tuple[RoundView, ...]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Return what was asked for, as the run file has it."""
        return list(_flat({k: v for k, v in self.asked.items() if k in _SHOWN}))

    @property
    def rule(self) -> str:
        """Return in words how updates become the next adapter."""
        job = self.asked.get("job", {})
        words = "The mean of the updates that arrive, each weighing the same, is added"
        if momentum := job.get("server_momentum"):
            words += f", with a share of {momentum} of the last round's movement"
        return f"{words}. Updates travel as {job.get('encoding', 'float32')}."

    @property
    def reasons(self) -> dict[str, int]:
        """Return why updates failed in all rounds, and how often."""
        found: dict[str, int] = {}
        for one in self.done:
            for reason, times in one.reasons.items():
                found[reason] = found.get(reason, 0) + times
        return found

    def latest(self, name: str) -> Figure:
        """Return the newest measured figure ``name`` of `measured`."""
        return next(r.quality[name] for r in reversed(self.done) if name in r.quality)

    @property
    def measured(self) -> list[str]:
        """Return the names of `FIGURES` that a round has."""
        return [name for name in FIGURES if any(name in r.quality for r in self.done)]


_SHOWN = ("nodes", "quorum", "cohort_min", "deadline", "mode", "rule", "aggregation", "job")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerView:
    """The aggregator."""

    name: str
    address: str
    processes: Mapping[str, Mapping[str, Any]]
    merchants: tuple[MerchantView, ...]
    runs: tuple[RunView, ...]
    """Newest first."""
    shown: RunView | None
    """The one that is asked for, else the newest."""
    troubles: tuple[LogLine, ...]
    """Of the processes, newest first."""
    faults: tuple[str, ...]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
