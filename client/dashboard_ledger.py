"""The silo's ledger as its dashboard shows it: what was spent, when and on what, and what left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from privacy.chain import Chain, Entry
from privacy.chain_view import checked_entries
from silotune.errors import LedgerError

__all__ = ["LedgerView", "Receipt", "Spent", "ledger_view"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """One reservation and what became of it, or a release without a guarantee."""

    seq: int
    """Entry of the ledger."""
    time: float
    """Seconds since 1970."""
    job: str
    round: int
    name: str
    """'update' or 'metrics'; '' where nothing left."""
    mechanism: str
    """In words, with its public numbers."""
    numbers: int
    encoding: str
    bytes: int
    sha256: str
    private: bool
    """False: no guarantee, or noise that can be made again."""
    cost: float
    """What it added to ε."""
    epsilon: float
    """Of everything so far, with it."""
    delta: float | None
    outcome: str
    """'handed over', 'released', 'nothing left' or 'open'."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """ε that a day or a job added, in the order of the ledger."""

    label: str
    added: float
    after: float
    """ε of everything, after the last of it."""
    releases: int
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerView:
    """The ledger."""

    verified: bool
    words: str
    """What was checked, or what is wrong."""
    spent: float
    delta: float | None
    receipts: tuple[Receipt, ...] = ()
    """Oldest first."""

    @property
    def by_day(self) -> list[Spent]:
        """Return what each day added, UTC."""
        return _grouped(self.receipts, lambda r: time.strftime("%Y-%m-%d", time.gmtime(r.time)))

    @property
    def by_job(self) -> list[Spent]:
        """Return what each job added."""
        return _grouped(self.receipts, lambda r: r.job)

    @property
    def unprotected(self) -> int:
        """Return how many releases carry no guarantee."""
        return sum(r.bytes > 0 and not r.private for r in self.receipts)


def ledger_view(path: Path, anchor: Path | None = None) -> LedgerView:
    """Read the ledger in ``path``, which the daemon holds; check its hashes and its anchor."""
    if not path.exists():
        words = "There is none yet; the first private training makes it."
        return LedgerView(verified=True, words=words, spent=0.0, delta=None)
    kept = anchor or path.with_suffix(".anchor")
    signs = tuple(_sign(p) for p in (path, kept, path.with_suffix(".key")))
    return _read(path, anchor, signs)


def _sign(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_mtime_ns, found.st_size, found.st_ino


# A page that stays open asks every other second; the ledger changes once a round.
@lru_cache(maxsize=1)
def _read(path: Path, anchor: Path | None, _signs: tuple[tuple[int, int, int], ...]) -> LedgerView:
    try:
        entries = checked_entries(path, anchor=anchor)
    except LedgerError as error:
        return _view(_unchecked(path), verified=False, words=str(error))
    words = f"{len(entries)} entries are as written, and the newest is there."
    return _view(entries, verified=True, words=words)


def _unchecked(path: Path) -> tuple[Entry, ...]:
    try:
        return Chain.read(path)
    except LedgerError:
        return ()


def _view(entries: Sequence[Entry], *, verified: bool, words: str) -> LedgerView:
    receipts = _receipts(entries)
    last = next((r for r in reversed(receipts) if r.delta is not None), None)
    return LedgerView(
        verified=verified,
        words=words,
        spent=last.epsilon if last else 0.0,
        delta=last.delta if last else None,
        receipts=tuple(receipts),
    )


def _receipts(entries: Sequence[Entry]) -> list[Receipt]:
    ends: dict[int, dict[str, Entry]] = {}
    for e in entries:
        if "reservation" in e.body:
            ends.setdefault(int(e.body["reservation"]), {})[e.kind] = e
    found, epsilon = list[Receipt](), 0.0
    for e in entries:
        if e.kind == "reserve":
            of_this = ends.get(e.seq, {})
            release = of_this["release"].body if "release" in of_this else {}
            after = float(e.body["epsilon_after"])
            about = e.body["what"] | release
            cost: dict[str, float | None] = {
                "cost": after - epsilon,
                "epsilon": after,
                "delta": float(e.body["delta"]),
            }
            found.append(_receipt(e, about, release, _outcome(of_this), **cost))
            epsilon = after
        elif e.kind == "release" and "reservation" not in e.body:
            cost = {"cost": 0.0, "epsilon": epsilon, "delta": None}
            found.append(_receipt(e, e.body, e.body, "released", **cost))
    return found


def _receipt(
    entry: Entry, about: dict[str, Any], release: dict[str, Any], outcome: str, **cost: Any
) -> Receipt:
    return Receipt(
        seq=entry.seq,
        time=entry.time,
        job=str(about.get("job", "")),
        round=int(about.get("round", 0)),
        name=str(release.get("name", "")),
        mechanism=_mechanism(release),
        numbers=int(release.get("size", 0)),
        encoding=str(release.get("encoding", "")),
        bytes=int(release.get("bytes", 0)),
        sha256=str(release.get("sha256", "")),
        private=bool(release.get("private", True)),
        outcome=outcome,
        **cost,
    )


def _outcome(ends: dict[str, Entry]) -> str:
    for kind, words in (
        ("settle", "handed over"),
        ("release", "released"),
        ("abandon", "nothing left"),
    ):
        if kind in ends:
            return words
    return "open"


def _mechanism(release: dict[str, Any]) -> str:
    kind = release.get("mechanism")
    if kind is None:
        return "–"
    if kind == "none":
        return "none"
    words = f"{str(kind).replace('-', ' ')} noise, σ {release.get('noise_multiplier', 0):.4g}"
    if "clip_norm" in release:
        words += f" × clip norm {release['clip_norm']:g}"
    if "steps" in release:
        words += f"; {release['steps']} steps, {release['sampling_rate']:.3g} of customers in each"
    return words


def _grouped(receipts: Sequence[Receipt], key: Callable[[Receipt], str]) -> list[Spent]:
    found: dict[str, list[Receipt]] = {}
    for r in receipts:
        found.setdefault(key(r), []).append(r)
    return [
        Spent(
            label=label,
            added=sum(r.cost for r in group),
            after=group[-1].epsilon,
            releases=sum(r.bytes > 0 for r in group),
            bytes=sum(r.bytes for r in group),
        )
        for label, group in found.items()
    ]
