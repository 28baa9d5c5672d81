"""What grids without a network share: nodes are silos of a federation file, on this machine."""

import uuid
from collections.abc import Iterable
from pathlib import Path

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["LocalGrid", "belong_to_a_simulation", "refused"]


class LocalGrid(Grid):
    """Nodes 1 to ``nodes``. How a message is answered is for subclasses to say.

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
        belong_to_a_simulation()

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

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull all. ``timeout`` is not needed: clients answer at once."""
        del timeout
        ids = list(self.push_messages(messages))
        return [reply for _ in ids for reply in self.pull_messages(ids)]

    def _name(self, message: Message) -> str:
        message_id = str(uuid.uuid4())
        # Flower's own grids assign the id the same way.
        message.metadata.__dict__["_message_id"] = message_id
        return message_id


def belong_to_a_simulation() -> None:
    """Give this process what Flower's messages name as the task that they belong to.

    Flower sets a stand-in like this one for its own simulations that are started from Python.
    """
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


def refused(message: Message, error: BaseException) -> Message:
    """Return the reply that stands for what a client raised, as Flower words it."""
    reason = f"{type(error)}:<'{error}'>"
    return Message(
        Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=reason), reply_to=message
    )
