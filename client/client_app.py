"""Flower ClientApp before the silos of a simulation.

A worker process keeps, between messages, one model per configured name and the prepared
examples of every silo it has served: later rounds load no model and tokenise nothing.
"""

import os
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.worker import Worker, worker_for
from silotune.errors import ConfigError, MessageError
from silotune.federation import FEDERATION_VARIABLE
from silotune.messages import read_request, reply

__all__ = ["app"]

app = ClientApp()


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


def _worker(context: Context) -> Worker:
    named = context.run_config.get("federation") or os.environ.get(FEDERATION_VARIABLE)
    if not named:
        raise ConfigError(
            "no federation file: give --run-config 'federation=\"PATH\"' or set "
            f"{FEDERATION_VARIABLE}; `silotune simulate` writes one into its run folder."
        )
    return worker_for(Path(str(named)))
