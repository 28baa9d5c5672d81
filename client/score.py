"""Scores of a task for a merchant's own customers: tables and adapter in, a Parquet file out.

What is written here is the merchant's own data: scores of its customers, beside the keyed hashes
of its silo folder. It stays where the tables are. It is no release: nothing of it passes the
egress gate, nothing is charged, and no message to an aggregator can ask for it or carry it.

Shape suffixes: E examples, K outputs of the head.
"""

import datetime as dt
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from client.prepared import prepare
from client.score_settings import ScoreSettings
from client.whole_file import write_file
from silotune import __version__
from silotune.errors import ConfigError, DataError
from silotune.models.stored import read_adapter
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import AsksAt, Examples, Task

__all__ = [
    "Scored",
    "about",
    "end_of",
    "load_model",
    "logits_of",
    "score_silo",
    "write_scores",
    "write_table",
]

Progress = Callable[[int, int], None]

_ROWS = 4096
"""Between two steps of the progress bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """Examples of one silo and what a model says of them. Private, as the tables are."""

    examples: Examples
    rows: NDArray[np.int64]
    """Of the examples, those that were scored."""
    logit_EK: NDArray[np.float32]
    """What the head gives."""
    score_EK: NDArray[np.float64]
    """Chances, or predicted values; see `silotune.tasks.objective.Objective.scores`."""
    date: dt.datetime | None
    """As of when; None: the task's own test examples."""


def score_silo(
    settings: ScoreSettings,
    silo: SiloFolder,
    *,
    as_of: dt.datetime | None = None,
    own_examples: bool = False,
    model: TextModel | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Score every question that ``settings.task`` has for the customers of ``silo``.

    Args:
        settings: task, model and adapter.
        silo: whose tables are read.
        as_of: moment after which nothing is known, UTC; None: the end of the tables.
        own_examples: score the task's test examples, whose outcome is known, in place of that.
        model: from `load_model`; None: loaded.
        progress: called with (examples scored, of how many).

    Raises:
        ConfigError: ``as_of`` for a task that asks about its own examples only.
        DataError: the tables are empty, or nothing can be asked.
        ModelError: the adapter or base cannot be used.
    """
    task: Task = settings.task
    date = None
    if isinstance(task, AsksAt) and not own_examples:
        date = as_of or end_of(silo)
        examples = task.build_at(silo, date)
    elif as_of is not None:
        raise ConfigError(
            f"--as-of: task '{task.name}' asks about its own examples only. Leave it out: those "
            "from its split on are scored."
        )
    else:
        end_of(silo)
        examples = task.build(silo)
    rows = examples.rows(test=True)
    if not len(rows):
        raise DataError(f"{silo.path}: task '{task.name}' has no example from its split on.")
    if "user_id" not in examples.keys:
        raise ConfigError(
            f"task '{task.name}' does not say whose its examples are (Examples.keys); it cannot "
            "be scored by customer."
        )
    logit_EK = logits_of(model or load_model(settings), silo, examples, rows, progress)
    score_EK = examples.objective.scores(logit_EK)
    if not np.isfinite(score_EK).all():
        # An adapter is checked to be finite; what it makes of a text need not be.
        raise DataError(f"{silo.path}: the adapter gives scores that are no numbers. Use another.")
    return Scored(examples=examples, rows=rows, logit_EK=logit_EK, score_EK=score_EK, date=date)


def load_model(settings: ScoreSettings) -> TextModel:
    """Return the model with its adapter loaded. Raises ModelError."""
    task = settings.task
    model = TextModel(
        settings.model,
        numeric_size=len(task.numeric_names),
        outputs=task.outputs,
        public_texts=task.public_texts(),
    )
    model.load_adapter(read_adapter(settings.adapter, model))
    return model


def logits_of(
    model: TextModel,
    silo: SiloFolder,
    examples: Examples,
    rows: NDArray[np.int64],
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return what the head of ``model`` gives for ``rows``, (len(rows), K).

    Texts that training has run through the frozen layers are taken from the silo's prefix store.
    """
    prepared = prepare(examples, model, silo.path / "cache", passes=1.0)
    parts = []
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        parts.append(prepared.scores(model, part))
        if progress:
            progress(start + len(part), len(rows))
    return np.concatenate(parts)


def write_scores(
    scored: Scored, settings: ScoreSettings, out: Path, *, with_labels: bool = False
) -> None:
    """Write ``scored`` to ``out``, whole or not at all, mode 0600.

    Columns: the examples' keys (``user_id`` first), then `Objective.score_names` (``score``, or a
    column for each class by its name), and with ``with_labels`` `Objective.outcomes` (``label``).
    The file's metadata say under ``silotune`` which task, date and adapter it is of.

    Raises:
        ConfigError: labels are asked for that nobody knows yet, or ``out`` cannot be written.
    """
    if with_labels and scored.date is not None:
        raise ConfigError(
            "--with-labels: what happens after the date is not known. Score the task's own test "
            "examples in place of a date."
        )
    write_table(_table(scored, with_labels=with_labels), out, about(settings, scored.date))


def write_table(table: pa.Table, out: Path, meant: Mapping[str, Any]) -> None:
    """Write ``table`` to ``out``, whole or not at all, mode 0600, with ``meant`` in its metadata.

    Raises:
        ConfigError: ``out`` cannot be written.
    """
    told = table.replace_schema_metadata({"silotune": json.dumps(meant)})
    write_file(out, lambda file: pq.write_table(told, file, compression="zstd"))


def _table(scored: Scored, *, with_labels: bool) -> pa.Table:
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


def end_of(silo: SiloFolder) -> dt.datetime:
    """Return the first moment after the newest event, UTC. Raises DataError: there is none."""
    with silo.connect() as connection:
        (last,) = connection.execute("SELECT max(time) FROM events").fetchall()[0]
    if last is None:
        raise DataError(f"{silo.path / 'events.parquet'}: has no rows. Import the tables again.")
    end: dt.datetime = last + dt.timedelta(microseconds=1)
    return end
