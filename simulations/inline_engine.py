"""All silos in this process, without Ray: the same ServerApp and ClientApp on a plain grid."""

import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from client.client_app import app as client_app
from server.server_app import run_federation

__all__ = ["InlineGrid", "run_inline"]

_CLIENT_RAISED = 1


class InlineGrid(Grid):
    """Answers a message when it is pulled, one after another.

    Args:
        nodes: how many; node i + 1 stands for silo i.
        federation: path of the federation file, handed to the clients as run configuration.
    """

    def __init__(self, nodes: int, federation: Path) -> None:
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config={"partition-id": node - 1, "num-partitions": nodes},
                state=RecordDict(),
                run_config={"federation": str(federation)},
            )
            for node in range(1, nodes + 1)
        }
        self._waiting: dict[str, Message] = {}
        # Messages carry the task they belong to; Flower sets a stand-in like this one for its
        # own simulations that are started from Python.
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> None:  # type: ignore[override]
        """There is no run object."""

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a message to a node."""
        return Message(
            content,
            dst_node_id=dst_node_id,
            message_type=message_type,
            group_id=group_id,
            ttl=ttl,
        )

    def get_node_ids(self) -> Iterable[int]:
        """Return the node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages and return their ids."""
        ids = []
        for message in messages:
            message_id = str(uuid.uuid4())
            # Flower's own grids assign the id the same way.
            message.metadata.__dict__["_message_id"] = message_id
            self._waiting[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the client of one waiting message and return its reply."""
        ready = [i for i in self._waiting if i in set(message_ids)]
        if not ready:
            return []
        message = self._waiting.pop(ready[0])
        try:
            return [client_app(message, self._contexts[message.metadata.dst_node_id])]
        except Exception as error:  # noqa: BLE001  # whatever a client raises becomes its reply
            reason = f"{type(error)}:<'{error}'>"
            return [Message(Error(code=_CLIENT_RAISED, reason=reason), reply_to=message)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull all. ``timeout`` is not needed: clients answer at once."""
        del timeout
        ids = list(self.push_messages(messages))
        return [reply for _ in ids for reply in self.pull_messages(ids)]


def run_inline(
    federation: Path, nodes: int, on_reply: Callable[[str, int, int], None] = lambda *_: None
) -> None:
    """Run every job of the federation file in this process."""
    run_federation(InlineGrid(nodes, federation), federation, on_reply)
