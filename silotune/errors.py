"""Errors that a user can act on. Each says where, what is wrong and what to do."""

__all__ = [
    "ConfigError",
    "DataError",
    "MessageError",
    "ModelError",
    "PrivacyError",
    "SilotuneError",
]


class SilotuneError(ValueError):
    """Base of every error that silotune raises on purpose. The CLI prints it without a trace."""


class ConfigError(SilotuneError):
    """A TOML file or an option: names file and key."""


class DataError(SilotuneError):
    """A merchant's table: names file, column and first row. Nothing was imported."""


class ModelError(SilotuneError):
    """A base model or an adapter that cannot be used as asked."""


class MessageError(SilotuneError):
    """A message from the other side that is malformed or not what was agreed."""


class PrivacyError(SilotuneError):
    """A request that would break, or cannot be covered by, the privacy guarantee."""
