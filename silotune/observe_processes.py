"""What the processes of one side say of themselves: for health and Prometheus."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from silotune.supervision import read_state

__all__ = [
    "DISK_BYTES_MIN",
    "disk_metrics",
    "disk_reasons",
    "process_metrics",
    "process_reasons",
]

DISK_BYTES_MIN = 200 * 2**20
"""Free bytes below which a side is not well."""


def process_reasons(folder: Path) -> list[str]:
    """Return why the side of ``folder`` is not well, as far as its processes tell."""
    state = read_state(folder)
    if state is None:
        return ["not running"]
    return [f"{name} is not ready" for name, p in state["processes"].items() if not p["ready"]]


def process_metrics(folder: Path) -> Iterator[Metric]:
    """Yield which processes do their work, and how often each was started."""
    state = read_state(folder) or {"processes": {}}
    ready = GaugeMetricFamily(
        "silotune_process_ready", "1 where the process does its work.", labels=["process"]
    )
    starts = CounterMetricFamily(
        "silotune_process_starts", "Starts since the supervisor's own.", labels=["process"]
    )
    for name, process in state["processes"].items():
        ready.add_metric([name], float(process["ready"]))
        starts.add_metric([name], process["starts"])
    yield from (ready, starts)


def disk_reasons(folder: Path) -> list[str]:
    """Return whether what must be durable soon cannot be."""
    if shutil.disk_usage(folder).free < DISK_BYTES_MIN:
        return ["the disk is nearly full"]
    return []


def disk_metrics(folder: Path) -> Iterator[Metric]:
    """Yield how much room there is."""
    yield GaugeMetricFamily(
        "silotune_disk_free_bytes", "On the folder's disk.", value=shutil.disk_usage(folder).free
    )
