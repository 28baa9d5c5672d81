"""Quality of an adapter over the federation, from the silos' noised sums alone."""

import math
import time
from dataclasses import asdict
from typing import Any

import torch
from flwr.app import RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from privacy.metrics import MetricsPlan
from server.exchange import RoundOptions, ask_all, refuse_below_quorum
from server.metrics import MetricsSum, OutputMetrics, federation_metrics
from server.run_store import RunStore
from silotune.config import from_mapping
from silotune.federation import Job
from silotune.messages import MetricsRequest, read_reply, request
from silotune.models.text_model import TextModel

__all__ = ["is_due", "measure_round", "measured_quality"]


def is_due(job: Job, round_: int) -> bool:
    """Return whether the job asks for metrics after ``round_``, counted from 0."""
    if job.metrics is None:
        return False
    every = job.metrics_every
    return round_ == job.rounds - 1 or (every is not None and (round_ + 1) % every == 0)


def measure_round(
    grid: Grid,
    nodes: list[int],
    job: Job,
    round_: int,
    adapter_D: Tensor,
    model: TextModel,
    store: RunStore,
    options: RoundOptions,
    *,
    task: str,
) -> None:
    """Ask every node for the job's metrics of ``adapter_D`` and store the sum of the releases.

    Raises:
        MessageError: fewer valid releases than the quorum arrived before the deadline.
        ConfigError: the job's metrics are no plan.
    """
    began = time.monotonic()
    numbers = job.metrics or {}
    plan = _plan(numbers, job)
    what = MetricsRequest(
        job=job.name,
        round=round_,
        task=task,
        model=job.model,
        base_digest=model.base_digest,
        layout_digest=model.layout.digest,
        metrics=numbers,
    )
    total = MetricsSum(plan)

    def fold(content: RecordDict) -> None:
        total.add(read_reply(content, plan.size, "metrics"))

    tally = ask_all(grid, nodes, "evaluate", lambda: request(what, adapter_D), fold, options)
    where = f"{job.name}, metrics of round {round_}"
    refuse_below_quorum(where, "releases", tally, options)
    record: dict[str, Any] = {
        "plan": numbers,
        "sum": total.sum().tolist(),
        **tally.record(),
        "seconds": time.monotonic() - began,
    }
    # For readers without torch, such as the dashboard.
    record["quality"] = [_plain(asdict(one)) for one in measured_quality(record)]
    store.save_metrics(round_, record)


def measured_quality(record: dict[str, Any]) -> tuple[OutputMetrics, ...]:
    """Return the quality of each output from what `RunStore.metrics` gives for a round."""
    plan = from_mapping(MetricsPlan, record["plan"], where="stored metrics")
    sum_D = torch.tensor(record["sum"], dtype=torch.float64)
    return federation_metrics(sum_D, plan, math.sqrt(record["replies"]) * plan.noise_std)


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: None for a number that the noise left nothing of."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plan(numbers: dict[str, float], job: Job) -> MetricsPlan:
    return from_mapping(MetricsPlan, numbers, where=f"job '{job.name}': metrics")
