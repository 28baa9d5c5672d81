"""Flower ClientApp before the silos of a simulation.

A worker process keeps, between messages, one model per configured name and the prepared
examples of every silo it has served: later rounds load no model and tokenise nothing.
"""

import os
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from client.refusals import note, refusal
from client.worker import Worker, worker_for
from silotune.errors import ConfigError, MessageError
from silotune.federation import FEDERATION_VARIABLE
from silotune.messages import MetricsRequest, TrainRequest, read_request, reply

__all__ = ["app"]

app = ClientApp()

_REFUSED = 100
"""Error code of a reply that a silo sends on purpose; Flower's own are below."""


@app.train()
@app.evaluate()
def answer(message: Message, context: Context) -> Message:
    """Answer one request, to train or to measure, for the silo that this node stands for."""
    # Whatever goes wrong, Flower would send the exception's text to the aggregator.
    log = Path("silo.log")
    try:
        worker = _worker(context)
        log = worker.log
        return _answer(worker, message, int(context.node_config["partition-id"]))
    except Exception as error:  # noqa: BLE001  # one way out, for errors too
        note(error, log)
        return Message(Error(code=_REFUSED, reason=refusal(error)), reply_to=message)


def _answer(worker: Worker, message: Message, index: int) -> Message:
    what, adapter_D = _read(message)
    jobs = {job.name: job for job in worker.federation.jobs}
    if what.job not in jobs:
        raise MessageError("the request names a job that this silo's configuration has not.")
    job = jobs[what.job]
    if what.model != job.model:
        raise MessageError("the request names another model than this silo's configuration.")
    with worker.silo(index, job, what.round) as silo:
        model = worker.model(job.model)
        if isinstance(what, MetricsRequest):
            out = silo.measure(what, adapter_D, model)
        else:
            out = silo.train(what, adapter_D, model)
        ready = Message(reply(out.array(), out.name), reply_to=message)
        silo.handed_over(out)
    return ready


def _read(message: Message) -> tuple[TrainRequest | MetricsRequest, Tensor]:
    # Flower routes by the message type; the request must be of the kind that it announces.
    if message.metadata.message_type == "train":
        return read_request(message.content, TrainRequest)
    return read_request(message.content, MetricsRequest)


def _worker(context: Context) -> Worker:
    named = context.run_config.get("federation") or os.environ.get(FEDERATION_VARIABLE)
    if not named:
        raise ConfigError(
            "no federation file: give --run-config 'federation=\"PATH\"' or set "
            f"{FEDERATION_VARIABLE}; `silotune simulate` writes one into its run folder."
        )
    return worker_for(Path(str(named)))
