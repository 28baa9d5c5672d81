"""Flower ClientApp before the silos of a simulation.

A worker process keeps, between messages, one model per configured name and the prepared
examples of every silo it has served: later rounds load no model and tokenise nothing.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from client.door import respond
from client.silo import Silo
from client.worker import Worker, worker_for
from silotune.errors import ConfigError, MessageError
from silotune.federation import FEDERATION_VARIABLE
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.text_model import TextModel

__all__ = ["app"]

app = ClientApp()


@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Answer one request, to train or to measure, for the silo that this node stands for."""
    return respond(message, lambda: _find(context))


@dataclass(frozen=True)
class _Simulated:
    worker: Worker
    index: int

    @property
    def log(self) -> Path:
        return self.worker.log

    @contextmanager
    def open(self, what: TrainRequest | MetricsRequest) -> Iterator[tuple[Silo, TextModel]]:
        jobs = {job.name: job for job in self.worker.federation.jobs}
        if what.job not in jobs:
            raise MessageError("the request names a job that this silo's configuration has not.")
        job = jobs[what.job]
        if what.model != job.model:
            raise MessageError("the request names another model than this silo's configuration.")
        with self.worker.silo(self.index, job, what.round) as silo:
            yield silo, self.worker.model(job.model, job)

    def keep(self, what: TrainRequest | MetricsRequest, adapter_D: Tensor) -> None:
        """Keep nothing: a simulation has the rounds of every job."""


def _find(context: Context) -> _Simulated:
    return _Simulated(_worker(context), int(context.node_config["partition-id"]))


def _worker(context: Context) -> Worker:
    named = context.run_config.get("federation") or os.environ.get(FEDERATION_VARIABLE)
    if not named:
        raise ConfigError(
            "no federation file: give --run-config 'federation=\"PATH\"' or set "
            f"{FEDERATION_VARIABLE}; `silotune simulate` writes one into its run folder."
        )
    return worker_for(Path(str(named)))
