"""The run folder: what a comparison found, written so that a killed run keeps what it has.

```
run.json        what was run, on whom, and how it ended; replaced whole at every change
metrics.jsonl   one record a line, appended; see `simulations.records`
report.html, tensorboard/   made from the two above
```
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from silotune import __version__
from silotune.config import config, from_mapping
from silotune.errors import ConfigError
from simulations.judged import MainMetric
from simulations.records import Record, plain, problem_of

__all__ = ["ExcludedMerchant", "Merchant", "RunFolder", "RunInfo", "Status", "write_whole"]

Status = Literal["running", "finished", "interrupted", "failed"]

_INFO, _METRICS = "run.json", "metrics.jsonl"
_DESCRIBED = ("merchants", "excluded", "main", "private", "privacy_note", "timings")


@config
class Merchant:
    """One merchant of a run. All but the declared number of users is known to simulations only."""

    name: str
    nominal_users: int | None = None
    train_examples: int | None = None
    test_examples: int | None = None
    test_positives: int | None = None


@config
class ExcludedMerchant:
    """A merchant that was left out."""

    name: str
    reason: str


@config
class RunInfo:
    """What ``run.json`` holds."""

    version: str
    """Of the silotune that began the run."""
    scenario: dict[str, Any]
    """Every setting, defaults included."""
    started: datetime
    finished: datetime | None = None
    status: Status = "running"
    """'running' without a process: the run was killed."""
    merchants: tuple[Merchant, ...] = ()
    excluded: tuple[ExcludedMerchant, ...] = ()
    main: MainMetric = MainMetric()
    """By which arms are compared. A run that does not say was about a yes or no."""
    private: bool = False
    """Whether noise and sampling were secret. False until said otherwise."""
    privacy_note: str = ""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds by stage, in order."""


class RunFolder:
    """A run folder with one writer. Readers may open it meanwhile."""

    def __init__(self, path: Path, info: RunInfo) -> None:
        """Use `create` or `open`."""
        self.path, self.info = path, info
        self.torn: str | None = None
        """Says what is wrong with the last line, where the run was killed while writing it."""
        # Where a broken last line begins: cut off before the next record is written.
        self._cut: int | None = None

    @classmethod
    def create(
        cls,
        path: Path,
        scenario: Mapping[str, Any],
        *,
        private: bool = False,
        privacy_note: str = "",
    ) -> "RunFolder":
        """Begin a run in ``path``, a new or empty folder.

        Raises:
            ConfigError: ``path`` holds something or cannot be made.
        """
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                raise ConfigError(
                    f"{path}: is not empty. Name another folder, so that no run is overwritten."
                )
        except OSError as error:
            raise ConfigError(f"{path}: cannot be made ({error.strerror}).") from error
        info = RunInfo(
            version=__version__,
            scenario=plain(scenario),
            started=_now(),
            private=private,
            privacy_note=privacy_note,
        )
        run = cls(path, info)
        # First: a folder with run.json has both files.
        (path / _METRICS).touch()
        run._save(info)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """Return the run in ``path``, every record checked.

        Raises:
            ConfigError: no run there, or a file is damaged; names file and line. A last line
                that is cut off is no error; see ``torn``.
        """
        if not (path / _INFO).is_file():
            raise ConfigError(f"{path}: holds no run ({_INFO} is missing).")
        run = cls(path, _read_info(path / _INFO))
        run.records()
        return run

    def append(self, record: Mapping[str, Any]) -> None:
        """Write ``record`` as one line; it is with the operating system when this returns.

        Numbers that are NaN or infinite become null. A run that had ended is running again.

        Raises:
            ConfigError: a field of a known kind is missing or has the wrong type.
        """
        cleaned = plain(record)
        if problem := problem_of(cleaned):
            raise ConfigError(f"record {cleaned!r}: {problem}.")
        if self.info.status != "running":
            self._save(replace(self.info, status="running", finished=None))
        line = json.dumps(cleaned, ensure_ascii=False, allow_nan=False) + "\n"
        with (self.path / _METRICS).open("ab") as file:
            if self._cut is not None:
                file.truncate(self._cut)
            # Until the line is whole it counts as broken: the disk may be full.
            self._cut = file.seek(0, os.SEEK_END)
            file.write(line.encode())
            file.flush()
            self._cut, self.torn = None, None

    def records(self) -> list[Record]:
        """Return all records, in the order they were written.

        Raises:
            ConfigError: a line is damaged; names it.
        """
        path = self.path / _METRICS
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
        *lines, last = content.split(b"\n")
        records = [_parse(line, f"{path}: line {n}") for n, line in enumerate(lines, 1)]
        self._cut, self.torn = None, None
        if last:
            self._cut = len(content) - len(last)
            self.torn = (
                f"{path.name}: line {len(lines) + 1} is cut off: the run was killed, or is still "
                "writing it. It is left out."
            )
        return records

    def describe(self, **fields: Any) -> None:
        """Replace fields of ``run.json``: merchants, excluded, main, and others of `RunInfo`.

        Raises:
            ConfigError: another field, or a value of the wrong type.
        """
        if others := sorted(set(fields) - set(_DESCRIBED)):
            raise ConfigError(f"'{others[0]}' cannot be set; known: {', '.join(_DESCRIBED)}.")
        self._save(_info(asdict(self.info) | plain(fields), where="run.json"))

    def finish(self, status: Status) -> None:
        """Say how the run ended."""
        finished = None if status == "running" else _now()
        raw = asdict(self.info) | {"status": status, "finished": finished}
        self._save(_info(raw, where="run.json"))

    def _save(self, info: RunInfo) -> None:
        raw = asdict(info)
        for key in ("started", "finished"):
            raw[key] = raw[key] and raw[key].isoformat()
        text = json.dumps(plain(raw), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(self.path / _INFO, text + "\n")
        self.info = info


def write_whole(path: Path, text: str) -> None:
    """Write the file ``path`` so that a reader finds the old text or the new, never half."""
    part = path.with_name(f".{path.name}.partial")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _read_info(path: Path) -> RunInfo:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}).") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: line {error.lineno} is not valid JSON: {error.msg}.") from None
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: is not JSON in UTF-8.") from None
    return _info(raw, where=str(path))


def _info(raw: object, *, where: str) -> RunInfo:
    if not isinstance(raw, dict):
        raise ConfigError(f"{where}: must be a JSON object.")
    return from_mapping(RunInfo, raw, where=where)


def _parse(line: bytes, where: str) -> Record:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError):
        raise ConfigError(f"{where} is not valid JSON. Remove the line or run again.") from None
    if problem := problem_of(record):
        raise ConfigError(f"{where}: {problem}. Remove the line or run again.")
    return dict(record)


def _now() -> datetime:
    # As the file has it.
    return datetime.now(UTC).replace(microsecond=0)
