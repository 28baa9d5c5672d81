"""HTTP for whoever runs a side: ``/health``, ``/metrics``, and what else is mounted.

On loopback, past a token: any account of a machine reaches its loopback, the node's account too,
and that one talks to the aggregator. `/health` alone needs none; it says fixed words.

    routes = [Route("/", page), Mount("/api", api)]           # Starlette's
    serve(folder, settings, observe_app(..., routes=routes), on_ready)

A browser opens ``URL/?token=TOKEN`` once and has a cookie from then on. A page that changes
something does so by POST: with the cookie it is taken from the page's own origin only.
"""

import contextlib
import hashlib
import hmac
import html
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlencode

import uvicorn
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from silotune.observe_config import ObserveConfig

__all__ = ["Reasons", "observe_app", "read_token", "read_url", "serve"]

Reasons = Callable[[], Sequence[str]]
"""Why a side is not well, one line each, in fixed words; none: it is."""

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; frame-ancestors 'none'; form-action 'self'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


def observe_app(
    *,
    token: str,
    host: str,
    health: Reasons,
    metrics: Callable[[], Iterable[Metric]],
    routes: Sequence[BaseRoute] = (),
) -> ASGIApp:
    """Return the application.

    Args:
        token: without it nothing but ``/health`` answers.
        host: that it listens on; a request for another name is refused, except where it is not
            loopback.
        health: gives the reasons of a 503.
        metrics: gives what Prometheus reads, new at each call.
        routes: of a dashboard; they answer past the same token.
    """

    class _Now(Collector):
        def collect(self) -> Iterable[Metric]:
            return metrics()

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Now())

    def well(_: Request) -> Response:
        reasons = list(health())
        return PlainTextResponse("\n".join(reasons or ["ok"]) + "\n", 503 if reasons else 200)

    def numbers(_: Request) -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    app = Starlette(routes=[Route("/health", well), Route("/metrics", numbers), *routes])
    return _Guard(app, token=token, host=host)


class _Guard:
    """Lets in who has the token, from this machine's own names."""

    def __init__(self, inner: ASGIApp, *, token: str, host: str) -> None:
        self._inner = inner
        self._token = token
        # Cookies know no ports: every silo of a machine has its own name.
        self._cookie = f"silotune-{hashlib.sha256(token.encode()).hexdigest()[:12]}"
        loopback = ObserveConfig(host=host, expose=True).is_loopback
        self._hosts = {"127.0.0.1", "localhost", "[::1]", host} if loopback else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._inner(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await (self._refusal(Request(scope)) or self._inner)(scope, receive, careful)

    def _refusal(self, request: Request) -> Response | None:
        named = request.headers.get("host", "")
        bare = named.rpartition(":")[0] if named.rpartition(":")[2].isdigit() else named
        if self._hosts is not None and bare not in self._hosts:
            # A page of elsewhere whose name was made to point here.
            return PlainTextResponse("ask for it by its own address.\n", 421)
        if request.url.path == "/health" and request.method in ("GET", "HEAD"):
            return None
        if self._same(_bearer(request.headers)):
            return None
        if self._same(request.cookies.get(self._cookie, "")):
            own = request.headers.get("origin") == f"{request.url.scheme}://{named}"
            if request.method in ("GET", "HEAD") or own:
                return None
            return PlainTextResponse("refused: not from this page.\n", 403)
        if request.method == "GET" and self._same(request.query_params.get("token", "")):
            return self._remembered(request)
        return PlainTextResponse("refused: the token is in the folder's observe.token.\n", 401)

    def _same(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _remembered(self, request: Request) -> Response:
        """Return the same page without the token in its address, which browsers keep."""
        rest = urlencode([(k, v) for k, v in parse_qsl(request.url.query) if k != "token"])
        # A path that begins with two slashes would be another machine's.
        path = "/" + request.url.path.lstrip("/\\")
        target = f"{path}?{rest}" if rest else path
        answer: Response = RedirectResponse(target, 303)
        if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            # Whoever followed another page's link would come back without the strict cookie:
            # the next step must be this page's own.
            step = html.escape(answer.headers["location"])
            answer = HTMLResponse(f'<meta http-equiv="refresh" content="0; url={step}">\n')
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer


def _bearer(headers: Headers) -> str:
    kind, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else ""


def read_token(folder: Path) -> str:
    """Return the token of a side's folder; made, mode 0600, where there is none."""
    path = folder / "observe.token"
    if not path.exists():
        _write(path, f"{secrets.token_urlsafe(24)}\n")
    return path.read_text(encoding="ascii").strip()


def read_url(folder: Path) -> str | None:
    """Return where the side of ``folder`` shows how it is, or last did; None: never."""
    try:
        found = json.loads((folder / "run" / "observe.json").read_text(encoding="utf-8"))
        return str(found["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def serve(
    folder: Path, settings: ObserveConfig, app: ASGIApp, on_ready: Callable[[], None]
) -> None:
    """Serve ``app`` until SIGTERM; ``run/observe.json`` says where.

    Raises:
        OSError: the port is taken.
    """
    ready = _opened(folder, settings)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{ready.getsockname()[1]}"
    _write(folder / "run" / "observe.json", json.dumps({"url": url}))
    # A page that is open must not hold up the end.
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            log_config=None,
            access_log=False,
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=2,
        )
    )
    on_ready()
    server.run(sockets=[ready])


def _opened(folder: Path, settings: ObserveConfig) -> socket.socket:
    last = (read_url(folder) or "").rpartition(":")[2]
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    ready = socket.socket(family, socket.SOCK_STREAM)
    ready.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if settings.port == 0 and last.isdigit():
        # Where it was before: bookmarks stay right. Unless someone else is there now.
        with contextlib.suppress(OSError):
            ready.bind((settings.host, int(last)))
    if ready.getsockname()[1] == 0:
        try:
            ready.bind((settings.host, settings.port))
        except OSError as error:
            where = f"{settings.host}:{settings.port}"
            raise OSError(
                error.errno, f"{where}: {os.strerror(error.errno or 0)}; see [observe] port"
            ) from None
    # From now on who connects waits, until the server is there.
    ready.listen(64)
    return ready


def _write(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    with open(part, "w", opener=lambda p, flags: os.open(p, flags, 0o600)) as file:
        file.write(text)
    part.replace(path)
