"""What the SuperLink takes from a merchant's node, at most, and in whose name.

Flower checks who asks; it does not check in whose name a reply is, nor how large it is.
"""

from typing import Any

from fastapi import HTTPException
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

__all__ = ["limit_replies"]

_PARTS = 64
"""Of one reply: 256 MiB, the most that a silo's gate lets out, in parts of 5 MB, and its heads."""
_PART_BYTES = 6 * 2**20
_REASON = 1000
"""Characters of a refusal."""


def limit_replies(handlers: Any) -> None:
    """Put checks before Flower's ``push_messages`` and ``push_object`` in ``handlers``.

    What does not pass is answered with 400, before anything of it is stored.
    """
    push_messages, push_object = handlers.push_messages, handlers.push_object

    def checked_messages(request: PushMessagesRequest, state: Any) -> Any:
        _check(request)
        return push_messages(request=request, state=state)

    def checked_object(request: PushObjectRequest, state: Any) -> Any:
        if len(request.object_content) > _PART_BYTES:
            raise HTTPException(400, "a part of a reply is too large")
        return push_object(request=request, state=state)

    handlers.push_messages, handlers.push_object = checked_messages, checked_object


def _check(request: PushMessagesRequest) -> None:
    if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
        raise HTTPException(400, "one reply at a time")
    (reply,), (tree,) = request.messages_list, request.message_object_trees
    head = reply.metadata
    if head.src_node_id != request.node.node_id:
        raise HTTPException(400, "a reply in the name of another node")
    if head.message_id != tree.object_id or len(reply.error.reason) > _REASON:
        raise HTTPException(400, "a reply that is not whole")
    for count, _ in enumerate(iterate_object_tree(tree)):
        if count >= _PARTS:
            raise HTTPException(400, "a reply of too many parts")
