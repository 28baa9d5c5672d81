"""The listener for merchants: of all that the SuperLink answers, only what a node needs.

Everything else does not exist here: the interface that starts runs has no authentication, and
must be out of reach for whoever can open a connection.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["MERCHANT_PATHS", "MerchantsOnly"]

MERCHANT_PATHS = frozenset(
    {("GET", "/health")}
    | {
        ("POST", f"/v1/fleet/{name}")
        for name in (
            "activate-node",
            "confirm-message-received",
            "deactivate-node",
            "get-fab",
            "get-run",
            "pull-messages",
            "pull-object",
            "push-messages",
            "push-object",
            "send-node-heartbeat",
        )
    }
)
"""Method and path of all that merchants' nodes call. To register is the operator's alone."""

_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class MerchantsOnly:
    """ASGI application before ``inner`` that hands on `MERCHANT_PATHS` and nothing else.

    Args:
        inner: the SuperLink's application.
        body_limit: bytes of one request; a longer one is answered with 413 and cut off.
    """

    def __init__(self, inner: _App, *, body_limit: int) -> None:
        self._inner = inner
        self._limit = body_limit

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        if (scope["method"], scope["path"]) not in MERCHANT_PATHS:
            await _answer(send, 404)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self._limit:
            await _answer(send, 413)
            return
        read = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            # Sent in pieces, without a length: the reader sees the connection end.
            return message if read <= self._limit else {"type": "http.disconnect"}

        await self._inner(scope, counted, send)


async def _answer(send: _Send, status: int) -> None:
    headers = [(b"content-length", b"0"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b""})
