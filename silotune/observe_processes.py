"""What the processes of one side say of themselves: for health and Prometheus."""

from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from silotune.supervision import read_state

__all__ = ["process_metrics", "process_reasons"]


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
