"""Scores of a task for a merchant's own customers: tables and adapter in, chances or values out.

What comes out is the merchant's own data: scores of its customers, beside the keyed hashes of its
silo folder. It stays where the tables are. It is no release: nothing of it passes the egress
gate, nothing is charged, and no message to an aggregator can ask for it or carry it.

Shape suffixes: E examples, K outputs of the head.
"""

import datetime as dt
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from client.prepared import prepare
from client.score_settings import ScoreSettings
from silotune.errors import ConfigError, DataError, NoExamplesError
from silotune.federation import model_for
from silotune.models.heads import adapter_of_part
from silotune.models.stored import read_adapter
from silotune.models.text_model import TextModel
from silotune.tables.as_of import SiloOfUsers
from silotune.tables.ratings import seen
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import AsksAt, Examples, ListsProducts, Task

__all__ = ["Asked", "Scored", "end_of", "load_model", "score_parts", "score_silo"]

Progress = Callable[[int, int], None]

_ROWS = 4096
"""Between two steps of the progress bar."""
_FIRST_CUSTOMERS = 64
_ROWS_AT_ONCE = 16_384
"""Examples in memory, about: some tens of megabytes of words."""


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

    def without_words(self) -> "Scored":
        """Return the same without texts and names: what is left is small."""
        count = len(self.examples)
        bare = replace(self.examples, text=[""] * count, context=[], group=[], keys={})
        return replace(self, examples=bare)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What is asked: of when, about whom, about how much."""

    as_of: dt.datetime | None = None
    """Moment after which nothing is known, UTC; None: the end of the tables."""
    own_examples: bool = False
    """The task's test examples, whose outcome is known, in place of that."""
    customers: Sequence[str] | None = None
    """Keyed hashes; None: everyone."""
    most: int | None = None
    """Questions per customer, at most; None: all there are. See `AsksAt.build_at`."""


def score_silo(
    settings: ScoreSettings,
    silo: SiloFolder,
    asked: Asked | None = None,
    *,
    model: TextModel | None = None,
    progress: Progress | None = None,
) -> Scored:
    """Score every question that ``settings.task`` has for the customers of ``silo``, at once.

    Args:
        settings: task, model and adapter.
        silo: whose tables are read.
        asked: None: about everyone, at the end of the tables.
        model: from `load_model`; None: loaded.
        progress: called with (examples scored, of how many).

    Raises:
        ConfigError: a date or a cap for a task that asks about its own examples only.
        DataError: the tables are empty, or nothing can be asked.
        ModelError: the adapter or base cannot be used.
    """
    asked = asked or Asked()
    date = _date(settings.task, silo, asked)
    if asked.customers is not None:
        silo = SiloOfUsers.of(silo, asked.customers)
    return _scored(settings, silo, date, asked.most, model or load_model(settings), progress)


