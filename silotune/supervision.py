"""Processes that belong together: started, watched, started again, stopped as one.

A supervisor holds the lock of its folder, so there is one per folder. Its processes read their
standard input, which only the supervisor holds open: when it is gone, however it went, they end.
"""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from silotune.errors import ConfigError
from silotune.logs import LOG_VARIABLE, event
from silotune.supervised import hold, is_held, is_ready, ready_file

__all__ = [
    "Process",
    "Supervisor",
    "launch",
    "read_state",
    "stop",
    "wait_until_ready",
]

_SHORTEST, _LONGEST = 0.5, 30.0
"""Seconds before a process is started again: once it was ready, and after it often was not."""
_STEADY = 60.0
"""Seconds after which a process counts as well even if it was not ready."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """One process to keep running."""

    name: str
    arguments: Sequence[str]
    """Of the Python interpreter: '-m', a module, its arguments."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside that of the supervisor."""
    follows: str | None = None
    """Name of another whose end ends this one too: it waits for an answer of that one."""
    grace: float = 15.0
    """Seconds that it gets to end by itself when all is stopped."""


@dataclass(slots=True)
class _Running:
    process: Process
    handle: subprocess.Popen[bytes] | None = None
    starts: int = 0
    began: float = 0.0
    pause: float = _SHORTEST
    due: float = 0.0


