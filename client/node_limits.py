"""What the merchant's node takes from the aggregator, at most. Flower's own takes anything.

`limited_client` is Flower's client of the SuperLink with limits on every answer;
`limit_messages` puts limits on whole messages. What is too much is not read to its end, and the
daemon refuses it with the words that it has for a message that is none.
"""

import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httpx
from flwr.common.serde import message_from_proto
from flwr.proto.fab_pb2 import Fab, GetFabRequest, GetFabResponse
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.run_pb2 import GetRunRequest, GetRunResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_object_id,
    is_valid_sha256_hash,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.run import RunNotRunningException
from flwr.supernode.fleet_http_client import FleetHttpClient

from silotune.bundle import BUNDLE, BUNDLE_SHA256, FOREIGN
from silotune.errors import MessageError

__all__ = ["ANSWER_BYTES", "MESSAGE_BYTES", "limit_answer", "limit_messages", "limited_client"]

MESSAGE_BYTES = 256 * 2**20
"""Of one message, all its parts. The daemon knows its model and takes far less."""
ANSWER_BYTES = 16 * 2**20
"""Of one answer. An array comes in parts of 5 MB."""
_PARTS = 4096
"""Of one message."""


def limit_answer(answer: httpx.Response) -> None:
    """Let an answer be read as far as `ANSWER_BYTES`; a hook of `httpx.Client`.

    Raises:
        MessageError: it is longer, leads elsewhere, or is packed: a small one could then grow
            without end.
    """
    path = answer.request.url.path
    if answer.is_redirect:
        raise MessageError(f"the aggregator's answer to {path} leads elsewhere.")
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise MessageError(f"the aggregator's answer to {path} is packed.")
    length = answer.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > ANSWER_BYTES:
        raise MessageError(f"the aggregator's answer to {path} is too long.")
    # One without a length is counted while it is read.
    answer.stream = _Counted(answer.stream, path)


class _Counted(httpx.SyncByteStream):
    def __init__(self, body: Any, path: str) -> None:
        self._body, self._left, self._path = body, ANSWER_BYTES, path

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            self._left -= len(part)
            if self._left < 0:
                raise MessageError(f"the aggregator's answer to {self._path} does not end.")
            yield part

    def close(self) -> None:
        self._body.close()


def limited_client(
    verify: Callable[[], ssl.SSLContext],
    heard: Callable[[httpx.Response], None],
    trouble: Callable[[Exception], None],
) -> type[FleetHttpClient]:
    """Return Flower's client of the SuperLink, over ``verify`` and with limits.

    It follows no redirection: that would lead past the pinned certificate. The app bundle is not
    fetched; the one that both sides know stands for it. A message that is none is not there.

    Args:
        verify: makes the TLS context.
        heard: called with each answer that is not refused.
        trouble: hears what was refused.
    """

    class Limited(FleetHttpClient):
        def __init__(self, base_url: str, **options: Any) -> None:
            super().__init__(base_url, **(options | {"verify": verify()}))
            self._client.follow_redirects = False
            self._client.headers["accept-encoding"] = "identity"
            self._client.event_hooks = {"response": [limit_answer, heard]}

        def PullMessages(self, request: PullMessagesRequest) -> PullMessagesResponse:  # noqa: N802
            try:
                answer = super().PullMessages(request)
                _check_messages(answer)
            except (MessageError, ValueError) as error:
                trouble(error)
                return PullMessagesResponse()
            return answer

        def GetRun(self, request: GetRunRequest) -> GetRunResponse:  # noqa: N802
            try:
                answer = super().GetRun(request)
            except (MessageError, ValueError) as error:
                trouble(error)
                raise RunNotRunningException from error
            run = answer.run
            if run.fab_hash != BUNDLE_SHA256:
                run.fab_id = FOREIGN
            run.run_id, run.fab_hash = request.run_id, BUNDLE_SHA256
            run.override_config.clear()
            # Of an agent, which no daemon takes: the node would wait for it for ever.
            run.ClearField("primary_task_type")
            return answer

        def GetFab(self, request: GetFabRequest) -> GetFabResponse:  # noqa: ARG002, N802
            return GetFabResponse(fab=Fab(hash_str=BUNDLE_SHA256, content=BUNDLE))

    return Limited


def _check_messages(answer: PullMessagesResponse) -> None:
    """Raise MessageError unless there is no message, or one that the node's own code can take."""
    if not answer.messages_list:
        return
    trees = answer.message_object_trees
    if len(answer.messages_list) != 1 or len(trees) != 1:
        raise MessageError("the aggregator sends several messages at once.")
    try:
        head = message_from_proto(answer.messages_list[0]).metadata
    except Exception as error:
        raise MessageError("a message of the aggregator has no valid head.") from error
    if head.reply_to_message_id or head.message_id != trees[0].object_id:
        raise MessageError("a message of the aggregator has another's parts.")
    for count, part in enumerate(iterate_object_tree(trees[0])):
        if count >= _PARTS or not is_valid_sha256_hash(part.object_id):
            raise MessageError("a message of the aggregator has too many or unnamed parts.")


_Pull = Callable[..., dict[str, bytes]]


def limit_messages(
    pull_objects: _Pull,
    store: ObjectStore,
    trouble: Callable[[MessageError], None],
    limit: int = MESSAGE_BYTES,
) -> _Pull:
    """Return Flower's ``pull_objects`` with a limit on a message as a whole.

    A message that is too long, or has a part that is not what its name says, is not kept: all its
    parts become empty ones, at which the daemon refuses it.

    Args:
        pull_objects: Flower's.
        store: of the node, where the daemon finds the parts.
        trouble: hears why.
        limit: bytes of a message.
    """

    def pull(
        object_ids: Sequence[str], pull_object_fn: Callable[[str], bytes], **options: Any
    ) -> dict[str, bytes]:
        left, turn = limit, threading.Lock()

        def counted(object_id: str) -> bytes:
            nonlocal left
            if left < 0:
                raise MessageError("a message of the aggregator is too long.")
            content = pull_object_fn(object_id)
            with turn:
                left -= len(content)
            if left < 0:
                raise MessageError(f"a message of the aggregator is longer than {limit} bytes.")
            _check(object_id, content)
            return content

        try:
            return pull_objects(object_ids, counted, **options)
        except MessageError as error:
            trouble(error)
            for object_id in object_ids:
                _spoil(store, object_id)
            return {}

    return pull


def _check(object_id: str, content: bytes) -> None:
    if get_object_id(content) != object_id:
        raise MessageError("a part of a message of the aggregator is another.")
    try:
        validate_object_content(content=content)
    except Exception as error:
        raise MessageError("a part of a message of the aggregator is malformed.") from error


def _spoil(store: Any, object_id: str) -> None:
    """Make a part an empty one: the node's store takes none whose name is not its digest."""
    with store.lock_store:
        entry = store.store.get(object_id)
        if entry is not None:
            entry.content, entry.is_available = b"\0", True
