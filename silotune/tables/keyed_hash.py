"""Keyed hashes that stand for a merchant's user ids: HMAC-SHA256, cut to 128 bits.

DuckDB computes them in its own threads, out of core and in one pass over the source; `hash_id` is
the same function in Python.
"""

import hashlib
import hmac

__all__ = ["KEY_BYTES", "hash_id", "hash_parameters", "hash_sql"]

KEY_BYTES = 32
_HEX_CHARACTERS = 32
_BLOCK_BYTES = 64


def hash_id(text: str, *, key: bytes) -> str:
    """Return the hash of ``text``, 32 hex characters."""
    return hmac.digest(key, text.encode(), hashlib.sha256).hex()[:_HEX_CHARACTERS]


def hash_sql(expression: str) -> str:
    """Return the SQL expression of the hash of the text ``expression``.

    The query runs with `hash_parameters`, so that the key never stands in a statement's text.
    """
    inner = f"unhex(sha256($inner::BLOB || encode({expression})))"
    return f"left(sha256($outer::BLOB || {inner}), {_HEX_CHARACTERS})"


def hash_parameters(key: bytes) -> dict[str, bytes]:
    """Return the two padded keys of RFC 2104 that `hash_sql` refers to."""
    padded = key.ljust(_BLOCK_BYTES, b"\0")
    return {"inner": bytes(b ^ 0x36 for b in padded), "outer": bytes(b ^ 0x5C for b in padded)}
