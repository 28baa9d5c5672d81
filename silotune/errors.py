"""Errors that a user can act on. Each says where, what is wrong and what to do."""

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "EgressError",
    "LedgerError",
    "MessageError",
    "ModelError",
    "NoExamplesError",
    "PolicyError",
    "PrivacyError",
    "SilotuneError",
    "StorageError",
    "WorkerError",
]


class SilotuneError(ValueError):
    """Base of every error that silotune raises on purpose. The CLI prints it without a trace."""


class ConfigError(SilotuneError):
    """A TOML file or an option: names file and key."""


class DataError(SilotuneError):
    """A merchant's table: names file, column and first row. Nothing was imported."""


class NoExamplesError(DataError):
    """Tables, or the customers asked for, that a task has no example of.

    Whether there are any is private: what is released must not depend on it.
    """


class ModelError(SilotuneError):
    """A base model or an adapter that cannot be used as asked."""


class MessageError(SilotuneError):
    """A message from the other side that is malformed or not what was agreed."""


class PrivacyError(SilotuneError):
    """A request that would break, or cannot be covered by, the privacy guarantee."""


class PolicyError(PrivacyError):
    """A request outside the merchant's policy; every reason in one message, none from data.

    Args:
        message: for the merchant, with the values.
        limits: names of the policy's limits that were passed.
    """

    def __init__(self, message: str, limits: tuple[str, ...] = ()) -> None:
        """Keep the names apart from the words."""
        super().__init__(message)
        self.limits = limits


class BudgetError(PrivacyError):
    """A request that would pass the merchant's budget; says what is spent and what is left."""


class LedgerError(PrivacyError):
    """A ledger that is held, damaged, changed, cut or set back. Nothing is released."""


class EgressError(PrivacyError):
    """Something on its way out that is not what was declared. It stays; its cost is spent."""


class StorageError(SilotuneError):
    """A disk that does not take what must be durable. What was durable before still is."""


class WorkerError(SilotuneError):
    """A worker process that was ended from outside; what it had finished is kept."""
