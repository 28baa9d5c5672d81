"""A silo's examples, ready for the model: tokenised once, frozen layers run once.

Everything here is raw customer behaviour in another form. It never leaves the silo.

Shape suffixes: E examples, T tokens, H hidden size, F features, K outputs, N tokens of all
examples one after another.
"""

import hashlib
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from silotune.models.batching import token_batches
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples, Task

__all__ = ["Batch", "PreparedExamples", "load_or_prepare", "prepare"]

_PREFIX_BUDGET = 4096
"""Padded tokens per batch of the frozen layers: large enough for the processor's units."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one forward pass takes. Padded on the right."""

    ids_ET: Tensor | None
    mask_ET: Tensor | None
    pool_ET: Tensor | None
    """1 for the tokens of the text, 0 for its context and padding."""
    numeric_EF: Tensor
    stored_ETH: Tensor | None
    label_EK: Tensor

    def logits(self, model: TextModel) -> Tensor:
        """Run ``model`` on the batch, (E, K)."""
        logits_EK: Tensor = model(
            self.ids_ET, self.mask_ET, self.numeric_EF, self.pool_ET, self.stored_ETH
        )
        return logits_EK


@dataclass(frozen=True, slots=True, eq=False)
class PreparedExamples:
    """Examples with their token ids and, where layers are frozen, the activations above them."""

    examples: Examples
    ids_N: Tensor | None
    start_E: NDArray[np.int64]
    """Where each example's tokens begin in ``ids_N`` and ``stored_NH``."""
    length_E: NDArray[np.int64]
    pooled_E: NDArray[np.int64]
    """How many tokens, from the first, are pooled over."""
    stored_NH: Tensor | None

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Gather ``rows`` into one padded batch on ``device``."""
        numeric_EF = torch.from_numpy(self.examples.numeric_EF[rows]).to(device)
        label_EK = torch.from_numpy(self.examples.label_EK[rows]).to(device)
        if self.ids_N is None:
            return Batch(None, None, None, numeric_EF, None, label_EK)
        length_E = torch.from_numpy(self.length_E[rows])
        offset_T = torch.arange(int(length_E.max()))
        mask_ET = offset_T < length_E[:, None]
        # Padding repeats the example's first token: its mask is 0, so it is never read.
        index_ET = torch.from_numpy(self.start_E[rows])[:, None] + offset_T * mask_ET
        stored = None if self.stored_NH is None else self.stored_NH[index_ET].to(device)
        return Batch(
            self.ids_N[index_ET].long().to(device),
            mask_ET.long().to(device),
            (offset_T < torch.from_numpy(self.pooled_E[rows])[:, None]).to(device),
            numeric_EF,
            stored,
            label_EK,
        )

    @torch.inference_mode()
    def scores(
        self, model: TextModel, rows: NDArray[np.int64], *, budget: int = _PREFIX_BUDGET
    ) -> NDArray[np.float32]:
        """Return the logits of ``rows``, (len(rows), K), in their order."""
        device = next(model.parameters()).device
        out = np.empty((len(self.examples), model.head.score.out_features), dtype=np.float32)
        for part in token_batches(rows, self.length_E, budget):
            out[part] = self.batch(part, device).logits(model).float().cpu().numpy()
        return out[rows]


def prepare(examples: Examples, model: TextModel, cache: Path | None = None) -> PreparedExamples:
    """Tokenise ``examples`` and run the frozen layers of ``model`` over them once.

    Args:
        examples: from a task.
        model: gives the maximum length, the frozen layers and the precision.
        cache: folder within the silo for the activations; None keeps them in memory. A file
            is reused when base, depth, precision and every token are the same.
    """
    count = len(examples)
    if model.backbone is None:
        zeros = np.zeros(count, dtype=np.int64)
        return PreparedExamples(examples, None, zeros, zeros + 1, zeros + 1, None)
    ids, pooled_E = _tokenise(examples, model)
    length_E = np.array([len(i) for i in ids], dtype=np.int64)
    start_E = np.concatenate([[0], np.cumsum(length_E)[:-1]]).astype(np.int64)
    ids_N = torch.from_numpy(np.concatenate([np.array(i, dtype=np.int32) for i in ids]))
    prepared = PreparedExamples(examples, ids_N, start_E, length_E, pooled_E, None)
    if model.prefix_depth == 0:
        return prepared
    return replace(prepared, stored_NH=_stored(prepared, model, cache))


def load_or_prepare(silo: SiloFolder, task: Task, model: TextModel) -> PreparedExamples:
    """Return the prepared examples of ``silo``, from its cache where nothing has changed.

    The cache is a folder of the silo: it never leaves, and is deleted with it.

    The texts themselves are dropped once they are tokens. Task, tables, tokenizer, base and
    lengths are part of the cache's key.
    """
    tables = sorted(
        (f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in silo.path.glob("*.parquet")
    )
    what = (task, tables, model.base_digest, model.cfg.max_tokens, model.cfg.pooling)
    cache = silo.path / "cache"
    path = cache / f"examples-{hashlib.sha256(repr(what).encode()).hexdigest()[:32]}.npz"
    prepared = _load(path)
    if prepared is None:
        fresh = prepare(task.build(silo), model, cache)
        _save(path, fresh)
        return _without_texts(fresh)
    if prepared.ids_N is None or model.prefix_depth == 0:
        return prepared
    return replace(prepared, stored_NH=_stored(prepared, model, cache))


def _load(path: Path) -> PreparedExamples | None:
    """Return what `_save` wrote; None where it is not there or not whole."""
    try:
        with path.open("rb") as file, np.load(file) as saved:
            arrays = {name: saved[name] for name in saved.files}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error):
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
    )
    ids_N = torch.from_numpy(arrays["ids_N"]) if len(arrays["ids_N"]) else None
    return PreparedExamples(
        examples, ids_N, arrays["start_E"], arrays["length_E"], arrays["pooled_E"], None
    )


def _without_texts(prepared: PreparedExamples) -> PreparedExamples:
    examples = replace(prepared.examples, text=[""] * len(prepared.examples), context=[])
    return replace(prepared, examples=examples)


def _save(path: Path, prepared: PreparedExamples) -> None:
    examples = prepared.examples
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_suffix(f".{os.getpid()}.part")
    with part.open("wb") as file:
        np.savez(
            file,
            numeric_EF=examples.numeric_EF,
            label_EK=examples.label_EK,
            user_E=examples.user_E,
            visit_E=examples.visit_E,
            group=np.array(examples.group, dtype=np.str_),
            test_E=examples.test_E,
            ids_N=np.empty(0, np.int32) if prepared.ids_N is None else prepared.ids_N.numpy(),
            start_E=prepared.start_E,
            length_E=prepared.length_E,
            pooled_E=prepared.pooled_E,
        )
    part.replace(path)


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


def _stored(prepared: PreparedExamples, model: TextModel, cache: Path | None) -> Tensor:
    if prepared.ids_N is None:
        raise AssertionError  # the caller has tokens
    hidden = int(model.backbone.config.hidden_size)
    shape = (len(prepared.ids_N), hidden)
    if cache is None:
        return _run_prefix(prepared, model, torch.empty(shape, dtype=model.precision))
    path = cache / f"prefix-{_key(prepared, model)}.bin"
    size = shape[0] * shape[1] * model.precision.itemsize
    # Another size is a file cut short after it was renamed: a full disk, a copied folder.
    if not path.exists() or path.stat().st_size != size:
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written under another name and renamed: a file that is there is whole.
        part = path.with_suffix(f".{os.getpid()}.part")
        mapped = _map(part, shape, model.precision, write=True)
        _run_prefix(prepared, model, mapped)
        del mapped
        part.replace(path)
    return _map(path, shape, model.precision, write=False)


def _map(path: Path, shape: tuple[int, int], dtype: torch.dtype, *, write: bool) -> Tensor:
    # Mapped, not read: the page cache shares one copy among all processes of the machine.
    size = shape[0] * shape[1]
    flat = torch.from_file(str(path), shared=write, size=size, dtype=dtype)
    return flat.view(shape)


def _run_prefix(prepared: PreparedExamples, model: TextModel, out_NH: Tensor) -> Tensor:
    device = next(model.parameters()).device
    with model.autocast():
        for rows in token_batches(
            np.arange(len(prepared.examples)), prepared.length_E, _PREFIX_BUDGET
        ):
            batch = prepared.batch(rows, device)
            if batch.ids_ET is None or batch.mask_ET is None:
                raise AssertionError  # text models only
            states_ETH = model.prefix.compute(batch.ids_ET, batch.mask_ET)
            lengths = prepared.length_E[rows]
            target = np.concatenate(
                [np.arange(s, s + n) for s, n in zip(prepared.start_E[rows], lengths, strict=True)]
            )
            out_NH[torch.from_numpy(target)] = states_ETH[batch.mask_ET.bool()].to(out_NH)
    return out_NH


def _key(prepared: PreparedExamples, model: TextModel) -> str:
    if prepared.ids_N is None:
        raise AssertionError  # the caller has tokens
    digest = hashlib.sha256()
    parts = (model.base_digest, model.prefix_depth, model.precision, len(prepared.examples))
    digest.update(repr(parts).encode())
    digest.update(prepared.ids_N.numpy().tobytes())
    digest.update(prepared.length_E.tobytes())
    return digest.hexdigest()[:32]
