"""What the aggregator's dashboard shows, read from its folder: plain files, no torch, no network.

A file that is damaged, or half written at this moment, is an entry of ``faults`` and stops nothing.
"""

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from silotune.errors import ConfigError
from silotune.invitation import read_enrolment
from silotune.supervision import read_state

__all__ = ["Figure", "MerchantView", "RoundView", "RunView", "ServerView", "server_view"]

FIGURES = {"auc": "AUC", "accuracy": "Accuracy", "log_loss": "Log loss", "mae": "Mean error"}
"""Of `server.metrics.OutputMetrics`, with names for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured figure; None where the noise hides it."""

    value: float | None
    error: float | None
    low: float | None = None
    """At the worst order within the bins, where bins leave it open."""
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundView:
    """One round that is done."""

    number: int
    """Counted from 0, as in ledgers and logs."""
    seconds: float
    asked: int
    """Merchants in the cohort."""
    replies: int
    failures: int
    late: int
    asked_again: int
    bytes_up: int
    bytes_down: int
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Why updates failed, in the silos' fixed words."""
    quality: Mapping[str, Figure] = field(default_factory=dict)
    """By name of `FIGURES`; empty: not measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MerchantView:
    """One enrolled merchant."""

    name: str
    nominal_users: int
    arrived: tuple[bool, ...]
    """Whether its update went into each round of the run that is shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """One run."""

    name: str
    state: str
    message: str
    submitted: float
    starts: int
    rounds: int
    asked: Mapping[str, Any]
    """Its run file."""
    done: tuple[RoundView, ...]

    @property
    def settings(self) -> list[tuple[str, str]]:
        """Return what was asked for, as the run file has it."""
        return list(_flat({k: v for k, v in self.asked.items() if k in _SHOWN}))

    @property
    def rule(self) -> str:
        """Return in words how updates become the next adapter."""
        job = self.asked.get("job", {})
        words = "The mean of the updates that arrive, each weighing the same, is added"
        if momentum := job.get("server_momentum"):
            words += f", with a share of {momentum} of the last round's movement"
        return f"{words}. Updates travel as {job.get('encoding', 'float32')}."

    @property
    def reasons(self) -> dict[str, int]:
        """Return why updates failed in all rounds, and how often."""
        found: dict[str, int] = {}
        for one in self.done:
            for reason, times in one.reasons.items():
                found[reason] = found.get(reason, 0) + times
        return found

    def latest(self, name: str) -> Figure:
        """Return the newest measured figure ``name`` of `measured`."""
        return next(r.quality[name] for r in reversed(self.done) if name in r.quality)

    @property
    def measured(self) -> list[str]:
        """Return the names of `FIGURES` that a round has."""
        return [name for name in FIGURES if any(name in r.quality for r in self.done)]


_SHOWN = ("nodes", "quorum", "cohort_min", "deadline", "mode", "rule", "aggregation", "job")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerView:
    """The aggregator."""

    name: str
    address: str
    processes: Mapping[str, Mapping[str, Any]]
    merchants: tuple[MerchantView, ...]
    runs: tuple[RunView, ...]
    """Newest first."""
    shown: RunView | None
    """The one that is asked for, else the newest."""
    faults: tuple[str, ...]


def server_view(folder: Path, run: str = "") -> ServerView:
    """Read the aggregator in ``folder``.

    Args:
        folder: with server.toml.
        run: name of the run to show; of no run: the newest.
    """
    faults: list[str] = []
    settings = _toml(folder / "server.toml", faults)
    runs = [r for p in (folder / "runs").glob("*/status.json") if (r := _run(p.parent, faults))]
    runs.sort(key=lambda r: (-r.submitted, r.name))
    shown = next((r for r in runs if r.name == run), runs[0] if runs else None)
    return ServerView(
        name=str(settings.get("name", folder.name)),
        address=str(settings.get("public_address", "")),
        processes=(read_state(folder) or {"processes": {}})["processes"],
        merchants=tuple(_merchants(folder, shown, faults)),
        runs=tuple(runs),
        shown=shown,
        faults=tuple(faults),
    )


def _merchants(folder: Path, run: RunView | None, faults: list[str]) -> Iterator[MerchantView]:
    rounds = folder / "runs" / ("" if run is None else run.name) / "rounds"
    done = () if run is None else run.done
    releases = [_releases(rounds / f"releases-{one.number:04d}.json", faults) for one in done]
    for path in sorted((folder / "merchants").glob("*.json")):
        try:
            one = read_enrolment(path)
        except ConfigError as error:
            faults.append(str(error))
            continue
        node = _node_of(path)
        yield MerchantView(
            name=one.name,
            nominal_users=one.nominal_users,
            arrived=tuple(node in r for r in releases) if node else (),
        )


def _releases(path: Path, faults: list[str]) -> set[str]:
    """Return the nodes whose update went into a round."""
    return set(_json(path, faults)) if path.exists() else set()


def _node_of(enrolment: Path) -> str:
    """Return the number of the node of a kept enrolment; '' where it was not noted."""
    try:
        return enrolment.with_suffix(".node").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _run(folder: Path, faults: list[str]) -> RunView | None:
    status, asked = _json(folder / "status.json", faults), _toml(folder / "run.toml", faults)
    try:
        return RunView(
            name=folder.name,
            state=str(status["state"]),
            message=str(status.get("message", "")),
            submitted=float(status.get("submitted", 0.0)),
            starts=int(status.get("starts", 0)),
            rounds=int(asked.get("job", {}).get("rounds", 5)),
            asked=asked,
            done=tuple(_rounds(folder / "rounds", faults)),
        )
    except (KeyError, TypeError, ValueError) as error:
        faults.append(f"{folder}: damaged ({error}).")
        return None


def _rounds(folder: Path, faults: list[str]) -> Iterator[RoundView]:
    for record in _records(folder, faults):
        number = int(record["round"])
        measured = folder / f"metrics-{number:04d}.json"
        yield RoundView(
            number=number,
            seconds=float(record["seconds"]),
            asked=int(record.get("asked", record["replies"] + record["failures"])),
            replies=int(record["replies"]),
            failures=int(record["failures"]),
            late=int(record.get("late", 0)),
            asked_again=int(record.get("asked_again", 0)),
            bytes_up=int(record["bytes_up"]),
            bytes_down=int(record["bytes_down"]),
            reasons={str(k): int(v) for k, v in dict(record.get("reasons", {})).items()},
            quality=_quality(_json(measured, faults)) if measured.exists() else {},
        )


def _records(folder: Path, faults: list[str]) -> list[dict[str, Any]]:
    """Return the record of every round, the last of each, in order."""
    path, found = folder / "rounds.jsonl", {}
    if not path.exists():
        return []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        # What is being written at this moment has no end yet.
        if line.endswith("}"):
            try:
                record = json.loads(line)
                found[int(record["round"])] = record
            except (ValueError, KeyError, TypeError) as error:
                faults.append(f"{path}: line {number} is damaged ({error}).")
    return [found[number] for number in sorted(found)]


def _quality(record: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of the head's first output."""
    outputs = record.get("quality") or [{}]
    found = {}
    for name in FIGURES:
        if (figure := outputs[0].get(name)) is None:
            continue
        middle = figure.get("middle", figure)
        bounds = {k: (figure.get(k) or {}).get("value") for k in ("low", "high")}
        found[name] = Figure(value=middle["value"], error=middle["standard_error"], **bounds)
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)


def _json(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{path}: cannot be read ({error}).")
        return {}
    return found if isinstance(found, dict) else {}


def _toml(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        faults.append(f"{path}: cannot be read ({error}).")
        return {}
