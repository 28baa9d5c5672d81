"""Configuration: frozen dataclasses read from TOML, every key checked and named in errors."""

import difflib
import functools
import operator
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

from silotune.errors import ConfigError

__all__ = ["ByKey", "config", "from_mapping", "from_toml"]

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


@dataclass(frozen=True, slots=True)
class ByKey:
    """Annotation of a union of config classes: the value of one key says which of them is meant.

    Every class has a field of that name with a default, its own value.
    """

    key: str
    default: str
    """Value of a table that has no such key."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        """Return a schema that reads the one class, so that errors are about that alone."""
        from pydantic import Discriminator, Tag

        members = get_args(source) or (source,)
        tags = {_own(member, self.key): member for member in members}
        if len(tags) == 1:
            return handler(source)
        parts: list[Any] = [Annotated[member, Tag(tag)] for tag, member in tags.items()]
        union = functools.reduce(operator.or_, parts)
        return handler.generate_schema(Annotated[union, Discriminator(self._tag)])

    def _tag(self, raw: Any) -> str | None:
        if isinstance(raw, Mapping):
            return str(raw.get(self.key, self.default))
        return getattr(raw, self.key, None)


def _own(member: type, key: str) -> Any:
    return next((f.default for f in fields(member) if f.name == key), None)


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
    path, _ = _place(cls, error["loc"])
    kind, message = error["type"], error["msg"]
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        _, inside = _place(cls, error["loc"][:-1])
        known = [f.name for f in fields(inside)] if is_dataclass(inside) else []
        return f"unknown key '{path}'; {_nearest(str(error['loc'][-1]), known, 'keys')}"
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"key '{path}' is missing."
    if kind == "union_tag_invalid":
        tag, known = error["ctx"]["tag"], error["ctx"]["expected_tags"].replace("'", "").split(", ")
        return f"[{path}] '{tag}' is no {path}; {_nearest(tag, known, 'names')}"
    if kind == "union_tag_not_found":
        return f"'{path}' is {error['input']!r}: it should be a table."
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind == "value_error":
        table = f"[{path}] " if path else ""
        return f"{table}{message}"
    return f"'{path}' is {error['input']!r}: {message[0].lower()}{message[1:]}."


def _nearest(wanted: str, known: list[str], what: str) -> str:
    near = difflib.get_close_matches(wanted, known, n=1)
    return f"did you mean '{near[0]}'?" if near else f"known {what}: {', '.join(known)}."


def _place(cls: type, loc: tuple[Any, ...]) -> tuple[str, Any]:
    """Return what people call the place ``loc``, and the class that is there."""
    path, current = "", cast("Any", cls)
    for part in loc:
        # `tuple[Arm, ...]`, `Arm | None`: the dataclass inside.
        inside = [a for a in get_args(current) if is_dataclass(a)]
        if len(inside) > 1:
            # `ByKey`: the part is no key, but the name of the class that was chosen, or of a
            # field that no other has.
            named = (m for m in inside if any(part in (f.default, f.name) for f in fields(m)))
            current = next(named, current)
            continue
        current = inside[0] if inside else current
        # Indices of lists stay in the path: `arms[2].epsilon`.
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        if isinstance(part, int) and get_args(current)[1:] == (...,):
            current = get_args(current)[0]
        if isinstance(part, str) and is_dataclass(current):
            current = get_type_hints(current).get(part, current)
    inside = [a for a in get_args(current) if is_dataclass(a)]
    return path, inside[0] if len(inside) == 1 else current
