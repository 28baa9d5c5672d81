"""One application on two listeners: whole on a Unix socket, filtered by TLS for merchants."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn

from server.listener import MerchantsOnly

__all__ = ["serve_both"]


class _Server(uvicorn.Server):
    """One of two in a process: the signals belong to neither."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield


def serve_both(
    app: Any,
    socket: Path,
    *,
    host: str,
    port: int,
    certificate: Path,
    key: Path,
    body_limit: int,
    counted: Callable[[Any], Any],
    on_ready: Callable[[], None],
) -> None:
    """Serve ``app`` whole on the Unix socket, and to merchants by TLS; until SIGTERM.

    ``counted`` is put before what merchants reach.
    """
    common: dict[str, Any] = {
        "log_level": "warning",
        "log_config": None,
        "access_log": False,
        "ws": "none",
    }
    inside = _Server(uvicorn.Config(app, uds=str(socket), **common))
    outside = _Server(
        uvicorn.Config(
            counted(MerchantsOnly(app, body_limit=body_limit)),
            host=host,
            port=port,
            ssl_certfile=str(certificate),
            ssl_keyfile=str(key),
            lifespan="off",
            server_header=False,
            # A connection that says nothing is not held for long.
            timeout_keep_alive=30,
            **common,
        )
    )

    async def both() -> None:
        loop = asyncio.get_running_loop()

        def end() -> None:
            inside.should_exit = outside.should_exit = True

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        tasks = [asyncio.create_task(s.serve()) for s in (inside, outside)]
        while not (inside.started and outside.started) and not any(t.done() for t in tasks):
            await asyncio.sleep(0.05)
        if not any(t.done() for t in tasks):
            # uvicorn opens its socket to everyone.
            socket.chmod(0o600)
            on_ready()
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        end()
        await asyncio.gather(*tasks)
        for task in done:
            task.result()

    asyncio.run(both())
