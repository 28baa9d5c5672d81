"""Entries of the ledger's log, and the one form in which they are hashed and stored."""

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["Entry", "anchor_text", "canonical", "parse", "row"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One entry of the log, as it was written."""

    seq: int
    """Counted from 1."""
    time: float
    """Seconds since 1970, by the silo's clock."""
    kind: str
    body: dict[str, Any]
    previous: str
    """HMAC of the entry before; zeros for the first."""
    hash: str
    """HMAC-SHA256 of everything above."""


def parse(text: str) -> dict[str, Any]:
    """Return the value of a stored body. Raises ValueError unless it is in its one form."""
    body: dict[str, Any] = json.loads(text)
    if canonical(body) != text:
        # The hash is over the one form of a value; another form was not written by this module.
        raise ValueError("a body is not in its one form")
    return body


def row(entry: Entry) -> tuple[int, float, str, str, str, str]:
    """Return an entry as the log's table holds it."""
    text = canonical(entry.body)
    return entry.seq, entry.time, entry.kind, text, entry.previous, entry.hash


def anchor_text(entry: Entry) -> bytes:
    """Return what the anchor says when ``entry`` is the newest."""
    return canonical({"seq": entry.seq, "hash": entry.hash}).encode()


def canonical(value: object) -> str:
    """Return the one text of a JSON value: what is hashed is what is stored."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
