"""Flower ClientApp before the silos of a simulation.

A worker process keeps, between messages, one model per configured name and the prepared
examples of every silo it has served: later rounds load no model and tokenise nothing.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.prepared import PreparedExamples, load_or_prepare
from client.silo import Budget, Silo
from privacy.randomness import RandomSource, SecureSource, SeededSource
from silotune.errors import ConfigError, MessageError
from silotune.federation import (
    FEDERATION_VARIABLE,
    Federation,
    Job,
    build_model,
    read_federation,
)
from silotune.messages import read_request, reply
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder

__all__ = ["app"]

app = ClientApp()


@dataclass
class _Worker:
    """What this process has loaded for one federation file."""

    federation: Federation
    models: dict[str, TextModel] = field(default_factory=dict)
    data: dict[tuple[int, str], PreparedExamples] = field(default_factory=dict)

    def model(self, name: str) -> TextModel:
        if name not in self.models:
            self.models[name] = build_model(self.federation.models, name, self.federation.task)
        return self.models[name]

    def silo(self, index: int, job: Job, round_: int) -> Silo:
        folder = SiloFolder.open(Path(self.federation.silos[index]))
        name = folder.info.name
        key = (index, job.model)
        if key not in self.data:
            self.data[key] = load_or_prepare(folder, self.federation.task, self.model(job.model))
        return Silo(
            name,
            self.data[key],
            nominal_users=folder.info.nominal_users,
            ledger=Path(self.federation.state) / "ledgers" / job.name / f"{name}.db",
            budget=Budget(
                epsilon=job.epsilon,
                delta=self.federation.delta,
                allow_plain=job.plain is not None,
            ),
            source=self._source(index, round_),
        )

    def _source(self, index: int, round_: int) -> RandomSource:
        seed = self.federation.noise_seed
        return SecureSource() if seed is None else SeededSource((seed, index, round_))


_workers: dict[Path, _Worker] = {}


@app.train()
def train(message: Message, context: Context) -> Message:
    """Answer one training request for the silo that this node stands for."""
    worker = _worker(context)
    what, adapter_D = read_request(message.content)
    jobs = {job.name: job for job in worker.federation.jobs}
    if what.job not in jobs:
        raise MessageError("the request names a job that this silo's configuration has not.")
    job = jobs[what.job]
    if what.model != job.model:
        raise MessageError("the request names another model than this silo's configuration.")
    silo = worker.silo(int(context.node_config["partition-id"]), job, what.round)
    update_D = silo.train(what, adapter_D, worker.model(job.model))
    return Message(reply(update_D), reply_to=message)


def _worker(context: Context) -> _Worker:
    named = context.run_config.get("federation") or os.environ.get(FEDERATION_VARIABLE)
    if not named:
        raise ConfigError(
            "no federation file: give --run-config 'federation=\"PATH\"' or set "
            f"{FEDERATION_VARIABLE}; `silotune simulate` writes one into its run folder."
        )
    path = Path(str(named)).resolve()
    if path not in _workers:
        federation = read_federation(path)
        torch.set_num_threads(federation.threads)
        _workers[path] = _Worker(federation)
    return _workers[path]
