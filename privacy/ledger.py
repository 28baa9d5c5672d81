"""The silo's durable account: what every release cost, and what left.

One ledger per silo for all tasks and runs of the same users. A release goes through

    reserve  the cost is on disk before a gradient is computed
    train
    release  receipt and payload are on disk before a byte leaves
    settle   the payload was handed over

A crash anywhere leaves the reservation spent. A request that was answered before gets the
stored payload again: the same bytes, so no new cost, and never a second training.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.chain import Chain, Entry
from privacy.durable import write_whole
from silotune.errors import BudgetError, LedgerError

__all__ = ["Ledger", "Reservation", "events_of"]

_KEEP = 8
"""Payloads kept for a repeated request; a round is repeated soon or never."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reservation:
    """A cost that is on disk, and allows one release."""

    seq: int
    """Entry in the ledger."""
    request: str
    """SHA-256 of the request, hexadecimal."""
    events: tuple[GaussianEvent, ...]


class Ledger:
    """All releases of one silo. Held by one process at a time; close it, or use ``with``.

    Args:
        path: SQLite file; its key, lock, anchor and payloads lie beside it.
        anchor: file that remembers the newest entry, best on another disk.
        wait: seconds to wait for another process.
        clock: seconds since 1970.

    Raises:
        LedgerError: held by another process, or changed, cut or set back.
    """

    def __init__(
        self,
        path: Path,
        *,
        anchor: Path | None = None,
        wait: float = 60.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.path = path
        self._payloads = path.with_name(path.stem + "-releases")
        options = {} if clock is None else {"clock": clock}
        self._chain = Chain(path, anchor=anchor, wait=wait, **options)
        try:
            # Whoever held the ledger is gone: what it had not released, it never will.
            for seq in _open_reservations(self._chain.entries):
                self._chain.append("abandon", {"reservation": seq})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Ledger":
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close."""
        self.close()

    def close(self) -> None:
        """Let the next process have the ledger."""
        self._chain.close()

    @property
    def closed(self) -> bool:
        """Whether it takes nothing any more: closed, or its disk failed. Open it again then."""
        return self._chain.closed

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every entry, oldest first."""
        return self._chain.entries

    def events(self) -> tuple[GaussianEvent, ...]:
        """Return every cost that was reserved, oldest first, whatever became of it."""
        return events_of(self.entries)

    def spent(self, delta: float) -> float:
        """Return ε per user of everything reserved so far, at ``delta``."""
        return _epsilon(self.events(), delta)

    def reserve(
        self,
        request: str,
        events: Sequence[GaussianEvent],
        what: Mapping[str, Any],
        *,
        epsilon: float,
        delta: float,
    ) -> Reservation:
        """Put the cost of a release on disk, or refuse it.

        Args:
            request: SHA-256 of the request.
            events: what the release will cost.
            what: of the request, for people: job, round, task.
            epsilon: budget per user.
            delta: of the budget.

        Raises:
            BudgetError: the budget would be passed. Nothing is recorded.
            LedgerError: the request was answered before, or the disk or clock fails.
        """
        if not events:
            raise LedgerError("a reservation without cost; a private release has one.")
        if self._released(request) is not None:
            raise LedgerError("this request was answered before; its stored release stands.")
        before, after = self.spent(delta), _epsilon((*self.events(), *events), delta)
        if not after <= epsilon:
            raise BudgetError(
                f"budget: spent ε = {before:.3f} of {epsilon:g} at δ = {delta:g}, left "
                f"{max(0.0, epsilon - before):.3f}; this request would make it {after:.3f}."
            )
        entry = self._chain.append(
            "reserve",
            {
                "request": request,
                "events": [asdict(e) for e in events],
                "what": dict(what),
                "epsilon_after": after,
                "delta": delta,
            },
        )
        return Reservation(seq=entry.seq, request=request, events=tuple(events))

    def record_release(
        self, reservation: Reservation, payload: bytes, receipt: Mapping[str, Any]
    ) -> Entry:
        """Put payload and receipt of a reservation on disk; the payload may then leave.

        Raises:
            LedgerError: the reservation is not open. Nothing is recorded.
        """
        if reservation.seq not in _open_reservations(self.entries):
            raise LedgerError(
                f"reservation {reservation.seq} is not open; it allows no further release."
            )
        digest = hashlib.sha256(payload).hexdigest()
        write_whole(self._payload(reservation.seq), payload)
        entry = self._chain.append(
            "release",
            {
                **receipt,
                "reservation": reservation.seq,
                "request": reservation.request,
                "sha256": digest,
                "bytes": len(payload),
            },
        )
        self._forget_old()
        return entry

    def record_unprotected(self, payload: bytes, receipt: Mapping[str, Any]) -> Entry:
        """Record a release that carries no guarantee and costs none. Its payload is not kept."""
        digest = hashlib.sha256(payload).hexdigest()
        body = {**receipt, "private": False, "sha256": digest, "bytes": len(payload)}
        return self._chain.append("release", body)

    def settle(self, reservation: int) -> None:
        """Record that the payload of ``reservation`` was handed over; once."""
        if any(e.kind == "settle" and e.body["reservation"] == reservation for e in self.entries):
            return
        self._chain.append("settle", {"reservation": reservation})

    def accept_clock(self) -> None:
        """Record that a person found the clock right, although it jumped."""
        self._chain.append("clock", {"accepted": True})

    def stored(self, request: str) -> tuple[bytes, Entry] | None:
        """Return payload and receipt that answered ``request`` before, or None.

        Raises:
            LedgerError: it was answered, but the payload is no longer kept or was changed.
        """
        entry = self._released(request)
        if entry is None:
            return None
        path = self._payload(entry.body["reservation"])
        try:
            payload = path.read_bytes()
        except FileNotFoundError:
            raise LedgerError(
                f"the request was answered in entry {entry.seq}; its payload is no longer kept."
            ) from None
        if hashlib.sha256(payload).hexdigest() != entry.body["sha256"]:
            raise LedgerError(f"{path}: is not what was released. It stays here.")
        return payload, entry

    def _released(self, request: str) -> Entry | None:
        for e in self.entries:
            if e.kind == "release" and e.body.get("request") == request:
                return e
        return None

    def _payload(self, reservation: int) -> Path:
        return self._payloads / f"{reservation}.bin"

    def _forget_old(self) -> None:
        releases = [
            e.body["reservation"]
            for e in self.entries
            if e.kind == "release" and "reservation" in e.body
        ]
        for seq in releases[:-_KEEP]:
            self._payload(seq).unlink(missing_ok=True)


def events_of(entries: Sequence[Entry]) -> tuple[GaussianEvent, ...]:
    """Return the costs reserved in ``entries``, oldest first."""
    return tuple(
        GaussianEvent(**event) for e in entries if e.kind == "reserve" for event in e.body["events"]
    )


def _open_reservations(entries: Sequence[Entry]) -> list[int]:
    ended = {e.body.get("reservation") for e in entries if e.kind in ("release", "abandon")}
    return [e.seq for e in entries if e.kind == "reserve" and e.seq not in ended]


# Silos of a simulation share plan and history; the accountant need not answer twice.
@lru_cache(maxsize=1024)
def _epsilon(events: tuple[GaussianEvent, ...], delta: float) -> float:
    return epsilon_spent(events, delta=delta)
