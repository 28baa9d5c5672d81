"""Durable state of a federated run: adapters by round, what rounds cost and what was measured.

A round is there when its file is: written under another name, synced, renamed. A killed
aggregator starts again at the first round that is not there.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from silotune.errors import ConfigError

__all__ = ["RunStore"]


class RunStore:
    """State of one job in ``folder``."""

    def __init__(self, folder: Path, layout_digest: str) -> None:
        self.folder = folder
        self._digest = layout_digest
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, round_: int, adapter_D: Tensor, record: dict[str, Any]) -> None:
        """Make round ``round_`` durable: its adapter, then its record."""
        target = self._path(round_)
        part = target.with_suffix(".part")
        save_file({"flat": adapter_D.contiguous()}, part, {"layout": self._digest})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(target)
        with (self.folder / "rounds.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": round_, **record}) + "\n")

    def save_metrics(self, round_: int, record: dict[str, Any]) -> None:
        """Make what was measured after ``round_`` durable, whole or not at all."""
        target = self._metrics_path(round_)
        part = target.with_suffix(".part")
        with part.open("w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(target)

    def metrics(self, round_: int) -> dict[str, Any] | None:
        """Return what `save_metrics` stored for ``round_``, or None. Raises ConfigError."""
        path = self._metrics_path(round_)
        if not path.exists():
            return None
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: damaged ({error}); delete it to measure again.") from error
        return record

    def next_round(self) -> int:
        """Return the first round whose adapter is not there."""
        round_ = 0
        while self._path(round_).exists():
            round_ += 1
        return round_

    def load(self, round_: int) -> Tensor:
        """Return the adapter after ``round_``, (D,).

        Raises:
            ConfigError: the file is not whole, or holds an adapter of another layout.
        """
        path = self._path(round_)
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
        path = self.folder / "rounds.jsonl"
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}"):
                    yield json.loads(line)

    def _metrics_path(self, round_: int) -> Path:
        return self.folder / f"metrics-{round_:04d}.json"

    def _path(self, round_: int) -> Path:
        return self.folder / f"round-{round_:04d}.safetensors"
