"""A federation on the simulation's own worker processes, which have the silos loaded already.

The same ServerApp, ClientApp and messages as on Flower's engine, without Ray: nothing has to
start, no model is loaded a second time, and a reply is taken the moment it is there.
"""

import pkgutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode

from client.worker import Worker
from server.server_app import run_federation
from silotune.errors import WorkerError
from silotune.federation import read_federation
from simulations.local_grid import LocalGrid, belong_to_a_simulation, refused
from simulations.pool import SiloPool

__all__ = ["APP", "PoolGrid", "run_pool"]

APP = "client.client_app:app"
"""ClientApp of a simulation, as Flower writes references to apps."""

_WAIT = 10.0
"""Seconds that a pull waits for a reply, so that whoever pulls can look around."""
_DEATHS = 3
"""Workers that one silo may cost before it is refused: a full memory does not get emptier."""


class PoolGrid(LocalGrid):
    """Hands messages to worker processes, in the order in which they are pushed.

    A worker's death costs the one message that it was answering: its reply says that the app
    crashed, and the round loop asks that silo again.

    Args:
        nodes: how many; node i + 1 stands for silo i.
        pool: of the federation file that clients shall read.
        app: the ClientApp that the workers run.
    """

    def __init__(self, nodes: int, pool: SiloPool, app: str = APP) -> None:
        super().__init__(nodes, pool.federation)
        self._pool, self._app = pool, app
        self._silos = read_federation(pool.federation).silos
        self._running: set[str] = set()
        self._replies: dict[str, Message] = {}
        self._deaths: Counter[int] = Counter()
        self._changed = threading.Condition()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        named = {self._name(message): message for message in messages}
        with self._changed:
            self._running |= named.keys()
        for message in named.values():
            node = message.metadata.dst_node_id
            future = self._pool.submit(
                _answered, self._app, message, self._contexts[node], silo=self._silos[node - 1]
            )
            future.add_done_callback(partial(self._keep, message))
        return list(named)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; wait for the first for up to ten seconds."""
        wanted = set(message_ids)
        with self._changed:
            self._changed.wait_for(
                lambda: wanted & self._replies.keys() or not wanted & self._running, _WAIT
            )
            return [self._replies.pop(i) for i in wanted & self._replies.keys()]

    def _keep(self, message: Message, future: Future[Message]) -> None:
        reply = None if future.cancelled() else self._reply(message, future)
        with self._changed:
            self._running.discard(message.metadata.message_id)
            if reply is not None:
                self._replies[message.metadata.message_id] = reply
            self._changed.notify_all()

    def _reply(self, message: Message, future: Future[Message]) -> Message:
        error = future.exception()
        if error is None:
            return future.result()
        if isinstance(error, WorkerError):
            node = message.metadata.dst_node_id
            self._deaths[node] += 1
            if self._deaths[node] < _DEATHS:
                crashed = Error(code=ErrorCode.CLIENT_APP_CRASHED, reason=str(error))
                return Message(crashed, reply_to=message)
        return refused(message, error)


def run_pool(
    nodes: int,
    pool: SiloPool,
    on_reply: Callable[[str, int, int], None] = lambda *_: None,
    app: str = APP,
) -> None:
    """Run every job of the pool's federation file on its workers.

    Args:
        nodes: simulated nodes, one per silo; the first are handed out first.
        pool: worker processes.
        on_reply: called in this process with job, round and replies so far.
        app: the ClientApp that the workers run; benchmarks wrap it.

    Raises:
        SilotuneError: what the ServerApp raised.
    """
    run_federation(PoolGrid(nodes, pool, app), pool.federation, on_reply)


def _answered(worker: Worker, app: str, message: Message, context: Context) -> Message:
    # The ClientApp finds the same worker, by the federation file in the context.
    del worker
    belong_to_a_simulation()
    reply: Message = pkgutil.resolve_name(app)(message, context)
    return reply
