"""The silo daemon: ``python -m client.daemon FOLDER``. Answers the node's tasks with this code.

It holds the ledger as long as it runs, so no second one can work on the folder, and keeps model
and examples loaded.
"""

import logging
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

import torch
from flwr.app import Message
from torch import Tensor

from client.accepted import AcceptedRun, check_run, load_accepted
from client.config import ClientConfig, read_client
from client.door import respond
from client.flower_tasks import serve
from client.kept_adapters import keep_adapter
from client.prepared import load_or_prepare
from client.refusals import note
from client.silo import Silo
from client.tally import timed
from privacy.durable import lock
from privacy.ledger import Ledger
from privacy.policy import Policy
from privacy.randomness import RandomSource, SecureSource, SeededSource
from silotune.config import from_mapping, from_toml
from silotune.errors import MessageError, SilotuneError
from silotune.federation import model_for
from silotune.logs import configure, event, give_up
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.text_model import ModelConfig, TextModel
from silotune.supervised import leave, mark_ready, open_ready, socket_path, watch_parent
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.several import read_tasks

__all__ = ["OneSilo", "load", "main"]

_MODEL = "text"
"""Name of the one model that a run and a silo agree on."""
_REQUEST_BYTES = 256 * 1024
"""Of a message beside its adapter."""


@dataclass
class OneSilo:
    """The place where the daemon answers: its one silo and the model both sides agreed on."""

    silo: Silo
    model: TextModel
    log: Path
    """The silo's own log; it stays inside."""
    accepted: dict[str, AcceptedRun] | None
    """By job. None: any."""
    further: Mapping[str, tuple[Silo, TextModel]] = field(default_factory=dict)
    """Other tasks of the same merchant, on the same ledger, each with its model."""

    @contextmanager
    def open(self, what: TrainRequest | MetricsRequest) -> Iterator[tuple[Silo, TextModel]]:
        """Yield silo and model.

        Raises:
            MessageError: the request is for another model.
            PolicyError: it is not of an accepted run.
        """
        check_run(what, self.accepted)
        if what.model != _MODEL:
            raise MessageError("the request names another model than this silo's configuration.")
        with timed(self.log.parent):
            # A task that is not there is refused by the silo, after its policy.
            yield self.further.get(what.task, (self.silo, self.model))

    def keep(self, what: TrainRequest | MetricsRequest, adapter_D: Tensor) -> None:
        """Keep the aggregate that the merchant was sent, for `silotune client score`."""
        keep_adapter(self.log.parent, what, adapter_D)

    @property
    def message_limit(self) -> int:
        """Bytes that a request can have: an adapter and little more."""
        models = [self.model, *(model for _, model in self.further.values())]
        return 4 * max(model.layout.size for model in models) + _REQUEST_BYTES


def load(folder: Path) -> OneSilo:
    """Open the silo in ``folder``: policy, model, examples and ledger.

    Raises:
        ConfigError: a TOML file is wrong.
        DataError: a table is.
        LedgerError: another process holds the ledger, or it was changed.
    """
    settings = read_client(folder)
    policy = from_toml(Policy, folder / "policy.toml")
    torch.set_num_threads(settings.threads)
    where = str(folder / "client.toml")
    tasks = [read_tasks(settings.task, where=f"{where}: task")]
    tasks += [read_tasks(t, where=f"{where}: tasks[{i}]") for i, t in enumerate(settings.tasks)]
    tables = SiloFolder.open(folder)
    cfg = from_mapping(ModelConfig, settings.model, where=f"{where}: model")
    models = [model_for(cfg, task) for task in tasks]
    data = [load_or_prepare(tables, *of) for of in zip(tasks, models, strict=True)]
    anchor = Path(settings.anchor) if settings.anchor else None
    # One account for all tasks: their releases are about the same users.
    ledger = Ledger(folder / "ledger.db", anchor=anchor)
    silos = [
        Silo(
            tables.info.name,
            prepared,
            task=task.name,
            nominal_users=tables.info.nominal_users,
            ledger=ledger,
            policy=policy,
            source=_source(settings),
            server=settings.server.identity,
        )
        for task, prepared in zip(tasks, data, strict=True)
    ]
    further = {
        task.name: (silo, model)
        for task, silo, model in zip(tasks[1:], silos[1:], models[1:], strict=True)
    }
    log = folder / "silo.log"
    return OneSilo(silos[0], models[0], log, load_accepted(folder, policy), further)


def _source(settings: ClientConfig) -> RandomSource:
    seed = settings.noise_seed
    return SecureSource() if seed is None else SeededSource(seed)


def main(folder: Path) -> None:
    """Answer the node's tasks until told to stop."""
    watch_parent()
    configure("daemon", sees_data=True)
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # At once, and not after the wait for the ledger: held until this process is gone.
        lock(folder / "daemon.lock", wait=1.0)
        place = load(folder)
    except SilotuneError as error:
        give_up(error)
    event("ready")
    mark_ready(open_ready(folder, "daemon"))

    def answer(message: Message) -> Message:
        made = respond(message, lambda: place)
        if place.silo.ledger.closed:
            # Its disk failed. What is on it is known after it is opened again.
            stop.set()
        return made

    with place.silo:
        serve(
            socket_path(folder, "node.sock"),
            (folder / "superexec.secret").read_bytes(),
            answer=answer,
            limit=place.message_limit,
            stop=stop,
            trouble=lambda error: note(error, place.log),
        )
        if place.silo.ledger.closed:
            event("ledger closed", logging.ERROR)
            sys.exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave()
