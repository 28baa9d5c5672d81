"""Reads what the aggregator's dashboard shows from its folder: plain files, no torch, no network.

A file that is damaged, or half written at this moment, is an entry of ``faults`` and stops nothing.
"""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from server.dashboard_view import FIGURES, Figure, MerchantView, RoundView, RunView, ServerView
from silotune.dashboard.log_tail import newest
from silotune.invitation import read_enrolment
from silotune.supervision import read_state

__all__ = ["server_view"]

T = TypeVar("T")


def server_view(folder: Path, run: str = "") -> ServerView:
    """Read the aggregator in ``folder``.

    Args:
        folder: with server.toml.
        run: name of the run to show; of no run: the newest.
    """
    reader = _Reader()
    settings = reader.read(folder / "server.toml", _toml) or {}
    runs = [_run(p.parent, reader) for p in (folder / "runs").glob("*/status.json")]
    known = sorted((r for r in runs if r), key=lambda r: (-r.submitted, r.name))
    shown = next((r for r in known if r.name == run), known[0] if known else None)
    logs = sorted((folder / "logs").glob("*.log"))
    return ServerView(
        name=str(settings.get("name", folder.name)),
        address=str(settings.get("public_address", "")),
        processes=(read_state(folder) or {"processes": {}})["processes"],
        merchants=_merchants(folder, shown, reader),
        runs=tuple(known),
        shown=shown,
        troubles=tuple(newest(logs, levels=["warning", "error", "critical"], most=20)),
        faults=tuple(reader.faults),
    )


@dataclass(slots=True)
class _Reader:
    faults: list[str] = field(default_factory=list)

    def read(self, path: Path, parse: Callable[[Path], T]) -> T | None:
        """Return what ``parse`` makes of a file; note what is wrong with it, and return None."""
        try:
            return parse(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            # The words of our own errors name the file.
            words = str(error) if str(path) in str(error) else f"{path}: damaged ({error})."
            self.faults.append(words)
            return None


def _merchants(folder: Path, run: RunView | None, reader: _Reader) -> tuple[MerchantView, ...]:
    releases: list[frozenset[str]] = []
    if run is not None:
        rounds = folder / "runs" / run.name / "rounds"
        paths = [rounds / f"releases-{one.number:04d}.json" for one in run.done]
        releases = [reader.read(p, _nodes) or frozenset() for p in paths if p.exists()]

    def merchant(path: Path) -> MerchantView:
        one, node = read_enrolment(path), path.with_suffix(".node")
        number = (reader.read(node, _text) or "").strip() if node.exists() else ""
        return MerchantView(
            name=one.name,
            nominal_users=one.nominal_users,
            arrived=tuple(number in r for r in releases) if number else (),
        )

    paths = sorted((folder / "merchants").glob("*.json"))
    return tuple(m for p in paths if (m := reader.read(p, merchant)) is not None)


def _nodes(path: Path) -> frozenset[str]:
    """Return the numbers of the nodes whose update went into a round."""
    return frozenset(_object(path))


def _run(folder: Path, reader: _Reader) -> RunView | None:
    status = reader.read(folder / "status.json", _status)
    asked = reader.read(folder / "run.toml", _asked)
    if status is None or asked is None:
        return None
    path = folder / "rounds" / "rounds.jsonl"
    records = (reader.read(path, _records) if path.exists() else None) or {}
    done = (_round(folder / "rounds", records[number], reader) for number in sorted(records))
    return RunView(
        name=folder.name,
        **status,
        rounds=int(asked["job"].get("rounds", 5)),
        asked=asked,
        done=tuple(done),
    )


def _status(path: Path) -> dict[str, Any]:
    raw = _object(path)
    return {
        "state": str(raw["state"]),
        "message": str(raw.get("message", "")),
        "submitted": float(raw.get("submitted", 0.0)),
        "starts": int(raw.get("starts", 0)),
    }


def _asked(path: Path) -> dict[str, Any]:
    raw = _toml(path)
    int(raw["job"].get("rounds", 5))
    return raw


def _records(path: Path) -> dict[int, dict[str, Any]]:
    """Return the record of every round; of two, the last."""
    found: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        # What is being written at this moment has no end yet.
        if line.endswith("}"):
            raw = json.loads(line)
            number = int(raw["round"])
            found[number] = _numbers(raw) | {"reasons": dict(raw.get("reasons", {}))}
    return found


_COUNTS = ("round", "replies", "failures", "bytes_up", "bytes_down")


def _numbers(raw: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: int(raw[name]) for name in _COUNTS}
    later = {name: int(raw.get(name, 0)) for name in ("late", "asked_again")}
    asked = int(raw.get("asked", counts["replies"] + counts["failures"]))
    return {"seconds": float(raw["seconds"]), "asked": asked, **counts, **later}


def _round(folder: Path, record: dict[str, Any], reader: _Reader) -> RoundView:
    number = record.pop("round")
    path = folder / f"metrics-{number:04d}.json"
    quality = (reader.read(path, _quality) if path.exists() else None) or {}
    return RoundView(number=number, quality=quality, **record)


def _quality(path: Path) -> dict[str, Figure]:
    """Return the figures of the head's first output."""
    outputs = _object(path).get("quality") or [{}]
    found = {}
    for name in FIGURES:
        if (figure := outputs[0].get(name)) is not None:
            middle = figure.get("middle", figure)
            low, high = ((figure.get(k) or {}).get("value") for k in ("low", "high"))
            value, error = middle["value"], middle["standard_error"]
            found[name] = Figure(
                value=_float(value), error=_float(error), low=_float(low), high=_float(high)
            )
    return found


def _float(value: Any) -> float | None:
    return None if value is None else float(value)


def _object(path: Path) -> dict[str, Any]:
    found = json.loads(_text(path))
    if not isinstance(found, dict):
        raise TypeError("is no JSON object")
    return found


def _toml(path: Path) -> dict[str, Any]:
    return tomllib.loads(_text(path))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
