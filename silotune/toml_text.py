"""Plain values as TOML text, for the files that silotune writes for people."""

import datetime as dt
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_text"]


def toml_text(values: Mapping[str, Any], prefix: str = "") -> str:
    """Return ``values`` as TOML: plain keys first, then a table for each mapping. None is left out.

    A mapping in a list is an inline table.

    >>> print(toml_text({"a": 1, "t": {"b": ["x"]}}))
    a = 1
    <BLANKLINE>
    [t]
    b = ["x"]
    """
    plain = {k: v for k, v in values.items() if v is not None and not isinstance(v, Mapping)}
    lines = [f"{_key(k)} = {_value(v)}" for k, v in plain.items()]
    for key, value in values.items():
        if isinstance(value, Mapping):
            name = f"{prefix}{_key(key)}"
            body = toml_text(value, f"{name}.")
            lines += [*([""] if lines else []), f"[{name}]", *([body] if body else [])]
    return "\n".join(lines)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() else json.dumps(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dt.datetime, dt.date)):
        return value.isoformat()
    if isinstance(value, Mapping):
        inside = (f"{_key(k)} = {_value(v)}" for k, v in value.items() if v is not None)
        return f"{{{', '.join(inside)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_value(v) for v in value)}]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False)