def score_parts(
    settings: ScoreSettings,
    silo: SiloFolder,
    asked: Asked | None = None,
    *,
    model: TextModel | None = None,
    progress: Progress | None = None,
    customers_at_once: int | None = None,
) -> Iterator[Scored]:
    """Yield what `score_silo` returns, some customers at a time, ordered by customer.

    Memory does not grow with the number of customers, apart from their ids. The rows are the
    same: no example of a customer depends on another one.

    Args:
        settings: as `score_silo`.
        silo: as `score_silo`.
        asked: as `score_silo`.
        model: as `score_silo`.
        progress: called with (customers done, of how many).
        customers_at_once: None: as many as have some ten thousand questions.

    Raises:
        ConfigError: as `score_silo`.
        DataError: as `score_silo`.
        ModelError: as `score_silo`.
    """
    asked = asked or Asked()
    date = _date(settings.task, silo, asked)
    if isinstance(settings.task, ListsProducts):
        # Of no customer: there is nothing to divide.
        yield _scored(settings, silo, date, None, model or load_model(settings), progress)
        return
    users = _customers(silo, date, asked.customers)
    model = model or load_model(settings)
    size, done, found = customers_at_once or _FIRST_CUSTOMERS, 0, False
    nothing = NoExamplesError(f"{silo.path}: no customer was seen before {date}.")
    while done < len(users):
        some = users[done : done + size]

        def step(rows: int, of: int, done: int = done, count: int = len(some)) -> None:
            if progress:
                progress(done + count * rows // of, len(users))

        rows = 0
        try:
            part = SiloOfUsers.of(silo, some)
            scored = _scored(settings, part, date, asked.most, model, step)
        except NoExamplesError as error:
            nothing = error
        else:
            found, rows = True, len(scored.rows)
            yield scored
        done += len(some)
        if progress:
            progress(done, len(users))
        if customers_at_once is None:
            size = max(1, min(4 * size, size * _ROWS_AT_ONCE // max(1, rows)))
    if not found:
        raise nothing


def load_model(settings: ScoreSettings) -> TextModel:
    """Return the model of the task with its adapter loaded; one of several heads is taken out.

    Raises:
        ModelError: the adapter or base cannot be used.
    """
    model = model_for(settings.model, settings.task)
    if settings.shared is None:
        model.load_adapter(read_adapter(settings.adapter, model))
        return model
    whole = model_for(settings.model, settings.shared)
    flat_D = read_adapter(settings.adapter, whole)
    number = [task.name for task in settings.shared.tasks].index(settings.task.name)
    model.load_adapter(adapter_of_part(flat_D, whole.layout, number, model.layout))
    return model


def _logits(
    model: TextModel,
    silo: SiloFolder,
    examples: Examples,
    rows: NDArray[np.int64],
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Return what ``model`` gives for ``rows``, (len(rows), K).

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


def _scored(
    settings: ScoreSettings,
    silo: SiloFolder,
    date: dt.datetime | None,
    most: int | None,
    model: TextModel,
    progress: Progress | None,
) -> Scored:
    task: Task = settings.task
    if date is not None and isinstance(task, AsksAt):
        examples = task.build_at(silo, date, most=most)
    else:
        examples = task.build(silo)
    rows = examples.rows(test=True)
    if not len(rows):
        raise NoExamplesError(f"{silo.path}: task '{task.name}' has no example from its split on.")
    if not examples.keys:
        raise ConfigError(
            f"task '{task.name}' does not name its examples (Examples.keys); nobody could tell "
            "what a score is of."
        )
    logit_EK = _logits(model, silo, examples, rows, progress)
    score_EK = examples.objective.scores(logit_EK)
    if not np.isfinite(score_EK).all():
        # An adapter is checked to be finite; what it makes of a text need not be.
        raise DataError(f"{silo.path}: the adapter gives scores that are no numbers. Use another.")
    return Scored(examples=examples, rows=rows, logit_EK=logit_EK, score_EK=score_EK, date=date)


def _date(task: Task, silo: SiloFolder, asked: Asked) -> dt.datetime | None:
    """Return as of when ``task`` is asked; None: about its own examples."""
    end, told = end_of(silo), {"--customers": asked.customers, "--per-customer": asked.most}
    if isinstance(task, ListsProducts):
        _refuse(told, f"task '{task.name}' asks about products, of no customer. Leave it out.")
    if isinstance(task, AsksAt) and not asked.own_examples:
        return asked.as_of or end
    _refuse(
        {"--as-of": asked.as_of, "--per-customer": asked.most},
        f"task '{task.name}' asks about its own examples only. Leave it out: those from its split "
        "on are scored.",
    )
    return None


def _refuse(options: Mapping[str, object], why: str) -> None:
    for option, value in options.items():
        if value is not None:
            raise ConfigError(f"{option}: {why}")


def _customers(
    silo: SiloFolder, date: dt.datetime | None, chosen: Sequence[str] | None
) -> list[str]:
    before = "" if date is None else "WHERE time < $date"
    with silo.connect() as connection:
        rows = connection.execute(
            f"SELECT DISTINCT user_id FROM ({seen(silo)}) {before}",  # noqa: S608  # no value
            {} if date is None else {"date": date},
        ).fetchall()
    known = {user for (user,) in rows}
    return sorted(known if chosen is None else known.intersection(chosen))


def end_of(silo: SiloFolder) -> dt.datetime:
    """Return the first moment after the newest event, UTC. Raises DataError: there is none."""
    with silo.connect() as connection:
        (last,) = connection.execute(f"SELECT max(time) FROM ({seen(silo)})").fetchall()[0]  # noqa: S608
    if last is None:
        raise DataError(f"{silo.path / 'events.parquet'}: has no rows. Import the tables again.")
    end: dt.datetime = last + dt.timedelta(microseconds=1)
    return end
