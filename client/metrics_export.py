"""What Prometheus reads of a silo: from its files, without torch. It stays in the silo.

None of it is noised. It is served on loopback past a token, and never sent anywhere.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from client.tally import read_tally
from privacy.chain import Chain, Entry
from privacy.policy import Policy
from silotune.config import from_toml
from silotune.errors import ConfigError, LedgerError
from silotune.observe_processes import (
    disk_metrics,
    disk_reasons,
    process_metrics,
    process_reasons,
)

__all__ = ["client_metrics", "client_reasons", "last_contact"]

_SILENT = 60.0
"""Seconds without an answer of the aggregator after which a silo is not well."""


def client_reasons(folder: Path) -> list[str]:
    """Return why the silo in ``folder`` is not well, in fixed words; none: it is."""
    reasons = [*process_reasons(folder), *disk_reasons(folder)]
    if reasons == ["not running"]:
        return reasons
    if time.time() - last_contact(folder) > _SILENT:
        reasons.append("no contact with the aggregator")
    try:
        _entries(folder)
    except LedgerError:
        reasons.append("the ledger cannot be read")
    try:
        from_toml(Policy, folder / "policy.toml")
    except ConfigError:
        reasons.append("the policy cannot be read")
    return reasons


def client_metrics(folder: Path) -> Iterator[Metric]:
    """Yield what the silo in ``folder`` spent, released and refused, and how it is."""
    yield from process_metrics(folder)
    yield from disk_metrics(folder)
    yield from _budget(folder)
    yield from _work(folder)
    yield GaugeMetricFamily(
        "silotune_last_contact_timestamp_seconds",
        "When the aggregator last answered the node; 0: never.",
        value=last_contact(folder),
    )


def last_contact(folder: Path) -> float:
    """Return when the aggregator last answered the node, seconds since 1970; 0: never."""
    with suppress(OSError, ValueError):
        return float((folder / "run" / "node.contact").read_text(encoding="ascii"))
    return 0.0


def _entries(folder: Path) -> tuple[Entry, ...]:
    """Raises LedgerError."""
    path = folder / "ledger.db"
    return Chain.read(path) if path.exists() else ()


def _budget(folder: Path) -> Iterator[Metric]:
    try:
        entries = _entries(folder)
    except LedgerError:
        # Health says so. A figure that is not known is not shown.
        return
    reserved = [e.body for e in entries if e.kind == "reserve"]
    released = [e.body for e in entries if e.kind == "release"]
    spent = float(reserved[-1]["epsilon_after"]) if reserved else 0.0
    yield GaugeMetricFamily("silotune_epsilon_spent", "By each user so far.", value=spent)
    with suppress(ConfigError):
        policy = from_toml(Policy, folder / "policy.toml")
        yield GaugeMetricFamily("silotune_epsilon_budget", "Of each user.", value=policy.epsilon)
        left = max(0.0, policy.epsilon - spent)
        yield GaugeMetricFamily("silotune_epsilon_left", "Of the budget.", value=left)
        yield GaugeMetricFamily("silotune_delta", "Of the budget.", value=policy.delta)
    yield CounterMetricFamily("silotune_reservations", "Costs charged.", value=len(reserved))
    yield CounterMetricFamily("silotune_releases", "That left the silo.", value=len(released))
    sizes = sum(int(body["bytes"]) for body in released)
    yield CounterMetricFamily("silotune_released_bytes", "That left the silo.", value=sizes)


def _work(folder: Path) -> Iterator[Metric]:
    tally = read_tally(folder)
    refusals = CounterMetricFamily(
        "silotune_refusals", "Requests refused or failed.", labels=["reason"]
    )
    for reason, count in tally["refusals"].items():
        refusals.add_metric([reason], count)
    yield refusals
    yield CounterMetricFamily(
        "silotune_training_seconds", "Of requests, to train or to measure.", value=tally["seconds"]
    )
    yield CounterMetricFamily("silotune_requests", "Worked on.", value=tally["answers"])
