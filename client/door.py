"""The door: one message in, one message out, a release or a refusal in fixed words.

Simulation and daemon share it. It is the only place on the merchant's side that makes a message.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from flwr.app import Error, Message
from torch import Tensor

from client.refusals import note, refusal
from client.silo import Silo
from silotune.messages import MetricsRequest, TrainRequest, read_request, reply
from silotune.models.text_model import TextModel

__all__ = ["Place", "respond"]

_REFUSED = 100
"""Error code of a reply that a silo sends on purpose; Flower's own are below."""


class Place(Protocol):
    """Where a request is answered: a silo of a simulation, or the daemon's own."""

    @property
    def log(self) -> Path:
        """The silo's own log; it stays inside."""

    def open(
        self, what: TrainRequest | MetricsRequest
    ) -> AbstractContextManager[tuple[Silo, TextModel]]:
        """Hold the silo and the model for ``what``. Raises MessageError where it has none."""

    def keep(self, what: TrainRequest | MetricsRequest, adapter_D: Tensor) -> None:
        """Take note of the adapter of a request that was answered."""


def respond(message: Message, find: Callable[[], Place]) -> Message:
    """Answer one request, to train or to measure; whatever goes wrong becomes a refusal.

    Args:
        message: from the aggregator; read as hostile.
        find: gives the place; what it raises is answered too.
    """
    # Whatever goes wrong, Flower would send the exception's text to the aggregator.
    log = Path("silo.log")
    try:
        place = find()
        log = place.log
        return _answer(message, place)
    except Exception as error:  # noqa: BLE001  # one way out, for errors too
        note(error, log)
        return Message(Error(code=_REFUSED, reason=refusal(error)), reply_to=message)


def _answer(message: Message, place: Place) -> Message:
    what, adapter_D = _read(message)
    with place.open(what) as (silo, model):
        if isinstance(what, MetricsRequest):
            out = silo.measure(what, adapter_D, model)
        else:
            out = silo.train(what, adapter_D, model)
        ready = Message(reply(out.array(), out.name), reply_to=message)
        silo.handed_over(out)
        place.keep(what, adapter_D)
    return ready


def _read(message: Message) -> tuple[TrainRequest | MetricsRequest, Tensor]:
    # Flower routes by the message type; the request must be of the kind that it announces.
    if message.metadata.message_type == "train":
        return read_request(message.content, TrainRequest)
    return read_request(message.content, MetricsRequest)
