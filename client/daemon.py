"""The silo daemon: ``python -m client.daemon FOLDER``. Answers the node's tasks with this code.

It holds the ledger as long as it runs, so no second one can work on the folder, and keeps model
and examples loaded.
"""

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
from privacy.policy import Policy
from privacy.randomness import RandomSource, SecureSource, SeededSource
from silotune.config import from_mapping, from_toml
from silotune.errors import MessageError, SilotuneError
from silotune.logs import configure, event, give_up
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.text_model import ModelConfig, TextModel
from silotune.supervised import leave, mark_ready, open_ready, socket_path, watch_parent
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.registry import read_task

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
            yield self.silo, self.model

    def keep(self, what: TrainRequest | MetricsRequest, adapter_D: Tensor) -> None:
        """Keep the aggregate that the merchant was sent, for `silotune client score`."""
        keep_adapter(self.log.parent, what, adapter_D)

    @property
    def message_limit(self) -> int:
        """Bytes that a request can have: an adapter and little more."""
        return 4 * self.model.layout.size + _REQUEST_BYTES


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
    task = read_task(settings.task, where=f"{where}: task")
    tables = SiloFolder.open(folder)
    model = TextModel(
        from_mapping(ModelConfig, settings.model, where=f"{where}: model"),
        numeric_size=len(task.numeric_names),
        outputs=task.outputs,
        public_texts=task.public_texts(),
    )
    silo = Silo(
        tables.info.name,
        load_or_prepare(tables, task, model),
        nominal_users=tables.info.nominal_users,
        ledger=folder / "ledger.db",
        policy=policy,
        source=_source(settings),
        server=settings.server.identity,
        anchor=Path(settings.anchor) if settings.anchor else None,
    )
    return OneSilo(silo, model, folder / "silo.log", load_accepted(folder, policy))


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
