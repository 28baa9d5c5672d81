"""The Parquet file of scores: it grows with the parts that are scored, whole or not at all."""

import contextlib
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from client.score import Scored
from client.score_settings import ScoreSettings
from client.whole_file import told, whole, write_file
from silotune import __version__
from silotune.errors import ConfigError

__all__ = ["Written", "about", "write_parquet", "write_scores"]


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
    with whole(out) as file:
        rows, date = 0, None
        writer: pq.ParquetWriter | None = None
        try:
            for scored in parts:
                table = _table(scored, with_labels=with_labels)
                with told(out):
                    if writer is None:
                        said = {"silotune": json.dumps(about(settings, scored.date))}
                        schema = table.schema.with_metadata(said)
                        writer = pq.ParquetWriter(file, schema, compression="zstd")
                    writer.write_table(table.cast(writer.schema))
                rows, date = rows + table.num_rows, scored.date
        except BaseException:
            if writer is not None:
                # Else it closes itself later, into a file that is gone.
                with contextlib.suppress(Exception):
                    writer.close()
            raise
        if writer is not None:
            with told(out):
                writer.close()
    return Written(rows=rows, date=date)


def write_parquet(table: pa.Table, out: Path, said: Mapping[str, Any] | None = None) -> None:
    """Write ``table`` to ``out``, whole or not at all, mode 0600; ``said`` into its metadata.

    Raises:
        ConfigError: ``out`` cannot be written.
    """
    if said is not None:
        table = table.replace_schema_metadata({"silotune": json.dumps(said)})
    write_file(out, lambda file: pq.write_table(table, file, compression="zstd"))


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


def about(settings: ScoreSettings, date: dt.datetime | None) -> dict[str, Any]:
    """Return what a file of results says of itself: version, task, date, adapter."""
    path = settings.adapter
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    digest = hashlib.sha256(b"".join(hashlib.sha256(f.read_bytes()).digest() for f in files))
    return {
        "version": __version__,
        "task": settings.task.name,
        "as_of": date.isoformat() if date else None,
        "adapter": str(path),
        "adapter_sha256": digest.hexdigest(),
    }
