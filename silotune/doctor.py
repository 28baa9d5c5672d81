"""Checks of a side before it is started, or when something is wrong; what both sides share.

A check looks at the real thing and changes nothing. It says what it found, and what to do.
"""

import importlib.metadata
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from silotune.errors import SilotuneError
from silotune.supervision import read_state

__all__ = [
    "Check",
    "Finding",
    "check_all",
    "check_clock",
    "check_disk",
    "check_permissions",
    "check_processes",
    "check_versions",
    "fail",
    "ok",
    "warn",
]

_LOW, _EMPTY = 2 * 2**30, 200 * 2**20
"""Free bytes: of a warning, and of a failure."""
_AHEAD = 300.0
"""Seconds that a file may be newer than now."""
_PINNED = {"flwr": "1.41."}
"""Whose private modules are used."""
_NAMED = ("torch", "opacus", "transformers", "peft", "duckdb", "cryptography")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""
    """What to do; empty where nothing is."""


Check = tuple[str, Callable[[], Finding]]
"""Its name, and what looks."""


def ok(name: str, found: str) -> Finding:
    """Return that it is as it must be."""
    return Finding(name=name, state="ok", found=found)


def warn(name: str, found: str, remedy: str) -> Finding:
    """Return that it works, and could be better."""
    return Finding(name=name, state="warn", found=found, remedy=remedy)


def fail(name: str, found: str, remedy: str) -> Finding:
    """Return that it does not work."""
    return Finding(name=name, state="fail", found=found, remedy=remedy)


def check_all(checks: Iterable[Check]) -> list[Finding]:
    """Return what each check found; one that ends with an error failed."""
    found = []
    for name, check in checks:
        try:
            found.append(check())
        except SilotuneError as error:
            found.append(fail(name, str(error), "Do what the message says."))
        except (OSError, ValueError) as error:
            words = f"{type(error).__name__}: {error}"
            found.append(fail(name, words, "Look at the file or address that it names."))
    return found


def check_disk(folder: Path) -> Finding:
    """Check that there is room."""
    free = shutil.disk_usage(folder).free
    words = f"{free / 2**30:.1f} GiB free at {folder}"
    remedy = "Make room: a round, or a charge to a ledger, that cannot be written stops the work."
    if free < _EMPTY:
        return fail("disk", words, remedy)
    return warn("disk", words, remedy) if free < _LOW else ok("disk", words)


def check_permissions(folder: Path, private: Iterable[str], guarded: Iterable[str] = ()) -> Finding:
    """Check who may read and write.

    Args:
        folder: for its owner alone.
        private: files of it that only their owner may read; those that are not there are right.
        guarded: files that only their owner may write.
    """
    wrong = []
    for path, bits in (
        (folder, 0o077),
        (folder / "run", 0o077),
        (folder / "logs", 0o077),
        *((folder / name, 0o077) for name in private),
        *((folder / name, 0o022) for name in guarded),
    ):
        if not path.exists():
            continue
        found = path.stat()
        right = (0o700 if stat.S_ISDIR(found.st_mode) else 0o600) if bits == 0o077 else 0o644
        if found.st_mode & bits:
            wrong.append(f"chmod {right:o} {path}")
        elif found.st_uid not in (os.geteuid(), 0):
            wrong.append(f"chown {os.geteuid()} {path}")
    if wrong:
        words = f"{len(wrong)} files or folders are open to others"
        return fail("permissions", words, "; ".join(wrong))
    return ok("permissions", "keys, secrets and folders are their owner's alone")


def check_versions() -> Finding:
    """Check Python and the libraries whose version matters."""
    versions = {"python": sys.version.split()[0]}
    for name in ("silotune", *_PINNED, *_NAMED):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return fail("versions", f"{name} is not installed", "Install silotune again with pip.")
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    for name, wanted in _PINNED.items():
        if not versions[name].startswith(wanted):
            remedy = f"pip install '{name}=={wanted}*': its private modules are used."
            return fail("versions", words, remedy)
    return ok("versions", words)


def check_processes(folder: Path, start: str) -> Finding:
    """Check that what should run does its work.

    Args:
        folder: of the side.
        start: the command that starts it.
    """
    state = read_state(folder)
    if state is None:
        return warn("processes", "not running", f"{start} {folder}")
    logs = folder / "logs"
    late = [name for name, p in state["processes"].items() if not p["ready"]]
    often = [name for name, p in state["processes"].items() if p["starts"] > 3]
    if late or not state["processes"]:
        words = f"not ready: {', '.join(late) or 'anything'}"
        return fail("processes", words, f"Read {logs}; the newest line says why.")
    if often:
        return warn("processes", f"started more than 3 times: {', '.join(often)}", f"Read {logs}.")
    words = ", ".join(f"{name} {p['pid']}" for name, p in state["processes"].items())
    return ok("processes", words)


def check_clock(folder: Path) -> Finding:
    """Check the clock against the folder's own files: none is of the future."""
    now = time.time()
    files = [p for p in folder.iterdir() if p.is_file()]
    newest = max((p.stat().st_mtime for p in files), default=0.0)
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if newest > now + _AHEAD:
        words = f"{when}; files in the folder are {newest - now:.0f} s newer"
        return fail("clock", words, "Set the clock right, by a time service.")
    return ok("clock", when)
