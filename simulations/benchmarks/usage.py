"""Processor time and memory of a process with all its descendants, from /proc."""

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Watch"]

_INTERVAL = 0.5
_MEMORY_EVERY = 4
_TICK = os.sysconf("SC_CLK_TCK")
_FIELDS_AFTER_NAME = {"parent": 1, "user": 11, "system": 12, "start": 19}


@dataclass
class Watch:
    """Samples a process tree in a thread while in ``with``: time twice a second, memory every 2 s.

    Memory is the proportional set size: pages that several processes share, such as mapped
    weights and caches, count once. Reading it costs the kernel milliseconds for each process, so
    it is read seldom; a peak or a process that is shorter may be missed.
    """

    root: int
    """Process id."""
    peak: float = 0.0
    """Largest sum of proportional set sizes, MiB."""
    _spent: dict[tuple[int, int], float] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    @property
    def cpu(self) -> float:
        """Processor seconds of the tree, user and system."""
        return sum(self._spent.values())

    def __enter__(self) -> "Watch":
        """Start sampling."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        looks = 0
        while not self._stop.is_set():
            self.look(memory=looks % _MEMORY_EVERY == 0)
            looks += 1
            self._stop.wait(_INTERVAL)

    def look(self, *, memory: bool = True) -> None:
        """Take one sample."""
        tree = _tree(self.root)
        for pid, start, spent in tree:
            # By start too: a process id may come again.
            self._spent[pid, start] = spent
        if memory:
            self.peak = max(self.peak, sum(_proportional(pid) for pid, *_ in tree))


def _tree(root: int) -> list[tuple[int, int, float]]:
    """Return (process id, start, processor seconds) of ``root`` and all below it."""
    known: dict[int, tuple[int, int, float]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                # The name stands in brackets and may hold anything.
                values = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except (OSError, UnicodeDecodeError):
                continue
            parent, user, system, start = (int(values[i]) for i in _FIELDS_AFTER_NAME.values())
            known[int(folder.name)] = (parent, start, (user + system) / _TICK)
    inside = {root}
    # A child may stand before its parent.
    while new := {p for p, (parent, *_) in known.items() if parent in inside} - inside:
        inside |= new
    return [(p, *known[p][1:]) for p in inside if p in known]


def _proportional(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(x.split()[1]) for x in lines if x.startswith("Pss:")) / 1024
