"""Machines of the federation: a folder, its supervisor, and what runs below it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from silotune.supervision import read_state

__all__ = ["SUPERVISOR", "Host", "Open", "alive"]

SUPERVISOR = "supervisor"
_ROOT = Path(__file__).parents[2]
_PAUSE = 0.5
"""Seconds before a supervisor is started again, as a systemd unit would."""


@dataclass
class Open:
    """A kill whose process is not back yet."""

    kind: str
    """Side and process, for the table."""
    name: str
    pid: int
    at: float
    """Monotonic."""


@dataclass
class Host:
    """One side of the federation, and its supervisor as a child of this process."""

    side: str
    """'server' or 'client'."""
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    died: float | None = None
    open: list[Open] = field(default_factory=list)

    def start(self) -> None:
        """Start the supervisor."""
        log = self.folder / "logs" / "supervisor.log"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.process = subprocess.Popen(  # noqa: S603  # our own module
                [sys.executable, "-m", f"{self.side}.start", str(self.folder)],
                cwd=_ROOT,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.died = None

    def keep(self) -> None:
        """Start the supervisor again where it is gone: what systemd does."""
        if self.process is not None and self.process.poll() is not None:
            now = time.monotonic()
            self.died = self.died or now
            if now - self.died > _PAUSE:
                self.start()

    def stop(self, seconds: float = 120.0) -> bool:
        """End it as an operator does; return whether it ended by itself."""
        if self.process is None or self.process.poll() is not None:
            return True
        self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return False
        return True

    def processes(self) -> dict[str, int]:
        """Return the number of each process that is alive, the supervisor's too."""
        found = {}
        if self.process is not None and self.process.poll() is None:
            found[SUPERVISOR] = self.process.pid
            try:
                state = json.loads((self.folder / "run" / "state.json").read_text())
            except (OSError, ValueError):
                return found
            if state["pid"] == self.process.pid:
                for name, one in state["processes"].items():
                    if one["pid"] is not None and alive(one["pid"], self.folder):
                        found[name] = one["pid"]
        return found

    def kill(self, name: str, pid: int) -> None:
        """SIGKILL one process, and note that it must come back."""
        os.kill(pid, signal.SIGKILL)
        kind = f"{self.side} {name}"
        self.open.append(Open(kind=kind, name=name, pid=pid, at=time.monotonic()))

    def kill_all(self) -> None:
        """SIGKILL everything at once, as a power failure does."""
        for pid in self.processes().values():
            os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def back(self) -> list[Open]:
        """Return the kills whose process does its work again, once each."""
        if not self.open:
            return []
        state = read_state(self.folder)
        if state is None or self.process is None or state["pid"] != self.process.pid:
            return []
        ready = {n: p["pid"] for n, p in state["processes"].items() if p["ready"]}
        whole = len(ready) == len(state["processes"]) > 0
        # A supervisor is back when all that it looks after is.
        found = [
            one
            for one in self.open
            if (whole if one.name == SUPERVISOR else one.name in ready)
            and ready.get(one.name, self.process.pid) != one.pid
        ]
        self.open = [one for one in self.open if one not in found]
        return found

    def is_ready(self) -> bool:
        """Return whether every process does its work."""
        state = read_state(self.folder)
        return bool(state and state["processes"]) and all(
            p["ready"] for p in (state or {})["processes"].values()
        )


def alive(pid: int, folder: Path) -> bool:
    """Return whether ``pid`` is a process of ``folder``; numbers are used again."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return os.fsencode(folder) in arguments
