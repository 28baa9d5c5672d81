"""What merchants can reach of the SuperLink: every route of the real application is tried."""

import asyncio

import httpx
import pytest
from fastapi.routing import APIRoute, iter_route_contexts

from server.flower_link import link_app
from server.listener import MERCHANT_PATHS, MerchantsOnly

FLEET = "/v1/fleet/"
# Of the database migrations that Flower runs.
pytestmark = pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    """The SuperLink's application, as the aggregator starts it."""
    return link_app(tmp_path_factory.mktemp("link") / "state.db", b"s" * 32)


def _routes(app):
    for context in iter_route_contexts(app.routes):
        route = context.route
        methods = sorted(getattr(route, "methods", None) or {"GET"})
        path = context.path if isinstance(route, APIRoute) else route.path
        yield from ((method, path) for method in methods)


def _ask(app, method, path, content=b"", **headers):
    async def ask():
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="https://aggregator") as client:
            return await client.request(method, path, content=content, headers=headers)

    return asyncio.run(ask()).status_code


def test_every_route_but_the_merchants_does_not_exist_outside(app):
    routes = set(_routes(app))
    # The enumeration sees what must be hidden.
    assert {("POST", "/v1/control/start-run"), ("POST", "/v1/runtime/acquire-task")} <= routes
    assert len(routes) > 60
    outside = MerchantsOnly(app, body_limit=1000)
    for method, path in sorted(routes - MERCHANT_PATHS):
        assert _ask(outside, method, path) == 404, path
        assert _ask(app, method, path) != 404 or "{" in path, path


def test_the_merchants_paths_are_routes_and_need_a_signature(app):
    routes = set(_routes(app))
    assert routes >= MERCHANT_PATHS
    fleet = {path for _, path in routes if path.startswith(FLEET)}
    hidden = fleet - {path for _, path in MERCHANT_PATHS}
    assert hidden == {f"{FLEET}register-node", f"{FLEET}unregister-node"}
    outside = MerchantsOnly(app, body_limit=1000)
    kind = {"content-type": "application/protobuf"}
    for method, path in sorted(MERCHANT_PATHS - {("GET", "/health")}):
        assert _ask(outside, method, path, **kind) == 401, path


@pytest.mark.parametrize(
    "path",
    [
        "/v1/fleet/../control/list-nodes",
        "/v1/fleet/%2e%2e/control/list-nodes",
        "/v1/fleet//pull-messages",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/pull-messages/",
        "//v1/control/list-nodes",
        "/v1/control/list-nodes?/v1/fleet/pull-messages",
        "/health/../v1/control/list-nodes",
    ],
)
def test_a_path_that_only_looks_like_the_merchants_is_none(app, path):
    assert _ask(MerchantsOnly(app, body_limit=1000), "POST", path) == 404


def test_other_methods_are_refused(app):
    outside = MerchantsOnly(app, body_limit=1000)
    for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"):
        assert _ask(outside, method, "/v1/fleet/pull-messages") == 404


def _call(app, headers, chunks):
    """Send a request by hand; return the status and how often the body was asked for."""
    sent, asked = [], 0

    async def receive():
        nonlocal asked
        asked += 1
        more = asked < len(chunks)
        body = chunks[asked - 1] if asked <= len(chunks) else b""
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/fleet/push-object",
        "headers": headers,
    }
    asyncio.run(app(scope, receive, send))
    return [m["status"] for m in sent if m["type"] == "http.response.start"], asked


async def _reads_all(scope, receive, send):
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if not message["more_body"]:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            return


def test_a_body_that_is_too_long_is_cut_off():
    outside = MerchantsOnly(_reads_all, body_limit=1000)
    assert _call(outside, [(b"content-length", b"1000")], [b"x" * 1000]) == ([200], 1)
    # Said to be too long: not read at all.
    for length in (b"1001", b"10000000000", b"-1", b"", b"1e3"):
        assert _call(outside, [(b"content-length", length)], [b""]) == ([413], 0)
    # Not said: read up to the limit.
    status, asked = _call(outside, [], [b"x" * 600] * 50)
    assert status == []
    assert asked == 2


def test_a_websocket_is_closed():
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(MerchantsOnly(_reads_all, body_limit=1)({"type": "websocket"}, None, send))
    assert [m["type"] for m in sent] == ["websocket.close"]