class Supervisor:
    """Keeps ``processes`` running until it is told to stop.

    Args:
        folder: state in ``run/``, output of each process in ``logs/``.
        processes: in the order of their start.

    Raises:
        ConfigError: another supervisor holds the folder.
    """

    def __init__(self, folder: Path, processes: Sequence[Process]) -> None:
        self._run, self._logs = folder / "run", folder / "logs"
        for made in (self._run, self._logs):
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(self._run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not hold(self._lock, wait=1.0):
            os.close(self._lock)
            raise ConfigError(f"{folder}: is running already; stop it first.")
        self._running = [_Running(p) for p in processes]
        self._stop = threading.Event()
        self._unwritten = False

    def run(self) -> None:
        """Start the processes and watch them until SIGTERM or SIGINT; then stop them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._stop.set())
        try:
            while not self._stop.is_set():
                for one in self._running:
                    self._look_after(one)
                if self._unwritten:
                    self._write_state()
                self._stop.wait(0.1)
        finally:
            self._end_all()

    def _look_after(self, one: _Running) -> None:
        now = time.monotonic()
        if one.handle is not None:
            if one.handle.poll() is None:
                return
            lived, ready = now - one.began, self._was_ready(one)
            event(
                "process ended",
                logging.WARNING,
                name=one.process.name,
                code=one.handle.returncode,
                after=round(lived, 1),
            )
            steady = ready or lived > _STEADY
            one.pause = _SHORTEST if steady else min(_LONGEST, 2 * one.pause)
            one.due, one.handle = now + one.pause, None
            self._write_state()
            for other in self._running:
                if other.process.follows == one.process.name and other.handle is not None:
                    other.handle.kill()
        if now >= one.due:
            try:
                self._start(one)
            except OSError as error:
                # No memory or no disk for it; the others run on.
                event("not started", logging.ERROR, name=one.process.name, words=str(error))
                one.due = now + _LONGEST

    def _was_ready(self, one: _Running) -> bool:
        return one.handle is not None and is_ready(self._run, one.process.name, one.handle.pid)

    def _start(self, one: _Running) -> None:
        ready_file(self._run, one.process.name).unlink(missing_ok=True)
        log = self._logs / f"{one.process.name}.log"
        # To a file: a pipe that nobody reads would stop the process.
        with open(log, "ab", opener=lambda p, flags: os.open(p, flags, 0o600)) as out:
            one.handle = subprocess.Popen(  # noqa: S603  # our own modules
                [sys.executable, *one.process.arguments],
                env=os.environ | dict(one.process.environment) | {LOG_VARIABLE: str(log)},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        one.starts, one.began = one.starts + 1, time.monotonic()
        event("process started", name=one.process.name, pid=one.handle.pid, starts=one.starts)
        self._write_state()

    def _end_all(self) -> None:
        # One after another, the last first: it hands its work to those before it.
        for one in reversed(self._running):
            if one.handle is None:
                continue
            one.handle.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.handle.wait(one.process.grace)
            if one.handle.poll() is None:
                event("killed", logging.WARNING, name=one.process.name, after=one.process.grace)
                one.handle.kill()
                one.handle.wait()
        with contextlib.suppress(OSError):
            for one in self._running:
                ready_file(self._run, one.process.name).unlink(missing_ok=True)
            (self._run / "state.json").unlink(missing_ok=True)
        os.close(self._lock)

    def _write_state(self) -> None:
        state = {
            "pid": os.getpid(),
            "processes": {
                one.process.name: {
                    "pid": one.handle.pid if one.handle else None,
                    "starts": one.starts,
                }
                for one in self._running
            },
        }
        part = self._run / "state.json.part"
        try:
            part.write_text(json.dumps(state), encoding="utf-8")
            part.replace(self._run / "state.json")
        except OSError as error:
            # A full disk ends no process.
            if not self._unwritten:
                event("state not written", logging.ERROR, words=str(error))
            self._unwritten = True
        else:
            self._unwritten = False


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return what the supervisor of ``folder`` last wrote, with 'ready' per process, or None.

    None: no supervisor is running.
    """
    run = folder / "run"
    if not is_held(run / "lock"):
        return None
    try:
        state: dict[str, Any] = json.loads((run / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # It has the lock and has not yet started anything.
        return {"pid": None, "processes": {}}
    for name, process in state["processes"].items():
        process["ready"] = is_ready(run, name, process["pid"])
    return state


def launch(folder: Path, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start a supervisor of ``folder`` as a process of its own.

    Args:
        folder: of the supervisor.
        arguments: of the Python interpreter.

    Raises:
        ConfigError: one is running.
    """
    if read_state(folder) is not None:
        raise ConfigError(f"{folder}: is running already; stop it first.")
    log = folder / "logs" / "supervisor.log"
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(log, "ab", opener=lambda p, flags: os.open(p, flags, 0o600)) as out:
        return subprocess.Popen(  # noqa: S603  # our own modules
            [sys.executable, *arguments],
            env=os.environ | {LOG_VARIABLE: str(log)},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_until_ready(folder: Path, launched: subprocess.Popen[bytes], seconds: float) -> None:
    """Return once every process of the supervisor that was launched does its work.

    Raises:
        ConfigError: it ended, or was not ready in time; names the logs.
    """
    processes: dict[str, Any] = {}
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if launched.poll() is not None:
            raise ConfigError(f"{folder}: did not start; see {folder / 'logs'}.")
        state = read_state(folder)
        processes = state["processes"] if state else {}
        if processes and all(p["ready"] for p in processes.values()):
            return
        time.sleep(0.1)
    late = ", ".join(n for n, p in processes.items() if not p["ready"]) or "the supervisor"
    raise ConfigError(
        f"{folder}: {late} not ready after {seconds:.0f} s; see {folder / 'logs'}. It runs on."
    )


def stop(folder: Path, *, wait: float = 120.0) -> bool:
    """End the supervisor of ``folder`` and its processes; return whether one was running.

    Raises:
        ConfigError: it does not end.
    """
    state = read_state(folder)
    if state is None or state["pid"] is None:
        return False
    os.kill(int(state["pid"]), signal.SIGTERM)
    until = time.monotonic() + wait
    while is_held(folder / "run" / "lock"):
        if time.monotonic() > until:
            raise ConfigError(f"{folder}: process {state['pid']} does not end.")
        time.sleep(0.1)
    return True
