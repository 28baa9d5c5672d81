"""What must hold after any number of kills, from the files that are left on both sides."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.chain import Chain
from privacy.entries import Entry
from privacy.ledger import events_of
from privacy.ledger_report import LedgerRow, ledger_rows, verify
from silotune.errors import SilotuneError

__all__ = ["Merchant", "check_merchant", "check_run", "check_sums"]


@dataclass(frozen=True, kw_only=True)
class Merchant:
    """What one ledger says, beside what the aggregator received."""

    name: str
    reservations: int
    received: int
    """Releases of it that went into a round."""
    interrupted: int
    """Reservations that a kill spent before anything was released."""
    late: int
    """Releases that were recorded and are in no round."""
    epsilon: float
    """Of the ledger."""
    epsilon_received: float
    """Of the releases that were received alone."""


def check_run(run: Path, rounds: int) -> list[str]:
    """Return what is wrong with the rounds of the run in folder ``run``: lost, doubled, open."""
    wrong = []
    status = json.loads((run / "status.json").read_text(encoding="utf-8"))
    if status["state"] != "finished":
        wrong.append(f"the run is {status['state']}: {status['message']}")
    files = sorted(p.name for p in (run / "rounds").glob("round-*.safetensors"))
    if files != [f"round-{r:04d}.safetensors" for r in range(rounds)]:
        wrong.append(f"rounds on disk: {files}")
    lines = (run / "rounds" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    seen = [json.loads(line)["round"] for line in lines]
    if seen != list(range(rounds)):
        wrong.append(f"rounds in the record: {seen}")
    return wrong


def check_merchant(
    silo: Path, name: str, releases: list[dict[int, str]], node: int, *, kills: int
) -> tuple[Merchant, list[str]]:
    """Return what the ledger of ``silo`` says, and what is wrong with it.

    Args:
        silo: folder.
        name: of the merchant.
        releases: by round, what the aggregator received of each node, SHA-256.
        node: its number.
        kills: of processes of this merchant that can interrupt a release.
    """
    wrong = []
    try:
        verified = verify(silo / "ledger.db")
    except SilotuneError as error:
        return _nobody(name), [str(error)]
    entries = Chain.read(silo / "ledger.db")
    rows = ledger_rows(entries)
    received, used = {}, set[int]()
    for round_, of_nodes in enumerate(releases):
        if node not in of_nodes:
            continue
        same = [r for r in rows if r.round == round_ and r.sha256 == of_nodes[node]]
        if len(same) != 1:
            wrong.append(f"round {round_}: received once, in the ledger {len(same)} times")
            continue
        received[round_] = same[0]
        used.add(same[0].seq)
    released = Counter(r.round for r in rows if r.bytes)
    wrong += [f"round {r}: released {n} times" for r, n in released.items() if n > 1]
    interrupted = [r for r in rows if not r.bytes]
    late = [r for r in rows if r.bytes and r.seq not in used]
    if len(interrupted) > kills:
        wrong.append(f"{len(interrupted)} reservations without release, {kills} kills")
    if any(r.outcome == "open" for r in rows):
        wrong.append("a reservation is open")
    delta = rows[-1].delta if rows else 1e-5
    both = [*_events(entries, [*received.values()]), *_events(entries, [*interrupted, *late])]
    if abs(epsilon_spent(both, delta=delta) - verified.epsilon) > 1e-9 * verified.epsilon:
        wrong.append("ε of the ledger is not that of what was received and what was lost")
    if len(events_of(entries)) != len(both):
        wrong.append("costs in the ledger that belong to no reservation")
    return (
        Merchant(
            name=name,
            reservations=len(rows),
            received=len(received),
            interrupted=len(interrupted),
            late=len(late),
            epsilon=verified.epsilon,
            epsilon_received=epsilon_spent(_events(entries, [*received.values()]), delta=delta),
        ),
        [f"{name}: {w}" for w in wrong],
    )


def check_sums(run: Path, silos: dict[int, Path], releases: list[dict[int, str]]) -> list[str]:
    """Return rounds whose step is not the mean of the merchants' own copies of their releases.

    A ledger keeps the last payloads only; rounds before those are not looked at.
    """
    wrong, looked = [], 0
    for round_ in range(1, len(releases)):
        payloads = [_payload(silos[n], round_, digest) for n, digest in releases[round_].items()]
        if any(p is None for p in payloads):
            continue
        before, after = (
            load_file(run / "rounds" / f"round-{r:04d}.safetensors")["flat"].astype(np.float64)
            for r in (round_ - 1, round_)
        )
        mean = np.mean([p for p in payloads if p is not None], axis=0)
        looked += 1
        if not np.allclose(after - before, mean, atol=1e-5, rtol=1e-4):
            wrong.append(f"round {round_}: is not the mean of its releases")
    return wrong if looked else ["no round could be compared with the merchants' releases"]


def _payload(silo: Path, round_: int, digest: str) -> Any:
    for row in ledger_rows(Chain.read(silo / "ledger.db")):
        path = silo / "ledger-releases" / f"{row.seq}.bin"
        if row.round == round_ and row.sha256 == digest and path.exists():
            return np.frombuffer(path.read_bytes(), dtype="<f4").astype(np.float64)
    return None


def _events(entries: tuple[Entry, ...], rows: list[LedgerRow]) -> list[GaussianEvent]:
    seqs = {row.seq for row in rows}
    return list(events_of([e for e in entries if e.seq in seqs]))


def _nobody(name: str) -> Merchant:
    return Merchant(
        name=name,
        reservations=0,
        received=0,
        interrupted=0,
        late=0,
        epsilon=0.0,
        epsilon_received=0.0,
    )
