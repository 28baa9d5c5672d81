"""Pulls merchants' replies from the SuperLink, each for itself and read as hostile.

Flower's own grid waits for a reply that was announced until it is there, and everybody else's
with it. Here one that is still being sent is looked at again later, and what is no reply becomes
an error in its place.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from flwr.app import Error, Message
from flwr.app.message import make_message
from flwr.app.metadata import Metadata
from flwr.common.constant import ErrorCode
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.constant import SYSTEM_MESSAGE_TYPE
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
)
from flwr.supercore.runtime import RuntimeHttpClient

__all__ = ["Replies"]

_AGAIN = 1.0
"""Seconds between two looks at a reply that is still being sent."""


@dataclass(slots=True)
class _Coming:
    """A reply that was announced."""

    tree: ObjectTree
    look: float = 0.0
    """Not before; monotonic."""


class Replies:
    """Replies to the messages of one run.

    Args:
        client: gives the connection to the SuperLink.
        node: of the run.
        run: its number.
    """

    def __init__(self, client: Callable[[], RuntimeHttpClient], node: Node, run: int) -> None:
        self._client, self._node, self._run = client, node, run
        self._coming: dict[str, _Coming] = {}

    def pull(self, message_id: str) -> Message | None:
        """Return the reply to the message ``message_id``, or None while there is none.

        One that cannot be read, or is to something else, comes as an error.

        Raises:
            httpx.HTTPError: the SuperLink does not answer.
        """
        coming = self._coming.get(message_id) or self._announced(message_id)
        if coming is None or time.monotonic() < coming.look:
            return None
        self._coming[message_id] = coming
        try:
            parts = self._parts(coming.tree)
        except ObjectUnavailableError:
            coming.look = time.monotonic() + _AGAIN
            return None
        except ObjectPullError:
            del self._coming[message_id]
            words = "the reply was not sent to its end."
            return _error(message_id, ErrorCode.MESSAGE_UNAVAILABLE, words)
        del self._coming[message_id]
        return self._read(message_id, coming.tree.object_id, parts)

    def _announced(self, message_id: str) -> _Coming | None:
        asked = PullAppMessagesRequest(message_ids=[message_id])
        found = self._client().PullMessages(asked)
        return _Coming(found.message_object_trees[0]) if found.message_object_trees else None

    def _parts(self, tree: ObjectTree) -> dict[str, bytes]:
        pull = make_pull_object_fn_protobuf(self._client().PullObject, self._node, self._run)
        # The first part last: who sends in order has sent all when it is there.
        return {i: pull(i) for i in reversed([p.object_id for p in iterate_object_tree(tree)])}

    def _read(self, message_id: str, reply_id: str, parts: dict[str, bytes]) -> Message:
        asked = ConfirmMessageReceivedRequest(
            node=self._node, run_id=self._run, message_object_id=reply_id
        )
        self._client().ConfirmMessageReceived(asked)
        try:
            reply = inflate_object_from_contents(reply_id, parts)
            # What it says inside is the sender's; what was asked for is what it answers.
            if isinstance(reply, Message) and reply.metadata.reply_to_message_id == message_id:
                reply.metadata.__dict__["_message_id"] = reply_id
                return reply
        except httpx.HTTPError:
            raise
        except Exception:  # noqa: BLE001, S110  # whatever it is, it was the sender's making
            pass
        return _error(message_id, ErrorCode.UNKNOWN, "the reply is not a message.")


def _error(message_id: str, code: int, words: str) -> Message:
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=0,
        dst_node_id=0,
        reply_to_message_id=message_id,
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type=SYSTEM_MESSAGE_TYPE,
    )
    return make_message(metadata=metadata, error=Error(code, words))
