"""A dashboard's routes: one page drawn here, the same in JSON to keep it fresh, and one button.

Mount them in `silotune.observe.observe_app`, which asks for the token. The page can be read
without script; with it, the parts that changed are put in place. A part is a block of the
template whose name begins with ``part_``.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from silotune import __version__
from silotune.dashboard import words
from silotune.dashboard.svg import strip

__all__ = ["Gather", "dashboard_routes"]

Gather = Callable[[Mapping[str, str]], dict[str, Any]]
"""Reads the folder; gets the query. What it returns, the template gets."""

_PART = "part_"


def dashboard_routes(
    template: str, gather: Gather, stop: Callable[[], None] | None = None
) -> list[Route]:
    """Return the routes ``/``, ``/state.json`` and, where there is ``stop``, POST ``/stop``.

    Args:
        template: file of ``silotune/dashboard/templates``.
        gather: called for every answer, in a thread.
        stop: begins the end of this side's processes, and returns.
    """
    page = _environment().get_template(template)

    def show(request: Request) -> Response:
        return _drawn(page, gather(request.query_params), stopping=False)

    def state(request: Request) -> Response:
        context = page.new_context(gather(request.query_params) | {"stopping": False})
        parts = {
            name.removeprefix(_PART): "".join(block(context))
            for name, block in page.blocks.items()
            if name.startswith(_PART)
        }
        return JSONResponse({"parts": parts}, headers=_headers("'none'"))

    routes = [Route("/", show), Route("/state.json", state)]
    if stop is not None:

        def end(request: Request) -> Response:
            # Drawn first: soon no one answers here.
            answer = _drawn(page, gather(request.query_params), stopping=True)
            stop()
            return answer

        routes.append(Route("/stop", end, methods=["POST"]))
    return routes


def _drawn(page: Template, found: Mapping[str, Any], *, stopping: bool) -> Response:
    nonce = secrets.token_urlsafe(16)
    html = page.render(**found, stopping=stopping, nonce=nonce, version=__version__)
    return HTMLResponse(html, headers=_headers(f"'nonce-{nonce}'"))


def _headers(own: str) -> dict[str, str]:
    return {
        # Whatever text gets into a page, a browser loads and runs nothing of it.
        "content-security-policy": (
            "default-src 'none'; img-src data:; connect-src 'self'; form-action 'self'; "
            f"base-uri 'none'; frame-ancestors 'none'; style-src {own}; script-src {own}"
        ),
        # 'no-referrer' would take the Origin from our own form, by which it is known as ours.
        "referrer-policy": "same-origin",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
        "x-frame-options": "DENY",
    }


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("silotune.dashboard"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.globals |= {name: getattr(words, name) for name in words.__all__} | {"strip": strip}
    # As globals: `import` in a template is not seen by a block that is drawn alone.
    shared = made.get_template("shared.html.j2").module
    made.globals |= {k: v for k, v in vars(shared).items() if not k.startswith("_")}
    return made
