"""What Prometheus reads of the aggregator: from its files, without torch and without Flower."""

import json
import sqlite3
import time
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cryptography import x509
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.metrics_core import Metric

from server.config import read_server
from server.traffic import read_traffic
from silotune.observe_processes import (
    disk_metrics,
    disk_reasons,
    process_metrics,
    process_reasons,
)

__all__ = ["OUTCOMES", "nodes_by_status", "server_metrics", "server_reasons"]

OUTCOMES = (
    "refused by the policy",
    "refused by the budget",
    "refused by the ledger",
    "stopped at the gate",
    "refused: not private",
    "refused: not a valid request",
    "failed; the silo's log says why",
    "no reply in time",
)
"""Why a reply is missing, as merchants' silos and the exchange say it. Anything else is counted as
'other': a merchant could otherwise make up any number of names."""
_STATES = ("waiting", "running", "finished", "failed")


def server_reasons(folder: Path) -> list[str]:
    """Return why the aggregator in ``folder`` is not well; none: it is."""
    reasons = [*process_reasons(folder), *disk_reasons(folder)]
    left = _certificate_seconds(folder)
    if left is not None and left < 0:
        reasons.append("the certificate has expired")
    return reasons


def server_metrics(folder: Path) -> Iterator[Metric]:
    """Yield what the aggregator in ``folder`` did and how it is."""
    yield from process_metrics(folder)
    yield from disk_metrics(folder)
    yield from _nodes(folder)
    yield from _runs(folder)
    yield from _traffic(folder)
    left = _certificate_seconds(folder)
    if left is not None:
        yield GaugeMetricFamily(
            "silotune_certificate_seconds_left", "Until the server certificate ends.", value=left
        )


def _nodes(folder: Path) -> Iterator[Metric]:
    enrolled = len(list((folder / "merchants").glob("*.json")))
    yield GaugeMetricFamily(
        "silotune_merchants_enrolled", "Merchants that were let in.", value=enrolled
    )
    nodes = GaugeMetricFamily(
        "silotune_nodes", "Nodes of merchants as the SuperLink knows them.", labels=["status"]
    )
    for status, count in nodes_by_status(folder).items():
        nodes.add_metric([status], count)
    yield nodes


def nodes_by_status(folder: Path) -> dict[str, int]:
    """Return how many nodes are in each status: from Flower's own database, which is private.

    Held by `tests/deployment/test_metrics.py` against the pinned version.
    """
    counts = dict.fromkeys(("registered", "online", "offline"), 0)
    path = folder / "state.db"
    if not path.exists():
        return counts
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=2.0)) as found:
            rows = found.execute("SELECT status, online_until FROM node").fetchall()
    except sqlite3.Error:
        # Not yet made, or busy for longer than a scrape may take.
        return counts
    for status, until in rows:
        # The SuperLink notes that a node is away when someone asks for it.
        late = status == "online" and (until or 0.0) < time.time()
        now = "offline" if late else str(status)
        if now in counts:
            counts[now] += 1
    return counts


def _runs(folder: Path) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "silotune_run_state", "1 for the state that a run is in.", labels=["run", "state"]
    )
    planned = GaugeMetricFamily("silotune_run_rounds", "Rounds of a run.", labels=["run"])
    done = GaugeMetricFamily("silotune_run_rounds_done", "Rounds that are durable.", labels=["run"])
    seconds = SummaryMetricFamily(
        "silotune_round_seconds", "From first request to durable round.", labels=["run"]
    )
    replies = CounterMetricFamily(
        "silotune_replies",
        "Replies that made rounds, or why they did not.",
        labels=["run", "outcome"],
    )
    for status in sorted((folder / "runs").glob("*/status.json")):
        one = status.parent
        for name in _STATES:
            state.add_metric([one.name, name], float(_read(status).get("state") == name))
        planned.add_metric([one.name], _planned(one / "run.toml"))
        records = _records(one / "rounds" / "rounds.jsonl")
        done.add_metric([one.name], len(records))
        seconds.add_metric([one.name], len(records), sum(r.get("seconds", 0.0) for r in records))
        for outcome, count in _outcomes(records).items():
            replies.add_metric([one.name, outcome], count)
    yield from (state, planned, done, seconds, replies)


def _outcomes(records: list[dict[str, Any]]) -> dict[str, int]:
    found = {"update": 0, "late": 0, "other": 0}
    for record in records:
        found["update"] += int(record.get("replies", 0))
        found["late"] += int(record.get("late", 0))
        reasons = record.get("reasons") or {"other": record.get("failures", 0)}
        for reason, count in reasons.items():
            # The limits' names follow in brackets.
            bare = str(reason).partition(" (")[0]
            name = bare if bare in OUTCOMES else "other"
            found[name] = found.get(name, 0) + int(count)
    return found


def _traffic(folder: Path) -> Iterator[Metric]:
    passed, answers = read_traffic(folder)
    total = CounterMetricFamily(
        "silotune_bytes", "Of bodies, from (in) and to (out) merchants.", labels=["direction"]
    )
    for direction, count in passed.items():
        total.add_metric([direction], count)
    requests = CounterMetricFamily(
        "silotune_requests", "Of merchants' nodes, or strangers.", labels=["path", "status"]
    )
    for (path, status), count in answers.items():
        requests.add_metric([path, status], count)
    yield from (total, requests)


def _certificate_seconds(folder: Path) -> float | None:
    try:
        path = folder / read_server(folder).certificate
        ends = x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except (OSError, ValueError):
        # ConfigError is one.
        return None
    return ends.timestamp() - time.time()


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _planned(path: Path) -> int:
    try:
        return int(tomllib.loads(path.read_text(encoding="utf-8"))["job"].get("rounds", 5))
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]
    except (OSError, ValueError):
        return []
