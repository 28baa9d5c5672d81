"""The Parquet file of scores: it grows with the parts that are scored, whole or not at all."""

import contextlib
import datetime as dt
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from client.score import Scored
from client.score_settings import ScoreSettings
from client.whole_file import become, claimed
from silotune import __version__
from silotune.errors import ConfigError

__all__ = ["Written", "write_parquet", "write_scores"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Written:
    """What is in the file."""

    rows: int
    date: dt.datetime | None
    """As of when; None: the task's own test examples."""


def write_scores(
    parts: Iterable[Scored], settings: ScoreSettings, out: Path, *, with_labels: bool = False
) -> Written:
    """Write ``parts`` one after another to ``out``, mode 0600.

    The file has its name once all of them are in it; until then, and after an error or Ctrl-C,
    what had the name before has it still. Parts are scored while the file is written, so that
    one is in memory at a time.

    Columns: the examples' keys (``user_id`` first, where they are somebody's), then
    `Objective.score_names` (``score``, or a column for each class by its name), and with
    ``with_labels`` `Objective.outcomes` (``label``).
    The file's metadata say under ``silotune`` which task, date and adapter it is of.

    Raises:
        ConfigError: labels are asked for that nobody knows yet, or ``out`` cannot be written.
        DataError: from the parts, as everything that scoring them raises.
    """
    with _claimed(out) as file:
        rows, date = 0, None
        writer: pq.ParquetWriter | None = None
        try:
            for scored in parts:
                table = _table(scored, with_labels=with_labels)
                with _told(out):
                    if writer is None:
                        about = {"silotune": json.dumps(_about(scored, settings))}
                        schema = table.schema.with_metadata(about)
                        writer = pq.ParquetWriter(file, schema, compression="zstd")
                    writer.write_table(table.cast(writer.schema))
                rows, date = rows + table.num_rows, scored.date
        except BaseException:
            if writer is not None:
                # Else it closes itself later, into a file that is gone.
                with contextlib.suppress(Exception):
                    writer.close()
            raise
        with _told(out):
            if writer is not None:
                writer.close()
            file.flush()
            os.fsync(file.fileno())
            become(file, out)
    return Written(rows=rows, date=date)


def write_parquet(table: pa.Table, out: Path) -> None:
    """Write ``table`` to ``out``, whole or not at all, mode 0600.

    Raises:
        ConfigError: ``out`` cannot be written.
    """
    with _claimed(out) as file, _told(out):
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
        become(file, out)


@contextlib.contextmanager
def _claimed(out: Path) -> Iterator[BinaryIO]:
    with contextlib.ExitStack() as stack:
        # At the start: hours of scoring should not end before a folder that cannot be written.
        with _told(out):
            out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = stack.enter_context(claimed(out, 10.0))
        if file is None:
            raise ConfigError(f"{out}: another process is writing it. Wait for it.")
        yield file


@contextlib.contextmanager
def _told(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}).") from error


def _table(scored: Scored, *, with_labels: bool) -> pa.Table:
    if with_labels and scored.date is not None:
        raise ConfigError(
            "--with-labels: what happens after the date is not known. Score the task's own test "
            "examples in place of a date."
        )
    examples, rows, objective = scored.examples, scored.rows, scored.examples.objective
    columns: dict[str, Any] = {}
    for name, values in examples.keys.items():
        columns[name] = pa.array([values[i] for i in rows])
    for name, score_E in zip(objective.score_names, scored.score_EK.T, strict=True):
        columns[name if name not in columns else f"score {name}"] = pa.array(score_E, pa.float32())
    if with_labels:
        for name, values in objective.outcomes(examples.label_EK[rows]).items():
            numeric = isinstance(values[0], float)
            columns[name] = pa.array(values, pa.float32() if numeric else pa.string())
    return pa.table(columns)


def _about(scored: Scored, settings: ScoreSettings) -> dict[str, Any]:
    path = settings.adapter
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files))
    return {
        "version": __version__,
        "task": settings.task.name,
        "as_of": scored.date.isoformat() if scored.date else None,
        "adapter": str(path),
        "adapter_sha256": digest.hexdigest(),
    }
