"""What a node says about an aggregator that it cannot work with: certificate, clock, address.

Flower's own node tries again for ever, or ends, with a code.
"""

import datetime as dt
import email.utils
import ssl

import httpx

__all__ = ["trouble_with"]

_AHEAD, _BEHIND = 5.0, 300.0
"""Seconds that a node's clock may differ from the aggregator's; Flower's, for signed requests."""
_SECONDS = 10.0


def trouble_with(address: str, context: ssl.SSLContext) -> str | None:
    """Return why a node could not work with the aggregator, and what to do; None: it could.

    Args:
        address: HOST:PORT.
        context: that accepts the aggregator's certificate.
    """
    try:
        with (
            httpx.Client(verify=context, timeout=_SECONDS, trust_env=False) as client,
            # Unread: what it sends as an answer may be of any length.
            client.stream("GET", f"https://{address}/health") as answer,
        ):
            said = answer.headers.get("date", "")
    except httpx.HTTPError as error:
        return _connection(address, str(error))
    try:
        theirs = email.utils.parsedate_to_datetime(said).timestamp()
    except (ValueError, OverflowError):
        return None
    ahead = dt.datetime.now(dt.UTC).timestamp() - theirs
    # The header has whole seconds.
    if -_BEHIND < ahead < _AHEAD + 1:
        return None
    way = f"{ahead:.0f} s ahead of" if ahead > 0 else f"{-ahead:.0f} s behind"
    return (
        f"this machine's clock is {way} the aggregator's, which refuses requests that are more "
        f"than {_AHEAD:.0f} s ahead or {_BEHIND:.0f} s behind. Set the clocks by a time service."
    )


def _connection(address: str, words: str) -> str:
    now = dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
    if "has expired" in words:
        return (
            f"{address}: the aggregator's certificate has expired, or this machine's clock, {now}, "
            "is wrong. The aggregator must make a new certificate and send a new invitation; its "
            "[server] goes into client.toml and its digest into policy.toml."
        )
    if "not yet valid" in words:
        return (
            f"{address}: the aggregator's certificate is not yet valid: this machine's clock, "
            f"{now}, or the aggregator's is wrong. Set it by a time service."
        )
    if "pinned" in words:
        return (
            f"{address}: shows another certificate than client.toml's: {words}. Ask the aggregator "
            "by telephone; a new certificate comes with a new invitation."
        )
    return f"{address}: cannot be reached ({words}). It is tried again."
