"""Counts what merchants' nodes send and get, where it passes: the bytes of bodies, by path."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

__all__ = ["Counted", "read_traffic", "traffic_path"]

_PAUSE = 1.0
"""Seconds between two writes of the file."""
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
_Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
_App = Callable[[_Scope, _Receive, _Send], Awaitable[None]]


class Counted:
    """ASGI application before ``inner`` that keeps the counts in a file, for who shows them.

    Args:
        inner: answers.
        path: of the file.
        known: paths to count by name; a stranger may ask for any number of others.
    """

    def __init__(self, inner: _App, path: Path, known: frozenset[str]) -> None:
        self._inner, self._path, self._known = inner, path, known
        self._bytes = {"in": 0, "out": 0}
        self._answers: dict[str, int] = {}
        self._due = False

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._inner(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self._known else "other"

        async def received() -> MutableMapping[str, Any]:
            message = await receive()
            self._bytes["in"] += len(message.get("body", b""))
            return message

        async def sent(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                key = f"{path} {message['status']}"
                self._answers[key] = self._answers.get(key, 0) + 1
            self._bytes["out"] += len(message.get("body", b""))
            await send(message)

        try:
            await self._inner(scope, received, sent)
        finally:
            if not self._due:
                self._due = True
                asyncio.get_running_loop().call_later(_PAUSE, self._write)

    def _write(self) -> None:
        self._due = False
        part = self._path.with_name(f"{self._path.name}.part")
        # On a full disk merchants are still answered.
        with contextlib.suppress(OSError):
            part.write_text(json.dumps({"bytes": self._bytes, "answers": self._answers}))
            part.replace(self._path)


def traffic_path(folder: Path) -> Path:
    """Return where the counts of the aggregator in ``folder`` are."""
    return folder / "run" / "traffic.json"


def read_traffic(folder: Path) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """Return bytes by direction and answers by path and status, since the SuperLink started."""
    try:
        raw = json.loads(traffic_path(folder).read_text(encoding="utf-8"))
        split = {tuple(key.rsplit(" ", 1)): int(n) for key, n in raw["answers"].items()}
        return dict(raw["bytes"]), {(path, status): n for (path, status), n in split.items()}
    except (OSError, ValueError, KeyError, TypeError):
        return {}, {}
