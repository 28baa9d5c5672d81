"""Kill processes of a real federation at random while it trains, and check what is left.

    python -m simulations.chaos [--kills 100] [--rounds 20] [--merchants 4] [--seed 0]

The processes: supervisor, SuperLink (with the listener for merchants), executor and observer of
the aggregator; supervisor, node, daemon and observer of each merchant. This program starts a
supervisor again that was killed, as systemd would. Exits with 1 where something does not hold.
"""

import argparse
import contextlib
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

from simulations.chaos.check import Merchant, check_merchant, check_run, check_sums
from simulations.chaos.hosts import SUPERVISOR, Host
from simulations.chaos.setting import JOB, Setting, make, node_numbers, silotune

__all__ = ["Chaos", "main"]

_LOOK = 0.1


class Chaos:
    """One run under kills."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.setting = folder, setting
        self.run = folder / "aggregator" / "runs" / JOB
        self.hosts: list[Host] = []
        self.kills: Counter[tuple[str, str]] = Counter()
        self.recovered: dict[str, list[float]] = defaultdict(list)
        self._random = random.Random(setting.seed)  # noqa: S311  # moments of kills
        self._done = 0
        self._next = 0.0

    def go(self, limit: float) -> float:
        """Train under kills until the run has ended; return the seconds that it took.

        Args:
            limit: seconds after which it is given up.
        """
        self.hosts = make(self.folder, self.setting)
        self.nodes = node_numbers(self.folder / "aggregator")
        file = self.folder / f"{JOB}.toml"
        silotune("server", "run", self.folder / "aggregator", file, "--detach")
        began = self._said = time.monotonic()
        self._next = began + self._gap()
        while not self._ended() and time.monotonic() < began + limit:
            self._tick(kill=True)
        seconds = time.monotonic() - began
        # What was killed last is still on its way back.
        until = time.monotonic() + 180
        while any(host.open for host in self.hosts) and time.monotonic() < until:
            self._tick(kill=False)
        return seconds

    def stop(self) -> list[str]:
        """End all processes as an operator does; return what did not end."""
        slow = [h.folder.name for h in reversed(self.hosts) if not h.stop()]
        return [f"{name}: did not end within 120 s of SIGTERM" for name in slow]

    def check(self) -> tuple[list[Merchant], list[str]]:
        """Return what the ledgers say, and everything that does not hold."""
        wrong = check_run(self.run, self.setting.rounds)
        releases = [
            {int(node): digest for node, digest in json.loads(path.read_text()).items()}
            for path in sorted((self.run / "rounds").glob("releases-*.json"))
        ]
        if self._done < self.setting.kills:
            wrong.append(f"{self._done} of {self.setting.kills} kills fell into the run")
        for host in self.hosts:
            wrong += [f"{host.folder.name}: {o.name} did not come back" for o in host.open]
        merchants, silos = [], {}
        for host in self.hosts[1:]:
            name = host.folder.name
            silos[self.nodes[name]] = host.folder
            of_name = {n: c for (where, n), c in self.kills.items() if where == name}
            kills = of_name.get("daemon", 0) + of_name.get(SUPERVISOR, 0)
            merchant, found = check_merchant(
                host.folder, name, releases, self.nodes[name], kills=kills
            )
            merchants.append(merchant)
            wrong += found
        return merchants, wrong + check_sums(self.run, silos, releases)

    def _ended(self) -> bool:
        with contextlib.suppress(OSError, ValueError):
            status = json.loads((self.run / "status.json").read_text(encoding="utf-8"))
            return status["state"] in ("finished", "failed")
        return False

    def _tick(self, *, kill: bool) -> None:
        for host in self.hosts:
            host.keep()
            now = time.monotonic()
            for one in host.back():
                self.recovered[one.kind].append(now - one.at)
        if kill and time.monotonic() >= self._next and self._done < self._allowed():
            self._kill()
            self._next = time.monotonic() + self._gap()
        time.sleep(_LOOK)

    def _gap(self) -> float:
        return self._random.expovariate(1 / self.setting.gap)

    def _allowed(self) -> int:
        # Spread over the run, so that none is left for after it.
        done = len(list((self.run / "rounds").glob("round-*.safetensors")))
        share = (done + 1) / max(1, self.setting.rounds - 1)
        return math.ceil(self.setting.kills * min(1.0, share))

    def _kill(self) -> None:
        alive = [(h, name, pid) for h in self.hosts for name, pid in h.processes().items()]
        if not alive:
            return
        host, name, pid = self._random.choice(alive)
        host.kill(name, pid)
        self.kills[host.folder.name, name] += 1
        self._done += 1
        done = len(list((self.run / "rounds").glob("round-*.safetensors")))
        print(
            f"{time.monotonic() - self._said:6.0f} s  round {done:2d}  "
            f"kill {self._done:3d}: {host.folder.name} {name}",
            flush=True,
        )

    def table(self, merchants: list[Merchant]) -> str:
        """Return kills and recoveries by process, and ledgers by merchant, as Markdown."""
        by_kind: Counter[str] = Counter()
        for (where, name), count in self.kills.items():
            side = "server" if where == self.hosts[0].folder.name else "client"
            by_kind[f"{side} {name}"] += count
        lines = [
            "| process | kills | recoveries | median s | max s |",
            "|---|---|---|---|---|",
        ]
        for kind in sorted(by_kind):
            took = self.recovered[kind] or [math.nan]
            lines.append(
                f"| {kind} | {by_kind[kind]} | {len(self.recovered[kind])} "
                f"| {statistics.median(took):.1f} | {max(took):.1f} |"
            )
        lines += [
            "",
            (
                "| merchant | in rounds | reservations | spent by kills | ε of the ledger "
                "| ε of what was received |"
            ),
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {m.name} | {m.received} | {m.reservations} | {m.interrupted + m.late} "
            f"| {m.epsilon:.4f} | {m.epsilon_received:.4f} |"
            for m in merchants
        ]
        return "\n".join(lines)


def main() -> int:
    """Run it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--merchants", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, default=4.0, help="mean seconds between kills")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds, then given up")
    parser.add_argument("--folder", type=Path, help="kept; default: a temporary one")
    asked = parser.parse_args()
    folder = (asked.folder or Path(tempfile.mkdtemp(prefix="silotune-chaos-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    setting = Setting(
        merchants=asked.merchants,
        rounds=asked.rounds,
        kills=asked.kills,
        seed=asked.seed,
        gap=asked.gap,
    )
    chaos, late = Chaos(folder, setting), []
    try:
        seconds = chaos.go(asked.limit)
    finally:
        late = chaos.stop()
    merchants, wrong = chaos.check()
    wrong += late
    status = json.loads((chaos.run / "status.json").read_text(encoding="utf-8"))
    print(
        f"\n{setting.rounds} rounds, {setting.merchants} merchants, {setting.kills} SIGKILLs, "
        f"seed {setting.seed}: {seconds:.0f} s, begun {status['starts']} times.\n"
    )
    print(chaos.table(merchants))
    print("\n" + ("\n".join(f"WRONG: {w}" for w in wrong) or "All of it holds."))
    print(f"Kept in {folder}.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
