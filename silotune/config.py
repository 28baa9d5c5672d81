"""Configuration: frozen dataclasses read from TOML, every key checked and named in errors."""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, dataclass_transform, get_args, get_type_hints

from silotune.errors import ConfigError

__all__ = ["config", "from_mapping", "from_toml"]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def config(cls: type[T]) -> type[T]:
    """Make a frozen, keyword-only dataclass that refuses unknown keys when read from a file.

    Ranges belong to the class: raise ConfigError in ``__post_init__`` with a message that
    starts with the field's name; the reader puts file and table in front.
    """
    # pydantic reads the attribute; the class stays an ordinary dataclass for everyone else.
    cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
    return dataclass(frozen=True, kw_only=True)(cls)


def from_toml(cls: type[T], path: Path) -> T:
    """Read ``path`` into the config class ``cls``.

    Raises:
        ConfigError: unreadable file, TOML syntax (with line), unknown key (with the nearest
            known one), wrong type or a value out of range; the message names file and key.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as UTF-8 text ({error}).") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}.") from error
    return from_mapping(cls, raw, where=str(path))


def from_mapping(cls: type[T], raw: Mapping[str, Any], *, where: str) -> T:
    """Build ``cls`` from plain values; ``where`` stands in front of every error message."""
    # Here and not on top: pydantic costs 0.1 s that `silotune --help` does not need to pay.
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(cls).validate_python(dict(raw))
    except ValidationError as error:
        lines = [_explain(cls, e) for e in error.errors(include_url=False)]
        raise ConfigError("\n".join(f"{where}: {line}" for line in lines)) from None


def _explain(cls: type, error: Any) -> str:
    # Indices of lists stay in the path: `arms[2].epsilon`.
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    kind, message = error["type"], error["msg"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        known = _known_keys(cls, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}."
        return f"unknown key '{path}'; {hint}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key '{path}' is missing."
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        table = f"[{path}] " if path else ""
        return f"{table}{message}"
    return f"'{path}' is {error['input']!r}: {message[0].lower()}{message[1:]}."


def _known_keys(cls: type, loc: tuple[Any, ...]) -> list[str]:
    current: Any = cls
    for part in loc:
        if isinstance(part, str) and is_dataclass(current):
            current = get_type_hints(current).get(part, current)
        # `tuple[Arm, ...]`, `Arm | None`: the dataclass inside.
        inside = [a for a in get_args(current) if is_dataclass(a)]
        current = inside[0] if inside else current
    return [f.name for f in fields(current)] if is_dataclass(current) else []
