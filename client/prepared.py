"""A silo's examples, ready for the model: tokenised once, frozen layers run once.

Everything here is raw customer behaviour in another form. It never leaves the silo.

Shape suffixes: E examples, T tokens, H hidden size, F features, K outputs, N tokens of all
examples one after another.
"""

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batch import FORWARD_BUDGET, Batch, PreparedExamples
from client.prefix_choice import Choice, Chooser, Costs, Declined
from client.prefix_file import Texts
from client.prefix_store import Memory, PrefixStore
from client.whole_file import load_arrays, save_arrays
from silotune.models.batching import token_batches
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, Task, own_settings
from silotune.tasks.names import names_in
from silotune.tasks.objective import Objective

__all__ = ["Batch", "PreparedExamples", "Work", "load_or_prepare", "prepare"]

_TIMED = 3
"""Batches that are timed before the choice between storing and computing each time."""
_EXAMPLES_KEPT = 16
"""Files of tokenised examples in a silo's cache, at most: other tasks, weeks, seeds."""


@dataclass(slots=True)
class Work:
    """Counts what a process has had to compute; what came from a cache is not in it."""

    models_loaded: int = 0
    texts_tokenised: int = 0
    texts_run: int = 0
    """Texts that the frozen layers ran over to be stored."""


def prepare(
    examples: Examples,
    model: TextModel,
    cache: Path | None = None,
    *,
    passes: float | None = None,
    work: Work | None = None,
) -> PreparedExamples:
    """Tokenise ``examples`` and run the frozen layers of ``model`` over them once.

    Args:
        examples: from a task.
        model: gives the maximum length, the frozen layers, the precision, and whether their
            activations are kept.
        cache: folder within the silo for the activations; None keeps them in memory. A text
            is not run again when base, tokenizer, depth, precision and its tokens are the same.
        passes: expected passes over the examples; None: many.
        work: counts what was computed.
    """
    work = work or Work()
    count = len(examples)
    if model.backbone is None:
        zeros = np.zeros(count, dtype=np.int64)
        return PreparedExamples(examples, None, zeros, zeros + 1, zeros + 1, None)
    ids, pooled_E = _tokenise(examples, model)
    work.texts_tokenised += count
    numbers: dict[bytes, int] = {}
    tokens = [np.array(i, dtype=np.int32).tobytes() for i in ids]
    text_E = np.array([numbers.setdefault(t, len(numbers)) for t in tokens], dtype=np.int64)
    length_U = np.array([len(t) // 4 for t in numbers], dtype=np.int64)
    start_U = np.cumsum(length_U) - length_U
    ids_N = torch.from_numpy(np.frombuffer(b"".join(numbers), dtype=np.int32).copy())
    prepared = PreparedExamples(examples, ids_N, start_U[text_E], length_U[text_E], pooled_E, None)
    return _with_prefix(prepared, model, cache, passes, work)


def load_or_prepare(
    silo: SiloFolder,
    task: Task,
    model: TextModel,
    *,
    passes: float | None = None,
    work: Work | None = None,
) -> PreparedExamples:
    """Return the prepared examples of ``silo``, from its cache where nothing has changed.

    The cache is a folder of the silo: it never leaves, and is deleted with it.

    The texts themselves are dropped once they are tokens. Task and the merchant's settings of it,
    tables, tokenizer, base and lengths are part of the cache's key. Other arguments: as `prepare`.
    """
    work = work or Work()
    own = (own_settings(silo, name) for name in names_in(task.name))
    files = (*silo.path.glob("*.parquet"), *(path for path in own if path.exists()))
    tables = sorted((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    made_by = (model.base_digest, model.tokenizer_digest, model.cfg.max_tokens, model.cfg.pooling)
    asked, tokens = (
        hashlib.sha256(repr(what).encode()).hexdigest()[:32] for what in ((task, tables), made_by)
    )
    cache = silo.path / "cache"
    path = cache / f"examples-{asked}-{tokens}.npz"
    prepared = _from_arrays(load_arrays(path), task.objective)
    if prepared is None and model.backbone is None:
        # A model without text takes the rows of any that has them: building them costs seconds.
        others = (load_arrays(p) for p in sorted(cache.glob(f"examples-{asked}-*.npz")))
        found = next((a for a in others if a is not None), None)
        with_text = _from_arrays(found, task.objective)
        if with_text is not None:
            prepared = prepare(with_text.examples, model)
    if prepared is None:
        fresh = prepare(task.build(silo), model, cache, passes=passes, work=work)
        save_arrays(path, _arrays(fresh))
        _keep_newest(cache)
        return _without_texts(fresh)
    return _with_prefix(prepared, model, cache, passes, work)


def _from_arrays(
    arrays: dict[str, NDArray[Any]] | None, objective: Objective
) -> PreparedExamples | None:
    if arrays is None:
        return None
    examples = Examples(
        text=[""] * len(arrays["user_E"]),
        context=[],
        numeric_EF=arrays["numeric_EF"],
        label_EK=arrays["label_EK"],
        user_E=arrays["user_E"],
        visit_E=arrays["visit_E"],
        group=arrays["group"].tolist(),
        test_E=arrays["test_E"],
        objective=objective,
    )
    ids_N = torch.from_numpy(arrays["ids_N"]) if len(arrays["ids_N"]) else None
    return PreparedExamples(
        examples, ids_N, arrays["start_E"], arrays["length_E"], arrays["pooled_E"], None
    )


def _arrays(prepared: PreparedExamples) -> dict[str, NDArray[Any]]:
    examples = prepared.examples
    return {
        "numeric_EF": examples.numeric_EF,
        "label_EK": examples.label_EK,
        "user_E": examples.user_E,
        "visit_E": examples.visit_E,
        "group": np.array(examples.group, dtype=np.str_),
        "test_E": examples.test_E,
        "ids_N": np.empty(0, np.int32) if prepared.ids_N is None else prepared.ids_N.numpy(),
        "start_E": prepared.start_E,
        "length_E": prepared.length_E,
        "pooled_E": prepared.pooled_E,
    }


def _without_texts(prepared: PreparedExamples) -> PreparedExamples:
    bare = replace(prepared.examples, text=[""] * len(prepared.examples), context=[], keys={})
    return replace(prepared, examples=bare)


def _keep_newest(cache: Path) -> None:
    used = sorted(cache.glob("examples-*.npz"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in used[_EXAMPLES_KEPT:]:
        old.unlink(missing_ok=True)


def _tokenise(examples: Examples, model: TextModel) -> tuple[list[list[int]], NDArray[np.int64]]:
    limit = model.cfg.max_tokens
    if model.pooling == "last":
        # The last token has seen all: the context comes first, and is what is cut.
        encoded = model.tokenizer(
            examples.context, examples.text, truncation="only_first", max_length=limit
        )
        ids = encoded["input_ids"]
        return ids, np.array([len(i) for i in ids], dtype=np.int64)
    encoded = model.tokenizer(examples.text, examples.context, truncation=True, max_length=limit)
    ids = encoded["input_ids"]
    # Sequence 1 is the context; special tokens belong to none (None).
    first = [
        next((k for k, s in enumerate(e.sequence_ids) if s == 1), len(e)) for e in encoded.encodings
    ]
    return ids, np.array(first, dtype=np.int64)


def _with_prefix(
    prepared: PreparedExamples,
    model: TextModel,
    cache: Path | None,
    passes: float | None,
    work: Work,
) -> PreparedExamples:
    """Return ``prepared`` with the activations of the frozen layers, where they pay."""
    if prepared.ids_N is None or model.prefix_depth == 0:
        return prepared
    if model.cfg.prefix_cache == "off":
        return replace(prepared, choice=Choice(False, "by configuration"))
    # An example of every text.
    rows_U = np.unique(prepared.start_E, return_index=True)[1]
    chooser = Chooser(model.cfg.prefix_cache, passes)

    def fill(missing_U: NDArray[np.int64], out_NH: Tensor) -> float:
        rows = rows_U[missing_U]
        new = float(prepared.length_E[rows].sum() / len(out_NH))
        seconds = _run_prefix(prepared, model, rows, out_NH, lambda c: chooser.settle(c, new))
        work.texts_run += len(rows)
        return seconds

    store = _store(model, cache)
    texts = Texts.of(prepared.ids_N.numpy(), prepared.length_E[rows_U])
    try:
        stored_NH = store.get(texts, fill)
        if stored_NH is not None and chooser.choice is None:
            read = _read_seconds(replace(prepared, stored_NH=stored_NH), model, rows_U)
            chooser.settle(Costs(compute=store.token_seconds, read=read), 0.0)
    except Declined:
        stored_NH = None
    choice = chooser.choice
    if stored_NH is None and (choice is None or choice.on):
        choice = Choice(False, "no room within its limit or on the disk")
    return replace(prepared, stored_NH=stored_NH, choice=choice)


def _store(model: TextModel, cache: Path | None) -> PrefixStore | Memory:
    hidden = int(model.backbone.config.hidden_size)
    if cache is None:
        return Memory(hidden, model.precision)
    gigabytes = model.cfg.prefix_cache_gb
    return PrefixStore(
        cache,
        f"{model.base_digest} {model.tokenizer_digest} {model.prefix.fingerprint}",
        hidden,
        model.precision,
        budget=None if gigabytes is None else int(1e9 * gigabytes),
    )


def _run_prefix(
    prepared: PreparedExamples,
    model: TextModel,
    rows: NDArray[np.int64],
    out_NH: Tensor,
    judge: Callable[[Costs], None],
) -> float:
    """Fill ``out_NH`` for ``rows``; return the least seconds that a token took.

    ``judge`` hears the costs after the first batches, and may raise.
    """
    device = next(model.parameters()).device
    filled = replace(prepared, stored_NH=out_NH)
    parts = list(token_batches(rows, prepared.length_E, FORWARD_BUDGET))
    times_B: list[tuple[float, float, float]] = []
    with model.autocast():
        for number, part in enumerate(parts):
            batch = prepared.batch(part, device)
            if batch.ids_ET is None or batch.mask_ET is None:
                raise AssertionError  # text models only
            began = time.perf_counter()
            states_ETH = model.prefix.compute(batch.ids_ET, batch.mask_ET)
            states_NH = states_ETH[batch.mask_ET.bool()].to(out_NH)
            computed = time.perf_counter()
            out_NH[_positions(prepared, part)] = states_NH
            if number < _TIMED:
                stored = time.perf_counter()
                tokens = len(states_NH)
                read = _read_seconds(filled, model, part)
                times_B.append(((computed - began) / tokens, (stored - computed) / tokens, read))
            if number + 1 == min(_TIMED, len(parts)):
                # The least of a few: the first warms up, another program may hold the processor.
                compute, store, read = (min(times) for times in zip(*times_B, strict=True))
                judge(Costs(compute=compute, store=store, read=read))
    return min((t[0] for t in times_B), default=math.nan)


def _positions(prepared: PreparedExamples, rows: NDArray[np.int64]) -> Tensor:
    spans = zip(prepared.start_E[rows], prepared.length_E[rows], strict=True)
    return torch.from_numpy(np.concatenate([np.arange(s, s + n) for s, n in spans]))


def _read_seconds(prepared: PreparedExamples, model: TextModel, rows: NDArray[np.int64]) -> float:
    device = next(model.parameters()).device
    part = next(token_batches(rows, prepared.length_E, FORWARD_BUDGET))
    began = time.perf_counter()
    prepared.batch(part, device)
    return (time.perf_counter() - began) / int(prepared.length_E[part].sum())
