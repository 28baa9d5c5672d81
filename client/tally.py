"""What the daemon did since its folder was made, counted for the merchant alone.

The figures are made of the merchant's data and not noised: they stay in the silo.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["count_refusal", "read_tally", "timed"]


def _path(folder: Path) -> Path:
    return folder / "run" / "tally.json"


def read_tally(folder: Path) -> dict[str, Any]:
    """Return 'seconds' and number of 'answers', 'refusals' by reason, and 'last', when."""
    tally: dict[str, Any] = {"seconds": 0.0, "answers": 0, "refusals": {}, "last": 0.0}
    with contextlib.suppress(OSError, ValueError, TypeError):
        tally |= dict(json.loads(_path(folder).read_text(encoding="utf-8")))
    return tally


def count_refusal(folder: Path, reason: str) -> None:
    """Count one refusal. Silos of a simulation, which have no ``run`` folder, count none."""
    tally = read_tally(folder)
    # Without the limits' names: few reasons, known beforehand.
    bare = reason.partition(" (")[0]
    tally["refusals"][bare] = tally["refusals"].get(bare, 0) + 1
    _write(folder, tally | {"last": time.time()})


@contextmanager
def timed(folder: Path) -> Iterator[None]:
    """Count one request, and the seconds until it is answered or refused."""
    began = time.monotonic()
    try:
        yield
    finally:
        tally = read_tally(folder)
        tally["answers"] += 1
        tally["seconds"] += time.monotonic() - began
        _write(folder, tally | {"last": time.time()})


def _write(folder: Path, tally: dict[str, Any]) -> None:
    part = _path(folder).with_suffix(".part")
    # A full disk must not stop a release that is paid for.
    with contextlib.suppress(OSError):
        part.write_text(json.dumps(tally), encoding="utf-8")
        part.replace(_path(folder))
