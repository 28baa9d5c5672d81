"""All silos in this process: the same ServerApp and ClientApp on a plain grid."""

from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Message

from client.client_app import app as client_app
from server.server_app import run_federation
from simulations.local_grid import LocalGrid, refused

__all__ = ["InlineGrid", "run_inline"]


class InlineGrid(LocalGrid):
    """Answers a message when it is pulled, one after another."""

    def __init__(self, nodes: int, federation: Path) -> None:
        super().__init__(nodes, federation)
        self._waiting: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        named = {self._name(message): message for message in messages}
        self._waiting |= named
        return list(named)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the client of one waiting message and return its reply."""
        ready = [i for i in self._waiting if i in set(message_ids)]
        if not ready:
            return []
        message = self._waiting.pop(ready[0])
        try:
            return [client_app(message, self._contexts[message.metadata.dst_node_id])]
        except Exception as error:  # noqa: BLE001  # whatever a client raises becomes its reply
            return [refused(message, error)]


def run_inline(
    federation: Path, nodes: int, on_reply: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Run every job of the federation file in this process."""
    run_federation(InlineGrid(nodes, federation), federation, on_reply)
