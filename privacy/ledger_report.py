"""A ledger as people and programs read it, and checked from its first entry to its last."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.chain import Chain, Entry
from silotune.errors import LedgerError

__all__ = ["LedgerRow", "Verified", "ledger_rows", "verify"]

_TOLERANCE = 0.02
"""Share by which a recorded ε may lie below today's: another version of the accountant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRow:
    """One reservation and what became of it."""

    seq: int
    when: str
    """UTC."""
    job: str
    round: int
    cost: str
    """The mechanism's public numbers."""
    epsilon: float
    """Spent with this reservation, at ``delta``."""
    delta: float
    outcome: str
    """'released', 'settled', 'nothing left' or 'open'."""
    bytes: int
    """That left; 0 where nothing did."""
    sha256: str
    """Of what left."""
    private: bool


def ledger_rows(entries: Sequence[Entry]) -> list[LedgerRow]:
    """Return every reservation in ``entries``, oldest first."""
    ends: dict[int, dict[str, Any]] = {}
    for e in entries:
        if "reservation" in e.body:
            known = ends.setdefault(int(e.body["reservation"]), {})
            known[e.kind] = e.body
    return [_row(e, ends.get(e.seq, {})) for e in entries if e.kind == "reserve"]


def _row(entry: Entry, ends: dict[str, Any]) -> LedgerRow:
    body, release = entry.body, ends.get("release", {})
    outcome = "open"
    for kind, word in (
        ("settle", "settled"),
        ("release", "released"),
        ("abandon", "nothing left"),
    ):
        if kind in ends:
            outcome = word
            break
    return LedgerRow(
        seq=entry.seq,
        when=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.time)),
        job=str(body["what"].get("job", "")),
        round=int(body["what"].get("round", 0)),
        cost=", ".join(
            f"{e['steps']} × (q {e['sampling_rate']:g}, σ {e['noise_multiplier']:.4g})"
            for e in body["events"]
        ),
        epsilon=float(body["epsilon_after"]),
        delta=float(body["delta"]),
        outcome=outcome,
        bytes=int(release.get("bytes", 0)),
        sha256=str(release.get("sha256", "")),
        private=bool(release.get("private", True)),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verified:
    """What a check of the whole ledger found right."""

    entries: int
    reservations: int
    released: int
    epsilon: float
    """Recomputed from every reservation, at ``delta``; 0 where there is none."""
    delta: float | None
    head: str
    """Hash of the newest entry: who notes it elsewhere can tell later that none was taken away."""


def verify(path: Path, *, anchor: Path | None = None, wait: float = 5.0) -> Verified:
    """Check hashes, anchor and every recorded ε of the ledger in ``path``.

    Raises:
        LedgerError: there is none, another process holds it, it was changed, cut or set back, or
            an ε was recorded that its own entries do not give.
    """
    if not path.exists():
        raise LedgerError(f"{path}: no such file; the first private training makes it.")
    chain = Chain(path, anchor=anchor, wait=wait)
    entries = chain.entries
    chain.close()
    events: list[GaussianEvent] = []
    epsilon, delta = 0.0, None
    for e in entries:
        if e.kind != "reserve":
            continue
        events += [GaussianEvent(**event) for event in e.body["events"]]
        delta = float(e.body["delta"])
        epsilon = epsilon_spent(events, delta=delta)
        if not e.body["epsilon_after"] >= (1 - _TOLERANCE) * epsilon:
            raise LedgerError(
                f"{path}: entry {e.seq} records ε = {e.body['epsilon_after']:.4f}; its costs give "
                f"{epsilon:.4f}. It was written by something else than silotune."
            )
    return Verified(
        entries=len(entries),
        reservations=sum(e.kind == "reserve" for e in entries),
        released=sum(e.kind == "release" for e in entries),
        epsilon=epsilon,
        delta=delta,
        head=entries[-1].hash,
    )
