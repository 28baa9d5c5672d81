"""Durable state of a federated run: adapters by round, what rounds cost and what was measured.

A round is there when its adapter's file is, and the file holds the round's record too: written
under another name, synced, renamed. A killed aggregator starts again at the first round that is
not there. ``rounds.jsonl`` is for readers; it is made again from the files where it is behind.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from silotune.errors import ConfigError, StorageError
from silotune.tables.staging import sync

__all__ = ["RunStore"]


class RunStore:
    """State of one job in ``folder``."""

    def __init__(self, folder: Path, layout_digest: str) -> None:
        self.folder = folder
        self._digest = layout_digest
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        round_: int,
        adapter_D: Tensor,
        record: dict[str, Any],
        releases: Mapping[int, str] | None = None,
    ) -> None:
        """Make round ``round_`` durable: releases, then adapter and record at once.

        Args:
            round_: counted from 0.
            adapter_D: after the round.
            record: what it cost, for `records`.
            releases: SHA-256 of what each node's silo released, as its ledger has it.

        Raises:
            StorageError: the disk does not take it. The round is as if it had not been.
        """
        line = json.dumps({"round": round_, **record})
        about = {"layout": self._digest, "record": line}
        self._write(self._releases_path(round_), json.dumps(releases or {}).encode())
        self._write(self._path(round_), save({"flat": adapter_D.contiguous()}, about))
        self._write_records([*self._lines_before(round_), line])

    def save_metrics(self, round_: int, record: dict[str, Any]) -> None:
        """Make what was measured after ``round_`` durable, whole or not. Raises StorageError."""
        self._write(self._metrics_path(round_), json.dumps(record).encode())

    def metrics(self, round_: int) -> dict[str, Any] | None:
        """Return what `save_metrics` stored for ``round_``, or None. Raises ConfigError."""
        return self._read_json(self._metrics_path(round_), "delete it to measure again")

    def releases(self, round_: int) -> dict[int, str]:
        """Return the SHA-256 of what went into ``round_``, by node. Raises ConfigError."""
        found = self._read_json(self._releases_path(round_), "delete it") or {}
        return {int(node): str(digest) for node, digest in found.items()}

    def next_round(self) -> int:
        """Return the first round whose adapter is not there."""
        round_ = 0
        while self._path(round_).exists():
            round_ += 1
        return round_

    def resume(self) -> int:
        """Return `next_round`, after `records` was brought up to it. Raises StorageError."""
        round_ = self.next_round()
        lines = self._lines_before(round_)
        path = self.folder / "rounds.jsonl"
        there = path.read_bytes() if path.exists() else b""
        if lines and there != _text(lines):
            self._write_records(lines)
        return round_

    def start(self, adapter_D: Tensor) -> Tensor:
        """Return the adapter that the run starts from: the one kept, or ``adapter_D``, kept now.

        Where it came from may have moved on when a killed aggregator comes back.

        Raises:
            ConfigError: as `load`.
            StorageError: the disk does not take it.
        """
        path = self.folder / "start.safetensors"
        if path.exists():
            return self._load(path)
        about = {"layout": self._digest}
        self._write(path, save({"flat": adapter_D.contiguous()}, about))
        return adapter_D

    def load(self, round_: int) -> Tensor:
        """Return the adapter after ``round_``, (D,).

        Raises:
            ConfigError: the file is not whole, or holds an adapter of another layout.
        """
        return self._load(self._path(round_))

    def _load(self, path: Path) -> Tensor:
        try:
            with safe_open(path, framework="pt") as file:
                layout = (file.metadata() or {}).get("layout")
                adapter_D: Tensor = file.get_tensor("flat")
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: damaged ({error}); delete it to run it again.") from error
        if layout != self._digest or adapter_D.dtype != torch.float32:
            raise ConfigError(f"{path}: holds an adapter of another layout; use another folder.")
        return adapter_D

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield the record of every round, in order."""
        for line in self._lines():
            yield json.loads(line)

    def _lines(self) -> list[str]:
        path = self.folder / "rounds.jsonl"
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return [line for line in lines if line.endswith("}")]

    def _lines_before(self, round_: int) -> list[str]:
        """Return one line for each round before ``round_``, from the files where there is none."""
        known: dict[int, str] = {}
        for line in self._lines():
            with contextlib.suppress(ValueError, KeyError):
                known[json.loads(line)["round"]] = line
        lines = (known.get(r) or self._kept_line(r) for r in range(round_))
        return [line for line in lines if line]

    def _kept_line(self, round_: int) -> str:
        with (
            contextlib.suppress(OSError, SafetensorError),
            safe_open(self._path(round_), framework="pt") as file,
        ):
            return str((file.metadata() or {}).get("record", ""))
        return ""

    def _write_records(self, lines: list[str]) -> None:
        self._write(self.folder / "rounds.jsonl", _text(lines))

    def _write(self, path: Path, content: bytes) -> None:
        part = path.with_name(path.name + ".part")
        try:
            with part.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync(self.folder)
        except OSError as error:
            raise StorageError(
                f"{path}: cannot be written ({error.strerror or error}). Make room or repair the "
                "disk; the run then goes on by itself. Rounds that are done are kept."
            ) from error

    @staticmethod
    def _read_json(path: Path, remedy: str) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: damaged ({error}); {remedy}.") from error
        return record

    def _metrics_path(self, round_: int) -> Path:
        return self.folder / f"metrics-{round_:04d}.json"

    def _releases_path(self, round_: int) -> Path:
        return self.folder / f"releases-{round_:04d}.json"

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:04d}.safetensors"


def _text(lines: list[str]) -> bytes:
    return "".join(line + "\n" for line in lines).encode()
