"""The silo's durable account of what its releases cost, charged before training.

SQLite, one file per silo. A charge is on disk before a gradient is computed: a crash between
charge and release leaves the cost counted, never uncounted.
"""

import sqlite3
from functools import lru_cache
from pathlib import Path

from privacy.accounting import GaussianEvent, epsilon_spent
from silotune.errors import PrivacyError

__all__ = ["Ledger"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS charge (
    id INTEGER PRIMARY KEY,
    job TEXT NOT NULL,
    round INTEGER NOT NULL,
    sampling_rate REAL NOT NULL,
    noise_multiplier REAL NOT NULL,
    steps INTEGER NOT NULL
);
"""


class Ledger:
    """All Gaussian events of one silo's users, over jobs, rounds and restarts."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._connect() as connection:
            connection.executescript(_SCHEMA)
        connection.close()
        path.chmod(0o600)

    def charge(
        self, event: GaussianEvent, *, job: str, round_: int, epsilon: float, delta: float
    ) -> float:
        """Record ``event`` durably and return ε spent with it; refuse before recording.

        Raises:
            PrivacyError: the sum with ``event`` would pass ``epsilon``. Nothing is recorded.
        """
        connection = self._connect()
        try:
            # IMMEDIATE: a second process waits here, and then sees this one's charge.
            connection.execute("BEGIN IMMEDIATE")
            events = self._events(connection)
            after = _epsilon((*events, event), delta)
            if after > epsilon:
                raise PrivacyError(
                    f"budget: spent ε = {_epsilon(events, delta):.3f} of {epsilon:g} at "
                    f"δ = {delta:g}; this round would make it {after:.3f}. Refused."
                )
            connection.execute(
                "INSERT INTO charge (job, round, sampling_rate, noise_multiplier, steps) "
                "VALUES (?, ?, ?, ?, ?)",
                (job, round_, event.sampling_rate, event.noise_multiplier, event.steps),
            )
            connection.commit()
        finally:
            connection.close()
        return after

    def events(self) -> tuple[GaussianEvent, ...]:
        """Return every charge, oldest first."""
        connection = self._connect()
        try:
            return self._events(connection)
        finally:
            connection.close()

    def _events(self, connection: sqlite3.Connection) -> tuple[GaussianEvent, ...]:
        rows = connection.execute(
            "SELECT sampling_rate, noise_multiplier, steps FROM charge ORDER BY id"
        ).fetchall()
        return tuple(
            GaussianEvent(sampling_rate=q, noise_multiplier=sigma, steps=n) for q, sigma, n in rows
        )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        # FULL: commit returns after fsync; a power cut then cannot take a charge back.
        connection.execute("PRAGMA synchronous = FULL")
        return connection


# Silos of a simulation share plan and history; the accountant need not answer twice.
@lru_cache(maxsize=1024)
def _epsilon(events: tuple[GaussianEvent, ...], delta: float) -> float:
    return epsilon_spent(events, delta=delta)
